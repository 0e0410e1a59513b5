"""Finds the files of an input: a file, a folder of shards, or a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from geep_triton.files.formats import format_of, known_formats

OF_DATASETS = ("dataset_info.json", "state.json", "dataset_dict.json")  # what `datasets` saves beside its Arrow files
TEMPORARY = (".tmp", ".temp", ".partial", ".part", ".crdownload", ".unfinished", ".swp", "~")


@dataclass(frozen=True)
class Shard:
    """A file of an input.

    Attributes:
        path: where it lies.
        name: its path relative to the folder that was given, with "/" in it, by which outputs and records are named.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Listing:
    """What an input is made of.

    Attributes:
        shards: in the order of the inputs, and of one folder in the order of their names.
        left_out: names of files that are hidden, temporary, of no known format, or what `datasets` saves beside its data.
        folders: the folders that were looked through.
    """

    shards: tuple[Shard, ...]
    left_out: tuple[str, ...]
    folders: tuple[Path, ...]


def list_shards(inputs: Sequence[str | os.PathLike]) -> Listing:
    """List the files of some inputs.

    Args:
        inputs: files; folders, of which all files of a known format are taken, also in folders inside; patterns with `*`, `?`
            or `[`. In a folder, names that begin with "." or "_" and temporary names (.tmp, .partial, ...) are left out, and so
            is what lies in such a folder inside, and
            what `datasets` writes beside the rows (state.json, dataset_info.json).

    Raises:
        ValueError: an input does not exist or has no files; a file that was named has no known format; or two files have one
            name, so that their outputs would, too.
    """
    shards: list[Shard] = []
    left_out: list[str] = []
    folders: list[Path] = []
    for given in inputs:
        path = Path(given)
        if not str(given).strip():
            raise ValueError(f"an input must be a file, a folder or a pattern, got {str(given)!r}")
        if path.is_dir():
            folders.append(path)
            found, out = _in_folder(path)
            if not found:
                raise ValueError(f"{path} has no files of rows ({known_formats()}){_but(out)}")
            shards += found
            left_out += out
        elif path.exists():
            shards.append(_named(path, path.name))
        elif glob.has_magic(str(given)):
            shards += _matching(str(given))
        else:
            raise ValueError(f"no such file: {path}")
    _refuse_doubles(shards)
    return Listing(tuple(shards), tuple(left_out), tuple(folders))


def _in_folder(folder: Path) -> tuple[list[Shard], list[str]]:
    found, out = [], []
    for path in sorted(_files(folder), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder)
        if _is_hidden(name) or name.name in OF_DATASETS or format_of(path) is None:
            out.append(name.as_posix())
        else:
            found.append(Shard(path, name.as_posix()))
    return found, out


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, also in folders that are links; a link to a folder above is followed once."""
    seen: set[str] = set()
    for inner, names, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(inner)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        yield from (Path(inner, name) for name in files)


def _refuse(error: OSError) -> None:
    raise error  # a folder that may not be read would else be left out without a word


def _is_hidden(name: Path) -> bool:
    return any(part.startswith((".", "_")) for part in name.parts) or name.name.lower().endswith(TEMPORARY)


def _but(left_out: Sequence[str]) -> str:
    return f"; left out: {', '.join(left_out[:5])}{', ...' if len(left_out) > 5 else ''}" if left_out else ""


def _named(path: Path, name: str) -> Shard:
    if format_of(path) is None:
        raise ValueError(f"{path}: unknown file type {path.suffix!r}; known: {known_formats()}")
    return Shard(path, name)


def _matching(pattern: str) -> list[Shard]:
    """The files of a pattern, named from the first folder on that is not the same for all."""
    paths = [Path(found) for found in sorted(glob.glob(pattern, recursive=True)) if Path(found).is_file()]  # noqa: PTH207  # also absolute ones
    if not paths:
        raise ValueError(f"no file is called like {pattern!r}")
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
    if ".." in Path(pattern).parts[len(fixed.parts) :]:
        raise ValueError(f"{pattern!r} goes up after its first wildcard, and outputs would lie outside of their folder")
    return [_named(path, path.relative_to(fixed).as_posix()) for path in paths]


def _refuse_doubles(shards: Iterable[Shard]) -> None:
    """Raise ValueError if two shards have one name."""
    known: dict[str, Path] = {}
    for shard in shards:
        if shard.name in known:
            raise ValueError(
                f"{known[shard.name]} and {shard.path} would have one output, {shard.name}: give one input, or run them apart"
            )
        known[shard.name] = shard.path

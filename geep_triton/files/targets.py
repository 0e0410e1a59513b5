"""Which output each shard gets, and whether inputs and outputs fit."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from geep_triton.checks import OutputTaken, shorten
from geep_triton.files.formats import Format, format_of, known_formats
from geep_triton.files.readers import Reader, check_has, open_reader
from geep_triton.files.shards import Listing, Shard
from geep_triton.resumable import check_regular

RUN = "_geep"  # the folder of a run in the folder of its outputs
GROUP_BYTES = 1 << 20  # shards are answered together up to so many bytes
GROUP_SHARDS = 1000


@dataclass(frozen=True)
class Target:
    """A shard, and where its answers go.

    Attributes:
        shard: the input.
        path: of the output.
        form: its format.
    """

    shard: Shard
    path: Path
    form: Format


@dataclass(frozen=True)
class Layout:
    """The outputs of a run.

    Attributes:
        targets: in the order of the shards.
        root: the folder to which outputs are relative.
        run: the folder of the run.
        single: whether there is one output, a file, beside which the run's folder vanishes at the end.
    """

    targets: tuple[Target, ...]
    root: Path
    run: Path
    single: bool

    def skipped(self, target: Target) -> Path:
        """The file of the rows that were left out."""
        if self.single:
            return target.path.with_name(f"{target.path.name}.skipped.jsonl")
        return self.run / "skipped" / f"{target.shard.name}.jsonl"


def lay_out(listing: Listing, inputs: Sequence[str | os.PathLike], output: Path, form: Format | None) -> Layout:
    """Say where the outputs go: to a file, if the input is one file, else to a folder.

    Args:
        listing: of the inputs.
        inputs: what was listed.
        output: a file or a folder.
        form: the format of all outputs; None: by the name of a file, and in a folder as the inputs.

    Raises:
        ValueError: an output would replace an input, or lie among the inputs; two outputs have one name; or the name of a file
            tells no format, or another than `form`.
        OutputTaken: the output is a folder though there is one input file.
    """
    single = len(inputs) == 1 and Path(inputs[0]).is_file()
    if single:
        return _single(listing.shards[0], output, form)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, expected a folder for the outputs of {len(listing.shards)} files")
    _refuse_inside(listing, output)
    targets: list[Target] = []
    names: dict[str, Shard] = {}
    for shard in listing.shards:
        name, kept = shard.name, format_of(shard.path)
        if form is not None and kept is not None:
            name = name.removesuffix(kept.suffix) + form.suffix
        if name.startswith(f"{RUN}/"):
            raise ValueError(
                f"{shard.path} would have its output in {output / RUN}, which is the run's own: choose another input"
            )
        if name in names:
            raise ValueError(f"{names[name].path} and {shard.path} would have one output, {name}: run them apart")
        names[name] = shard
        targets.append(Target(shard, output / name, _some(form or kept, shard.path)))
    _refuse_matching(targets, inputs)
    return Layout(tuple(targets), output, output / RUN, False)


def _single(shard: Shard, output: Path, form: Format | None) -> Layout:
    told = format_of(output)
    if form is not None and told is not None and (form.kind, form.compression) != (told.kind, told.compression):
        raise ValueError(f"{output} is named as another format than {form.suffix[1:]}: choose one of them")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; of one input file the output is a file: name it, as in {output / shard.name}")
    if not output.parent.is_dir():
        raise ValueError(f"{output} cannot be written: {output.parent} is not a folder")
    check_regular(output)
    if output.exists() and output.samefile(shard.path):
        raise ValueError(f"{output} would be overwritten, but it is an input: choose another output")
    found = _some(told or form, output)
    return Layout((Target(shard, output, found),), output.parent, output.with_name(f"{output.name}.unfinished"), True)


def _some(form: Format | None, path: Path) -> Format:
    if form is None:
        raise ValueError(f"{path}: unknown file type {shorten(path.suffix)}; known: {known_formats()}")
    return form


def _refuse_inside(listing: Listing, output: Path) -> None:
    """Raise ValueError if outputs would be found among the inputs, or inputs among the outputs."""
    out = output.resolve()
    for folder in listing.folders:
        if out.is_relative_to(folder.resolve()):
            raise ValueError(f"{output} lies in the input {folder}, where its outputs would become inputs: choose another")
    for shard in listing.shards:
        if shard.path.resolve().is_relative_to(out):
            raise ValueError(f"{output} holds the input {shard.path}: choose another output")


def _refuse_matching(targets: Sequence[Target], inputs: Sequence[str | os.PathLike]) -> None:
    """Raise ValueError if an output would be found by a pattern of the inputs, when the run is started again."""
    patterns = [Path(given).absolute().parts for given in inputs if glob.has_magic(str(given)) and not Path(given).exists()]
    for target in targets:
        parts = target.path.absolute().parts
        if any(_matches(parts, pattern) for pattern in patterns):
            raise ValueError(f"{target.path} would become an input, by the pattern that was given: choose another output")


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is found by a pattern, in which "**" stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def check_overwrite(layout: Layout, overwrite: bool, begun: bool) -> None:
    """Raise OutputTaken if a single output is there and may not be replaced.

    Args:
        layout: of the outputs.
        overwrite: whether the user wants so.
        begun: whether a run of this output was begun, and so the user was asked then.
    """
    if overwrite and not layout.single:
        raise ValueError("overwrite is for the output of a single file; remove the folder of outputs, or choose another")
    if not layout.single or overwrite or begun:
        return
    for path in (layout.targets[0].path, layout.skipped(layout.targets[0])):
        if path.exists():
            raise OutputTaken(f"{path} is there already: choose another output, or say so (--overwrite)")


def grouped(targets: Sequence[Target]) -> Iterator[list[Target]]:
    """Targets that are answered together, so that many small shards make full batches."""
    group: list[Target] = []
    size = 0
    for target in targets:
        more = target.shard.path.stat().st_size
        if group and (size + more > GROUP_BYTES or len(group) == GROUP_SHARDS):
            yield group
            group, size = [], 0
        group.append(target)
        size += more
    if group:
        yield group


def check_columns_of(
    targets: Sequence[Target], wanted: Sequence[str], optional: Sequence[str], carried: Sequence[str] | None, new: Sequence[str]
) -> None:
    """Look into every shard before the first is answered.

    Args:
        targets: of the run.
        wanted: columns that each shard must have.
        optional: columns that all shards have or none; of JSON lines, as each row says.
        carried: the columns that are carried along; None: all.
        new: the columns that come.

    Raises:
        ValueError: a column is missing, only some shards have an optional one, or a column has the name of a new one.
    """
    having: dict[str, dict[bool, Path]] = {name: {} for name in optional}
    for target in targets:
        reader = open_reader(target.shard.path)
        check_has(reader, [*wanted, *(carried or ())])
        names = reader.columns()
        refuse_taken(reader, names, carried, new)
        if reader.word != "line":
            for name, known in having.items():
                known.setdefault(name in names, target.shard.path)
    for name, known in having.items():
        if len(known) > 1:
            raise ValueError(f"{known[True]} has a column {name!r} and {known[False]} has none: run them apart")


def refuse_taken(reader: Reader, names: Sequence[str], carried: Sequence[str] | None, new: Sequence[str]) -> None:
    """Raise ValueError if a column that is carried along has the name of a new one."""
    taken = [name for name in new if name in names and (carried is None or name in carried)]
    if taken:
        raise ValueError(
            f"{reader.path} has a column {', '.join(map(repr, taken))}, and so would the answers: give those other names "
            "(--prefix predicted_), or say which columns to carry along (--columns)"
        )

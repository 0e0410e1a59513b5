"""Atomic saving: the files of a folder are replaced together, or none of them is."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # not on Windows, where processes that save and load in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]  # whoever uses it asks

PARTIAL = ".geep_triton.saving."  # files that are being written. Useless after a kill
WHOLE = ".geep_triton.saved"  # the complete files of a save, before they are moved into place
MANIFEST = "manifest.json"
PART = ".part"  # at the end of the name of a JSON file that is being written
_REPLACING: ContextVar[frozenset[Path]] = ContextVar("folders that this thread is replacing", default=frozenset())


@dataclass
class Replacement:
    """Files that will be moved into a folder together.

    Attributes:
        folder: the folder that they will be moved to.
        path: the folder to write them to now.
        remove: names of files of `folder` to remove at the same time.
    """

    folder: Path
    path: Path
    remove: set[str] = field(default_factory=set)


@contextmanager
def replacing(directory: str | os.PathLike) -> Iterator[Replacement]:
    """Write files into a new folder. When the block ends they replace those of `directory`, all or none.

    The new files are written and flushed to the disk beside the old ones, which stay complete if this fails or is killed. A
    single rename then makes the new files valid. If the process is killed while they are moved into place, the next load or
    save finishes it. They get the mode that other new files get here. Files that are equal to existing ones leave those
    untouched. Readers that use `reading` wait.

    Args:
        directory: the folder. It is created if it does not exist.

    Raises:
        ValueError: `directory` is a file, or a folder has the name of a file to save. The folder is unchanged.
        OSError: writing fails. The folder is unchanged.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder to save into")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, shared=False) as alone:
        _move_into_place(folder)
        for left in folder.glob(f"{PARTIAL}*") if alone else ():
            shutil.rmtree(left, ignore_errors=True)
        new = Replacement(folder, folder / f"{PARTIAL}{os.getpid()}.{os.urandom(4).hex()}")
        new.path.mkdir()
        token = _REPLACING.set(_REPLACING.get() | {folder.resolve()})
        try:
            try:
                yield new
            except SafetensorError as error:  # safetensors raises this if the disk is full
                raise OSError(f"cannot save into {folder}: {error}") from error
            _refuse_folders(new)
            manifest = new.path / MANIFEST
            manifest.write_text(json.dumps({"remove": sorted(new.remove)}), encoding="utf-8")
            mode = manifest.stat().st_mode & 0o777  # only their owner can read files that safetensors writes
            for path in _files(new.path):
                path.chmod(mode)
                if _is_there(path, folder / path.relative_to(new.path)):
                    path.unlink()
                else:
                    flush(path)
            flush(new.path)
            new.path.rename(folder / WHOLE)
        except BaseException:
            shutil.rmtree(new.path, ignore_errors=True)
            raise
        finally:
            _REPLACING.reset(token)
        flush(folder)
        _move_into_place(folder)


@contextmanager
def reading(directory: str | os.PathLike) -> Iterator[None]:
    """Keep saves into a folder waiting while its files are read. A save that was killed is finished first.

    This does nothing for a source that is not a folder, and within `replacing` of the same folder, whose files are the old ones
    until it ends.

    Raises:
        ValueError: files of a killed save cannot be moved into place.
    """
    folder = Path(directory)
    if folder.is_dir() and folder.resolve() in _REPLACING.get():  # its own lock would be waited for
        yield
        return
    while True:
        if (folder / WHOLE).is_dir():
            with _locked(folder, shared=False):
                _move_into_place(folder)
        with _locked(folder, shared=True):
            if not (folder / WHOLE).is_dir():  # otherwise another save was killed in between
                yield
                return


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that is there as a whole or not at all, and on the disk afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}{PART}")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def saved_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The contents of a folder's config.json, or {} if it is missing or damaged."""
    try:
        found = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def saved_digests(directory: str | os.PathLike) -> dict[str, Any]:
    """Digests of the parts of the model in a folder. See `geep_triton.config.MultiExitBertConfig`."""
    return digests_of(saved_config(directory))


def digests_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The digests in a config.json, or {} if they are damaged."""
    digests = config.get("digests")
    return digests if isinstance(digests, dict) else {}


def _move_into_place(folder: Path) -> None:
    """Finish a save. After a kill each step can be repeated. ValueError if a step fails."""
    whole = folder / WHOLE
    if not whole.is_dir():
        return
    manifest = whole / MANIFEST
    try:
        files = [path for path in _files(whole) if path != manifest]
        # A missing manifest means that all files were moved, because it is removed last.
        remove = json.loads(manifest.read_text(encoding="utf-8"))["remove"] if files or manifest.exists() else []
        for path in files:
            target = folder / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for name in remove:
            if Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
        flush(folder)
        shutil.rmtree(whole)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder}: a save was killed before its files were in place, and they cannot be moved there from {WHOLE}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _refuse_folders(new: Replacement) -> None:
    """Raise ValueError if a folder has the name of a file to save or remove. A rename could not replace it."""
    names = [*(path.relative_to(new.path) for path in _files(new.path)), *map(Path, new.remove)]
    for path in (new.folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            raise ValueError(f"{path} is a folder, but a file of that name has to be saved or removed: move the folder away")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_there(path: Path, target: Path) -> bool:
    """Whether a file equals the one that it would replace."""
    return (
        target.is_file()
        and not target.is_symlink()
        and path.stat().st_mode == target.stat().st_mode
        and filecmp.cmp(path, target, shallow=False)
    )


def flush(path: Path) -> None:
    """Flush to the disk, so that a rename never survives a crash without the data."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path, shared: bool) -> Iterator[bool]:
    """Lock the folder against saves and, unless `shared`, against reads. Yields whether the lock was possible."""
    try:
        handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    except OSError:  # a hub id, or a folder whose files can be read but not listed
        handle = None
    if handle is None:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not unlock it if a forked process also has the handle
    finally:
        os.close(handle)

"""Saving all or nothing: the files of a folder are replaced together, or stay as they are."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # not on Windows, where processes that save and load in one folder are not kept apart
    fcntl = None

PARTIAL = ".geep_triton.saving."  # what is being written; of no use after a kill
WHOLE = ".geep_triton.saved"  # all of a save, still to be moved into place
MANIFEST = "manifest.json"


@dataclass
class Replacement:
    """Files on their way into a folder.

    Attributes:
        folder: where they shall be.
        path: where to write them meanwhile.
        remove: names of files of the folder that go when these come.
    """

    folder: Path
    path: Path
    remove: set[str] = field(default_factory=set)


@contextmanager
def replacing(directory: str | os.PathLike) -> Iterator[Replacement]:
    """Write files into a fresh folder; they replace those of `directory` when the block ends, all or none.

    They are written and flushed to the disk beside the old ones, which stay whole where that fails or is killed. One rename
    then makes them the folder's; a kill while they are moved into place is made good by the next load or save. They get the
    mode that other new files get here; those that are there already stay as they are. Who reads the folder by `reading` waits.

    Raises:
        ValueError: `directory` is a file, or has a folder where a file shall be. OSError: what writing raises. The folder is as
            it was.
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
        try:
            try:
                yield new
            except SafetensorError as error:  # as which safetensors raises that the disk is full
                raise OSError(f"{folder} cannot be saved into: {error}") from error
            _refuse_folders(new)
            manifest = new.path / MANIFEST
            manifest.write_text(json.dumps({"remove": sorted(new.remove)}), encoding="utf-8")
            mode = manifest.stat().st_mode & 0o777  # safetensors writes files that none but their owner can read
            for path in _files(new.path):
                path.chmod(mode)
                if _is_there(path, folder / path.relative_to(new.path)):
                    path.unlink()
                else:
                    _flush(path)
            _flush(new.path)
            new.path.rename(folder / WHOLE)
        except BaseException:
            shutil.rmtree(new.path, ignore_errors=True)
            raise
        _flush(folder)
        _move_into_place(folder)


@contextmanager
def reading(directory: str | os.PathLike) -> Iterator[None]:
    """Keep saves into a folder out until its files are read, having finished one that was killed; other sources pass.

    Not to be used within `replacing` of the same folder, which would wait for itself.

    Raises:
        ValueError: what a killed save left cannot be moved into its place.
    """
    folder = Path(directory)
    while True:
        if (folder / WHOLE).is_dir():
            with _locked(folder, shared=False):
                _move_into_place(folder)
        with _locked(folder, shared=True):
            if not (folder / WHOLE).is_dir():  # else another save was killed between the two
                yield
                return


def saved_config(directory: str | os.PathLike) -> dict[str, Any]:
    """What a folder's config.json says; nothing where there is none that can be read."""
    try:
        found = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def saved_digests(directory: str | os.PathLike) -> dict[str, Any]:
    """Of the parts of the model that a folder holds; see `geep_triton.config.MultiExitBertConfig`."""
    return digests_of(saved_config(directory))


def digests_of(config: dict[str, Any]) -> dict[str, Any]:
    """Those that a config.json has; nothing where they are damaged."""
    digests = config.get("digests")
    return digests if isinstance(digests, dict) else {}


def _move_into_place(folder: Path) -> None:
    """Each step can be done again after a kill. ValueError where one of them cannot be done."""
    whole = folder / WHOLE
    if not whole.is_dir():
        return
    manifest = whole / MANIFEST
    try:
        files = [path for path in _files(whole) if path != manifest]
        # Without a manifest all was done, or a kill would have left it.
        remove = json.loads(manifest.read_text(encoding="utf-8"))["remove"] if files or manifest.exists() else []
        for path in files:
            target = folder / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for name in remove:
            if Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
        _flush(folder)
        shutil.rmtree(whole)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder}: a save was killed before its files were in their place, and they cannot be moved there from {WHOLE}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _refuse_folders(new: Replacement) -> None:
    """Raise ValueError where a folder is in a file's place: no rename could replace it."""
    names = [*(path.relative_to(new.path) for path in _files(new.path)), *new.remove]
    for path in (new.folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            raise ValueError(f"{path} is a folder, where a file of that name shall be saved or removed: move it away")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_there(path: Path, target: Path) -> bool:
    """Whether a file is the same as one that it would replace."""
    return (
        target.is_file()
        and not target.is_symlink()
        and path.stat().st_mode == target.stat().st_mode
        and filecmp.cmp(path, target, shallow=False)
    )


def _flush(path: Path) -> None:
    """To the disk, so that a rename never outlives what it renames."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path, shared: bool) -> Iterator[bool]:
    """Keep other processes and threads from saving here, and, unless shared, from reading; whether that can be had."""
    try:
        handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    except OSError:  # a hub id, or a folder whose files may be read but not listed
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
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing it would not, where a process forked meanwhile holds it, too
    finally:
        os.close(handle)

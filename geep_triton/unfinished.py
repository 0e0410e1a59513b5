"""A folder in which a long call keeps what it needs to continue after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geep_triton.checks import OutputTaken
from geep_triton.saving import PART, write_json

try:
    import fcntl
except ImportError:  # Windows does not separate two calls with the same folder
    fcntl = None  # type: ignore[assignment]  # whoever uses it asks

RECORD = "call.json"


@contextmanager
def unfinished(folder: Path, call: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder of a call, and remove it once the call has succeeded. A call that fails or is killed leaves it.

    A call that fails before it has written anything leaves nothing: it may be made with other values.

    Args:
        folder: made if it does not exist.
        call: everything that the contents of the folder depend on, in JSON values.

    Raises:
        OutputTaken: the folder holds files of something else, or an unfinished call with other values, or another process is
            at work in it.
    """
    call = json.loads(json.dumps(call))
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        _clear_removed(folder)
        record = folder / RECORD
        if record.is_file():
            _check_same(folder, json.loads(record.read_text(encoding="utf-8")), call)
        elif others := [path.name for path in folder.iterdir() if path.name != f"{RECORD}{PART}"]:
            raise OutputTaken(f"{folder} holds files of something else ({min(others)}): move it away, or choose another output")
        else:
            write_json(record, call)
        try:
            yield
        except BaseException:
            if [path.name for path in folder.iterdir()] == [RECORD]:  # a call that was refused may be made otherwise
                _remove(folder)
            raise
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder of a call. A kill leaves it whole, or under another name; see `_clear_removed`."""
    _clear_removed(folder)
    folder.rename(_removed(folder))
    _clear_removed(folder)


def _clear_removed(folder: Path) -> None:
    """Remove what is left of a folder whose removal was killed."""
    shutil.rmtree(_removed(folder), ignore_errors=True)  # another process may be at it, too


def _removed(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def _check_same(folder: Path, before: Mapping[str, Any], call: Mapping[str, Any]) -> None:
    for name in call:
        if before.get(name) != call[name]:
            raise OutputTaken(
                f"{folder} holds an unfinished call with another {name} ({before.get(name)!r}, now {call[name]!r}): make the "
                "same call to finish it, remove the folder, or choose another output"
            )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock the folder. The lock ends with its process."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The other process may have ended in between, and removed the folder.
            free = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
        except BlockingIOError:
            free = False
        if not free:
            raise OutputTaken(f"another process is at work in {folder}: wait for it, or choose another output")
        yield
    finally:
        os.close(handle)

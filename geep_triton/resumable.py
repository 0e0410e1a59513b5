"""Long runs from one file of lines to another. A killed run continues where it stopped, and no other file is overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from geep_triton.checks import OutputTaken

try:
    import fcntl
except ImportError:  # Windows does not separate two runs with the same output
    fcntl = None  # type: ignore[assignment]  # whoever uses it asks

KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
POLL = 0.05  # seconds between two looks at a lock
EMPTY: dict[str, Any] = {"lines": 0, "bytes": 0, "counts": {}}  # the state of a new run


class InputChanged(ValueError):
    """An input file changed while it was read."""


def check_input(path: Path) -> None:
    """Raise ValueError unless this is a regular file. Only a regular file can be read again from its start."""
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is {_kind(path.stat().st_mode)}, expected a regular file")


class InputFile:
    """A file that must not change while it is read.

    Args:
        path: path of a regular file. It is read once here.

    Raises:
        ValueError: there is no such regular file.

    Attributes:
        digest: SHA-256 (hex) of the contents.
    """

    def __init__(self, path: Path) -> None:
        check_input(path)
        self.path = path
        self._stamp = _stamp(path)
        self.digest = _digest(path)

    @property
    def size_and_time(self) -> tuple[int, int]:
        """Size and time of the last change (in ns) of the contents that `digest` is of."""
        stamp = self._stamp
        return (0, 0) if stamp is None else (stamp[2], stamp[3])

    def check(self) -> None:
        """Raise InputChanged if the contents have changed. The file is read again only if it may have changed."""
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        if stamp is None or _digest(self.path) != self.digest:
            raise InputChanged(f"{self.path} changed while it was read: nothing of this run is kept, start it again")
        self._stamp = stamp


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Metadata that change with a file, or None if there is no file. They include ctime, which programs cannot set back."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(path: Path) -> str:
    """SHA-256 (hex), block by block: a file of numbers may be one line of many gigabytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ResumableFile:
    """A file of JSON lines that appears when it is complete. A run that was killed at any time continues from its last lines.

    Until then NAME.partial has the lines. NAME.partial.json has the number of complete lines, the identity of the run and its
    counts. NAME.partial is locked as long as the run's process lives.

    Args:
        output: the file to write. An existing regular file is replaced at the end.
        sources: input files, which must not be overwritten.
        wait: for so many seconds, for another run that is writing this output.

    Raises:
        OutputTaken: another run is writing this output.
        ValueError: the output or a file beside it is not a regular file, or is one of
            `sources`. NAME.partial was not left by a run. The folder is missing or not writable.
        OSError: the name is invalid, or the file system has no locks.

    Attributes:
        lines: number of lines written so far.
        counts: the run's counts so far.
    """

    def __init__(self, output: Path, sources: Iterable[Path] = (), wait: float = 0.0) -> None:
        if not output.name:
            raise ValueError(f"output must name a file, got {str(output)!r}")
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.state = output.with_name(f"{output.name}.partial.json")
        self._new_state = output.with_name(f"{output.name}.partial.json.new")
        self._check_paths(list(sources))
        self._file = os.fdopen(self._lock(time.monotonic() + wait), "r+b")
        if self.partial.stat().st_size and not self.state.exists():
            self._file.close()
            raise ValueError(f"{self.partial} was not left by a run and would be overwritten: move it away")
        self._start_at({}, EMPTY)

    def __enter__(self) -> ResumableFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what the next run needs to continue. Keep nothing if no line was written."""
        if self._is_locked() and not self.partial.stat().st_size:
            self.forget()
        self._file.close()

    def resume(self, run: Mapping[str, Any]) -> str | None:
        """Continue from the state of an earlier run if it was the same run.

        Args:
            run: the identity of the run, in JSON values: everything that the lines depend on.

        Returns:
            The reason why the existing lines cannot be used and the run starts over. None if they are used or there are none.
        """
        run = dict(json.loads(json.dumps(run)))
        left = self.state.exists()
        found = self._read_state()
        if found is not None and found["run"] == run:
            self._start_at(run, found)
            self._file.truncate()  # an incomplete line of an interrupted run
            return None
        self._start_at(run, EMPTY)
        self._file.truncate()
        self._write_state()  # this comes before the first line, because it marks a partial file as ours
        if found is None:
            return f"{self.partial} is damaged: starting over" if left else None
        before = found["run"]
        changed = ", ".join(sorted(name for name in {*run, *before} if run.get(name) != before.get(name)))
        return f"{self.partial} belongs to another run ({changed}): starting over"

    def write(self, lines: Sequence[str], counts: Mapping[str, int]) -> None:
        """Add lines of JSON, each with its line end, and the counts up to them."""
        data = "".join(lines).encode("utf-8", "backslashreplace")  # JSON's own escape for invalid Unicode
        self._file.write(data)
        self._file.flush()
        self._digest.update(data)
        self._bytes += len(data)
        self.lines += len(lines)
        self.counts = dict(counts)
        self._write_state()

    def _write_state(self) -> None:
        state = {"run": self._run, "lines": self.lines, "bytes": self._bytes, "sha256": self._digest.hexdigest()}
        state["counts"] = self.counts
        self._new_state.write_text(json.dumps({**state, "check": _check_sum(state)}), encoding="utf-8")
        self._new_state.replace(self.state)

    def finish(self) -> None:
        """Make the output appear, since all lines are written.

        Raises:
            ValueError: something else has taken the place of the output or of the partial file.
        """
        os.fsync(self._file.fileno())
        check_regular(self.output)
        if not self._is_locked():
            raise ValueError(f"{self.partial} was removed while it was written: start again")
        self.partial.replace(self.output)
        self.state.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove all partial files."""
        for path in (self.partial, self.state, self._new_state):
            path.unlink(missing_ok=True)

    def _check_paths(self, sources: Sequence[Path]) -> None:
        folder = self.output.parent
        if not folder.is_dir():
            raise ValueError(f"{self.output} cannot be written: {folder} is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{self.output} cannot be written: its folder {folder} is not writable")
        for path in (self.output, self.partial, self.state, self._new_state):
            check_regular(path)
            for source in sources:
                if path.exists() and source.exists() and path.samefile(source):
                    raise ValueError(f"{path} would be overwritten, but it is an input ({source}): choose another output")

    def _lock(self, until: float) -> int:
        """Open and lock the partial file, at the latest when the monotonic clock shows `until`."""
        while True:
            number = os.open(self.partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            if fcntl is None:
                return number
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its run may have ended in between. Then this is the finished output by now, or a removed file.
                if os.path.samestat(os.fstat(number), self.partial.lstat()):
                    return number
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(number)
                if time.monotonic() < until:
                    time.sleep(POLL)  # a lock that may be waited for has no end to the waiting
                    continue
                raise OutputTaken(f"another run is writing {self.output}: wait for it, or choose another output") from None
            except OSError:
                os.close(number)
                raise
            os.close(number)

    def _start_at(self, run: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Continue at this state."""
        self._run = run
        self.lines, self._bytes, self.counts = state["lines"], state["bytes"], state["counts"]
        self._digest: hashlib._Hash = self._digest_of(self._bytes)
        self._file.seek(self._bytes)

    def _is_locked(self) -> bool:
        """Whether the partial file is still the one that is locked here."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.partial.lstat())
        except FileNotFoundError:
            return False

    def _digest_of(self, size: int) -> Any:
        self._file.seek(0)
        digest = hashlib.sha256()
        while size > 0 and (block := self._file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
        return digest

    def _read_state(self) -> dict[str, Any] | None:
        """The state of the last run. None if the state or the lines are damaged."""
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            check = state.pop("check")
            whole = check == _check_sum(state) and self._digest_of(state["bytes"]).hexdigest() == state["sha256"]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return state if whole else None


def _check_sum(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "no regular file")


def check_regular(path: Path) -> None:
    """Raise ValueError if there is something other than a regular file. Replacing it would destroy a device, a pipe
    or a link.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {_kind(mode)}, which would be replaced: name a file")

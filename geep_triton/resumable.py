"""A long run from a file of lines to another: it goes on where it was killed, and writes over nothing that it should not."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where two runs of one output are not kept apart
    fcntl = None

KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
EMPTY = {"lines": 0, "bytes": 0, "counts": {}}  # what a run starts with


class InputChanged(ValueError):
    """A file that was read is not any more what it was."""


def check_input(path: Path) -> None:
    """Raise ValueError for what is no regular file, which alone can be read again from its start."""
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is {_kind(path.stat().st_mode)}, expected a regular file")


class InputFile:
    """A file that must not change while it is read.

    Args:
        path: of a regular file, which is read once here.

    Raises:
        ValueError: there is no such regular file.

    Attributes:
        lines: how many it has.
        digest: SHA-256 (hex) of what it holds.
    """

    def __init__(self, path: Path) -> None:
        check_input(path)
        self.path = path
        self._stamp = _stamp(path)
        self.lines, self.digest = _read(path)

    def check(self) -> None:
        """Raise InputChanged unless the file still holds what it held; read again only where it may have changed."""
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        if stamp is None or _read(self.path)[1] != self.digest:
            raise InputChanged(f"{self.path} changed while it was read: nothing of this run is kept, start it again")
        self._stamp = stamp


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with a file, the time of its last change too, which no program can set back; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> tuple[int, str]:
    lines, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        for line in file:
            lines += 1
            digest.update(line)
    return lines, digest.hexdigest()


class ResumableFile:
    """A file of JSON lines that appears when it is whole; a run that was killed at any moment goes on with what it had written.

    Until then NAME.partial holds the lines, and NAME.partial.json says how many are known to be whole, of which run they are
    and what it counted. The first is locked as long as its run lives, however it ends.

    Args:
        output: the file to be; a regular one that is there is replaced at the end.
        sources: files that are read, which must not be written to.

    Raises:
        ValueError: another run writes this output; it, or a file beside it, is no regular file, or one of `sources`; what lies
            at NAME.partial was left by no run; its folder is missing or cannot be written to.
        OSError: a name that cannot be, a file system without locks.

    Attributes:
        lines: how many are written.
        counts: what the run counted up to here.
    """

    def __init__(self, output: Path, sources: Iterable[Path] = ()) -> None:
        if not output.name:
            raise ValueError(f"output must name a file, got {str(output)!r}")
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.state = output.with_name(f"{output.name}.partial.json")
        self._new_state = output.with_name(f"{output.name}.partial.json.new")
        self._check_paths(list(sources))
        self._file = os.fdopen(self._lock(), "r+b")
        if self.partial.stat().st_size and not self.state.exists():
            self._file.close()
            raise ValueError(f"{self.partial} was left by no run, and would be written over: move it away")
        self._start_at({}, EMPTY)

    def __enter__(self) -> ResumableFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave what the next run goes on from, and nothing if that is nothing."""
        if self._is_locked() and not self.partial.stat().st_size:
            self.forget()
        self._file.close()

    def resume(self, run: Mapping[str, Any]) -> str | None:
        """Go on from what an earlier run left, if it was the same.

        Args:
            run: what the lines are made of, in JSON values.

        Returns:
            Why what is there cannot be used, and all starts over; None where it is used, or nothing is there.
        """
        run = json.loads(json.dumps(run))
        left = self.state.exists()
        found = self._read_state()
        if found is not None and found["run"] == run:
            self._start_at(run, found)
            self._file.truncate()  # what an interruption left half written
            return None
        self._start_at(run, EMPTY)
        self._file.truncate()
        self._write_state()  # before the first line, by which a partial file is known for one
        if found is None:
            return f"{self.partial} is damaged: starting over" if left else None
        before = found["run"]
        changed = ", ".join(sorted(name for name in {*run, *before} if run.get(name) != before.get(name)))
        return f"{self.partial} is of another run ({changed}): starting over"

    def write(self, lines: Sequence[str], counts: Mapping[str, int]) -> None:
        """Add lines of JSON, each with its line end, and what is counted up to them."""
        data = "".join(lines).encode("utf-8", "backslashreplace")  # JSON's own way to write what is no Unicode
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
        """All is written: the output appears. ValueError where something else has come into its or the partial file's place."""
        os.fsync(self._file.fileno())
        _check_regular(self.output)
        if not self._is_locked():
            raise ValueError(f"{self.partial} was removed while it was written: start again")
        self.partial.replace(self.output)
        self.state.unlink(missing_ok=True)

    def forget(self) -> None:
        """Leave nothing behind."""
        for path in (self.partial, self.state, self._new_state):
            path.unlink(missing_ok=True)

    def _check_paths(self, sources: Sequence[Path]) -> None:
        folder = self.output.parent
        if not folder.is_dir():
            raise ValueError(f"{self.output} cannot be written: {folder} is no folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{self.output} cannot be written: its folder {folder} may not be written to")
        for path in (self.output, self.partial, self.state, self._new_state):
            _check_regular(path)
            for source in sources:
                if path.exists() and source.exists() and path.samefile(source):
                    raise ValueError(f"{path} would be written over, but it is what is read ({source}): choose another output")

    def _lock(self) -> int:
        """The partial file, opened and locked."""
        while True:
            number = os.open(self.partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            if fcntl is None:
                return number
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its run may have ended between the two: then this is the whole output by now, or no file any more.
                if os.path.samestat(os.fstat(number), self.partial.lstat()):
                    return number
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(number)
                raise ValueError(
                    f"another run writes {self.output} at this moment: wait for it, or choose another output"
                ) from None
            except OSError:
                os.close(number)
                raise
            os.close(number)

    def _start_at(self, run: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Write from there on."""
        self._run = run
        self.lines, self._bytes, self.counts = state["lines"], state["bytes"], state["counts"]
        self._digest = self._digest_of(self._bytes)
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
        """What the last run recorded; None where that, or the lines it speaks of, are not as it left them."""
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


def _check_regular(path: Path) -> None:
    """Raise ValueError for what is there and no regular file: replacing it would end a device, a pipe or a link."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {_kind(mode)}, which would be replaced: name a file")

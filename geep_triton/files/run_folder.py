"""The folder in which a run over files keeps what it is, what is done, and what it needs to continue after a kill."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geep_triton.checks import OutputTaken
from geep_triton.files.names import differences
from geep_triton.saving import PART, write_json
from geep_triton.unfinished import alone

MANIFEST = "manifest.json"
DONE = "done"
ANSWERS = "answers"
HOLDER = "holder.json"


class OtherHolder(RuntimeError):
    """Another process holds the run's folder by now, so that whoever works for this one has to stop."""


@dataclass(frozen=True)
class Record:
    """What is known of a shard that was answered.

    Attributes:
        shard: its name.
        size, mtime_ns, sha256: of the input, as it was read.
        output: path of the output, relative to the output's folder.
        output_bytes: its size.
        rows, answered, bad: how many rows it has; how many of them have answers, and how many could not be answered.
        counts: of its answers, as the answerer counts.
        written: whether the output is there. Without that, the output is about to be replaced.
    """

    shard: str
    size: int
    mtime_ns: int
    sha256: str
    output: str
    output_bytes: int
    rows: int
    answered: int
    bad: int
    counts: dict[str, int] = field(default_factory=dict)
    written: bool = False


class RunFolder:
    """A run's folder, held by this process or by the one that this works for; see `holding`.

    Attributes:
        path: where it lies.
        answers: the folder in it of the logs of answers.
        begun: whether an earlier process began this run.
        holder: a name of the process that holds it, which no other has.
    """

    def __init__(self, path: Path, begun: bool, holder: str) -> None:
        self.path = path
        self.begun = begun
        self.holder = holder
        self.answers = path / ANSWERS

    def records(self) -> dict[str, Record]:
        """Shard -> what is known of it. ValueError if a record is damaged."""
        found = {}
        for path in self._done():
            record = _read_record(path)
            found[record.shard] = record
        return found

    def record_of(self, shard: str) -> Record | None:
        """What is known of a shard. ValueError if its record is damaged."""
        path = self._record_path(shard)
        return _read_record(path) if path.is_file() else None

    def check_holder(self) -> None:
        """Raise OtherHolder unless the process that this works for still holds the folder."""
        try:
            now = json.loads((self.path / HOLDER).read_text(encoding="utf-8"))["holder"]
        except (OSError, ValueError, TypeError, KeyError):
            now = None
        if now != self.holder:
            raise OtherHolder(
                f"{self.path} is held by another process, has gone, or is not there on this machine: all machines need the "
                "same file system"
            )

    def record(self, record: Record) -> None:
        """Keep a record. It is on the disk afterwards."""
        write_json(self._record_path(record.shard), asdict(record))

    def left_logs(self) -> list[list[str]]:
        """The names of the shards of each log of answers that a killed run has left."""
        found = []
        for path in sorted(self.answers.glob("*.partial.json")):
            try:
                found.append([name for name, _ in json.loads(path.read_text(encoding="utf-8"))["run"]["shards"]])
            except (ValueError, TypeError, KeyError):
                continue  # damaged: those shards are answered again
        return found

    def is_empty(self) -> bool:
        """Whether nothing would be lost with this folder."""
        return not self._done() and not any(self.answers.glob("*"))

    def _record_path(self, shard: str) -> Path:
        return self.path / DONE / f"{shard}.json"

    def _done(self) -> list[Path]:
        """The files of the records, in folders that are called as those of the shards, which may be "x.json"."""
        return sorted(path for path in (self.path / DONE).rglob("*.json") if path.is_file())

    def remove(self) -> None:
        """Remove the folder. A kill leaves it whole, or under another name; see `clear_removed`."""
        self.path.rename(_removed(self.path))
        clear_removed(self.path)


def _read_record(path: Path) -> Record:
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged, remove it to have its shard answered again: {error}") from None


def clear_removed(folder: Path) -> None:
    """Remove what is left of a run's folder whose removal was killed."""
    if _removed(folder).is_dir():
        shutil.rmtree(_removed(folder), ignore_errors=True)  # another process may be at it, too


def _removed(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


@contextmanager
def holding(folder: Path, manifest: Mapping[str, Any], widens: Mapping[str, tuple[str, str]]) -> Iterator[RunFolder]:
    """Hold a run's folder. It is made if it does not exist, and removed where nothing was done.

    Args:
        folder: its path.
        manifest: everything that the outputs depend on, in JSON values.
        widens: name in the manifest -> an old and a new value, between which the outputs so far stay good.

    Raises:
        OutputTaken: the folder is of a run with another manifest, or of something else, or another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        now = json.loads(json.dumps(manifest))
        path = folder / MANIFEST
        begun = path.is_file()
        if begun:
            before = _read_manifest(path)
            wider = {name: now.get(name) for name, pair in widens.items() if (before.get(name), now.get(name)) == pair}
            _refuse_other(folder, {**before, **wider}, now)
            if wider:
                write_json(path, now)
        else:
            _refuse_files(folder)
            write_json(path, now)
        run = RunFolder(folder, begun, uuid.uuid4().hex)
        write_json(folder / HOLDER, {"holder": run.holder})
        run.answers.mkdir(exist_ok=True)
        try:
            yield run
        finally:
            (folder / HOLDER).unlink(missing_ok=True)
            if folder.is_dir() and run.is_empty():
                run.remove()


def _refuse_files(folder: Path) -> None:
    """Raise OutputTaken if a folder that is no run's holds files: the run's folder is removed with all that it holds."""
    others = [path.name for path in folder.iterdir() if path.name != f"{MANIFEST}{PART}"]
    if others:
        raise OutputTaken(f"{folder} holds files of something else ({min(others)}): move it away, or choose another output")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OutputTaken(f"{path} is damaged, so that nobody can say what the outputs there belong to: {error}") from None
    if not isinstance(found, dict):
        raise OutputTaken(f"{path} is no manifest of a run: choose another output")
    return found


def _refuse_other(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise OutputTaken, naming what differs, unless two manifests are the same."""
    names, told = differences(before, now, "{} was {}, now {}")
    if names:
        raise OutputTaken(
            f"{folder} is of a run with another {names} ({told}): start that run again to finish it, remove its "
            "output and that folder, or choose another output"
        )


def check_output_folder(folder: Path, run: str) -> None:
    """Raise OutputTaken unless a folder is new, empty, or the output of an earlier run."""
    if not folder.is_dir() or (folder / run / MANIFEST).is_file():
        return
    others: Sequence[str] = sorted(path.name for path in folder.iterdir() if path.name != run)
    if others:
        raise OutputTaken(f"{folder} holds files of something else ({others[0]}): choose another output")

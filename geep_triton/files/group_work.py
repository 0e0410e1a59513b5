"""The work on one group of shards: its rows are answered into a log, and its outputs written from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from geep_triton.checks import OutputTaken
from geep_triton.files.answerer import Answerer, BadRow
from geep_triton.files.json_lines import BadLine
from geep_triton.files.names import few
from geep_triton.files.outputs import AnswerColumns, Shape, write_shard
from geep_triton.files.readers import open_reader
from geep_triton.files.run_folder import Record, RunFolder
from geep_triton.files.settings import Settings
from geep_triton.files.targets import Layout, Target
from geep_triton.resumable import InputFile, ResumableFile
from geep_triton.saving import flush

# Whoever still holds a log of a run that this process holds works for a process that was killed, and ends at its next window.
SOON = 2.0  # seconds; after these the user is told
PATIENCE = 3600.0  # seconds: as long as a window may take

# What work on groups tells: how many rows were answered (below 0: that have to be answered again), what the user should know,
# or what is known of a shard whose output is there.
Progress: TypeAlias = int | str | Record


@dataclass(frozen=True)
class GroupWork:
    """How the groups of shards of a run are answered, by whatever process.

    Attributes:
        settings: how files are treated.
        columns: the columns that answers become.
        layout: of the outputs; its targets do not matter.
        holder: of the run's folder; see `RunFolder.check_holder`.
    """

    settings: Settings
    columns: AnswerColumns
    layout: Layout
    holder: str

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.layout.run, begun=True, holder=self.holder)

    def absolute(self) -> GroupWork:
        """The same work for processes in other folders."""
        layout = replace(self.layout, targets=(), root=self.layout.root.absolute(), run=self.layout.run.absolute())
        return replace(self, layout=layout)

    def answer(self, answerer: Answerer, group: Sequence[Target]) -> Generator[Progress, None, None]:
        """Answer the shards of a group, and write those that are not done. Work that another process began goes on.

        Args:
            answerer: it answers rows.
            group: the shards, which share windows.

        Raises:
            BadRow, BadLine, InputChanged, OutputTaken, ValueError, OSError: see `geep_triton.files.run.answer_files`.
            OtherHolder: another process has begun to work on this run.
        """
        sources = {target.shard.name: InputFile(target.shard.path) for target in group}
        identity = {"shards": [[name, source.digest] for name, source in sources.items()]}
        folder = self.folder
        path = folder.answers / _key(group)
        try:
            log = ResumableFile(path, wait=SOON)
        except OutputTaken:
            yield f"waiting until whoever is at {few([*sources])} for a process that was killed ends its window"
            log = ResumableFile(path, wait=PATIENCE)
        with log:
            folder.check_holder()
            done = {target.shard.name: record for target in group if (record := self._written(target)) is not None}
            if len(done) == len(group):  # by a process that could not tell any more
                yield from done.values()
                return
            if (unused := log.resume(identity)) is not None:
                yield f"{few([*sources])}: what was answered belongs to other contents, starting over ({unused})"
            if log.lines:
                yield f"continuing after row {log.lines} of {few([*sources])}"
            with _unchanged(sources.values(), log):
                shapes = [Shape.of(target, self.settings.columns, self.columns) for target in group]
                yield from self._fill(answerer, group, sources.values(), log)
                with log.partial.open("rb") as lines:
                    answers = islice(lines, log.lines)
                    for target, shape in zip(group, shapes, strict=True):
                        name = target.shard.name
                        yield self._write(target, shape, sources[name], answers, done.get(name))
            log.forget()

    def clear(self, group: Sequence[Target]) -> None:
        """Remove what the work on a group that was broken off has left beside the outputs."""
        for target in group:
            _part_of(target).unlink(missing_ok=True)
            _remove_empty(target.path.parent, self.layout.root)

    def _written(self, target: Target) -> Record | None:
        """What is known of a shard whose output is there."""
        record = self.folder.record_of(target.shard.name)
        return record if record is not None and record.written and target.path.exists() else None

    def _fill(
        self, answerer: Answerer, group: Sequence[Target], sources: Collection[InputFile], log: ResumableFile
    ) -> Iterator[int]:
        """Write the answers of all rows of a group into its log, window by window, and tell how many rows these are."""
        rows = islice(_rows(answerer, group), log.lines, None)
        yield log.lines
        while window := list(islice(rows, self.settings.window or answerer.window)):
            good = [index for index, (_, _, values) in enumerate(window) if not isinstance(values, BadLine)]
            found = answerer.answer([window[index][2] for index in good])
            answered = dict(zip(good, zip(found.answers, found.counts, strict=True), strict=True))
            lines = []
            for index, (target, number, values) in enumerate(window):
                answer, counts = (values.reason, {}) if isinstance(values, BadLine) else answered[index]
                if isinstance(answer, str) and self.settings.bad_rows == "stop":
                    raise BadRow(f"{target.shard.path}, {number} {answer}")
                lines.append(json.dumps([answer, counts]) + "\n")
            for source in sources:
                source.check()
            self.folder.check_holder()
            log.write(lines, {})
            yield len(window)

    def _write(self, target: Target, shape: Shape, source: InputFile, answers: Iterator[bytes], done: Record | None) -> Record:
        """Write a shard with its answers, unless it is done."""
        part = _part_of(target)
        try:
            target.path.parent.mkdir(parents=True, exist_ok=True)
            skipped = self.layout.skipped(target)
            found = write_shard(target, part, skipped, answers, shape, self.settings.bad_rows == "skip")
            source.check()
            if done is not None:
                return done  # it was answered together with others that are not done
            record = Record(
                target.shard.name, *source.size_and_time, source.digest, target.path.relative_to(self.layout.root).as_posix(),
                part.stat().st_size, found.rows, found.answered, found.bad, found.counts,
            )  # fmt: skip
            self.folder.check_holder()
            self.folder.record(record)  # before the output, which is this run's from now on
            part.replace(target.path)
            flush(target.path.parent)
            record = replace(record, written=True)
            self.folder.record(record)
            return record
        finally:
            self.clear([target])


def _rows(answerer: Answerer, group: Sequence[Target]) -> Iterator[tuple[Target, str, Any]]:
    """Each row of a group, with its shard and its place there."""
    for target in group:
        reader = open_reader(target.shard.path)
        values = reader.values(answerer.wanted, answerer.optional)
        for number, row in enumerate(values, start=1):
            yield target, f"{reader.word} {number}:" if isinstance(row, BadLine) else f"{reader.word} {number}", row


def _part_of(target: Target) -> Path:
    """The file that becomes the output of a shard."""
    return target.path.with_name(f".{target.path.name}.partial")


def _key(group: Sequence[Target]) -> str:
    """The name of the log of a group."""
    names = "\0".join(target.shard.name for target in group)
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextmanager
def _unchanged(sources: Collection[InputFile], log: ResumableFile) -> Iterator[None]:
    """Keep nothing of inputs that changed while they were read, nor of those that do not fit: they have to change first."""
    try:
        try:
            yield
        finally:
            for source in sources:  # first, because other errors may follow from a change
                source.check()
    except ValueError:
        log.forget()
        raise


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder, and those above it up to `root`, as far as they are empty: a run that failed leaves none behind."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent

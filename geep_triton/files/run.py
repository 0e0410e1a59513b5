"""A run over files: it answers every shard once, however often it is killed and started again."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
from tqdm.auto import tqdm

from geep_triton.checks import OutputTaken, check_bool, check_choice, check_int, check_kind
from geep_triton.files.formats import Format
from geep_triton.files.json_lines import BadLine
from geep_triton.files.names import refuse_twice
from geep_triton.files.outputs import AnswerColumns, Shape, write_shard
from geep_triton.files.readers import Values, open_reader
from geep_triton.files.run_folder import MANIFEST, Record, RunFolder, check_output_folder, clear_removed, holding
from geep_triton.files.shards import Listing, list_shards
from geep_triton.files.targets import RUN, Layout, Target, check_columns_of, check_overwrite, grouped, lay_out
from geep_triton.resumable import InputFile, ResumableFile
from geep_triton.saving import flush

BAD_ROWS = ("stop", "skip", "empty")
VERSION = 1  # of the manifest and of what lies beside it
# A shard that was whole under "stop" has no bad rows, and is the same under "skip".
WIDENS = {"bad_rows": ("stop", "skip")}

Answer: TypeAlias = dict[str, Any]


class BadRow(ValueError):
    """A row that cannot be answered. The message has the file, the row's number (from 1) and the reason."""


@dataclass(frozen=True)
class Answered:
    """The answers of a window.

    Attributes:
        answers: for each row, the values of the answer columns by name; or a text: why the row cannot be answered.
        counts: for each row, of what shall be told at the end.
    """

    answers: Sequence[Answer | str]
    counts: Sequence[Mapping[str, int]]


class Answerer(Protocol):
    """Whoever answers rows.

    Attributes:
        wanted: the columns that it needs.
        optional: further columns, which may be missing.
        types: the columns of its answers.
        window: how many rows it is given together, unless the settings say so.
    """

    wanted: Sequence[str]
    optional: Sequence[str]
    types: Mapping[str, pa.DataType]
    window: int

    def answer(self, rows: Sequence[Values]) -> Answered:
        """Answer a window of rows, each the values of `wanted` and `optional`. The same rows get the same answers."""


@dataclass
class Report:
    """What a run did.

    Attributes:
        output: the file or folder.
        shards: how many there are now.
        answered_before: how many of them an earlier run had answered.
        rows, answered, bad: of all of them; see `geep_triton.files.run_folder.Record`.
        counts: of all of them, as the answerer counts.
        left_out: files of the input that are hidden, temporary or of no known format.
        came: shards that came while this ran, and are not answered.
        gone: shards that were answered, and are no longer among the inputs.
    """

    output: str
    shards: int = 0
    answered_before: int = 0
    rows: int = 0
    answered: int = 0
    bad: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    came: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How a run over files treats them.

    Attributes:
        columns: the columns of the input that are carried along; None: all.
        prefix: before the names of the answers' columns.
        bad_rows: what becomes of rows that cannot be answered: "stop"; "skip": they are left out, and written with the reason
            beside the output; "empty": they stay, with empty answers, and a column "error" says why.
        form: format of the outputs; None: by the name of the output, in a folder that of the input.
        overwrite: replace a single output that is there.
        window: how many rows are answered together; None: as the answerer says.

    Raises:
        ValueError: a value is out of range, or names a column twice.
        TypeError: a value has another type.
    """

    columns: tuple[str, ...] | None = None
    prefix: str = ""
    bad_rows: str = "stop"
    form: Format | None = None
    overwrite: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        check_choice("bad_rows", self.bad_rows, BAD_ROWS)
        check_bool("overwrite", self.overwrite)
        if self.window is not None:
            check_int("window", self.window, 1)
        if self.columns is not None:
            check_kind("columns", self.columns, tuple)
            refuse_twice(self.columns)


def answer_files(
    answerer: Answerer,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    settings: Settings,
    manifest: Mapping[str, Any],
    *,
    tell: Callable[[str], None],
    progress: bool = False,
) -> Report:
    """Answer all rows of files, and write them with the answers into files of the same names.

    A run that was killed at any moment goes on when it is started again: what was answered is not answered again, and no row is
    lost or doubled. Each output appears when it is whole. A folder of outputs keeps, in its folder `_geep`, what was done, so
    that a later run answers only new shards; beside a single output such a folder is there until it is whole.

    Args:
        answerer: it answers rows. The same rows must get the same answers, window by window.
        inputs: files, folders and patterns; see `geep_triton.files.shards.list_shards`.
        output: a file where the input is one file, else a folder.
        settings: how files are treated.
        manifest: everything else that the answers depend on, in JSON values.
        tell: takes what the user should know.
        progress: show a progress bar.

    Returns:
        What was done, by this run and by earlier ones.

    Raises:
        OutputTaken: the output is of another run (the error names what differs), is being written, or is there and was made by
            something else.
        BadRow, BadLine: under "stop", a row cannot be answered.
        InputChanged: an input changed while it was read.
        ValueError: inputs and output do not fit, an input is damaged, lacks a column or changed since it was answered.
        OSError: the disk is full, or a file cannot be read or written. What was done stays.
    """
    output = Path(output)
    listing = list_shards(inputs)
    layout = lay_out(listing, inputs, output, settings.form)
    columns = AnswerColumns.of(answerer.types, settings.prefix, with_errors=settings.bad_rows == "empty")
    clear_removed(layout.run)
    check_overwrite(layout, settings.overwrite, (layout.run / MANIFEST).is_file())
    if not layout.single:
        check_output_folder(output, RUN)
    check_columns_of(layout.targets, answerer.wanted, answerer.optional, settings.columns, columns.names)
    if listing.left_out:
        tell(f"left out: {_few(listing.left_out)}")
    made_of = {
        "version": VERSION,
        **manifest,
        "columns": None if settings.columns is None else list(settings.columns),
        "prefix": settings.prefix,
        "bad_rows": settings.bad_rows,
        "format": None if settings.form is None else settings.form.suffix,
        "window": settings.window or answerer.window,
        "inputs": [str(Path(given).absolute()) for given in inputs] if layout.single else None,
    }
    was_there = output.exists()
    try:
        with holding(layout.run, made_of, WIDENS) as folder:
            # Again, because another run may have written the output and ended meanwhile.
            check_overwrite(layout, settings.overwrite, folder.begun)
            run = _Run(answerer, settings, columns, layout, folder, tell)
            report = run.finish(listing, progress)
            report.came = _came(inputs, listing, tell)
            if layout.single:
                folder.remove()
    finally:
        if not layout.single and not was_there and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
    if report.came:
        tell(f"shards came meanwhile, start again to answer them: {_few(report.came)}")
    return report


def _came(inputs: Sequence[str | os.PathLike], listing: Listing, tell: Callable[[str], None]) -> list[str]:
    known = {shard.name for shard in listing.shards}
    try:
        return [shard.name for shard in list_shards(inputs).shards if shard.name not in known]
    except (ValueError, OSError) as error:  # all is answered; the inputs may be gone by now
        tell(f"whether shards came meanwhile is not known: {error}")
        return []


class _Run:
    """The work of one process."""

    def __init__(
        self,
        answerer: Answerer,
        settings: Settings,
        columns: AnswerColumns,
        layout: Layout,
        folder: RunFolder,
        tell: Callable[[str], None],
    ) -> None:
        self.answerer, self.settings, self.columns = answerer, settings, columns
        self.layout, self.folder, self.tell = layout, folder, tell
        self.records = folder.records()

    def finish(self, listing: Listing, progress: bool) -> Report:
        """Answer what is missing."""
        targets = {target.shard.name: target for target in self.layout.targets}
        pending = [target for target in targets.values() if not self._is_done(target)]
        before = len(targets) - len(pending)
        if not pending:
            self.tell(f"already complete: {before} shards")
        elif before:
            self.tell(f"{before} of {len(targets)} shards are done")
        with tqdm(total=_rows_of(pending) if progress else None, unit=" rows", disable=not progress or not pending) as bar:
            # First what a killed run has begun: shards of one log belong together.
            for names in self.folder.left_logs():
                group = [targets[name] for name in names if name in targets]
                if len(group) == len(names) and any(target in pending for target in group):
                    self._answer(group, bar)
                    pending = [target for target in pending if target not in group]
            for group in grouped(pending):
                self._answer(group, bar)
        for log in self.folder.answers.glob("*"):
            log.unlink()  # of shards that are gone
        return self._report(targets, before, listing)

    def _report(self, targets: Mapping[str, Target], before: int, listing: Listing) -> Report:
        found = Report(str(self.layout.targets[0].path if self.layout.single else self.layout.root), len(targets), before)
        for name, record in self.records.items():
            if name not in targets:
                found.gone.append(name)
                continue
            found.rows += record.rows
            found.answered += record.answered
            found.bad += record.bad
            found.counts.update(record.counts)
        found.left_out = list(listing.left_out)
        return found

    def _is_done(self, target: Target) -> bool:
        """Whether a shard's output is there.

        Raises:
            ValueError: the shard changed since.
            OutputTaken: the output changed since, or is there and was not written by a run.
        """
        record = self.records.get(target.shard.name)
        there = target.path.stat().st_size if target.path.exists() else None
        if record is None:
            if there is not None and not self.layout.single:
                raise OutputTaken(f"{target.path} is there and was not written by this run: move it away")
            return False
        if not record.written or there is None:
            return False
        if there != record.output_bytes:
            raise OutputTaken(f"{target.path} was changed since it was written: remove it to have it written again")
        found = target.shard.path.stat()
        same = (found.st_size, found.st_mtime_ns) == (record.size, record.mtime_ns)
        if not same and InputFile(target.shard.path).digest != record.sha256:
            raise ValueError(
                f"{target.shard.path} changed since it was answered: remove its output {target.path} to have it answered again"
            )
        return True

    def _answer(self, group: Sequence[Target], bar: Any) -> None:
        """Answer the shards of a group, and write those that are not done."""
        sources = {target.shard.name: InputFile(target.shard.path) for target in group}
        identity = {"shards": [[name, source.digest] for name, source in sources.items()]}
        key = hashlib.sha256("\0".join(sources).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        with ResumableFile(self.folder.answers / key) as log:
            if (unused := log.resume(identity)) is not None:
                self.tell(f"{_few([*sources])}: what was answered belongs to other contents, starting over ({unused})")
            if log.lines:
                self.tell(f"continuing after row {log.lines} of {_few([*sources])}")
            with _unchanged(sources.values(), log):
                shapes = [Shape.of(target, self.settings.columns, self.columns) for target in group]
                self._fill(group, sources.values(), log, bar)
                with log.partial.open("rb") as lines:
                    answers = islice(lines, log.lines)
                    for target, shape in zip(group, shapes, strict=True):
                        self._write(target, shape, sources[target.shard.name], answers)
            log.forget()

    def _fill(self, group: Sequence[Target], sources: Collection[InputFile], log: ResumableFile, bar: Any) -> None:
        """Write the answers of all rows of a group into its log, window by window."""
        rows = islice(self._rows(group), log.lines, None)
        bar.update(log.lines)
        while window := list(islice(rows, self.settings.window or self.answerer.window)):
            good = [index for index, (_, _, values) in enumerate(window) if not isinstance(values, BadLine)]
            found = self.answerer.answer([window[index][2] for index in good])
            answered = dict(zip(good, zip(found.answers, found.counts, strict=True), strict=True))
            lines = []
            for index, (target, number, values) in enumerate(window):
                answer, counts = (values.reason, {}) if isinstance(values, BadLine) else answered[index]
                if isinstance(answer, str) and self.settings.bad_rows == "stop":
                    raise BadRow(f"{target.shard.path}, {number} {answer}")
                lines.append(json.dumps([answer, counts]) + "\n")
            for source in sources:
                source.check()
            log.write(lines, {})
            bar.update(len(window))

    def _rows(self, group: Sequence[Target]) -> Iterator[tuple[Target, str, Any]]:
        """Each row of a group, with its shard and its place there."""
        for target in group:
            reader = open_reader(target.shard.path)
            values = reader.values(self.answerer.wanted, self.answerer.optional)
            for number, row in enumerate(values, start=1):
                yield target, f"{reader.word} {number}:" if isinstance(row, BadLine) else f"{reader.word} {number}", row

    def _write(self, target: Target, shape: Shape, source: InputFile, answers: Iterator[bytes]) -> None:
        """Write a shard with its answers, unless it is done."""
        name = target.shard.name
        known = self.records.get(name)
        part = target.path.with_name(f".{target.path.name}.partial")
        try:
            target.path.parent.mkdir(parents=True, exist_ok=True)
            skipped = self.layout.skipped(target)
            found = write_shard(target, part, skipped, answers, shape, self.settings.bad_rows == "skip")
            source.check()
            if known is not None and known.written and target.path.exists():
                return  # it was answered together with others that are not done
            record = Record(
                name, *source.size_and_time, source.digest, target.path.relative_to(self.layout.root).as_posix(),
                part.stat().st_size, found.rows, found.answered, found.bad, found.counts,
            )  # fmt: skip
            self.folder.record(record)  # before the output, which is this run's from now on
            part.replace(target.path)
            flush(target.path.parent)
            self.records[name] = Record(**{**vars(record), "written": True})
            self.folder.record(self.records[name])
        finally:
            part.unlink(missing_ok=True)
            _remove_empty(target.path.parent, self.layout.root)


def _rows_of(targets: Sequence[Target]) -> int | None:
    """How many rows shards have together. None: one of them does not say it."""
    counts = [open_reader(target.shard.path).count() for target in targets]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


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


def _few(names: Sequence[str]) -> str:
    """The first names, for messages."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder, and those above it up to `root`, as far as they are empty: a run that failed leaves none behind."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent

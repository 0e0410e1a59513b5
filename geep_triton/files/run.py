"""A run over files: it answers every shard once, however often it is killed and started again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from geep_triton.checks import OutputTaken
from geep_triton.files.crew import Crew
from geep_triton.files.group_work import GroupWork
from geep_triton.files.names import few
from geep_triton.files.outputs import AnswerColumns
from geep_triton.files.readers import open_reader
from geep_triton.files.run_folder import MANIFEST, Record, RunFolder, check_output_folder, clear_removed, holding
from geep_triton.files.settings import Settings
from geep_triton.files.shards import Listing, list_shards
from geep_triton.files.targets import RUN, Layout, Target, check_columns_of, check_overwrite, grouped, lay_out
from geep_triton.resumable import InputFile

VERSION = 1  # of the manifest and of what lies beside it
# A shard that was whole under "stop" has no bad rows, and is the same under "skip".
WIDENS = {"bad_rows": ("stop", "skip")}


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


def answer_files(
    crew: Crew,
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
        crew: whoever answers; `Here` is this process. The same rows must get the same answers, window by window.
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
    columns = AnswerColumns.of(crew.types, settings.prefix, with_errors=settings.bad_rows == "empty")
    clear_removed(layout.run)
    check_overwrite(layout, settings.overwrite, (layout.run / MANIFEST).is_file())
    if not layout.single:
        check_output_folder(output, RUN)
    check_columns_of(layout.targets, crew.wanted, crew.optional, settings.columns, columns.names)
    if listing.left_out:
        tell(f"left out: {few(listing.left_out)}")
    made_of = {
        "version": VERSION,
        **manifest,
        "columns": None if settings.columns is None else list(settings.columns),
        "prefix": settings.prefix,
        "bad_rows": settings.bad_rows,
        "format": None if settings.form is None else settings.form.suffix,
        "window": settings.window or crew.window,
        "inputs": [str(Path(given).absolute()) for given in inputs] if layout.single else None,
    }
    was_there = output.exists()
    try:
        with holding(layout.run, made_of, WIDENS) as folder:
            # Again, because another run may have written the output and ended meanwhile.
            check_overwrite(layout, settings.overwrite, folder.begun)
            work = GroupWork(settings, columns, layout, folder.holder)
            report = _Run(layout, folder, tell).finish(crew, work, listing, progress)
            report.came = _came(inputs, listing, tell)
            if layout.single:
                folder.remove()
    finally:
        if not layout.single and not was_there and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
    if report.came:
        tell(f"shards came meanwhile, start again to answer them: {few(report.came)}")
    return report


def _came(inputs: Sequence[str | os.PathLike], listing: Listing, tell: Callable[[str], None]) -> list[str]:
    known = {shard.name for shard in listing.shards}
    try:
        return [shard.name for shard in list_shards(inputs).shards if shard.name not in known]
    except (ValueError, OSError) as error:  # all is answered; the inputs may be gone by now
        tell(f"whether shards came meanwhile is not known: {error}")
        return []


class _Run:
    """What is done, and what is to be done."""

    def __init__(self, layout: Layout, folder: RunFolder, tell: Callable[[str], None]) -> None:
        self.layout, self.folder, self.tell = layout, folder, tell
        self.records = folder.records()

    def finish(self, crew: Crew, work: GroupWork, listing: Listing, progress: bool) -> Report:
        """Have answered what is missing."""
        targets = {target.shard.name: target for target in self.layout.targets}
        pending = [target for target in targets.values() if not self._is_done(target)]
        before = len(targets) - len(pending)
        if not pending:
            self.tell(f"already complete: {before} shards")
        elif before:
            self.tell(f"{before} of {len(targets)} shards are done")
        with (
            tqdm(total=_rows_of(pending) if progress else None, unit=" rows", disable=not progress or not pending) as bar,
            closing(crew.answer_groups(work, self._groups(targets, pending))) as steps,
        ):
            for step in steps:
                if isinstance(step, Record):
                    self.records[step.shard] = step
                elif isinstance(step, str):
                    self.tell(step)
                else:
                    bar.update(step)
        for log in self.folder.answers.glob("*"):
            log.unlink(missing_ok=True)  # of shards that are gone; whoever works for a killed run may remove its own
        return self._report(targets, before, listing)

    def _groups(self, targets: Mapping[str, Target], pending: Sequence[Target]) -> list[list[Target]]:
        """The shards to answer, in groups: first what a killed run has begun, since shards of one log belong together."""
        begun: list[list[Target]] = []
        left = {target.shard.name: target for target in pending}
        for names in self.folder.left_logs():
            if set(names) <= targets.keys() and not left.keys().isdisjoint(names):
                begun.append([targets[name] for name in names])
                left = {name: target for name, target in left.items() if name not in names}
        return [*begun, *grouped([*left.values()])]

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


def _rows_of(targets: Sequence[Target]) -> int | None:
    """How many rows shards have together. None: one of them does not say it."""
    counts = [open_reader(target.shard.path).count() for target in targets]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None

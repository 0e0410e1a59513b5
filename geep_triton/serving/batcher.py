"""Fills batches from requests, and runs one after another in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from geep_triton.serving import errors

MEMORY = 32  # batches by which the speed is measured


class Job(Protocol):
    """What a request asks of a model."""

    @property
    def kind(self) -> Hashable:
        """Only jobs of one kind run together."""

    @property
    def texts(self) -> int:
        """How many texts or pairs it has."""

    @property
    def work(self) -> float:
        """What it is expected to cost, in tokens that run all layers."""


JobT = TypeVar("JobT", bound=Job)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Ran:
    """A batch that has run.

    Attributes:
        texts: how many it had.
        work: what it was expected to cost, in tokens that run all layers.
        waited: how long each of its jobs waited, in seconds.
        seconds: that it ran.
    """

    texts: int
    work: float
    waited: Sequence[float]
    seconds: float


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[JobT, AnswerT]):
    job: JobT
    answer: Future[AnswerT] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[JobT, AnswerT]):
    """Runs jobs in the order in which they came, as many together as fit.

    A batch starts when it is full, or when its first job has waited for `max_wait`. While one batch runs, the next fills. If a
    batch fails, each of its jobs runs alone, so that only the one at fault fails.

    Args:
        run: answers jobs of one kind, in their order. It is called by this batcher's thread alone.
        max_wait: seconds.
        max_work: the most work of a batch. A larger job runs alone.
        see: is shown every batch that has run, in the batcher's thread.
        name: of the thread.
    """

    def __init__(
        self,
        run: Callable[[Sequence[JobT]], Sequence[AnswerT]],
        max_wait: float,
        max_work: float,
        see: Callable[[Ran], None],
        name: str = "batcher",
    ) -> None:
        self._run, self._max_wait, self._max_work, self._see = run, max_wait, max_work, see
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[JobT, AnswerT]] = deque()
        self._work = 0.0  # of all who wait and of the batch that runs
        self._lately: deque[tuple[float, float]] = deque(maxlen=MEMORY)  # work and seconds of the latest batches
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: JobT) -> Future[AnswerT]:
        """The answer to come. If it is cancelled before its batch starts, the job does not run.

        Raises:
            RuntimeError: the batcher is closed.
        """
        entry: _Waiting[JobT, AnswerT] = _Waiting(job)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(entry)
            self._work += job.work
            self._changed.notify()
        return entry.answer

    @property
    def seconds_left(self) -> float:
        """How long the jobs in hand will take, by the speed of the latest batches. 0 before the first."""
        with self._changed:
            work, seconds = map(sum, zip(*self._lately, strict=True)) if self._lately else (0.0, 0.0)
            return self._work * seconds / work if work else 0.0

    def close(self) -> None:
        """Answer who waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._answer(batch)

    def _next(self) -> list[_Waiting[JobT, AnswerT]] | None:
        """The next batch; empty if all who would be in it gave up. None: closed, and nobody waits."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            until = self._waiting[0].since + self._max_wait
            while not self._closed and self._work < self._max_work and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._cut()

    def _cut(self) -> list[_Waiting[JobT, AnswerT]]:
        """Take a batch from those who wait; the first of them is always in it, so that nobody is passed over for ever."""
        batch: list[_Waiting[JobT, AnswerT]] = []
        stay: deque[_Waiting[JobT, AnswerT]] = deque()
        work = 0.0
        while self._waiting:
            entry = self._waiting.popleft()
            if batch and entry.job.kind != batch[0].job.kind:
                stay.append(entry)
            elif batch and work + entry.job.work > self._max_work:
                stay.append(entry)
                break
            elif entry.answer.set_running_or_notify_cancel():
                batch.append(entry)
                work += entry.job.work
            else:
                self._work -= entry.job.work
        self._waiting.extendleft(reversed(stay))
        return batch

    def _answer(self, batch: list[_Waiting[JobT, AnswerT]]) -> None:
        """Run a batch and give each job its answer. What has run is measured first, so that who has an answer can see it."""
        start = time.monotonic()
        try:
            answers = self._run([entry.job for entry in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} jobs got {len(answers)} answers")
        except BaseException as error:  # also a panic of a library in Rust: if this thread ended, everybody would wait for ever
            if len(batch) > 1:
                for entry in batch:
                    self._answer([entry])
                return
            self._measure(batch, start)
            batch[0].answer.set_exception(errors.as_exception(error))
        else:
            self._measure(batch, start)
            for entry, answer in zip(batch, answers, strict=True):
                entry.answer.set_result(answer)

    def _measure(self, batch: list[_Waiting[JobT, AnswerT]], start: float) -> None:
        seconds, work = time.monotonic() - start, sum(entry.job.work for entry in batch)
        with self._changed:
            self._work -= work
            self._lately.append((work, seconds))
        self._see(Ran(sum(entry.job.texts for entry in batch), work, [start - entry.since for entry in batch], seconds))

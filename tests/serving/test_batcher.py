"""The batcher: order, fullness, waiting, and that a failure stays with whom it belongs to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import pytest

from geep_triton.serving.batcher import Batcher, Ran
from geep_triton.serving.errors import Crash


@dataclass(frozen=True)
class Number:
    """A job whose answer is ten times itself; 13 cannot be answered."""

    number: int
    work: float = 10.0
    kind: str = ""
    texts: int = 1


class Runs:
    """Answers numbers, batch by batch, each when it is let; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.let = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    def __call__(self, jobs: Sequence[Number]) -> list[int]:
        self.batches.append([job.number for job in jobs])
        self.started.release()
        assert self.let.acquire(timeout=60)
        if any(job.number == 13 for job in jobs):
            raise ValueError("13 brings bad luck")
        return [10 * job.number for job in jobs]

    def hold(self) -> None:
        """Wait until a batch has started."""
        assert self.started.acquire(timeout=60)

    def go_on(self) -> None:
        self.let.release(1000)


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def make(runs) -> Iterator[Callable[..., Batcher]]:
    made = []

    def make(max_wait: float = 0.0, max_work: float = 30.0, see: Callable[[Ran], None] = lambda ran: None) -> Batcher:
        made.append(Batcher(runs, max_wait, max_work, see))
        return made[-1]

    yield make
    runs.go_on()
    for batcher in made:
        batcher.close()


def held(batcher: Batcher, runs: Runs, jobs: Sequence[Number]) -> list[Future]:
    """The answers to jobs that all wait until the batch before them, of 0, is let."""
    first = batcher.submit(Number(0))
    runs.hold()
    return [first, *map(batcher.submit, jobs)]


def test_while_a_batch_runs_the_next_fills(make, runs):
    answers = held(make(), runs, [Number(number) for number in range(1, 8)])
    runs.go_on()
    assert [answer.result(60) for answer in answers] == [10 * number for number in range(8)]
    assert runs.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]


def test_a_batch_holds_as_much_work_as_it_may(make, runs):
    """A job that is too much for any batch runs alone, and those behind it do not pass."""
    works = [15.0, 15.0, 1.0, 100.0, 1.0, 29.0, 0.0]
    answers = held(make(), runs, [Number(number, work) for number, work in enumerate(works, 1)])
    runs.go_on()
    assert [answer.result(60) for answer in answers] == [10 * number for number in range(8)]
    assert runs.batches == [[0], [1, 2], [3], [4], [5, 6, 7]]


def test_only_one_kind_runs_together(make, runs):
    """The first who waits is always in the next batch. Others of its kind may pass those of another."""
    kinds = "abacbac"
    answers = held(make(max_work=1000.0), runs, [Number(number, kind=kind) for number, kind in enumerate(kinds, 1)])
    runs.go_on()
    assert [answer.result(60) for answer in answers] == [10 * number for number in range(8)]
    assert runs.batches == [[0], [1, 3, 6], [2, 5], [4, 7]]


def test_a_failure_stays_with_whom_it_belongs_to(make, runs):
    answers = held(make(), runs, [Number(1), Number(13), Number(2)])
    runs.go_on()
    assert [answers[index].result(60) for index in (0, 1, 3)] == [0, 10, 20]
    with pytest.raises(ValueError, match="13 brings bad luck"):
        answers[2].result(60)
    assert runs.batches == [[0], [1, 13, 2], [1], [13], [2]]


def test_who_gave_up_does_not_run(make, runs):
    answers = held(make(), runs, [Number(1), Number(2), Number(3)])
    assert answers[2].cancel()
    assert not answers[0].cancel()  # it runs already
    runs.go_on()
    assert [answers[index].result(60) for index in (0, 1, 3)] == [0, 10, 30]
    with pytest.raises(CancelledError):
        answers[2].result(60)
    assert runs.batches == [[0], [1, 3]]


def test_a_batch_of_those_who_gave_up_is_none(make, runs):
    batcher = make()
    answers = held(batcher, runs, [Number(1)])
    assert answers[1].cancel()
    runs.go_on()
    assert batcher.submit(Number(2)).result(60) == 20
    assert runs.batches == [[0], [2]]
    assert batcher.seconds_left == 0


def test_who_is_first_waits_for_others_but_not_longer_than_it_must(make, runs):
    """An hour is long enough for all who are to come; the batch starts when it is full."""
    runs.go_on()
    batcher = make(max_wait=3600.0)
    answers = [batcher.submit(Number(number)) for number in range(3)]
    assert [answer.result(60) for answer in answers] == [0, 10, 20]
    assert runs.batches == [[0, 1, 2]]
    start = time.monotonic()
    assert make(max_wait=0.05).submit(Number(4)).result(60) == 40
    assert time.monotonic() - start >= 0.05


def test_closing_answers_who_waits(make, runs):
    batcher = make(max_wait=3600.0)
    answers = [batcher.submit(Number(1)), batcher.submit(Number(2))]
    runs.go_on()
    batcher.close()
    assert [answer.result(0) for answer in answers] == [10, 20]
    with pytest.raises(RuntimeError, match="the batcher is closed"):
        batcher.submit(Number(3))


def test_a_run_that_loses_answers_is_an_error():
    batcher = Batcher(lambda jobs: [], 0.0, 10.0, lambda ran: None)
    answer = batcher.submit(Number(1))
    with pytest.raises(RuntimeError, match="1 jobs got 0 answers"):
        answer.result(60)
    batcher.close()


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("error", [Panic("at once"), SystemExit("at once"), StopIteration("at once"), TypeError("at once")])
def test_whatever_a_run_raises_the_batcher_lives_on(error):
    def run(jobs: Sequence[Number]) -> list[int]:
        if any(job.number == 13 for job in jobs):
            raise error
        return [10 * job.number for job in jobs]

    batcher = Batcher(run, 3600.0, 30.0, lambda ran: None)
    answers = [batcher.submit(Number(number)) for number in (1, 13, 2)]
    assert [answers[index].result(60) for index in (0, 2)] == [10, 20]
    with pytest.raises(TypeError if isinstance(error, TypeError) else Crash, match="at once"):
        answers[1].result(60)
    batcher.close()
    assert batcher.seconds_left == 0


def test_who_has_an_answer_sees_what_has_run():
    """A client who asks for /metrics right after its answer finds its own batch there."""
    seen: list[Ran] = []
    order: list[int] = []
    batcher = Batcher(lambda jobs: [0] * len(jobs), 0.0, 10.0, seen.append)
    for number in range(20):
        batcher.submit(Number(number)).add_done_callback(lambda _: order.append(len(seen)))
    batcher.close()
    assert order == list(range(1, 21))


def test_what_has_run_is_told(make, runs):
    seen: list[Ran] = []
    batcher = make(see=seen.append)
    answers = held(batcher, runs, [Number(1, 20.0, texts=3), Number(2, 5.0), Number(13, 5.0)])
    assert batcher.seconds_left == 0  # no batch has run yet, so the speed is not known
    runs.let.release()
    runs.hold()
    assert batcher.seconds_left > 0
    runs.go_on()
    assert answers[2].result(60) == 20
    batcher.close()
    assert [(ran.texts, ran.work, len(ran.waited)) for ran in seen] == [(1, 10, 1), (3, 20, 1), (1, 5, 1), (1, 5, 1)]
    assert all(waited >= 0 and ran.seconds >= 0 for ran in seen for waited in ran.waited)
    assert batcher.seconds_left == 0


def test_many_threads_get_their_own_answers():
    batcher = Batcher(lambda jobs: [10 * job.number for job in jobs], 0.001, 70.0, lambda ran: None)
    wrong: list[int] = []

    def client(first: int) -> None:
        for number in range(first, 4000, 16):
            if batcher.submit(Number(number, kind="ab"[number % 2])).result(60) != 10 * number:
                wrong.append(number)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    batcher.close()
    assert not wrong

"""Ways to load a server: clients that wait for their answers, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.serving.wire import Address, Line, Lost, Reply


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        number: of its question.
        due: when it was to be sent, in seconds of `time.perf_counter()`. Waiting for an answer counts from here, so that a
            server which is late for one request does not hide that others waited behind it.
        sent: when it was sent.
        done: when it was answered or lost.
        reply: None: it was lost.
    """

    number: int
    due: float
    sent: float
    done: float
    reply: Reply | None

    @property
    def seconds(self) -> float:
        """How long its answer took."""
        return self.done - self.due


async def ask(line: Line, number: int, payload: bytes, due: float | None = None) -> Outcome:
    """Send one request and wait for what becomes of it."""
    sent = time.perf_counter()
    try:
        reply = await line.ask(payload)
    except Lost:
        reply = None
    return Outcome(number, sent if due is None else due, sent, time.perf_counter(), reply)


async def closed(
    address: Address,
    payloads: Sequence[bytes],
    clients: int,
    requests: int | None = None,
    seconds: float = float("inf"),
    first: int = 0,
    pause_when_refused: float = 0.0,
    see: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Clients each of which sends its next request when the last is answered.

    Args:
        address: of the server.
        payloads: are sent in turn, from the first again after the last.
        clients: how many.
        requests: how many in all; None: as many as there are payloads.
        seconds: no request is sent after so many.
        first: the number of the payload to begin with.
        pause_when_refused: seconds that a client waits after status 429.
        see: is shown each outcome, which is then not kept; None: all are kept.
    """
    end = time.perf_counter() + seconds
    left = iter(range(len(payloads) if requests is None else requests))
    outcomes: list[Outcome] = []
    show = outcomes.append if see is None else see

    async def client() -> None:
        line = Line(address)
        for count in left:
            if time.perf_counter() >= end:
                break
            number = (first + count) % len(payloads)
            outcome = await ask(line, number, payloads[number])
            show(outcome)
            if pause_when_refused and outcome.reply is not None and outcome.reply.status == 429:
                await asyncio.sleep(pause_when_refused)
        line.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return outcomes


async def arriving(address: Address, payloads: Sequence[bytes], due: Sequence[float], first: int = 0) -> list[Outcome]:
    """Requests that are sent when they are due, whether others are answered or not.

    Args:
        address: of the server.
        payloads: are sent in turn, from the first again after the last.
        due: seconds from the start, ascending.
        first: the number of the payload to begin with.
    """
    idle: list[Line] = []
    start = time.perf_counter()

    async def one(count: int, moment: float) -> Outcome:
        line = idle.pop() if idle else Line(address)  # the last that was used: it is the least likely to have been closed
        number = (first + count) % len(payloads)
        outcome = await ask(line, number, payloads[number], moment)
        idle.append(line)
        return outcome

    running = []
    for count, after in enumerate(due):
        moment = start + after
        if (early := moment - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        running.append(asyncio.ensure_future(one(count, moment)))
    outcomes = await asyncio.gather(*running)
    for line in idle:
        line.close()
    return outcomes


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments of random arrivals, `rate` a second on average."""
    random_ = random.Random(seed)
    moments = itertools.accumulate(random_.expovariate(rate) for _ in itertools.count())
    return list(itertools.takewhile(lambda moment: moment < seconds, moments))


def bursts(rate: float, seconds: float, size: int) -> list[float]:
    """Moments of arrivals of `size` at once, as far apart as makes `rate` a second."""
    return [number * size / rate for number in range(max(1, round(seconds * rate / size))) for _ in range(size)]

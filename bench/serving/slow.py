"""The cell "slow": clients that send a byte a second, and clients that vanish, beside ordinary ones."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from bench.rows import Found, found
from bench.serving.bench import EXITS, Bench, held
from bench.serving.loads import Outcome, closed
from bench.serving.servers import metrics
from bench.serving.summaries import figures, timed
from bench.serving.wire import Address, Line, Lost, Reply

ORDINARY, TRICKLING, VANISHING = 8, 16, 8
TIMEOUT = 2.0  # of the server, for a body
BETWEEN = 0.25  # seconds from one vanishing of a client to its next
WAYS = ("before sending", "while sending", "after sending")
IN_HAND = "geep_requests_in_hand"


def slow(bench: Bench, seconds: float) -> list[Found]:
    """Ordinary clients alone, and in bad company."""
    questions, payloads, truths = bench.one_by_one()
    truth = truths[EXITS]
    measured = []
    with bench.running(EXITS, "--receive-timeout", TIMEOUT) as server:
        asyncio.run(closed(server.address, payloads, ORDINARY, seconds=min(seconds, 2.0)))
        for company in (False, True):
            seen: Counter[str] = Counter()
            loading = _load(server.address, payloads, seconds, company, seen)
            ran = asyncio.run(timed(loading))
            counts = figures([ran]) | held(truth, questions, ran.outcomes)
            measured.append(found(EXITS, counts | {"seen": dict(seen)}, company=company, clients=ORDINARY))
        measured.append(found(EXITS, asyncio.run(_afterwards(server.address))))
    return measured


async def _load(
    address: Address, payloads: Sequence[bytes], seconds: float, company: bool, seen: Counter[str]
) -> list[Outcome]:
    others = []
    if company:
        others = [asyncio.ensure_future(_trickle(address, payload, seen)) for payload in payloads[:TRICKLING]]
        others += [asyncio.ensure_future(_vanish(address, payload, seen)) for payload in payloads[:VANISHING]]
    outcomes = await closed(address, payloads, ORDINARY, len(payloads), seconds, first=ORDINARY)
    for one in others:
        one.cancel()
    for result in await asyncio.gather(*others, return_exceptions=True):
        if not isinstance(result, asyncio.CancelledError):
            raise RuntimeError(f"the company went away: {result!r}")
    return outcomes


async def _trickle(address: Address, payload: bytes, seen: Counter[str]) -> None:
    """Send the head, and then a byte a second, until the server has enough; again and again."""
    head, _, body = payload.partition(b"\r\n\r\n")
    while True:
        line = Line(address)
        answer = asyncio.ensure_future(_answer_to(line, head + b"\r\n\r\n"))
        try:
            for place in range(len(body) - 1):
                await asyncio.wait({answer}, timeout=1.0)
                if answer.done():
                    break
                await line.send(body[place : place + 1])
            reply = await answer
            seen["hung up on for a byte a second" if reply is None else f"status {reply.status} for a byte a second"] += 1
        except OSError:
            seen["hung up on for a byte a second"] += 1
        finally:
            answer.cancel()
            line.close()


async def _answer_to(line: Line, head: bytes) -> Reply | None:
    """Begin a request, and wait for what is said to it. None: the server hung up."""
    await line.send(head)
    try:
        return await line.reply()
    except Lost:
        return None


async def _vanish(address: Address, payload: bytes, seen: Counter[str]) -> None:
    """Go away at each stage of a request in turn."""
    parts = {"before sending": b"", "while sending": payload[: len(payload) * 3 // 4], "after sending": payload}
    while True:
        for way in WAYS:
            line = Line(address)
            await line.send(parts[way])
            line.vanish()
            seen[f"vanished {way}"] += 1
            await asyncio.sleep(BETWEEN)


async def _afterwards(address: Address) -> dict[str, float]:
    """How long until nothing is in hand, and what the server counted."""
    start = time.perf_counter()
    while (counted := await metrics(address))[IN_HAND] and time.perf_counter() - start < 5 * TIMEOUT:
        await asyncio.sleep(0.01)
    predicted = 'geep_requests_total{{route="/predict",status="{}"}}'
    return {
        "in_hand": counted[IN_HAND],
        "seconds_to_none": time.perf_counter() - start,
        "counted_408": counted.get(predicted.format(408), 0),
        "counted_499": counted.get(predicted.format(499), 0),
    }

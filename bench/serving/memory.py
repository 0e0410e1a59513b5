"""The cell "memory": as many requests as come in an hour, as fast as they go."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from bench.rows import Found, found
from bench.serving.bench import EXITS, PIPELINE, Bench, check_held
from bench.serving.loads import Outcome, closed
from bench.serving.questions import PAYLOAD_LIMIT, mix
from bench.serving.summaries import timed

HOUR = 3600
PARTS = 10


def memory(bench: Bench, share: float, clients: int, requests_of_mix: int, seconds: float, hour: float) -> list[Found]:
    """What the server holds in the beginning and after each tenth. Requests are of all kinds, bad ones among them.

    Args:
        bench: systems and texts.
        share: of what the pipeline answers of as many clients, which is taken for a moderate load.
        clients: that send.
        requests_of_mix: how many different requests; they are sent again and again.
        seconds: after so many it stops.
        hour: the seconds at moderate load that it stands for.
    """
    asked = mix(bench.texts, requests_of_mix)
    payloads = [question.payload for question in asked.questions]
    truth = bench.truths(asked.samples)[EXITS]
    with bench.running(PIPELINE) as server:
        asyncio.run(closed(server.address, payloads, clients, seconds=min(2.0, seconds)))
        ran = asyncio.run(timed(closed(server.address, payloads, clients, len(payloads), min(10.0, seconds))))
    rate = share * len(ran.outcomes) / ran.seconds
    verdicts: Counter[str] = Counter()

    def see(outcome: Outcome) -> None:
        verdicts[truth.verdict(asked.questions[outcome.number], outcome.reply)] += 1

    each = max(1, round(rate * hour / PARTS))
    with bench.running(EXITS, "--payload-limit", PAYLOAD_LIMIT) as server:
        at_start = server.megabytes
        asyncio.run(closed(server.address, payloads, clients, seconds=min(5.0, seconds)))
        held, sent, start = [server.megabytes], [0], time.perf_counter()
        for _ in range(PARTS):
            left = seconds - (time.perf_counter() - start)
            if left <= 0:
                break
            asyncio.run(closed(server.address, payloads, clients, each, left, first=sent[-1] % len(payloads), see=see))
            held.append(server.megabytes)
            sent.append(verdicts.total())
        took = time.perf_counter() - start
    check_held(verdicts)
    metrics = {"megabytes_at_start": at_start, "megabytes": held, "sent": sent, "seconds": took, "hour": rate * hour}
    return [found(EXITS, metrics | {"rate": rate}, clients=clients, share=share)]

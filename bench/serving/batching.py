"""The cell "batching": how long to wait for others, and how many tokens to run together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial

from bench.rows import Found, found
from bench.serving.bench import PIPELINE, Bench, held
from bench.serving.loads import arriving, closed, poisson
from bench.serving.summaries import figures, timed

CLIENTS = (8, 64)
SHARE = 0.6  # of what the pipeline answers of 64 clients


def batching(bench: Bench, names: Sequence[str], waits: Sequence[float], tokens: Sequence[int], seconds: float) -> list[Found]:
    """Each setting of some systems under three loads of single texts.

    Args:
        bench: systems and texts.
        names: of the systems.
        waits: values of --max-wait-ms.
        tokens: values of --max-batch-tokens.
        seconds: of each load.
    """
    questions, payloads, truths = bench.one_by_one()
    with bench.running(PIPELINE) as server:
        asyncio.run(closed(server.address, payloads, CLIENTS[-1], seconds=min(seconds, 2.0)))
        ran = asyncio.run(timed(closed(server.address, payloads, CLIENTS[-1], len(payloads), seconds)))
    rate = SHARE * len(ran.outcomes) / ran.seconds
    measured = []
    for wait, most, name in itertools.product(waits, tokens, names):
        with bench.running(name, "--max-wait-ms", wait, "--max-batch-tokens", most) as server:
            asyncio.run(closed(server.address, payloads, CLIENTS[-1], seconds=min(seconds, 2.0)))
            loads = {
                f"{clients} clients": partial(closed, clients=clients, seconds=seconds, first=clients) for clients in CLIENTS
            }
            loads["arrivals"] = partial(arriving, due=poisson(rate, seconds, 0))
            for load, loading in loads.items():
                ran = asyncio.run(timed(loading(server.address, payloads)))
                counts = held(truths[name], questions, ran.outcomes)
                config = {"load": load, "max_wait_ms": wait, "max_batch_tokens": most}
                measured.append(found(name, figures([ran]) | counts, **config))
    return [*measured, found("", {"rate": rate})]

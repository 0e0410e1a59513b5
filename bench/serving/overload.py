"""The cell "overload": more clients than the server takes on."""

from __future__ import annotations

import asyncio
from collections import Counter

from bench.rows import Found, found
from bench.serving.bench import EXITS, Bench, held
from bench.serving.loads import closed
from bench.serving.summaries import figures, timed

HEEDING, IMPATIENT = 1.0, 0.02  # seconds after which a client that was refused asks again; Retry-After says 1 here


def overload(bench: Bench, limit: int, seconds: float) -> list[Found]:
    """As many clients as the server takes on, and four times as many: who heed Retry-After, and who do not."""
    questions, payloads, truths = bench.one_by_one()
    truth = truths[EXITS]
    measured = []
    with bench.running(EXITS, "--max-concurrent-requests", limit) as server:
        asyncio.run(closed(server.address, payloads, limit, seconds=min(seconds, 2.0)))
        for clients, pause in ((limit, HEEDING), (4 * limit, HEEDING), (4 * limit, IMPATIENT)):
            loading = closed(server.address, payloads, clients, 1_000_000, seconds, first=clients, pause_when_refused=pause)
            ran = asyncio.run(timed(loading))
            refused = [one for one in ran.outcomes if one.reply is not None and one.reply.status == 429]
            others = [one for one in ran.outcomes if one.reply is None or one.reply.status != 429]
            waits = Counter(one.reply.headers.get("retry-after", "missing") for one in refused if one.reply is not None)
            counts = held(truth, questions, others)
            measured.append(
                found(
                    EXITS,
                    {**figures([ran]), **counts, "retry_after": sorted(waits.items())},
                    clients=clients,
                    limit=limit,
                    pause=pause,
                )
            )
    return measured

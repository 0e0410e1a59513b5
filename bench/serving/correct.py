"""The cell "correct": many requests from many clients, bad ones among them, every answer checked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from bench.rows import Found, found
from bench.serving.bench import Bench
from bench.serving.loads import closed
from bench.serving.questions import PAYLOAD_LIMIT, mix
from bench.serving.summaries import figures, timed


def correct(bench: Bench, names: Sequence[str], requests: int, clients: int) -> list[Found]:
    """What became of each request, by what was asked and by verdict."""
    asked = mix(bench.texts, requests)
    payloads = [question.payload for question in asked.questions]
    truths = bench.truths(asked.samples)
    measured = []
    for name in names:
        with bench.running(name, "--payload-limit", PAYLOAD_LIMIT) as server:
            ran = asyncio.run(timed(closed(server.address, payloads, clients)))
        truth = truths[name]
        verdicts = truth.count(asked.questions, ran.outcomes)
        kinds = Counter(asked.questions[one.number].kind for one in ran.outcomes)
        measured.append(
            found(
                name,
                {
                    **{verdict: verdicts[verdict] for verdict in ("right", "moved", "wrong", "lost")},
                    "confusable": truth.confusable(),
                    "asked": dict(kinds),
                    **figures([ran]),
                },
                clients=clients,
            )
        )
    return measured

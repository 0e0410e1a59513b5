"""The cell "drain": SIGTERM while clients wait and send."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence

from bench.rows import Found, found
from bench.serving.bench import EXITS, Bench
from bench.serving.loads import Outcome, ask
from bench.serving.questions import Question
from bench.serving.servers import PATIENCE, Running
from bench.serving.wire import Line


def drain(bench: Bench, rounds: int, clients: int, seconds: float) -> list[Found]:
    """What becomes of requests that were sent before and after the signal; over some rounds."""
    questions, _, truths = bench.one_by_one()
    truth = truths[EXITS]
    before: list[Outcome] = []
    after: list[Outcome] = []
    took, codes = [], []
    for _ in range(rounds):
        with bench.running(EXITS) as server:
            outcomes, signalled = asyncio.run(_until_it_is_gone(server, questions, clients, seconds))
            codes.append(server.process.wait(PATIENCE))
            took.append(time.perf_counter() - signalled)
        in_hand = [one for one in outcomes if one.done >= signalled]
        before += [one for one in in_hand if one.sent < signalled]
        after += [one for one in in_hand if one.sent >= signalled]
    metrics = {
        "rounds": rounds,
        "in_hand": len(before),
        "in_hand_right": sum(truth.verdict(questions[one.number], one.reply) in ("right", "moved") for one in before),
        "sent_after": len(after),
        "sent_after_right": sum(truth.verdict(questions[one.number], one.reply) in ("right", "moved") for one in after),
        "sent_after_closed": sum(one.reply is None for one in after),
        "exit_codes": codes,
        "seconds": took,
    }
    return [found(EXITS, metrics, clients=clients)]


async def _until_it_is_gone(
    server: Running, questions: Sequence[Question], clients: int, seconds: float
) -> tuple[list[Outcome], float]:
    """Clients that send one request after another until they are hung up on. The signal comes after so many seconds."""
    left = iter(range(len(questions)))
    outcomes: list[Outcome] = []

    async def client() -> None:
        line = Line(server.address)
        for number in left:
            outcomes.append(await ask(line, number, questions[number].payload))
            if outcomes[-1].reply is None:
                break
        line.close()

    running = [asyncio.ensure_future(client()) for _ in range(clients)]
    await asyncio.sleep(seconds)
    signalled = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*running)
    return outcomes, signalled

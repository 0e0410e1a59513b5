"""The cell "load": systems beside each other under clients that wait, random arrivals, and bursts."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from bench.rows import Found, found
from bench.serving.bench import PIPELINE, Bench, held
from bench.serving.loads import Outcome, arriving, bursts, closed, poisson
from bench.serving.servers import Running
from bench.serving.summaries import Round, figures, timed

CLIENTS = (1, 8, 64)
SHARES = (0.3, 0.6, 0.9)  # of what the pipeline answers of 64 clients
BURST = 32
BURST_SHARE = 0.6
Loading = Callable[[Running, int], Coroutine[Any, Any, list[Outcome]]]


def load(bench: Bench, names: Sequence[str], rounds: int, seconds: float) -> list[Found]:
    """Each system under each load, the systems by turns in each round. Texts are sent one by one."""
    questions, payloads, truths = bench.one_by_one()
    measured: list[Found] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(bench.running(name)) for name in names}

        def measure(loading: Loading, **config: Any) -> Mapping[str, Sequence[Round]]:
            ran: dict[str, list[Round]] = {name: [] for name in names}
            for number in range(rounds):
                for name, server in servers.items():
                    ran[name].append(asyncio.run(timed(loading(server, number))))
            for name, of in ran.items():
                outcomes = [one for each in of for one in each.outcomes if one.reply is None or one.reply.status != 429]
                measured.append(found(name, figures(of) | held(truths[name], questions, outcomes), **config))
            return ran

        for server in servers.values():  # warm
            asyncio.run(closed(server.address, payloads, CLIENTS[-1], seconds=min(seconds, 2.0)))
        for clients in CLIENTS:
            ran = measure(
                lambda server, number, clients=clients: closed(
                    server.address, payloads, clients, len(payloads), seconds, first=number * 1000 % len(payloads)
                ),
                load="clients that wait", clients=clients,
            )  # fmt: skip
        capacity = statistics.median(len(one.answered()) / one.seconds for one in ran[PIPELINE])
        for share in SHARES:
            measure(
                lambda server, number, share=share: arriving(
                    server.address, payloads, poisson(share * capacity, seconds, number), first=number * 1000 % len(payloads)
                ),
                load="random arrivals", share=share, rate=share * capacity,
            )  # fmt: skip
        measure(
            lambda server, number: arriving(
                server.address, payloads, bursts(BURST_SHARE * capacity, seconds, BURST), first=number * 1000 % len(payloads)
            ),
            load="bursts", share=BURST_SHARE, rate=BURST_SHARE * capacity, size=BURST,
        )  # fmt: skip
    return [*measured, found("", {"capacity": capacity})]

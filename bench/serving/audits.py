"""The cells "audit" and "audit_delay": how long until a broken promise shows."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.rows import Found, found
from bench.serving.bench import EXITS, Bench
from bench.serving.loads import closed
from bench.serving.questions import singles
from bench.serving.servers import metrics
from bench.serving.summaries import quantile
from bench.serving.wire import Address
from geep_triton.promises.audit import Audit

STEP = 10  # audited texts, after which it is looked whether the promise is shown to be broken
MOST = 20_000  # audited texts of a simulation
CLIENTS = 8
BROKEN, AUDITED = "geep_promise_broken", "geep_audit_texts"


@dataclass(frozen=True)
class Before:
    """What an audit has seen before the texts changed.

    Attributes:
        texts: how many, of which
        agreement: so many agreed.
    """

    texts: int = 0
    agreement: float = 1.0


def delays(promised: float, true: float, runs: int, before: Before, most: int = MOST) -> list[int]:
    """Audited texts until the audit says that the promise is broken, where so many answers agree; `most`: not by then."""
    random_ = random.Random(f"{promised} {true}")
    found_ = []
    for _ in range(runs):
        running, texts = Audit(1.0, promised, seed=0), 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the warning is what is waited for
            running.record(torch.tensor([random_.random() < before.agreement for _ in range(before.texts)]))
            while texts < most and running.report().holds:
                running.record(torch.tensor([random_.random() < true for _ in range(STEP)]))
                texts += STEP
        found_.append(texts)
    return found_


def simulated(promised: float, true: float, runs: int, before: Before) -> dict[str, Any]:
    """The delay that the audit has, by simulation."""
    counts = delays(promised, true, runs, before)
    return {
        "median": quantile(counts, 0.5), "within_95_percent": quantile(counts, 0.95),
        "not_shown": sum(count >= MOST for count in counts), "runs": runs,
    }  # fmt: skip


def audit_delay(promised: float, truths: Sequence[float], runs: int) -> list[Found]:
    """The delay from the first audited text on."""
    return [found("simulated", simulated(promised, true, runs, Before()), promised=promised, true=true) for true in truths]


def audit(
    bench: Bench,
    shifts: Mapping[str, Sequence[str]],
    agreements: Sequence[float],
    drawn_texts: int,
    rate: float,
    usual: int,
    runs: int,
) -> list[Found]:
    """How many audited texts a server takes to tell that its promise is broken, after texts of another kind come.

    Args:
        bench: systems and texts.
        shifts: texts of other kinds, by name.
        agreements: further kinds are made of these texts, drawn so that such shares of them get the answer of all layers.
        drawn_texts: how many each of these is.
        rate: the share of the texts that is audited.
        usual: how many of the usual texts come before.
        runs: of the simulation of the delay.
    """
    texts = [text for of in shifts.values() for text in of]
    truth = bench.truths([(text, None) for text in texts])[EXITS]
    agrees = (truth.logits.argmax(-1) == truth.every[:, -1].argmax(-1)).tolist()
    kinds, first = {}, 0
    for name, of in shifts.items():
        kinds[name] = list(range(first, first + len(of)))
        first += len(of)
    for share in agreements:
        kinds[f"drawn from these, {share:.0%} agree"] = drawn(agrees, share, drawn_texts)
    payloads = [question.payload for question in singles(texts)]
    before = [question.payload for question in singles(bench.texts[:usual])]
    measured = []
    for name, rows in kinds.items():
        with bench.running(EXITS, "--audit", rate) as server:
            found_ = _until_broken(server.address, before, [payloads[row] for row in rows], max(1, round(STEP / rate)))
        agreement = sum(agrees[row] for row in rows) / len(rows)
        broken = agreement < found_["promised"]
        seen = Before(round(found_["audited_before"]), found_["agreement_before"])
        told = simulated(found_["promised"], agreement, runs, seen) if broken else None
        measured.append(found(EXITS, found_ | {"agreement": agreement, "simulated": told}, texts=name, rate=rate))
    return measured


def _until_broken(address: Address, before: Sequence[bytes], after: Sequence[bytes], step: int) -> dict[str, float]:
    """Send texts, look at /metrics after each `step` of those that come after, and stop once the promise is broken."""
    asyncio.run(closed(address, before, CLIENTS))
    start = now = asyncio.run(metrics(address))
    sent = 0
    while sent < len(after) and not now[BROKEN]:
        asyncio.run(closed(address, after[sent : sent + step], CLIENTS))
        sent += step
        now = asyncio.run(metrics(address))
    return {
        "promised": now["geep_promised_agreement"],
        "audited_before": start[AUDITED],
        "agreement_before": start["geep_audit_agreement"],
        "broken_before": start[BROKEN],
        "broken": now[BROKEN],
        "audited": now[AUDITED] - start[AUDITED],
        "sent": min(sent, len(after)),
    }


def drawn(agrees: Sequence[bool], share: float, count: int, seed: int = 0) -> list[int]:
    """So many rows in random order, of which this share agrees. Rows come again where there are too few.

    Raises:
        ValueError: all rows agree, or none does.
    """
    same, other = ([row for row, one in enumerate(agrees) if one == wanted] for wanted in (True, False))
    if not same or not other:
        raise ValueError(f"expected texts with and without the answer of all layers, got {len(same)} and {len(other)}")
    random_, agreeing = random.Random(seed), round(share * count)
    rows = [*random_.choices(same, k=agreeing), *random_.choices(other, k=count - agreeing)]
    random_.shuffle(rows)
    return rows


def shuffled(texts: Sequence[str], words_of: Sequence[str], seed: int = 0) -> list[str]:
    """Texts of as many words each, drawn at random from all words of other texts."""
    words = sorted({word for text in words_of for word in text.split()})
    random_ = random.Random(seed)
    return [" ".join(random_.choices(words, k=len(text.split()))) for text in texts]

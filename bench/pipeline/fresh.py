"""Texts for rounds that have not met them: a file's texts are dealt out, so that all rounds' texts are about as long."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.pipeline.rivals_dense import sorted_batches
from bench.rows import Range
from bench.timing import spread
from geep_triton import Predictions

LEFT = 300  # texts that no round takes, on which rivals are quantized and fitted; of a small file a quarter of them
AGAIN = 3  # rounds over texts that all systems have met


@dataclass(frozen=True)
class Dealt:
    """A file's texts.

    Attributes:
        chunks: so many texts for each round; no text is in two of them.
        left: in random order, as long as the others; they are not timed.
    """

    chunks: list[list[dict[str, Any]]]
    left: list[dict[str, Any]]


def deal(rows: Sequence[dict[str, Any]], lengths: torch.Tensor, samples: int, chunks: int) -> Dealt:
    """Different texts, dealt out by length, always in the same way.

    Args:
        rows: those of the file; equal texts count as one.
        lengths: [N] their tokens.
        samples: texts of a chunk.
        chunks: at most; fewer where the file has too few texts.

    Raises:
        ValueError: there are not enough texts for two chunks.
    """
    texts = [(row["text"], row.get("text_pair")) for row in rows]
    first = torch.tensor(sorted({text: at for at, text in reversed(list(enumerate(texts)))}.values()))
    order = first[lengths[first].argsort(stable=True)]
    chunks = min(chunks, (len(order) - min(LEFT, len(order) // 4)) // samples)
    if chunks < 2:
        raise ValueError(f"samples must leave two chunks of the file's {len(order)} different texts, got {samples}")
    taken = torch.arange(chunks * samples) * len(order) // (chunks * samples)
    generator = torch.Generator().manual_seed(0)
    hands = torch.stack([hand[torch.randperm(chunks, generator=generator)] for hand in order[taken].split(chunks)])
    others = torch.ones(len(order), dtype=torch.bool)
    others[taken] = False
    mixed = [hands[torch.randperm(samples, generator=generator), at] for at in range(chunks)]
    left = order[others][torch.randperm(int(others.sum()), generator=generator)]
    return Dealt([[rows[at] for at in chunk.tolist()] for chunk in mixed], [rows[at] for at in left.tolist()])


def shapes_of(lengths: Sequence[torch.Tensor], token_budget: int) -> dict[str, int]:
    """Of chunks with these lengths: how many shapes their batches have at full depth, and how many of them the first lacks."""
    met = [{(len(part), int(of[part].max())) for part in sorted_batches(of, token_budget)} for of in lengths]
    return {"distinct": len(set().union(*met)), "new": len(set().union(*met[1:]) - met[0]) if len(met) > 1 else 0}


@dataclass(frozen=True)
class Timed:
    """A call on texts.

    Attributes:
        rows: how many; seconds: that it took.
        layers: [rows] that each ran.
    """

    rows: int
    seconds: float
    layers: torch.Tensor


def timed(
    calls: Mapping[str, Any], chunks: Sequence[Sequence[dict[str, Any]]], limit: float | None = None
) -> dict[str, list[Timed]]:
    """Each call once on each chunk, in turns.

    Args:
        calls: rows -> predictions, by name.
        chunks: the texts of each round.
        limit: after this many seconds no further round starts (the first always runs). None: no limit.
    """
    found: dict[str, list[Timed]] = {name: [] for name in calls}
    began, names = time.perf_counter(), list(calls)
    for number, rows in enumerate(chunks):
        if number and limit is not None and time.perf_counter() - began > limit:
            break
        first = number % len(names)  # which pays for what a library keeps of a text or a shape, and all share
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            got: Predictions = calls[name](rows)
            seconds = time.perf_counter() - start
            found[name].append(Timed(len(rows), seconds, got.layers_run))
    return found


def rate_of(turns: Sequence[Timed]) -> Range:
    """Samples a second: the median of the rounds, the slowest and the fastest."""
    return spread([turn.rows / turn.seconds for turn in turns])

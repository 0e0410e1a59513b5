"""Measures how much of the skipped layers becomes saved time, with paths that are known beforehand."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.rows import Found, found
from bench.shapes import load_model, load_tokenizer
from bench.timing import quiet_garbage_collector
from geep_triton import Engine
from geep_triton.timing import in_turns
from geep_triton.tokens.ragged import Tokens

RATES = (0.0, 0.25, 0.5, 0.75)  # of the layers
PATHS = 4  # that samples are spread over
CHECKED = 16  # samples, against one at a time
DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.05}  # of a probability


@dataclass(frozen=True, eq=False)
class KnownPaths:
    """Stands where a model's exit table does: sample i of a window skips the layers of path i modulo K.

    Args:
        paths: [K, L] bool.
    """

    paths: torch.Tensor

    @property
    def learned(self) -> dict[str, KnownPaths]:
        """Its own paths are what was learned of skips."""
        return {"skips": self}

    def check_fits(self, *_: Any) -> None:
        """It fits every model of L layers."""

    def predict_skips(self, tokens: Tokens, device: torch.device) -> torch.Tensor:
        """[N, L] float32."""
        return self.paths[torch.arange(len(tokens)) % len(self.paths)].float()


def drawn_paths(layers: int, rate: float, seed: int = 0) -> torch.Tensor:
    """[K, L] bool, different paths that each skip a share `rate` of the layers."""
    generator, count = torch.Generator().manual_seed(seed), round(rate * layers)
    paths = torch.zeros(PATHS, layers, dtype=torch.bool)
    for path in paths:
        path[torch.randperm(layers, generator=generator)[:count]] = True
    return torch.unique(paths, dim=0)


def skip_rates(
    shape: str, rows: Sequence[dict[str, Any]], tokens: int, length: int, dtype: str, device: str, rounds: int
) -> list[Found]:
    """Each rate beside a model that skips nothing: answers checked one by one, then samples a second in turns.

    Raises:
        ValueError: answers in batches differ from those one at a time.
    """
    tokenizer, calls, rates = load_tokenizer(), {}, {}
    for rate in RATES:
        model = load_model(shape, skip_gate="mean").to(device)
        depth = model.config.num_hidden_layers
        model.attach_table(KnownPaths(drawn_paths(depth, rate)))
        policy = f"full+skip:{'planned' if rate else 'never'}"
        engines = [
            Engine(model, tokenizer, policy, token_budget=budget, max_length=length, dtype=kind)
            for budget, kind in ((1, None), (tokens, dtype))
        ]
        expected, got = (engine.predict(rows[:CHECKED]) for engine in engines)
        difference = float((expected.logits.softmax(-1) - got.logits.softmax(-1)).abs().max())
        if not difference <= DIFFERENCE[dtype]:
            raise ValueError(f"skipping {rate:.0%}: probabilities differ by {difference} from those of one sample at a time")
        calls[rate] = partial(engines[1].predict, rows)
        rates[rate] = {"difference": difference, "mean_layers": calls[rate]().mean_layers}
    with quiet_garbage_collector():
        seconds = in_turns(calls, rounds)
    whole = statistics.median(seconds[0.0])
    for rate, row in rates.items():
        taken = statistics.median(seconds[rate])
        row |= {"seconds": seconds[rate], "samples_per_second": len(rows) / taken, "speed_up": whole / taken}
        row["share_of_bound"] = row["speed_up"] * row["mean_layers"] / depth
    facts = {"samples": len(rows), "layers": depth}
    return [found("", facts), *(found("ours, planned", row, rate=rate) for rate, row in rates.items())]

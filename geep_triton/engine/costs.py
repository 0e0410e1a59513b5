"""What layers and moves cost on this machine, measured; and when re-grouping pays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from geep_triton.engine.flight import Copying
from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.partition import partition
from geep_triton.runners.base import Runner
from geep_triton.tokens.ragged import Tokens

SAMPLE_LENGTH = 32


@dataclass(frozen=True)
class LayerCosts:
    """Seconds that one layer takes, by tokens a batch, and what moving and scoring samples cost.

    Attributes:
        points: (tokens, seconds) of a layer, tokens ascending; the last is a full batch.
        move: seconds to take a token's states out of one batch and put them into another.
        score: layers that one exit's head takes in a full batch.
        stop: seconds that a stop at an exit takes however few samples stop there, besides its head: to score them, to tell the
            host who leaves, and to part them.
    """

    points: tuple[tuple[int, float], ...]
    move: float
    score: float = 0.0
    stop: float = 0.0

    @property
    def stop_layers(self) -> float:
        """Layers that a stop of a full batch takes, head and all."""
        return self.score + self.stop / self.points[-1][1]

    def layer(self, tokens: int) -> float:
        """Seconds of one layer on a batch of `tokens`, between the measured points on a straight line."""
        before = (0, self.points[0][1])  # below the smallest point a layer takes what it takes there
        for point in self.points:
            if tokens <= point[0]:
                share = (tokens - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1] * tokens / before[0]

    def regrouping_pays(self, tokens: int, padded: int, layers: int) -> bool:
        """Whether survivors gain more by waiting for a full batch than moving and padding them costs.

        Alone they pay for `layers` layers of a small batch and for a stop; in a full batch their share of both.

        Args:
            tokens: of the survivors, padding included.
            padded: as many as the samples they would join make of them.
            layers: that they run before they are scored again.
        """
        full, seconds = self.points[-1]
        share = padded / full
        saved = layers * (self.layer(tokens) - seconds * share) + self.stop * (1 - min(share, 1))
        return saved > self.move * padded

    def skipping_pays(self, tokens: int, active: int) -> bool:
        """Whether a layer on the `active` of a batch's `tokens` saves more than taking them out and putting them back costs."""
        return self.layer(tokens) - self.layer(active) > self.move * (tokens + active)

    @classmethod
    def measure(cls, runner: Runner, token_budget: int, rounds: int = 5) -> LayerCosts:
        """Time a runner's first layer and exit where it is, up to batches of `token_budget` tokens.

        Runs within the inference mode of its caller.
        """
        config, device = runner.model.config, runner.model.device
        length = min(SAMPLE_LENGTH, token_budget, config.max_position_embeddings)
        full = max(1, token_budget // length)
        # Down to one sample: on a CPU small batches may be as good as full ones, which only a measurement can tell.
        sizes = sorted({full, *(1 << power for power in range(full.bit_length()))})
        # Not zeros, on which a GPU's matrix units are faster than on any real states.
        ids = torch.randint(config.vocab_size, (full * length,), generator=torch.Generator().manual_seed(0))
        tokens = Tokens(ids, torch.arange(0, full * length + 1, length)).to(device)
        order, lengths = torch.arange(full, device=device), torch.full((full,), length)
        every = runner.embed(tokens, order, lengths)
        batches = {size: runner.take(every, slice(size), lengths[:size]) for size in sizes}
        exit_layer, one = config.exit_layers[0], batches[1]

        def stop() -> None:
            logits = runner.logits(exit_layer, one)
            leaves = score_exits(logits, 0.0).leaves
            Copying(leaves).get()
            staying, _ = partition(leaves)
            logits.index_select(0, staying)
            runner.take(one, staying, one.lengths)

        points = [
            (size * length, _seconds(partial(runner.layers, 1, 1, batch), device, rounds)) for size, batch in batches.items()
        ]
        score = _seconds(partial(runner.logits, exit_layer, every), device, rounds)
        move = _seconds(lambda: runner.join([runner.take(every, order, lengths), one]), device, rounds)
        besides = 0.0
        if config.num_labels > 1:  # exits of others are never scored
            besides = _seconds(stop, device, rounds) - _seconds(partial(runner.logits, exit_layer, one), device, rounds)
        most, layer = points[-1]
        return cls(tuple(points), move / most, score / layer, max(besides, 0.0))


def _seconds(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The least of `rounds` after one unmeasured call: whatever else runs on the machine only adds."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])

"""What layers and moves cost on this machine, and when regrouping and skipping pay."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from geep_triton.answers import kind_of
from geep_triton.engine.flight import Copying
from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.partition import partition
from geep_triton.runners.base import Runner, StatesT
from geep_triton.tokens.ragged import Tokens

SAMPLE_LENGTH = 32


@dataclass(frozen=True)
class LayerCosts:
    """The seconds that one layer takes for batches of several sizes, and what moving and scoring samples cost.

    Attributes:
        points: (tokens, seconds) of a layer, tokens ascending; the last one is a full batch.
        move: seconds to take the states of a token out of one batch and put them into another.
        score: cost of one exit's head on a full batch, in layers.
        stop: seconds that a stop at an exit takes besides its head, however few samples stop there. In this time they are
            scored, the host learns who leaves, and the batch is parted.
    """

    points: tuple[tuple[int, float], ...]
    move: float
    score: float = 0.0
    stop: float = 0.0

    @property
    def stop_layers(self) -> float:
        """Cost of a full batch's stop, in layers, with the head."""
        return self.score + self.stop / self.points[-1][1]

    def layer(self, tokens: int) -> float:
        """Seconds of one layer on a batch of `tokens`, on straight lines between the measured points."""
        before = (0, self.points[0][1])  # a batch below the smallest point takes as long as that one
        for point in self.points:
            if tokens <= point[0]:
                share = (tokens - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1] * tokens / before[0]

    def regrouping_pays(self, tokens: int, padded: int, layers: int) -> bool:
        """Whether survivors gain more by waiting for a full batch than moving and padding them costs.

        Alone they pay for `layers` layers of a small batch and for a stop. In a full batch they pay for their share of both.

        Args:
            tokens: of the survivors, padding included.
            padded: the same, once the survivors are padded to the samples that they would join.
            layers: how many layers they run before they are scored again.
        """
        full, seconds = self.points[-1]
        share = padded / full
        saved = layers * (self.layer(tokens) - seconds * share) + self.stop * (1 - min(share, 1))
        return saved > self.move * padded

    def skipping_pays(self, tokens: int, active: int) -> bool:
        """Whether a layer on `active` of `tokens` tokens saves more than taking them out and putting them back costs."""
        return self.layer(tokens) - self.layer(active) > self.move * (tokens + active)

    @classmethod
    def measure(cls, runner: Runner[StatesT], token_budget: int, rounds: int = 5) -> LayerCosts:
        """Time a runner's first layer and first exit on its device, on batches of up to `token_budget` tokens.

        This runs within the inference mode of its caller.
        """
        config, device = runner.model.config, runner.model.device
        length = min(SAMPLE_LENGTH, token_budget, config.max_position_embeddings)
        full = max(1, token_budget // length)
        # Sizes go down to one sample. On a CPU small batches may be as good as full ones, and only a measurement can tell.
        sizes = sorted({full, *(1 << power for power in range(full.bit_length()))})
        # Random ids, since a GPU's matrix units are faster on zeros than on any real states.
        ids = torch.randint(config.vocab_size, (full * length,), generator=torch.Generator().manual_seed(0))
        tokens = Tokens(ids, torch.arange(0, full * length + 1, length)).to(device)
        order, lengths = torch.arange(full, device=device), torch.full((full,), length)
        every = runner.embed(tokens, order, lengths)
        batches = {size: runner.take(every, slice(size), lengths[:size]) for size in sizes}
        exit_layer, one = config.exit_layers[0], batches[1]

        classes = kind_of(config) == "classes"
        criterion = "normalized_entropy" if classes else "distance"
        cuts = None if classes else torch.zeros(config.num_labels, device=device)

        def stop() -> None:
            logits = runner.logits(exit_layer, one)
            leaves = score_exits(logits, 0.0, criterion, cuts=cuts).leaves
            Copying(leaves).get()
            staying, _ = partition(leaves)
            logits.index_select(0, staying)
            runner.take(one, staying, one.lengths)

        points = [
            (size * length, _seconds(partial(runner.layers, 1, 1, batch), device, rounds)) for size, batch in batches.items()
        ]
        score = _seconds(partial(runner.logits, exit_layer, every), device, rounds)
        move = _seconds(lambda: runner.join([runner.take(every, order, lengths), one]), device, rounds)
        besides = _seconds(stop, device, rounds) - _seconds(partial(runner.logits, exit_layer, one), device, rounds)
        most, layer = points[-1]
        return cls(tuple(points), move / most, score / layer, max(besides, 0.0))


def _seconds(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The least seconds of `rounds` calls after one unmeasured call. Whatever else runs on the machine can only add time."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])

"""What a policy by thresholds reaches at each cost, from the recorded answers of every exit. No layer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from bench.claims.arms import Arm
from bench.claims.design import HEADS
from bench.claims.records import Record
from bench.shapes import SHAPES
from geep_triton import MultiExitBertConfig
from geep_triton.modeling.flops import gate_flops, head_flops, layer_flops
from geep_triton.ops.exit_scores import score_exits
from geep_triton.table.records import skipped_at

STEPS = 200  # thresholds 0 .. 1
Score = Callable[[torch.Tensor], float]  # of logits [N, C]


def config_of(arm: Arm, labels: int) -> MultiExitBertConfig:
    """The configuration of an arm's model, but for its vocabulary."""
    shape = SHAPES["e5"] | {"num_hidden_layers": arm.layers}
    return MultiExitBertConfig(exit_layers=list(arm.exit_layers), num_labels=labels, **shape, **HEADS, **arm.model)


def exit_flops(config: MultiExitBertConfig, lengths: torch.Tensor, skipped: torch.Tensor | None) -> torch.Tensor:
    """[N, E] float64, FLOPs of a text that was scored at every exit up to the one where it leaves.

    Args:
        config: of the model.
        lengths: [N] int64, tokens.
        skipped: [N, L] bool, layers that the text skips; None: of a model without gates. A text is not scored after a layer
            that it skips, but for the last one.
    """
    last = config.num_hidden_layers
    run = torch.ones(len(lengths), last, dtype=torch.bool) if skipped is None else ~skipped
    cost = run.double() * layer_flops(config, lengths).double()[:, None]
    if skipped is not None:
        cost[:, [layer - 1 for layer in config.skip_layers]] += gate_flops(config, lengths).double()[:, None]
    for layer in config.exit_layers:
        scored = run[:, layer - 1] if layer < last else torch.ones(len(lengths))
        cost[:, layer - 1] += scored.double() * head_flops(config, layer, lengths).double()
    return cost.cumsum(1)[:, torch.tensor(config.exit_layers) - 1]


@dataclass(frozen=True, eq=False)
class Leaving:
    """Where N texts may leave.

    Attributes:
        uncertainty: [N, E] of each exit's answer, 0 to 1; infinite where the text is not scored. The last exit takes all.
        logits: [N, E, C].
        flops: [N, E] float64, of a text that leaves there.
    """

    uncertainty: torch.Tensor
    logits: torch.Tensor
    flops: torch.Tensor

    def at(self, threshold: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, C] and FLOPs [N] where texts leave at the first exit that is at most so uncertain; None: at the last."""
        leaves = torch.zeros_like(self.uncertainty, dtype=torch.bool)
        if threshold is not None:
            leaves = self.uncertainty <= threshold
        leaves[:, -1] = True
        exits = leaves.int().argmax(1)
        rows = torch.arange(len(exits))
        return self.logits[rows, exits], self.flops[rows, exits]


def leaving(record: Record, config: MultiExitBertConfig) -> Leaving:
    """Of a model with exits, by normalized entropy."""
    texts, exits, classes = record.logits.shape
    scores = score_exits(record.logits.reshape(-1, classes), threshold=0.0)
    uncertainty = scores.uncertainty.reshape(texts, exits).clone()
    if record.skipped is not None:
        uncertainty[skipped_at(record.skipped, config.exit_layers)] = torch.inf
    return Leaving(uncertainty, record.logits, exit_flops(config, record.lengths, record.skipped))


def before(
    uncertainty: torch.Tensor, logits: torch.Tensor, flops: torch.Tensor, full: torch.Tensor, full_flops: torch.Tensor
) -> Leaving:
    """A complete model, or none, before the full one: who is sure of its answer leaves, and the others pay for both.

    Args:
        uncertainty: [N] of its answers.
        logits: [N, C], its answers.
        flops: [N], what it costs.
        full: [N, C], answers of the full model.
        full_flops: [N], what that costs.
    """
    return Leaving(
        torch.stack([uncertainty, torch.zeros_like(uncertainty)], 1),
        torch.stack([logits, full], 1),
        torch.stack([flops, flops + full_flops], 1),
    )


@dataclass(frozen=True)
class Point:
    """A policy at a threshold.

    Attributes:
        threshold: None: nobody leaves early.
        reduction: times fewer FLOPs than the full model without gates.
        score: of the data set's metric.
    """

    threshold: float | None
    reduction: float
    score: float


def curve(policy: Leaving, full_flops: float, score: Score, thresholds: Iterable[float] | None = None) -> list[Point]:
    """The policy at each threshold, from cautious to bold.

    Args:
        policy: to follow.
        full_flops: mean over the texts of what the full model without gates costs.
        score: the data set's metric.
        thresholds: None: 0 .. 1 in `STEPS` steps.
    """
    steps = [step / STEPS for step in range(STEPS + 1)] if thresholds is None else list(thresholds)
    points = []
    for threshold in (None, *steps):
        logits, flops = policy.at(threshold)
        points.append(Point(threshold, full_flops / float(flops.mean()), score(logits)))
    return points


def at_reduction(points: Iterable[Point], reduction: float) -> Point | None:
    """The first point, from cautious to bold, that saves at least so much; None where none does."""
    return next((point for point in points if point.reduction >= reduction), None)

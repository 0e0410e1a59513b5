"""What an engine gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from geep_triton.modeling.flops import Flops
from geep_triton.ops.exit_scores import score_exits
from geep_triton.tokens.ragged import Tokens


@dataclass(frozen=True, eq=False)
class EveryExit:
    """What `Engine.every_exit` records.

    Attributes:
        tokens: N samples.
        logits: [N, E, C] float32, every exit's answers; the head at a layer that a sample skips reads what it would pass on.
        skipped: [N, L] bool, the layers each sample skips: it is not scored at their exits. None where none can be.
    """

    tokens: Tokens
    logits: torch.Tensor
    skipped: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> EveryExit:
        """The records of the samples `rows` [M] int64, in that order."""
        skipped = None if self.skipped is None else self.skipped[rows]
        return EveryExit(self.tokens.select(rows), self.logits[rows], skipped)

    def scored(self, exit_layers: Sequence[int]) -> torch.Tensor:
        """[N, E] bool, at which exits each sample may be answered: nobody leaves early after a layer that it skipped.

        Args:
            exit_layers: the E exits' layers.
        """
        may = torch.ones(self.logits.shape[:2], dtype=torch.bool)
        if self.skipped is not None:
            may[:, :-1] = ~self.skipped[:, [layer - 1 for layer in exit_layers[:-1]]]
        return may

    def uncertainty(self, exit_layers: Sequence[int], criterion: str = "normalized_entropy") -> torch.Tensor:
        """[N, E] float32, how unsure each exit is of its answer; infinite where the sample is not scored.

        Args:
            exit_layers: the E exits' layers.
            criterion: see `geep_triton.ops.exit_scores.score_exits`.
        """
        found = score_exits(self.logits.flatten(0, 1), 1.0, criterion).uncertainty.view(self.logits.shape[:2])
        return found.masked_fill(~self.scored(exit_layers), torch.inf)

    def layers_run(self, exit_layers: Sequence[int], exits: torch.Tensor) -> torch.Tensor:
        """[N] int64, the layers that samples run who are answered at the exits of these indices [N] int64.

        Those up to the exit less those that were skipped; the layer of an early exit runs for all who leave there.
        """
        depth = torch.tensor(exit_layers)[exits]
        if self.skipped is None:
            return depth
        skipped = self.skipped.clone()
        rows = (depth < exit_layers[-1]).nonzero()[:, 0]
        skipped[rows, depth[rows] - 1] = False
        return depth - skipped.cumsum(1).gather(1, depth[:, None] - 1)[:, 0]

    @classmethod
    def concatenate(cls, parts: Sequence[EveryExit]) -> EveryExit:
        """The records of several windows as one."""
        skipped = None if parts[0].skipped is None else torch.cat([part.skipped for part in parts])
        return cls(Tokens.concatenate([part.tokens for part in parts]), torch.cat([part.logits for part in parts]), skipped)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Results of `Engine.predict`, in the order of the inputs.

    Attributes:
        logits: [N, C] float32.
        exit_layers: [N] int64, the layer after which each sample was answered.
        layers_run: [N] int64, how many layers each sample ran: up to its exit less those it skipped, and one more where the
            last layer and its head answered on top of an early state.
        id2label: names of the classes.
        num_layers: L of the model that answered.
        timings: seconds per stage: "tokenize", "plan" (predict exits and schedule), "run" (layers and heads), "gather".
        truncated: how many texts were cut to the model's maximum length.
        tokens: how many tokens the batches held, padding included.
        padding: share of them that was padding.
        flops: what layers, heads and gates that really ran took, padding included; without an audit's.
        skipped: [N, L] bool, the layers below its exit and at it that each sample skipped; None where none can be.
    """

    logits: torch.Tensor
    exit_layers: torch.Tensor
    layers_run: torch.Tensor
    id2label: dict[int, str]
    num_layers: int
    timings: dict[str, float] = field(default_factory=dict)
    truncated: int = 0
    tokens: int = 0
    padding: float = 0.0
    flops: Flops = field(default_factory=Flops)
    skipped: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.logits.shape[0]

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """The predictions of several windows as one."""
        tokens = [part.tokens for part in parts]
        return cls(
            logits=torch.cat([part.logits for part in parts]),
            exit_layers=torch.cat([part.exit_layers for part in parts]),
            layers_run=torch.cat([part.layers_run for part in parts]),
            id2label=parts[0].id2label,
            num_layers=parts[0].num_layers,
            timings={stage: sum(part.timings[stage] for part in parts) for stage in parts[0].timings},
            truncated=sum(part.truncated for part in parts),
            tokens=sum(tokens),
            padding=sum(part.padding * count for part, count in zip(parts, tokens, strict=True)) / sum(tokens),
            flops=sum((part.flops for part in parts), Flops()),
            skipped=None if parts[0].skipped is None else torch.cat([part.skipped for part in parts]),
        )

    @property
    def is_regression(self) -> bool:
        """Whether the logits are one number a sample instead of classes."""
        return self.logits.shape[1] == 1

    @property
    def label_ids(self) -> torch.Tensor:
        """[N] int64, the class with the highest logit. Raises ValueError for regression."""
        if self.is_regression:
            raise ValueError("label_ids: a regression model (num_labels=1) has no classes; read logits[:, 0]")
        return self.logits.argmax(-1)

    @property
    def labels(self) -> list[str]:
        """Class names. Raises ValueError for regression."""
        return [self.id2label[i] for i in self.label_ids.tolist()]

    @property
    def probabilities(self) -> torch.Tensor:
        """[N, C] float32, softmax of the logits. Raises ValueError for regression."""
        if self.is_regression:
            raise ValueError("probabilities: a regression model (num_labels=1) has no classes; read logits[:, 0]")
        return self.logits.softmax(-1)

    @property
    def mean_exit_layer(self) -> float:
        """Mean of `exit_layers`."""
        return float(self.exit_layers.double().mean())

    @property
    def mean_layers(self) -> float:
        """Mean of `layers_run`, the layers that samples needed. Where few skip a layer it may run on all: see `flops`."""
        return float(self.layers_run.double().mean())

    @property
    def histogram(self) -> dict[int, int]:
        """Exit layer -> number of samples, for layers 1..num_layers."""
        counts = torch.bincount(self.exit_layers, minlength=self.num_layers + 1)[1:]
        return dict(enumerate(counts.tolist(), start=1))

    @property
    def skip_histogram(self) -> dict[int, int]:
        """Layer -> number of samples that skipped it, for layers 1..num_layers."""
        counts = [0] * self.num_layers if self.skipped is None else self.skipped.sum(0).tolist()
        return dict(enumerate(counts, start=1))

    @property
    def samples_per_second(self) -> float:
        """Samples over the sum of all stages' seconds, which overlap under `Engine(prefetch=True)`: it then reaches more."""
        return len(self) / sum(self.timings.values())

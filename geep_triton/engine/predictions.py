"""The results of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from geep_triton.answers import Answers, LabelSet, OneClass, Score
from geep_triton.engine.batching import joined
from geep_triton.modeling.flops import Flops
from geep_triton.ops.exit_scores import score_exits
from geep_triton.table.records import skipped_at
from geep_triton.tokens.ragged import Tokens


@dataclass(frozen=True, eq=False)
class EveryExit:
    """The answers of every exit, as `Engine.every_exit` records them.

    Attributes:
        tokens: of N samples.
        logits: [N, E, C] float32. Where a sample skips a layer, the exit there answers by what the layer would give.
        skipped: [N, L] bool, the layers that each sample skips; it is not scored at their exits. None where none can be.
    """

    tokens: Tokens
    logits: torch.Tensor
    skipped: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> EveryExit:
        """The same of the samples `rows` [M] int64, in that order."""
        skipped = None if self.skipped is None else self.skipped[rows]
        return EveryExit(self.tokens.select(rows), self.logits[rows], skipped)

    def scored(self, exit_layers: Sequence[int]) -> torch.Tensor:
        """[N, E] bool, the exits at which each sample may be answered. Nobody leaves early after a layer that it skipped.

        Args:
            exit_layers: the E exits' layers.
        """
        if self.skipped is None:
            return torch.ones(self.logits.shape[:2], dtype=torch.bool)
        return ~skipped_at(self.skipped, exit_layers)

    def uncertainty(
        self, exit_layers: Sequence[int], criterion: str = "normalized_entropy", cuts: Sequence[float] | None = None
    ) -> torch.Tensor:
        """[N, E] float32, the uncertainty of each exit's answer; infinite where the sample is not scored.

        Args:
            exit_layers: the E exits' layers.
            criterion: see `geep_triton.ops.exit_scores.score_exits`. "change" is taken from the exit before, whether the sample
                is scored there or not.
            cuts: as for `score_exits`, for "distance".
        """
        if criterion == "change":
            change = self.logits[:, 1:, 0] - self.logits[:, :-1, 0]
            found = torch.cat([torch.full_like(change[:, :1], torch.inf), change.abs()], dim=1)
        else:
            given = torch.tensor(cuts, dtype=torch.float32) if criterion == "distance" and cuts is not None else None
            scores = score_exits(self.logits.flatten(0, 1), 1.0, criterion, cuts=given)
            found = scores.uncertainty.view(self.logits.shape[:2])
        return found.masked_fill(~self.scored(exit_layers), torch.inf)

    def layers_run(self, exit_layers: Sequence[int], exits: torch.Tensor) -> torch.Tensor:
        """[N] int64, how many layers each sample runs if it is answered at the exit of index `exits` [N] int64.

        These are the layers up to the exit, less those that it skipped. The layer of an early exit runs for all who leave
        there.
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
        """The answers of several windows as one."""
        skipped = joined([part.skipped for part in parts])
        return cls(Tokens.concatenate([part.tokens for part in parts]), torch.cat([part.logits for part in parts]), skipped)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Results of `Engine.predict`, in the order of the inputs.

    Attributes:
        logits: [N, C] float32.
        exit_layers: [N] int64, the layer after which each sample was answered.
        layers_run: [N] int64, how many layers each sample ran: those up to its exit, less those that it skipped, and one more
            where the last layer and its head answered on top of an early state.
        answers: what the logits mean.
        num_layers: L of the model that answered.
        timings: seconds per stage: "tokenize", "plan" (predict exits and schedule), "run" (layers and heads), "gather".
        truncated: how many texts were cut to the maximum length.
        cut: [N] bool, which texts these are; None: none.
        tokens: how many tokens the batches held, padding included.
        padding: the share of these tokens that was padding.
        flops: of all layers, heads and gates that really ran, padding included; those of an audit do not count.
        skipped: [N, L] bool, the layers up to its exit that each sample skipped; None where none can be skipped.
    """

    logits: torch.Tensor
    exit_layers: torch.Tensor
    layers_run: torch.Tensor
    answers: Answers
    num_layers: int
    timings: dict[str, float] = field(default_factory=dict)
    truncated: int = 0
    cut: torch.Tensor | None = None
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
            answers=parts[0].answers,
            num_layers=parts[0].num_layers,
            timings={stage: sum(part.timings[stage] for part in parts) for stage in parts[0].timings},
            truncated=sum(part.truncated for part in parts),
            cut=joined([torch.zeros(len(part), dtype=torch.bool) if part.cut is None else part.cut for part in parts]),
            tokens=sum(tokens),
            padding=sum(part.padding * count for part, count in zip(parts, tokens, strict=True)) / sum(tokens),
            flops=sum((part.flops for part in parts), Flops()),
            skipped=joined([part.skipped for part in parts]),
        )

    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes or labels."""
        return self.answers.id2label

    @property
    def label_ids(self) -> torch.Tensor:
        """[N] int64, the class with the highest logit. ValueError for a model of scores or label sets."""
        if not isinstance(self.answers, OneClass):
            other = "scores" if isinstance(self.answers, Score) else "label_sets"
            raise ValueError(f"label_ids and labels are of models of one class per text; read {other}")
        return self.logits.argmax(-1)

    @property
    def labels(self) -> list[str]:
        """The names of the classes. ValueError for a model of scores or label sets."""
        return [self.id2label[i] for i in self.label_ids.tolist()]

    @property
    def label_sets(self) -> list[list[str]]:
        """The names of the labels that each sample is given, in the order of their ids. ValueError unless the model is
        multi-label.
        """
        if not isinstance(self.answers, LabelSet):
            raise ValueError("label_sets are of multi-label models (problem_type multi_label_classification)")
        names = [self.id2label[i] for i in range(len(self.id2label))]
        return [[name for name, given in zip(names, row, strict=True) if given] for row in self.given.tolist()]

    @property
    def given(self) -> torch.Tensor:
        """[N, C] bool, which classes or labels the samples are given. For a score [N, 1]: whether it is at least the decision.

        ValueError for a score without a decision.
        """
        return self.answers.given(self.logits)

    @property
    def scores(self) -> torch.Tensor:
        """[N] float32, the scores. ValueError unless the model has one label."""
        if not isinstance(self.answers, Score):
            raise ValueError("scores are of models of one label (num_labels=1); read probabilities or logits")
        return self.answers.scores(self.logits)

    @property
    def decisions(self) -> torch.Tensor:
        """[N] bool, whether each score is at least the decision. ValueError for other models, or without a decision."""
        if not isinstance(self.answers, Score):
            raise ValueError("decisions are of models of one label (num_labels=1); read labels or label_sets")
        return self.given[:, 0]

    @property
    def probabilities(self) -> torch.Tensor:
        """[N, C] float32: softmax of the logits; sigmoid for a multi-label model. ValueError for a regression model."""
        return self.answers.probabilities(self.logits)

    @property
    def mean_exit_layer(self) -> float:
        """Mean of `exit_layers`."""
        return float(self.exit_layers.double().mean())

    @property
    def mean_layers(self) -> float:
        """Mean of `layers_run`, the layers that samples needed. A layer that few skip may still run on all; see `flops`."""
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
        """Samples over the seconds of all stages. Under `Engine(prefetch=True)` stages overlap, and the engine is faster."""
        return len(self) / sum(self.timings.values())

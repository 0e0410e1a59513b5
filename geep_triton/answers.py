"""What a model's logits say: one class, one score or a set of labels; and when two answers are the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from transformers import PretrainedConfig

from geep_triton.checks import check_number, shorten
from geep_triton.config import MULTI_LABEL, MultiExitBertConfig
from geep_triton.exit_config import ExitConfig

LABEL_DECISION = 0.5  # the probability from which on a label is given, as everywhere with multi-label models


@dataclass(frozen=True)
class OneClass:
    """The answer is the class with the highest logit (softmax).

    Attributes:
        id2label: class id -> name.
    """

    id2label: dict[int, str]

    def agree(self, logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Whether two answers are the same: [..., C], [..., C] -> [...] bool."""
        return logits.argmax(-1) == others.argmax(-1)

    def given(self, logits: torch.Tensor) -> torch.Tensor:
        """Which classes the answers have: [..., C] -> [..., C] bool, exactly one each."""
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()

    def right(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Whether the answers are right: [..., C], classes [...] int64 -> [...] bool."""
        return logits.argmax(-1) == truth

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax: [..., C] -> [..., C]."""
        return logits.softmax(-1)

    @property
    def cuts(self) -> None:
        """None: classes compete, and no logit has a cut of its own."""
        return None


@dataclass(frozen=True)
class LabelSet:
    """The answer is the set of labels whose probability (sigmoid of the logit) is at least `decision` (multi-label).

    Attributes:
        id2label: label id -> name.
        decision: a probability for each label.
    """

    id2label: dict[int, str]
    decision: tuple[float, ...]

    def agree(self, logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Whether two answers are the same set of labels: [..., C], [..., C] -> [...] bool."""
        return (self.given(logits) == self.given(others)).all(-1)

    def given(self, logits: torch.Tensor) -> torch.Tensor:
        """Which labels the answers have: [..., C] -> [..., C] bool."""
        return logits >= torch.tensor(self.cuts, dtype=torch.float32, device=logits.device)

    def right(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Whether the whole set is right: [..., C], sets [..., C] bool -> [...] bool."""
        return (self.given(logits) == truth).all(-1)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Sigmoid: [..., C] -> [..., C]."""
        return logits.sigmoid()

    @property
    def cuts(self) -> tuple[float, ...]:
        """The logit from which on each label is given."""
        return tuple(map(_logit, self.decision))


@dataclass(frozen=True)
class Score:
    """The answer is one number (num_labels=1).

    Attributes:
        id2label: the one label's name.
        decision: a user's cut: what matters is whether the score is at least this. None: there is no cut.
        tolerance: scores that differ by at most this are the same answer. None: only their side of the cut counts.
        logistic: the score is a probability (sigmoid of the logit) instead of the logit itself.
    """

    id2label: dict[int, str]
    decision: float | None = None
    tolerance: float | None = None
    logistic: bool = False

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """[..., 1] -> [...]."""
        return logits[..., 0].sigmoid() if self.logistic else logits[..., 0]

    def agree(self, logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Whether two scores lie on the same side of the cut and within the tolerance: [..., 1], [..., 1] -> [...] bool.

        Raises:
            ValueError: there is neither a decision nor a tolerance.
        """
        return self._same(self.scores(logits), self.scores(others))

    def right(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Whether the scores lie where the true ones do, in the sense of `agree`: [..., 1], scores [...] -> [...] bool.

        Raises:
            ValueError: there is neither a decision nor a tolerance.
        """
        return self._same(self.scores(logits), truth)

    def _same(self, scores: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """[...], [...] -> [...] bool. One of them may have further dimensions."""
        self.check_comparable()
        same = torch.ones((), dtype=torch.bool, device=scores.device)
        if self.decision is not None:
            same = (scores >= self.decision) == (others >= self.decision)
        return same if self.tolerance is None else same & ((scores - others).abs() <= self.tolerance)

    @property
    def comparable(self) -> bool:
        """Whether it is known when two scores are the same answer."""
        return self.decision is not None or self.tolerance is not None

    def check_comparable(self) -> None:
        """Raise ValueError unless it is known when two scores are the same answer."""
        if not self.comparable:
            raise ValueError(
                "two scores are compared by a decision (the same side of a cut) or a tolerance: pass one of them, or set "
                "model.exit_config.decision or model.exit_config.tolerance"
            )

    def given(self, logits: torch.Tensor) -> torch.Tensor:
        """Whether the score is at least the decision: [..., 1] -> [..., 1] bool. ValueError if there is none."""
        if self.decision is None:
            raise ValueError("a score has no decision: set model.exit_config.decision to the cut from which on it is positive")
        return self.scores(logits)[..., None] >= self.decision

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Sigmoid: [..., 1] -> [..., 1]. ValueError for a score that is no probability."""
        if not self.logistic:
            raise ValueError("probabilities: a regression model (num_labels=1) has scores instead")
        return logits.sigmoid()

    @property
    def cuts(self) -> tuple[float, ...] | None:
        """The logit from which on the score is at least the decision. None if there is no decision."""
        if self.decision is None:
            return None
        return (_logit(self.decision) if self.logistic else self.decision,)


Answers: TypeAlias = OneClass | LabelSet | Score


def kind_of(config: MultiExitBertConfig) -> str:
    """The kind of a model's answers: "classes", "score" or "label sets".

    As in transformers, one label makes a score whatever the problem type, and only the problem type
    "multi_label_classification" makes label sets.

    Raises:
        ValueError: the problem type is "regression" with several labels.
    """
    if config.num_labels == 1:
        return "score"
    if config.problem_type == "regression":
        raise ValueError(f"problem_type regression needs num_labels=1, got {config.num_labels}: an exit answers with one score")
    return "label sets" if is_logistic(config) else "classes"


def is_logistic(config: PretrainedConfig) -> bool:
    """Whether logits are log-odds of labels that do not compete: label sets, and a score with that problem type."""
    return config.problem_type == MULTI_LABEL


def answers_of(config: MultiExitBertConfig, exit_config: ExitConfig) -> Answers:
    """How a model's logits are read.

    Args:
        config: its number of labels and its problem type give the kind.
        exit_config: its `decision` and `tolerance` say when two answers are the same.

    Raises:
        ValueError: the decision or the tolerance does not fit the kind.
    """
    kind, names = kind_of(config), dict(config.id2label)
    decision, tolerance = exit_config.decision, exit_config.tolerance
    if tolerance is not None and kind != "score":
        raise ValueError(f"tolerance is for scores, got tolerance={tolerance:g} for a model of {kind}")
    if kind == "classes":
        if decision is not None:
            raise ValueError(
                f"decision is for scores and label sets, got decision={shorten(decision)} for a model of classes: "
                "problem_type 'regression' or 'multi_label_classification' makes another kind"
            )
        return OneClass(names)
    logistic = is_logistic(config)
    if logistic:
        for value in decision if isinstance(decision, tuple) else (() if decision is None else (decision,)):
            check_number("decision (a probability)", value, 1e-6, 1 - 1e-6)
    if kind == "score":
        if isinstance(decision, tuple):
            raise ValueError(f"decision must be one number for a score, got {shorten(decision)}")
        return Score(names, LABEL_DECISION if logistic and decision is None else decision, tolerance, logistic)
    if not isinstance(decision, tuple):
        decision = (LABEL_DECISION if decision is None else decision,) * len(names)
    if len(decision) != len(names):
        raise ValueError(f"decision must be one probability, or one per label ({len(names)}), got {len(decision)}")
    return LabelSet(names, decision)


def check_kind_of(config: MultiExitBertConfig, kinds: tuple[str, ...], what: str) -> None:
    """Raise ValueError unless a model's answers are of one of these kinds."""
    if (kind := kind_of(config)) not in kinds:
        raise ValueError(
            f"{what} needs a model of {' or '.join(kinds)}, got one of {kind} (num_labels={config.num_labels}, "
            f"problem_type={config.problem_type!r})"
        )


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))

"""The terms of a promise: whether it can be made, and how many samples it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from geep_triton.answers import Score, check_kind_of
from geep_triton.checks import check_choice, check_number, shorten
from geep_triton.exit_config import PROMISES, PROMISES_ON_ANSWERS, Promises
from geep_triton.modeling.model import MultiExitBert
from geep_triton.promises.guarantees import bets_needed, betting_p_value, samples_needed, samples_needed_on_average

METHODS = ("learn-then-test", "conformal")
FEWEST = 20  # texts to rank settings by


class CannotPromise(ValueError):
    """A promise that cannot be made: too few texts could show it, or no policy is as fast as asked."""


@dataclass(frozen=True)
class Term:
    """One promise.

    Attributes:
        name: "agreement", "label_agreement", "class_recall", "max_accuracy_drop", "mean_depth" or "speedup".
        value: the share, drop, depth or speed-up.
        label: the number of the class or label that it is about. None: it is about whole answers.
        label_name: its name.
    """

    name: str
    value: float
    label: int | None = None
    label_name: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}" if self.label is None else f"{self.name} of {self.label_name!r}={self.value:g}"

    @property
    def on_answers(self) -> bool:
        """Whether it is about answers, not about costs."""
        return self.name in PROMISES_ON_ANSWERS

    @property
    def risk(self) -> float:
        """The loss that a promise on answers allows. It is rounded, since 1 - .9 is not .1 for floats."""
        return self.value if self.name == "max_accuracy_drop" else round(1 - self.value, 12)

    def counts(self, full_given: torch.Tensor) -> torch.Tensor | None:
        """The samples that the promise is about, [N] bool. None: all.

        Args:
            full_given: [N, C] bool, the classes or labels that the last exit gives.
        """
        return full_given[:, self.label] if self.name == "class_recall" else None


def read_terms(promises: Promises, labels: Sequence[Any] | None, model: MultiExitBert) -> tuple[Term, ...]:
    """The terms of one or several promises on answers, or of one budget.

    Args:
        promises: name -> value. "class_recall" and "label_agreement" may map names of labels to values.
        labels: the true answers.
        model: it shall keep the promises.

    Raises:
        ValueError: there is none, or a budget beside others; a value is out of range; or the model cannot be held to it.
        TypeError: a value has another type.
    """
    budgets = [name for name in promises if name not in PROMISES_ON_ANSWERS]
    if not promises or (budgets and len(promises) > 1):
        raise ValueError(
            f"calibrate needs exactly one of {', '.join(PROMISES)}, or several of {', '.join(PROMISES_ON_ANSWERS)}, got "
            f"{', '.join(promises) or 'none'}"
        )
    terms = tuple(term for name, value in promises.items() for term in _terms(name, value, model))
    for term in terms:
        _check_term(term, labels, model)
    if isinstance(model.answers, Score):
        model.answers.check_comparable()
    return terms


def _terms(name: str, value: Any, model: MultiExitBert) -> list[Term]:
    """One term, or one for each label."""
    names = model.config.label2id
    if name == "label_agreement":
        check_kind_of(model.config, ("label sets",), name)
        value = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
    if name == "class_recall" and not isinstance(value, Mapping):
        raise TypeError(f'class_recall must map names of classes to shares, as in {{"toxic": 0.99}}, got {shorten(value)}')
    if not isinstance(value, Mapping):
        return [Term(name, value)]
    if name not in ("label_agreement", "class_recall"):
        raise TypeError(f"{name} must be a number, got {shorten(value)}")
    unknown = [label for label in value if label not in names]
    if unknown or not value:
        raise ValueError(f"{name} must name labels of the model ({', '.join(names)}), got {shorten(list(value))}")
    return [Term(name, share, names[label], label) for label, share in value.items()]


def _check_term(term: Term, labels: Sequence[Any] | None, model: MultiExitBert) -> None:
    """Raise ValueError unless the promise can be made of this model."""
    name, value = term.name, term.value
    if name == "max_accuracy_drop":
        check_number(name, value, 0.0001, 0.5)
        if labels is None:
            raise ValueError("max_accuracy_drop needs labels; agreement needs none")
    elif term.on_answers:
        check_number(name, value, 0.5, 0.9999)
        if name == "class_recall" and isinstance(model.answers, Score) and model.answers.decision is None:
            raise ValueError("class_recall of a score needs a decision, from which on it is positive")
    elif name == "mean_depth":
        check_number(name, value, model.config.exit_layers[0], model.config.num_hidden_layers)
    else:
        check_number(name, value, 1.0, model.config.num_hidden_layers)


def check_method(method: str, terms: Sequence[Term], confidence: float | None) -> float | None:
    """The confidence of promises by `method`. None for a promise on average, and for one on costs, which is measured.

    Raises:
        ValueError: promise, method and confidence do not go together, or one of them is out of range.
    """
    check_choice("method", method, METHODS)
    if not terms[0].on_answers:
        if confidence is not None or method == "conformal":
            raise ValueError(
                f"confidence and method 'conformal' are for {', '.join(PROMISES_ON_ANSWERS)}, got {terms[0].name}: what a "
                "policy costs is measured, not promised"
            )
        return None
    if method == "learn-then-test":
        confidence = 0.95 if confidence is None else confidence
        check_number("confidence", confidence, 0.5, 0.9999)
        return confidence
    if confidence is not None:
        raise ValueError(f"method 'conformal' keeps a promise on average and takes no confidence, got {confidence:g}")
    return None


def samples_for(term: Term, confidences: Iterable[float | None]) -> int:
    """How many texts it takes at least to show, if no answer differs, that a family keeps the promise.

    For "class_recall" these are texts to which the last exit gives the class.
    """
    if not term.on_answers:
        return FEWEST
    least = min((confidence for confidence in confidences if confidence is not None), default=None)
    if least is None:  # by "conformal" only half of the texts judge
        return 2 * samples_needed_on_average(term.risk)
    if term.name == "max_accuracy_drop":
        return bets_needed(p_value_of_drop, term.value, least)
    return samples_needed(term.risk, least)


def refuse_too_few(term: Term, samples: int, needed: int, after: str = "") -> None:
    """Raise CannotPromise where `samples` are fewer than `needed`. `after` tells why they are so few."""
    if samples >= needed:
        return
    if not term.on_answers:
        raise CannotPromise(f"{samples} texts are too few to choose a policy by{after}: at least {needed} are needed")
    raise CannotPromise(
        f"{samples} texts are too few to promise {term}{after}: at least {needed} are needed even if no answer differs"
    )


def p_value_of_drop(drop: torch.Tensor, largest: float, confidence: float) -> float:
    """P-value of "the drop is `largest` or more". Drops are -1, 0 or 1 a sample, and the bet wants them in [0, 1]."""
    return betting_p_value((drop + 1) / 2, (largest + 1) / 2, confidence)

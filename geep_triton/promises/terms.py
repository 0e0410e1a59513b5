"""The terms of a promise: whether it can be made, how many samples it needs, and which setting of a family keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from geep_triton.checks import check_choice, check_number
from geep_triton.exit_config import PROMISES_ON_ANSWERS
from geep_triton.modeling.model import MultiExitBert
from geep_triton.promises.guarantees import (
    betting_p_value,
    binomial_p_value,
    boldest_on_average,
    boldest_safe,
    samples_needed,
    samples_needed_on_average,
)
from geep_triton.promises.judge import Verdict

METHODS = ("learn-then-test", "conformal")
FEWEST = 20  # texts to rank settings by
BEYOND = 1.03  # times a speed-up is what is aimed at, since measurements scatter


def check_method(method: str, promise: tuple[str, float], confidence: float | None) -> float | None:
    """The confidence of a promise by `method`. None for a promise on average, and for one on costs, which is measured.

    Raises:
        ValueError: promise, method and confidence do not go together, or one of them is out of range.
    """
    check_choice("method", method, METHODS)
    if promise[0] not in PROMISES_ON_ANSWERS:
        if confidence is not None or method == "conformal":
            raise ValueError(
                f"confidence and method 'conformal' are for agreement and max_accuracy_drop, got {promise[0]}: what a policy "
                "costs is measured, not promised"
            )
        return None
    if method == "learn-then-test":
        confidence = 0.95 if confidence is None else confidence
        check_number("confidence", confidence, 0.5, 0.9999)
        return confidence
    if confidence is not None:
        raise ValueError(f"method 'conformal' keeps a promise on average and takes no confidence, got {confidence:g}")
    return None


def check_promise(promise: tuple[str, float], labels: Sequence[str | int] | None, model: MultiExitBert) -> None:
    """Raise ValueError unless the promise can be made of this model."""
    name, value = promise
    if name == "agreement":
        check_number(name, value, 0.5, 0.9999)
    elif name == "max_accuracy_drop":
        check_number(name, value, 0.0001, 0.5)
        if labels is None:
            raise ValueError("max_accuracy_drop needs labels; agreement needs none")
    elif name == "mean_depth":
        check_number(name, value, model.config.exit_layers[0], model.config.num_hidden_layers)
    else:
        check_number(name, value, 1.0, model.config.num_hidden_layers)


def samples_for(promise: tuple[str, float], confidences: Iterable[float | None]) -> int:
    """How many texts it takes at least to show, if no answer differs, that a family keeps the promise."""
    name, value = promise
    if name not in PROMISES_ON_ANSWERS:
        return FEWEST
    least = min((confidence for confidence in confidences if confidence is not None), default=None)
    if least is None:  # by "conformal" only half of the texts judge
        return 2 * samples_needed_on_average(_risk(promise))
    return samples_needed(_risk(promise), least) if name == "agreement" else _samples_for_drop(value, least)


def refuse_too_few(promise: tuple[str, float], samples: int, needed: int, after: str = "") -> None:
    """Raise ValueError where `samples` are fewer than `needed`. `after` tells why they are so few."""
    if samples >= needed:
        return
    name, value = promise
    if name not in PROMISES_ON_ANSWERS:
        raise ValueError(f"{samples} texts are too few to choose a policy by{after}: at least {needed} are needed")
    raise ValueError(
        f"{samples} texts are too few to promise {name}={value:g}{after}: at least {needed} are needed even if no "
        "answer differs"
    )


def _risk(promise: tuple[str, float]) -> float:
    """The loss that a promise on answers allows. It is rounded, since 1 - .9 is not .1 for floats."""
    name, value = promise
    return round(1 - value, 12) if name == "agreement" else value


def _samples_for_drop(drop: float, confidence: float) -> int:
    """How many samples without any drop show that it is at most `drop`, found by doubling and halving."""
    enough = 1
    while _p_value_of_drop(torch.zeros(enough), drop, confidence) > 1 - confidence:
        enough *= 2
    low = enough // 2
    while low + 1 < enough:
        middle = (low + enough) // 2
        safe = _p_value_of_drop(torch.zeros(middle), drop, confidence) <= 1 - confidence
        low, enough = (low, middle) if safe else (middle, enough)
    return enough


def _p_value_of_drop(drop: torch.Tensor, largest: float, confidence: float) -> float:
    """P-value of "the drop is `largest` or more". Drops are -1, 0 or 1 a sample, and the bet wants them in [0, 1]."""
    return betting_p_value((drop + 1) / 2, (largest + 1) / 2, confidence)


def choose_setting(
    judged: Sequence[Verdict], promise: tuple[str, float], confidence: float | None, judging: slice, num_layers: float
) -> int | None:
    """Index of the setting to take of a family: the boldest that is safe, or the most faithful that is cheap enough.

    Args:
        judged: the settings of the family, from cautious to bold.
        promise: its name and value.
        confidence: of this family; None: on average.
        judging: samples, in the judge's order, that had no part in making the settings.
        num_layers: for a speed-up: the mean layers of a measured policy times its speed-up.
    """
    name, value = promise
    if name in ("mean_depth", "speedup"):
        target = value if name == "mean_depth" else num_layers / (BEYOND * value)
        cheap = [index for index, verdict in enumerate(judged) if verdict.candidate.mean_layers <= target]
        return min(cheap, key=lambda index: float(judged[index].disagrees[judging].double().mean()), default=None)
    losses = [verdict.losses(name)[judging] for verdict in judged]
    if confidence is None:
        return boldest_on_average(torch.stack(losses), _risk(promise))
    if name == "agreement":
        p_values = [binomial_p_value(int(loss.sum()), len(loss), _risk(promise)) for loss in losses]
    else:
        p_values = [_p_value_of_drop(loss, value, confidence) for loss in losses]
    return boldest_safe(p_values, confidence)

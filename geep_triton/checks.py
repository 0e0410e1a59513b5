"""Checks of user input. Each error names the argument, the expected value and the given value."""

from __future__ import annotations

import copyreg
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

LARGEST_SCORE = 1e12  # greater labels would train weights to NaN


def shorten(value: Any, limit: int = 80) -> str:
    """`repr(value)`, cut to `limit` characters to keep errors readable."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply to be shown"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_choice(name: str, value: Any, known: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `known`."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {shorten(value)}; known: {', '.join(sorted(known))}")


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shorten(value)}")


def check_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Raise TypeError unless `value` is an int, ValueError unless minimum <= value <= maximum."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {shorten(value)} of type {type(value).__name__}")
    if value < minimum or (maximum is not None and value > maximum):
        bound = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_number(name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise TypeError unless `value` is a real number, ValueError unless minimum <= value <= maximum."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {shorten(value)} of type {type(value).__name__}")
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} must be between {minimum} and {maximum}, got {value}")


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raise TypeError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {shorten(value)} of type {type(value).__name__}")


def check_tensor(name: str, value: Any, ndim: int, dtype: torch.dtype | None = None) -> None:
    """Raise TypeError unless `value` is a tensor (of `dtype` if given), ValueError unless it has `ndim` dimensions."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(value.shape)}")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(f"{name} must be of dtype {dtype}, got {value.dtype}")


class OutputTaken(ValueError):
    """An output belongs to another run or call, or another process is at work there."""


class SentError(ValueError):
    """An error that another process can raise again, whatever its constructor takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """What was said and found, without the constructor."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # typeshed lacks it


class BadSample(SentError):
    """A sample that cannot be answered.

    Attributes:
        index: index of the sample in the user's input.
        reason: what is wrong with it.
        others: further bad samples that the same check found in the same window.
    """

    def __init__(self, index: int, reason: str, others: Sequence[BadSample] = ()) -> None:
        super().__init__(f"sample {index} {reason}")
        self.index = index
        self.reason = reason
        self.others = tuple(others)


class LongSample(BadSample):
    """A sample of more tokens than are allowed, which truncation would cut."""


def refuse_samples(reasons: Mapping[int, str], first: int, kind: type[BadSample] = BadSample) -> None:
    """Raise an error of a kind if a window has bad samples (index in the window -> reason)."""
    bad = [kind(first + index, reason) for index, reason in sorted(reasons.items())]
    if bad:
        raise kind(bad[0].index, bad[0].reason, bad[1:])

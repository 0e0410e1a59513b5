"""Values that an argument must not have, by what it should be. Each case gets new ones, since some can be read only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Values = Callable[[], list[Any]]
NAN, INF = float("nan"), float("inf")


class Stranger:
    """A type that nobody expects."""


def not_int(low: int = 1, optional: bool = False) -> Values:
    """Values that are no int from `low` on."""
    return lambda: [
        *("3", 1.5, True, [], {}, b"3", NAN, INF, 1j, Stranger(), [3], (x for x in ()), torch.tensor(1.5)),
        *(low - 1, low - 10**6, -(2**63)),
        *(() if optional else (None,)),
    ]


def not_number(low: float = -INF, high: float = INF, optional: bool = False) -> Values:
    """Values that are no number from `low` to `high`."""
    below = () if low == -INF else (low - 0.5, -INF, -(10**30))
    above = () if high == INF else (high + 0.5, INF, 10**30)
    wrong = ("0.5", True, [[]], {}, b"0.5", NAN, 1j, Stranger(), (x for x in ()))
    return lambda: [*wrong, *below, *above, *(() if optional else (None,))]


def not_bool() -> list[Any]:
    return ["no", 1, 0, [], 1.0, Stranger(), b"True"]


def not_choice(optional: bool = False) -> Values:
    """Values that are none of some words."""
    return lambda: ["nothing", "", 3, [], {}, b"full", NAN, Stranger(), {1}, ["full"], *(() if optional else (None,))]


def not_tensor(
    ndim: int, dtype: torch.dtype, *, empty: bool = False, low: int | None = None, high: int | None = None
) -> Values:
    """Values that are no tensor of so many dimensions from `low` to `high`; with `empty` it must hold at least one value."""

    def values() -> list[Any]:
        shape, more = (2,) * ndim, torch.ones((2,) * (ndim + 1), dtype=dtype)
        other = torch.float32 if dtype in (torch.int64, torch.bool) else torch.int64
        found = [None, 3, "x", [1, 2], (1,), np.zeros(2), b"x", {}, Stranger(), more, torch.tensor(1, dtype=dtype)]
        found += [torch.ones(shape, dtype=other), torch.ones(shape, dtype=torch.complex64)] if dtype != torch.float32 else []
        found += [torch.zeros((0,) * ndim, dtype=dtype)] if empty else []
        found += [torch.full(shape, low - 1, dtype=dtype)] if low is not None else []
        found += [torch.full(shape, high + 1, dtype=dtype), torch.full(shape, 2**62, dtype=dtype)] if high is not None else []
        return found

    return values


def not_texts() -> list[Any]:
    """Values that `predict` does not take."""
    nested: Any = "good"
    for _ in range(2000):
        nested = [nested]
    return [
        *(None, 3, 3.5, True, b"good", bytearray(b"good"), Stranger(), {"good", "bad"}, frozenset(["good"]), range(3)),
        *([], "", " ", {}, (), [""], ["good", ""], ["good", None], ["good", 3], ["good", b"bad"], [[]], [("good",)], [NAN]),
        *([("a", "b", "c")], ("good", "bad"), ("good", None), ["good", {"good"}], [["good"]], [nested], nested, ["\ud800"]),
        *("good " * 5000, ["good", "bad " * 100], [("good", "")], [("", "good")], [("good", 3)], [(None, "good")]),
        *({"text": None}, {"text": 3}, {"body": ["good"]}, {"text": ["good"], "text_pair": ["good", "bad"]}, {"text": []}),
        *([{"body": "good"}], [{"text": None}], [{"text": ["good"]}], [{}], {"text": {"good": 1}}, {"text": b"good"}),
        *({1: ["good"]}, {"text": [3]}, {"text": np.array([1.5])}, np.array([1, 2]), np.array(3), torch.tensor([1, 2])),
        *(iter([3]), (x for x in ()), (text for text in ["good", None]), map(int, ["3"]), _breaks()),
        ["good", {"input_ids": [5]}],
        *([{"input_ids": ids}] for ids in not_ids()),
        *({"input_ids": [ids]} for ids in not_ids()),
        *([{"input_ids": [2, 5, 3], "attention_mask": mask}] for mask in not_masks()),
        *([{"input_ids": [2, 5, 3], "token_type_ids": types}] for types in not_types()),
    ]


def _breaks() -> Iterator[Any]:
    yield "good"
    yield object()


def not_ids() -> list[Any]:
    """Values that are no token ids of one sample."""
    return [
        *([], [-1], [2, -5, 3], [10**9], [2**70], [1.5], [NAN], ["x"], [[1, 2]], None, [None], "abc", 3.5, {}, {"a": 1}),
        *(b"abc", [5] * 1000, [2, 500, 3], torch.tensor([1.5]), torch.ones(2, 2).long(), torch.tensor([]), np.array(["x"])),
        *(np.array([NAN]), torch.tensor([2**40]), np.zeros((2, 2, 2), int), [[]], [[[1]]], Stranger()),
    ]


def not_masks() -> list[Any]:
    return [[1, 1], [1, 1, 1, 1], [0, 0, 0], ["x", 1, 1], [NAN, 1, 1], None, [[1, 1, 1]], "111", 3]


def not_types() -> list[Any]:
    first: tuple[Any, ...] = (2, -1, "x", NAN, 10**9)
    return [[0, 0], [0, 0, 0, 0], *([value, 0, 0] for value in first), [[0, 0, 0]], "000", 3, [2**70, 0, 0]]


def not_labels(samples: int) -> Values:
    """Values that are not one of three classes for each text."""
    return lambda: [
        *(None, 3, "LABEL_0", [], [0], ["LABEL_0"], [0] * (samples + 1), ["nothing"] * samples, [3] * samples, [-1] * samples),
        *([0.5] * samples, [None] * samples, [NAN] * samples, ["LABEL_0", 1] * (samples // 2), [[0]] * samples),
        *({}, b"0" * samples),
        *((x for x in ()), torch.zeros(samples + 1), [True, "x"] * (samples // 2), Stranger(), torch.full((samples,), 7)),
    ]


def not_statistic() -> list[Any]:
    """Values that are neither "argmax" nor "mean" nor a quantile."""
    return [*not_number(0.0, 1.0)(), 0, "median", ""]


def not_path() -> list[Any]:
    """Values that are no path of a file or folder that is there."""
    return ["/nowhere/at/all", "./none", "", "\0", None, 3, b"\xff", [], {}, Stranger(), "x" * 5000, 1.5]

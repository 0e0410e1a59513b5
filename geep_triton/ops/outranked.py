"""Which candidates of many queries cannot reach the best of their query."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from geep_triton.checks import check_int, check_number, check_tensor, shorten
from geep_triton.ops.dispatch import implementation


@dataclass(frozen=True, eq=False)
class Outranked:
    """Who leaves at an exit, on the device of the scores.

    Attributes:
        leaves: [N] bool, whether the candidate leaves. False if its score is not finite.
        counts: [2] int32, the number of candidates that leave, and the number whose scores are not finite.
    """

    leaves: torch.Tensor
    counts: torch.Tensor


def outranked(
    scores: torch.Tensor, offsets: torch.Tensor, top_k: int, margin: float, *, backend: str | None = None
) -> Outranked:
    """Find the candidates whose scores are more than `margin` below the `top_k`-th best score of their group.

    A group is the candidates of one query. At least `top_k` candidates of a group stay, or all of a group that has no more.
    Candidates with equal scores stay or leave together. A score that is not finite counts as the worst, so that it makes nobody
    leave. Cascades of rankers prune candidates this way (Wang et al., SIGIR 2011); this rule is *our reconstruction*.

    Args:
        scores: [N] floating point. They are compared in float32.
        offsets: [Q + 1] int64, on the device of the scores; group q is scores[offsets[q]:offsets[q + 1]], and may be empty.
            They must run from 0 to N. This is not checked on a GPU, because the check would wait for the device.
        top_k: at least 1.
        margin: at least 0, in the unit of the scores; infinite: nobody leaves.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Raises:
        ValueError: a shape does not fit, offsets do not run from 0 to N, or top_k or margin is out of range.
        TypeError: an argument has another type or dtype.
    """
    check_tensor("scores", scores, 1)
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating point, got {scores.dtype}")
    check_tensor("offsets", offsets, 1, torch.int64)
    check_int("top_k", top_k, 1, 2**31 - 1)
    check_number("margin", margin, 0.0)
    if offsets.numel() == 0 or (offsets.device.type == "cpu" and (int(offsets[0]), int(offsets[-1])) != (0, len(scores))):
        raise ValueError(f"offsets must run from 0 to the number of scores ({len(scores)}), got {offsets[:1]}..{offsets[-1:]}")
    if offsets.device.type == "cpu" and bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must not decrease, got {shorten(offsets.tolist())}")
    op = implementation("outranked", scores.device, backend)
    return Outranked(*op.outranked(scores, offsets, top_k, _in_float32(margin)))


def _in_float32(margin: float) -> float:
    """A margin as the ops compare it, rounded to float32."""
    return math.inf if margin > torch.finfo(torch.float32).max else torch.tensor(float(margin), dtype=torch.float32).item()

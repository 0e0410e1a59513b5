"""Exit scoring in one launch."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from geep_triton.ops.kernels import launching
from geep_triton.ops.kernels.configs import choose


@triton.jit
def uncertainty_of(x, column, scale, top_k, CRITERION: tl.constexpr):
    """Prediction [R], uncertainty [R] and validity [R] of logits [R, C] whose padding is -inf. `scale` is ln C or ln k."""
    nan = tl.sum((x != x).to(tl.int32), 1) > 0
    x = tl.where(x != x, -float("inf"), x)
    top = tl.max(x, 1)
    valid = (nan == 0) & (top > -float("inf")) & (top < float("inf"))
    prediction = tl.argmax(x, 1)
    z = x - tl.where(valid, top, 0.0)[:, None]
    z = tl.where(valid[:, None], z, 0.0)
    share = tl.exp(z)
    total = tl.sum(share, 1)
    if CRITERION == "max_probability":
        uncertainty = 1.0 - 1.0 / total
    elif CRITERION == "margin":
        second = tl.max(tl.where(column[None, :] == prediction[:, None], -float("inf"), z), 1)
        uncertainty = 1.0 - (1.0 - tl.exp(second)) / total
    elif CRITERION == "energy":
        uncertainty = -(top + tl.log(total))
    elif CRITERION == "top_k_entropy":
        rest = z
        total = tl.zeros_like(top)
        weighted = tl.zeros_like(top)
        taken = 0
        while taken < top_k:
            best = tl.max(rest, 1)
            at = tl.argmax(rest, 1)
            total += tl.exp(best)
            weighted += tl.where(best == -float("inf"), 0.0, tl.exp(best) * best)
            rest = tl.where(column[None, :] == at[:, None], -float("inf"), rest)
            taken += 1
        uncertainty = (tl.log(total) - weighted / total) / scale
        uncertainty = tl.minimum(tl.maximum(uncertainty, 0.0), 1.0)
    else:
        weighted = tl.sum(tl.where(z == -float("inf"), 0.0, share * z), 1)
        uncertainty = tl.log(total) - weighted / total
        if CRITERION == "normalized_entropy":
            uncertainty = tl.minimum(tl.maximum(uncertainty / scale, 0.0), 1.0)
    return tl.where(valid, prediction, -1), tl.where(valid, uncertainty, float("nan")), valid


@triton.jit
def distance_of(x, column, num_classes, cuts):
    """As `uncertainty_of`, for logits [R, C] that each have a cut, whose padding is 0."""
    # Each element loads its own cut. One row of cuts for all rows would lie in shared memory: all of it where rows are wide.
    place = tl.broadcast_to(column[None, :], x.shape)
    cut = tl.load(cuts + place, mask=place < num_classes, other=float("inf"))
    # x - x is NaN where x is not finite, also beside an infinite cut. Where it is 0 it changes nothing.
    away = tl.abs(x - cut) + (x - x)
    valid = tl.sum((away != away).to(tl.int32), 1) == 0
    prediction = tl.sum((x >= cut).to(tl.int32), 1)
    nearest = tl.min(tl.where(away != away, float("inf"), away), 1)
    return tl.where(valid, prediction, -1), tl.where(valid, 0.0 - nearest, float("nan")), valid


@triton.jit
def change_of(row, inside, logits, previous, is_first):
    """As `uncertainty_of`, for rows of one score [R], which is the prediction."""
    score = tl.load(logits + row, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(previous + row, mask=inside & (is_first == 0), other=float("nan"))
    valid = tl.abs(score) < float("inf")
    uncertainty = tl.where(before == before, tl.abs(score - before), float("inf"))
    return tl.where(valid, score, float("nan")), tl.where(valid, uncertainty, float("nan")), valid


@triton.jit
def decide_leaving(
    row, inside, prediction, uncertainty, valid, predictions, uncertainties, leaving, previous, streak_before, streaks, counts,
    threshold, patience, by_agreement, is_first,
):  # fmt: skip
    """Update the streaks, decide which rows leave, store everything, and count the rows that leave or are not numbers."""
    known = inside & (is_first == 0)
    agrees = valid & (prediction == tl.load(previous + row, mask=known & (by_agreement != 0), other=-1))
    continues = tl.where(by_agreement != 0, agrees, uncertainty <= threshold)
    before = tl.load(streak_before + row, mask=known, other=0)
    streak = tl.where(continues, before + 1, 0)
    leaves = valid & (streak >= patience)
    tl.store(predictions + row, prediction.to(predictions.dtype.element_ty), mask=inside)
    tl.store(uncertainties + row, uncertainty, mask=inside)
    tl.store(leaving + row, leaves.to(tl.uint8), mask=inside)
    tl.store(streaks + row, streak, mask=inside)
    tl.atomic_add(counts, tl.sum((leaves & inside).to(tl.int32), 0), sem="relaxed")
    tl.atomic_add(counts + 1, tl.sum(((valid == 0) & inside).to(tl.int32), 0), sem="relaxed")


@triton.jit(do_not_specialize=["num_rows", "num_classes", "top_k", "patience", "by_agreement", "is_first"])
def score_exits_kernel(
    logits, predictions, uncertainties, leaving, previous, streak_before, streaks, counts, cuts,
    num_rows, num_classes, threshold, scale, top_k, patience, by_agreement, is_first,
    CRITERION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Each program scores a tile of rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    if CRITERION == "change":
        prediction, uncertainty, valid = change_of(row, inside, logits, previous, is_first)
    else:
        column = tl.arange(0, COLUMNS)
        place = row[:, None] * num_classes + column[None, :]
        real = inside[:, None] & (column < num_classes)[None, :]
        if CRITERION == "distance":
            x = tl.load(logits + place, mask=real, other=0.0).to(tl.float32)
            prediction, uncertainty, valid = distance_of(x, column, num_classes, cuts)
        else:
            x = tl.load(logits + place, mask=real, other=-float("inf")).to(tl.float32)
            prediction, uncertainty, valid = uncertainty_of(x, column, scale, top_k, CRITERION)
    decide_leaving(
        row, inside, prediction, uncertainty, valid, predictions, uncertainties, leaving, previous, streak_before, streaks,
        counts, threshold, patience, by_agreement, is_first,
    )  # fmt: skip


# There are few widths, so that few kernels are compiled. `ops` sends wider problems to PyTorch.
WIDTHS = (4, 32, 256, 2048, 16384)


def _outputs(rows: int, criterion: str, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Prediction, uncertainty, leaves, streak, counts."""
    return (
        torch.empty(rows, dtype=torch.float32 if criterion == "change" else torch.int64, device=device),
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.bool, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.zeros(2, dtype=torch.int32, device=device),
    )


def _pointers(
    outputs: tuple[torch.Tensor, ...],
    previous: torch.Tensor | None,
    streak: torch.Tensor | None,
    cuts: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The kernel's pointers from predictions to cuts. A missing input is never read, so any pointer of its type can
    stand in.
    """
    prediction, uncertainty, leaves, streaks, counts = outputs
    before = prediction if previous is None else previous.contiguous()
    streak_before = streaks if streak is None else streak.contiguous()
    given = uncertainty if cuts is None else cuts.contiguous()
    return prediction, uncertainty, leaves.view(torch.uint8), before, streak_before, streaks, counts, given


def _scalars(
    classes: int, threshold: float, criterion: str, top_k: int, rule: str, patience: int, streak: torch.Tensor | None
) -> tuple[float, float, int, int, int, int]:
    """The threshold, the maximum of the entropy, the number of logits it covers, the patience, and flags for
    "agreement" and the first exit.
    """
    looked_at = min(top_k, classes) if criterion == "top_k_entropy" else classes
    return float(threshold), math.log(looked_at), looked_at, patience, int(rule == "agreement"), int(streak is None)


def score_exits(
    logits: torch.Tensor,
    threshold: float,
    criterion: str,
    top_k: int,
    rule: str,
    patience: int,
    previous: torch.Tensor | None,
    streak: torch.Tensor | None,
    cuts: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """See `geep_triton.ops.exit_scores.score_exits`."""
    num_rows, classes = logits.shape
    outputs = _outputs(num_rows, criterion, logits.device)
    columns = next(width for width in WIDTHS if classes <= width)
    config = choose("score_exits", columns, logits.device)
    rows = max(1, config.block // columns)
    launching.launch(
        score_exits_kernel, (triton.cdiv(num_rows, rows),),
        logits.contiguous(), *_pointers(outputs, previous, streak, cuts), num_rows, classes,
        *_scalars(classes, threshold, criterion, top_k, rule, patience, streak),
        CRITERION=criterion, ROWS=rows, COLUMNS=columns, num_warps=config.warps,
    )  # fmt: skip
    return outputs

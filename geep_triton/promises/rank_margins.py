"""Learns margins for ranking from the recorded scores of every exit."""

from __future__ import annotations

import torch

from geep_triton.policies.ranking import RankPolicy
from geep_triton.promises.exits_that_pay import exits_that_pay
from geep_triton.promises.rank_record import RankRecord

# From cautious to bold: the largest shortfall so many times, then the shortfalls that shares of the queries do not exceed.
SCALES = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25)
SHARES = (1.0, 0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8, 0.75, 0.7, 0.6, 0.5, 0.3, 0.1)


def settings(record: RankRecord, top_k: int, stop_cost: float) -> list[RankPolicy]:
    """Policies from cautious to bold, each with margins at the exits that pay.

    A margin is learned from shortfalls: how far the score of a candidate that the full model has among its `top_k` best lies
    below the `top_k`-th best score at an exit. The rule is *our reconstruction*.

    Args:
        record: of some queries. Others must judge the policies.
        top_k: how many candidates are wanted.
        stop_cost: what it costs to score a candidate at an exit and to move it into another batch, in layers.

    Returns:
        No policy that would cost as much as full depth on the record. It may be none at all.
    """
    if len(record.layers) == 1:  # no early exit
        return []
    shortfalls = torch.stack(
        [record.worst_of_best(exit_, top_k)[record.query] - record.logits[:, exit_] for exit_ in range(len(record.layers) - 1)],
        1,
    )
    largest = _largest_of_best(record, shortfalls, top_k)
    if not len(largest):
        return []
    margins = [scale * largest.amax(0) for scale in SCALES]
    margins += [largest.quantile(share, dim=0, interpolation="higher") for share in SHARES]
    found: list[RankPolicy] = []
    for row in margins:
        kept = exits_that_pay(shortfalls > row, record.layers, stop_cost, range(len(row)), fewest=0)
        if kept:
            policy = RankPolicy(top_k, {record.layers[exit_]: float(row[exit_]) for exit_ in kept})
            if not found or found[-1] != policy:
                found.append(policy)
    return found


def _largest_of_best(record: RankRecord, shortfalls: torch.Tensor, top_k: int) -> torch.Tensor:
    """[M, E - 1], per query with more than `top_k` candidates: the largest shortfall of one of its best, at least 0."""
    best = record.logits[:, -1] >= record.worst_of_best(-1, top_k)[record.query]
    queries = len(record.offsets) - 1
    largest = torch.zeros(queries, shortfalls.shape[1])
    index = record.query[best][:, None].expand(-1, shortfalls.shape[1])
    largest.scatter_reduce_(0, index, shortfalls[best], "amax")
    return largest[record.offsets.diff() > top_k]

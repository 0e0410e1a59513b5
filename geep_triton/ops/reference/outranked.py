"""Which candidates of many queries cannot reach the best of their query."""

from __future__ import annotations

import torch


def outranked(scores: torch.Tensor, offsets: torch.Tensor, top_k: int, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.outranked.outranked`."""
    scores, sizes = scores.float(), offsets.diff()
    valid = scores.isfinite()
    ranked = torch.where(valid, scores, -torch.inf)
    group = torch.repeat_interleave(sizes, output_size=len(scores))
    # Two stable sorts: each group's scores, best first, where the group is.
    order = ranked.argsort(descending=True)
    order = order[group[order].argsort(stable=True)]
    places = (offsets[:-1] + top_k - 1)[sizes > top_k]
    worst_of_best = torch.full(sizes.shape, -torch.inf, device=scores.device)
    worst_of_best[sizes > top_k] = ranked[order[places]]
    # -inf less any score is below every margin.
    leaves = valid & (worst_of_best[group] - ranked > margin)
    return leaves, torch.stack([leaves, ~valid]).sum(1, dtype=torch.int32)

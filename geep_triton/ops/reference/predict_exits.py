"""Exits of samples from the scores of their tokens and n-grams."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from geep_triton.ops.reference.hash_table import lookup
from geep_triton.ops.reference.ngrams import ngram_windows


def predict_exits(
    ids: torch.Tensor,
    offsets: torch.Tensor,
    uncounted: torch.Tensor,
    unigrams: torch.Tensor,
    slots: torch.Tensor,
    ngrams: torch.Tensor,
    prior: torch.Tensor,
    probes: int,
    layers: torch.Tensor,
    ngram: int,
    log_space: bool,
    statistic: str | float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.predict_exits.predict_exits`. The arguments are the fields of the table.

    Args:
        ids: [T] int64.
        offsets: [N + 1] int64.
        uncounted: [V] bool, ids that are never counted.
        unigrams: [V + 1, W] float32, the scores of each id, W >= E. The last row is for unseen keys.
        slots: [capacity] int64, keys of longer n-grams.
        ngrams: [capacity + 1, W] float32, their scores. The last row is for unseen keys.
        prior: [W] float32.
        probes: longest search in `slots`, in buckets.
        layers: [E] int64, the layers of the exits.
        ngram: highest order of the n-grams that are counted.
        log_space: whether scores are logarithms (naive Bayes) instead of probabilities.
        statistic: "argmax", "mean" or a quantile.

    Returns:
        Probabilities [N, E] float32, exit layers [N] int64, and samples per exit [E] int32.
    """
    num_exits, vocab_size = layers.numel(), uncounted.numel()
    known = (ids >= 0) & (ids < vocab_size)
    special = known & uncounted[torch.where(known, ids, 0)]
    total, keys_found = unigrams.new_zeros(()), torch.zeros((), dtype=torch.int64, device=ids.device)
    for last, (keys, whole) in enumerate(ngram_windows(ids, offsets, special, ngram)):
        counts = torch.zeros_like(special)
        counts[last:] = whole
        if last == 0:
            rows, scores = torch.where(known, keys, vocab_size), unigrams
        else:
            rows, scores = torch.zeros_like(ids), ngrams
            rows[counts] = lookup(slots, probes, keys[whole])
        total = total + F.embedding_bag(rows, scores, offsets[:-1], mode="sum", per_sample_weights=counts.to(scores.dtype))
        counted = F.pad(counts.cumsum(0), (1, 0))
        keys_found = keys_found + (counted[offsets[1:]] - counted[offsets[:-1]])[:, None]
    if log_space:
        probabilities = (total + prior)[:, :num_exits].softmax(-1)
    else:
        probabilities = torch.where(keys_found > 0, total / keys_found.clamp(min=1), prior)[:, :num_exits]
    index = exit_at(probabilities, layers, statistic)
    return probabilities, layers[index], torch.bincount(index, minlength=num_exits).int()


def exit_at(probabilities: torch.Tensor, layers: torch.Tensor, statistic: str | float) -> torch.Tensor:
    """Choose an exit by its distribution; see `geep_triton.ops.predict_exits`.

    Args:
        probabilities: P(e|x), [N, E].
        layers: [E], the layers of the exits.
        statistic: "argmax", "mean" or a quantile.

    Returns:
        [N] int64, index of the exit.
    """
    # Rounding lets sums of float32 shares miss the exact bound. Half a millionth of a layer must not cost a layer.
    slack = 5e-7 * layers.numel()
    if statistic == "argmax":
        return probabilities.argmax(-1)
    if isinstance(statistic, str):  # "mean"
        expected = (probabilities * layers).sum(-1)
        index = (layers < expected[:, None] - slack).sum(-1)
    else:
        index = (probabilities.cumsum(-1) < statistic - slack).sum(-1)
    return index.clamp(max=layers.numel() - 1)

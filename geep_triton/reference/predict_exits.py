"""Exits of samples from the scores of their tokens and n-grams."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from geep_triton.reference.hash_table import lookup
from geep_triton.reference.ngrams import ngram_keys


def predict_exits(
    ids: torch.Tensor,
    offsets: torch.Tensor,
    uncounted: torch.Tensor,
    unigrams: torch.Tensor,
    slots: torch.Tensor,
    ngrams: torch.Tensor,
    probes: int,
    layers: torch.Tensor,
    ngram: int,
    log_space: bool,
    decision: str | float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.predict_exits.predict_exits`; the table taken apart.

    Args:
        ids: [T] int64; offsets: [N + 1] int64.
        uncounted: [V] bool, ids that never count.
        unigrams: [V + 1, W] float32, scores of each id, directly indexed, the last row the prior; W >= E columns.
        slots: [capacity] int64, keys of longer n-grams; ngrams: [capacity + 1, W] float32, the last row the prior.
        probes: longest search in `slots`, in buckets.
        layers: [E] int64, the exits' layers.
        ngram: highest order that counts.
        log_space: scores are logarithms (naive Bayes) instead of probabilities.
        decision: "argmax", "mean" or a quantile.
    """
    samples, num_exits, vocab_size = offsets.numel() - 1, layers.numel(), uncounted.numel()
    known = (ids >= 0) & (ids < vocab_size)
    special = known & uncounted[torch.where(known, ids, 0)]
    keys, owners = ngram_keys(ids, offsets, special, ngram)
    # The keys of the unigrams come first; they are the ids themselves.
    split = int((~special).sum())
    first, longer = keys[:split], keys[split:]
    rows = torch.where((first >= 0) & (first < vocab_size), first, vocab_size)
    scores, prior = unigrams[:, :num_exits], unigrams[-1, :num_exits]
    if ngram > 1:
        rows = torch.cat([rows, vocab_size + 1 + lookup(slots, probes, longer)])
        scores = torch.cat([scores, ngrams[:, :num_exits]])
    probabilities = _reduce(rows, owners, samples, scores, prior, log_space)
    index = decide(probabilities, layers, decision)
    return probabilities, layers[index], torch.bincount(index, minlength=num_exits).int()


def _reduce(
    rows: torch.Tensor, owners: torch.Tensor, samples: int, scores: torch.Tensor, prior: torch.Tensor, log_space: bool
) -> torch.Tensor:
    """P(e|x) [N, E] from the rows [M] of each sample's keys."""
    lengths = torch.bincount(owners, minlength=samples)
    # embedding_bag wants each sample's rows together; n-grams of several orders are not.
    rows = rows[owners.argsort(stable=True)]
    starts = lengths.cumsum(0) - lengths
    if not log_space:
        means = F.embedding_bag(rows, scores, starts, mode="mean")
        return torch.where(lengths[:, None] > 0, means, prior)
    evidence = F.embedding_bag(rows, scores, starts, mode="sum")
    return (evidence + (1 - lengths[:, None]) * prior).softmax(-1)


def decide(probabilities: torch.Tensor, layers: torch.Tensor, decision: str | float) -> torch.Tensor:
    """Index of the exit [N] int64 from P(e|x) [N, E] and the exits' layers [E]; see `geep_triton.ops.predict_exits`."""
    # Sums of float32 shares miss the exact bound by rounding; half a millionth of a layer is no reason to go one deeper.
    slack = 5e-7 * layers.numel()
    if decision == "argmax":
        return probabilities.argmax(-1)
    if decision == "mean":
        expected = probabilities @ layers.to(probabilities.dtype)
        index = (layers < expected[:, None] - slack).sum(-1)
    else:
        index = (probabilities.cumsum(-1) < decision - slack).sum(-1)
    return index.clamp(max=layers.numel() - 1)

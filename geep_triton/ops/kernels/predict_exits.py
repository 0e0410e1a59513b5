"""Exits of a window of samples from their tokens in one launch: keys, lookups, reduction, statistic, histogram."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.ops.kernels import launching
from geep_triton.ops.kernels.configs import choose
from geep_triton.ops.kernels.hashing import BUCKET, EMPTY, find_slots, mix64

# The golden ratio, as in reference/ngrams.py.
STEP = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
SIGN = tl.constexpr(-(2**63))
STATISTICS, QUANTILE = {"argmax": 0, "mean": 1}, 2


@triton.jit
def load_tokens(ids, uncounted, position, end, vocab_size):
    """Token ids, whether each is an ordinary token of the sample, and whether it is in the vocabulary."""
    inside = position < end
    token = tl.load(ids + position, mask=inside, other=0)
    known = inside & (token >= 0) & (token < vocab_size)
    special = tl.load(uncounted + token, mask=known, other=0) != 0
    return token, inside & (special == 0), known


@triton.jit(do_not_specialize=["vocab_size", "last_bucket", "probes", "num_exits", "ngram", "log_space", "statistic"])
def predict_exits_kernel(
    ids, offsets, uncounted, unigrams, slots, ngrams, prior_scores, layers, probabilities, exits, histogram,
    vocab_size, last_bucket, probes, num_exits, ngram, log_space, statistic, quantile,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program handles one sample. It goes over blocks of its tokens, and for each block over the orders of n-grams."""
    sample = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + sample), tl.load(offsets + sample + 1)
    column = tl.arange(0, WIDTH)
    prior = tl.load(prior_scores + column)
    total = tl.zeros([WIDTH], tl.float32)
    keys_found = 0
    miss = (last_bucket + 1) * BUCKET

    while begin < end:
        position = begin + tl.arange(0, BLOCK)
        token, counts, known = load_tokens(ids, uncounted, position, end, vocab_size)
        row = tl.where(known, token, vocab_size)
        score = tl.load(unigrams + row[:, None] * WIDTH + column[None, :], mask=counts[:, None], other=0.0)
        total += tl.sum(score, 0)
        keys_found += tl.sum(counts.to(tl.int32), 0)
        key = token
        order = 2
        while order <= ngram:
            token, ordinary, known = load_tokens(ids, uncounted, position + order - 1, end, vocab_size)
            counts = counts & ordinary
            key = tl.maximum(mix64(key * STEP + token + order) | SIGN, EMPTY + 1)
            slot = find_slots(slots, key, counts, last_bucket, probes)
            row = tl.where(slot < 0, miss, slot)
            score = tl.load(ngrams + row[:, None] * WIDTH + column[None, :], mask=counts[:, None], other=0.0)
            total += tl.sum(score, 0)
            keys_found += tl.sum(counts.to(tl.int32), 0)
            order += 1
        begin += BLOCK

    real = column < num_exits
    mean = tl.where(keys_found > 0, total / tl.maximum(keys_found, 1), prior)
    evidence = tl.where(real, total + prior, -float("inf"))
    weight = tl.exp(evidence - tl.max(evidence, 0))
    share = tl.where(log_space != 0, weight / tl.sum(weight, 0), mean)

    slack = 5e-7 * num_exits
    layer = tl.load(layers + column, mask=real, other=0)
    expected = tl.sum(tl.where(real, share * layer, 0.0), 0)
    by_argmax = tl.argmax(tl.where(real, share, -1.0), 0)
    by_mean = tl.sum((real & (layer < expected - slack)).to(tl.int32), 0)
    by_quantile = tl.sum((real & (tl.cumsum(share, 0) < quantile - slack)).to(tl.int32), 0)
    index = tl.where(statistic == 0, by_argmax, tl.where(statistic == 1, by_mean, by_quantile))
    index = tl.minimum(index, num_exits - 1)
    tl.store(probabilities + sample * num_exits + column, share, mask=real)
    tl.store(exits + sample, tl.load(layers + index))
    tl.atomic_add(histogram + index, 1, sem="relaxed")


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
    """See `geep_triton.ops.reference.predict_exits.predict_exits`."""
    samples, num_exits = offsets.numel() - 1, layers.numel()
    probabilities = torch.empty(samples, num_exits, device=ids.device)
    exits = torch.empty(samples, dtype=torch.int64, device=ids.device)
    histogram = torch.zeros(num_exits, dtype=torch.int32, device=ids.device)
    rule, quantile = (STATISTICS[statistic], 0.0) if isinstance(statistic, str) else (QUANTILE, float(statistic))
    config = choose("predict_exits", ids.numel() // max(samples, 1), ids.device)
    launching.launch(
        predict_exits_kernel, (samples,),
        ids.contiguous(), offsets.contiguous(), uncounted.view(torch.uint8), unigrams, slots, ngrams, prior, layers,
        probabilities, exits, histogram,
        unigrams.shape[0] - 1, slots.numel() // BUCKET.value - 1, probes, num_exits, ngram, int(log_space),
        rule, quantile,
        WIDTH=unigrams.shape[1], BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return probabilities, exits, histogram

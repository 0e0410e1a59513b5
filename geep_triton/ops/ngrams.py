"""N-gram keys of ragged token ids."""

from __future__ import annotations

import torch

from geep_triton.checks import check_int, check_tensor
from geep_triton.ops.reference import ngrams as reference


def ngram_keys(
    ids: torch.Tensor, offsets: torch.Tensor, special: torch.Tensor, ngram: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of all n-grams of orders 1..ngram. An n-gram lies within one sample and contains no special token.

    Args:
        ids: [T] int64 token ids, not negative.
        offsets: [N + 1] int64; sample i is ids[offsets[i]:offsets[i + 1]].
        special: [T] bool, whether the token is never counted ([PAD], [CLS], [SEP], [MASK]).
        ngram: the highest order, 1 to 16.

    Returns:
        Keys [M] int64 and the samples [M] int64 that they belong to, sorted by order, then by position. The key of a single
            token is its id. The key of a longer n-gram is a negative 64-bit hash, but never the most negative int64.

    Raises:
        ValueError: a shape or the order does not fit.
        TypeError: an argument has another type or dtype.
    """
    check_tensor("ids", ids, 1, torch.int64)
    check_tensor("offsets", offsets, 1, torch.int64)
    check_tensor("special", special, 1, torch.bool)
    check_int("ngram", ngram, 1)
    check_int("ngram", ngram, 1, reference.MAX_NGRAM)
    if offsets.numel() == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != ids.numel():
        raise ValueError(f"offsets must run from 0 to the number of ids ({ids.numel()}), got {offsets[:1]}..{offsets[-1:]}")
    if special.shape != ids.shape:
        raise ValueError(f"special must be of the length of ids ({ids.numel()}), got {special.numel()}")
    return reference.ngram_keys(ids, offsets, special, ngram)

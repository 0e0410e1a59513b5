"""N-gram keys of ragged token ids."""

from __future__ import annotations

import torch

from geep_triton.checks import check_int, check_tensor
from geep_triton.ops.reference import ngrams as reference


def ngram_keys(
    ids: torch.Tensor, offsets: torch.Tensor, special: torch.Tensor, ngram: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of all n-grams of orders 1..ngram; none holds a special token or crosses one or a sample's border.

    Args:
        ids: [T] int64 token ids, not negative.
        offsets: [N + 1] int64; sample i is ids[offsets[i]:offsets[i + 1]].
        special: [T] bool, where a token never counts ([PAD], [CLS], [SEP], [MASK]).
        ngram: the highest order, 1 to 16.

    Returns:
        keys [M] int64: the id itself for unigrams, a negative 64-bit hash for longer ones, never the most negative int64;
        samples [M] int64: whose they are. Ordered by order, then position.

    Raises:
        ValueError, TypeError: for shapes, dtypes or an order that do not fit.
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

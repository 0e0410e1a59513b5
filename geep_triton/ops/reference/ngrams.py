"""64-bit keys of n-grams in ragged token ids."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# These are signed, because torch has no unsigned 64-bit arithmetic. Products wrap around all the same.
_MIX_1 = 0xFF51AFD7ED558CCD - (1 << 64)
_MIX_2 = 0xC4CEB9FE1A85EC53 - (1 << 64)
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_SIGN = -(1 << 63)
# No n-gram has this key. It marks a free slot of the hash table.
EMPTY = -(1 << 63)
MAX_NGRAM = 16  # each order is a pass over all tokens


def mix64(x: torch.Tensor) -> torch.Tensor:
    """Murmur3's 64-bit finaliser on int64: a bijection in which every bit of x affects every bit of the result."""
    x = (x ^ _shift_right(x, 33)) * _MIX_1
    x = (x ^ _shift_right(x, 33)) * _MIX_2
    return x ^ _shift_right(x, 33)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def ngram_windows(
    ids: torch.Tensor, offsets: torch.Tensor, special: torch.Tensor, ngram: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The windows of n tokens for each order n = 1..ngram, by the position n-1..T-1 of their last token.

    Yields:
        Keys [T - n + 1] int64 and flags [T - n + 1] bool. A flag is True if the window lies in one sample and has no special
            token.
    """
    yield ids, ~special
    if ngram == 1:
        return
    position = torch.arange(ids.numel(), device=ids.device)
    # Start of the run of ordinary tokens at each position. For a special token it is the next position.
    start = torch.where(special, position + 1, torch.repeat_interleave(offsets[:-1], offsets.diff()))
    run = position + 1 - start.cummax(0).values
    key = ids
    for order in range(2, ngram + 1):
        key = (mix64(key[:-1] * _STEP + ids[order - 1 :] + order) | _SIGN).clamp(min=EMPTY + 1)
        yield key, run[order - 1 :] >= order


def ngram_keys(
    ids: torch.Tensor, offsets: torch.Tensor, special: torch.Tensor, ngram: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.ngrams.ngram_keys`."""
    samples = torch.repeat_interleave(offsets.diff())
    windows = list(ngram_windows(ids, offsets, special, ngram))
    keys = [key[whole] for key, whole in windows]
    owners = [samples[order:][whole] for order, (_, whole) in enumerate(windows)]
    return torch.cat(keys), torch.cat(owners)

"""Attention on rows, by torch's own kernel or by batched products, whichever is faster on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from geep_triton.runners.onednn.rows import pad_rows

KEYS = 16  # values in a vector register: a softmax over a multiple of them takes half the time
SHORT = 16  # tokens of a sample below which torch's own attention is slow in float32, too
FEW = 64  # tokens of a batch below which torch's own attention is faster in bfloat16, too


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    samples: int,
    length: int,
    heads: int,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attention within each sample.

    Args:
        query, key, value: [R, H] each; their rows may lie further apart than H values.
        samples, length, mask: as for `RowsLayer.run`.
        heads: number of heads, which divides H.
        scale: factor of the scores.

    Returns:
        [R, H]. Rows beyond the samples are zero.
    """
    tokens = samples * length
    query, key, value = (
        each[:tokens].unflatten(1, (heads, -1)).unflatten(0, (samples, length)).transpose(1, 2) for each in (query, key, value)
    )
    slow = query.dtype == torch.bfloat16 and tokens >= FEW
    attended = (_batched if slow or length < SHORT else _sdpa)(query, key, value, mask, scale)
    return pad_rows(attended.transpose(1, 2).reshape(tokens, -1))


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """[B, heads, S, D] three times -> [B, heads, S, D]."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _batched(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """The same by batched products and a softmax over a multiple of `KEYS` keys.

    On a CPU torch's own attention takes up to twice as long in bfloat16, and three times as long over a few keys.
    """
    samples, heads, length, size = query.shape
    keys = -(-length // KEYS) * KEYS
    shape = (samples * heads, keys, size)
    scaled = torch.mul(query, scale, out=query.new_empty(samples, heads, length, size))
    padded = key.new_empty(samples, heads, keys, size)
    padded[:, :, :length] = key
    scores = torch.bmm(scaled.view(-1, length, size), padded.view(shape).transpose(1, 2)).view(samples, heads, length, keys)
    if mask is not None:
        scores[..., :length] += mask
    scores[..., length:] = -torch.inf  # whatever the product with keys that nobody wrote was
    weights = torch.softmax(scores, -1).view(-1, length, keys)
    padded = value.new_empty(samples, heads, keys, size)
    padded[:, :, :length] = value
    padded[:, :, length:] = 0
    return torch.bmm(weights, padded.view(shape)).view(samples, heads, length, size)

"""Attention on rows, by torch's own kernel or by batched products, whichever is faster on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from geep_triton.runners.onednn.rows import Layout

KEYS = 16  # values in a vector register: a softmax over a multiple of them takes half the time
SHORT = 16  # tokens of a sample below which torch's own attention is slow in float32, too
FEW = 64  # tokens of a batch below which torch's own attention is faster in bfloat16, too


def attend_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, heads: int, scale: float
) -> torch.Tensor:
    """Attention within each sample.

    Args:
        query, key, value: [R, H] each; their rows may lie further apart than H values.
        layout: of the rows.
        heads: number of heads, which divides H.
        scale: factor of the scores.

    Returns:
        [R, H]. Rows beyond those of the layout are zero.
    """
    query, key, value = (layout.to_batch(each).unflatten(2, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    slow = query.dtype == torch.bfloat16 and layout.samples * layout.length >= FEW
    attended = (_batched if slow or layout.length < SHORT else _sdpa)(query, key, value, layout.mask, scale)
    return layout.from_batch(attended.transpose(1, 2))


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

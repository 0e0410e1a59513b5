"""Stores weights in few bytes: as 4-bit codes if these give every bit back, else as float16. Changes get the nearest codes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

BLOCK = 32  # weights that share a scale
ZERO = 8  # codes 0..15 stand for -8..7 scales
EXTREMES = (*range(-8, 0), *range(7, 0, -1))  # how many scales a block's largest weight may be, the likeliest first
CODES, SCALES = ".codes", ".scales"  # what a packed weight's name ends with


def four_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """4-bit codes and scales with weight == scale * (code - 8) to the bit; None if the weight has none.

    Args:
        weight: [R, D] float32.

    Returns:
        Codes [R, D / 2] uint8, whose low half belongs to the even column, and scales [R, D / 32] float16.
    """
    if weight.shape[1] % BLOCK:
        return None
    blocks = weight.unflatten(1, (-1, BLOCK))
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    codes = torch.full_like(blocks, ZERO, dtype=torch.uint8)
    scales = torch.zeros_like(largest, dtype=torch.float16)
    open_blocks = torch.ones_like(largest, dtype=torch.bool)
    for extreme in EXTREMES:
        tried = (largest / extreme).half()
        steps = (blocks / tried.float()).round().nan_to_num(0).clamp(-ZERO, 15 - ZERO)
        tried_codes = (steps + ZERO).to(torch.uint8)
        restored = tried.float() * (tried_codes.float() - ZERO)
        # As integers: -0 is not 0.
        exact = (restored.view(torch.int32) == blocks.view(torch.int32)).all(2, keepdim=True) & open_blocks
        scales, codes = torch.where(exact, tried, scales), torch.where(exact, tried_codes, codes)
        open_blocks &= ~exact
        if not open_blocks.any():
            return _in_pairs(codes.flatten(1)), scales[..., 0]
    return None


def nearest_four_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes and scales of `four_bits` that come near a weight [R, D] float32, where D is a multiple of `BLOCK`."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    scales = (blocks.abs().amax(2, keepdim=True) / (ZERO - 1)).half()
    steps = (blocks / scales.float()).nan_to_num(0).round().clamp(1 - ZERO, ZERO - 1)
    return _in_pairs((steps + ZERO).to(torch.uint8).flatten(1)), scales[..., 0]


def _in_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Two codes [R, D] uint8 in each byte, the even column in its low half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def from_four_bits(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight [R, D] float32 of codes [R, D / 2] uint8 and scales [R, D / 32] float16."""
    steps = torch.stack([codes & 15, codes >> 4], 2).flatten(1).float() - ZERO
    return (scales.float()[..., None] * steps.unflatten(1, (-1, BLOCK))).flatten(1)


def pack(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store matrices that four bits hold as codes and scales under two names, and other weights as float16 under their own.

    Args:
        weights: float tensors by name.

    Raises:
        ValueError: a weight that float16 cannot hold.
    """
    packed = {}
    for name, weight in weights.items():
        found = four_bits(weight.float()) if weight.ndim == 2 else None
        if found is not None:
            packed[name + CODES], packed[name + SCALES] = found
            continue
        packed[name] = weight.half()
        if not packed[name].isfinite().all():
            raise ValueError(f"{name} holds NaN or values outside float16, up to {float(weight.abs().max()):g}")
    return packed


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that `pack` stored, in float32."""
    weights = {}
    for name, stored in packed.items():
        if name.endswith(CODES):
            name = name.removesuffix(CODES)
            weights[name] = from_four_bits(stored, packed[name + SCALES])
        elif not name.endswith(SCALES):
            weights[name] = stored.float()
    return weights

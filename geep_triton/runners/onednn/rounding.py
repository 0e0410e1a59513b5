"""Rounds a layer's products to int8 by what they are multiplied by on real texts.

Weights are rounded one input after another, and what one rounding loses the others take over (GPTQ, Frantar et al., ICLR 2023).
Channels of the inputs are made alike before (SmoothQuant, Xiao et al., ICML 2023). A hidden unit with rare large values gets
further units, which is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.compat import packed_int8
from geep_triton.modeling.int8_layers import Int8Product

LEVELS = 255  # of an input
LARGEST = 127  # of a weight
SMOOTHING = 0.85  # share of the unevenness of a channel's inputs that its weights take
DAMPING = 0.01  # of the mean second moment, without which some could not be inverted
BLOCK = 64  # inputs that are rounded before the weights of all others follow
SHARES = 48  # one further hidden unit for so many
LEAST_RANGE = 3.0  # below it GELU is no straight line, so a unit's range is not cut into shares


def smoothing_of(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[I] float32: by what to divide each channel of the inputs [T, I] of a weight [O, I]."""
    largest = inputs.abs().amax(0).clamp(min=1e-5)
    return largest**SMOOTHING / weight.abs().amax(0).clamp(min=1e-5) ** (1 - SMOOTHING)


def rounded(
    weight: torch.Tensor, bias: torch.Tensor, inputs: torch.Tensor, smoothing: torch.Tensor | None = None
) -> Int8Product:
    """A product in int8.

    Args:
        weight: [O, I]; bias: [O].
        inputs: [T, I], what it is multiplied by on real texts.
        smoothing: [I], by what each channel is divided before it is rounded; None: 1.
    """
    if smoothing is not None:
        weight, inputs = weight * smoothing, inputs / smoothing
    low, high = min(0.0, float(inputs.min())), max(0.0, float(inputs.max()))
    scale = max(high - low, 1e-5) / LEVELS
    integers, scales = _compensated(weight, inputs)
    return Int8Product(packed_int8(integers), scales, bias, scale, round(-low / scale), smoothing)


def _compensated(weight: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [O, I] as integers [O, I] int8 and scales [O], so that its products with `inputs` [T, I] change least."""
    scales = weight.abs().amax(1).clamp(min=1e-8) / LARGEST
    moments = inputs.T @ inputs
    moments.diagonal().add_(DAMPING * moments.diagonal().mean().clamp(min=1e-8))
    # Row j says how an error at input j is made up for by the inputs after it.
    follow = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    weight, integers = weight.clone(), torch.empty(weight.shape, dtype=torch.int8)
    for begin in range(0, weight.shape[1], BLOCK):
        block = slice(begin, min(begin + BLOCK, weight.shape[1]))
        within, errors = follow[block, block], torch.zeros_like(weight[:, block])
        for at in range(errors.shape[1]):
            column = weight[:, begin + at]
            whole = (column / scales).round().clamp(-LARGEST, LARGEST)
            integers[:, begin + at] = whole.to(torch.int8)
            errors[:, at] = (column - whole * scales) / within[at, at]
            weight[:, begin + at : block.stop] -= errors[:, at, None] * within[at, at:]
        weight[:, block.stop :] -= errors @ follow[block, block.stop :]
    return integers, scales


@dataclass(frozen=True, eq=False)
class Shares:
    """How hidden units share the range of 8 bits: a unit above it has further units, each for the next part of its values.

    A further unit's value is that of its unit less an offset, through the same activation. GELU is a straight line up there, so
    all of them add up to the unit's value.

    Attributes:
        width: the range that every unit gets.
        units: [E] int64, whose values the further units continue.
        offsets: [E] float32, from where on.
    """

    width: float
    units: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, hidden: torch.Tensor) -> Shares:
        """The least range at which values [T, I] of hidden units need no more than one further unit for `SHARES`."""
        largest = hidden.amax(0)
        spare, low, high = largest.numel() // SHARES, LEAST_RANGE, float(largest.max())
        for _ in range(30 if high > low else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if int(_further(largest, middle).sum()) > spare else (low, middle)
        counts = _further(largest, high)
        units = torch.arange(largest.numel()).repeat_interleave(counts)
        parts = torch.cat([torch.arange(1, count + 1) for count in counts[counts > 0].tolist()] or [units])
        return cls(high, units, parts * high)

    def hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values [T, I] of hidden units -> of all units [T, I + E]."""
        return torch.cat([hidden, (hidden[:, self.units] - self.offsets).clamp(min=0)], 1).clamp(max=self.width)

    def expand(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [I, H] and bias [I] of the product that makes hidden units, with the further ones."""
        return torch.cat([weight, weight[self.units]]), torch.cat([bias, bias[self.units] - self.offsets])

    def reduce(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight [H, I] of the product that takes hidden units, with the further ones."""
        return torch.cat([weight, weight[:, self.units]], 1)


def _further(largest: torch.Tensor, width: float) -> torch.Tensor:
    """[I] int64, how many further units each needs."""
    return (largest / width).ceil().long().clamp(min=1) - 1

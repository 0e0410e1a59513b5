"""Depth allocated by how likely each exit is to give the last exit's answer."""

from __future__ import annotations

import torch

from geep_triton.checks import check_number

DEFAULT_AGREEMENT = 0.98  # with the last exit, of the texts held out, at the price that a table takes by itself


def allocate(agreement: torch.Tensor, layers: tuple[int, ...], price: float) -> torch.Tensor:
    """The exit that is worth most: agreement less `price` for every layer.

    Where the tokens tell nothing and the values say so, all samples get one depth, as by a constant depth.

    Args:
        agreement: [N, E], probability that each exit gives the last one's answer.
        layers: the exits' layers.
        price: of a layer, in agreement.

    Returns:
        [N] int64, the shallowest of the best layers.
    """
    numbers = torch.tensor(layers)
    return numbers[(agreement - price * numbers).argmax(-1)]


def price_for(
    agreement: torch.Tensor,
    agrees: torch.Tensor,
    layers: tuple[int, ...],
    mean_depth: float | None = None,
    expected_agreement: float | None = None,
) -> float:
    """The price at which `allocate` keeps a budget: mean layers at most so many, or mean agreement at least so much.

    Args:
        agreement: [N, E], predicted for texts like those to come.
        agrees: [N, E] bool, whether each exit did give the last one's answer.
        layers: the exits' layers.
        mean_depth, expected_agreement: one of them.
    """
    if (mean_depth is None) == (expected_agreement is None):
        raise ValueError("price_for needs exactly one of mean_depth and expected_agreement")
    if expected_agreement is not None:
        check_number("agreement", expected_agreement, 0.0, 1.0)
    else:
        check_number("mean_depth", mean_depth)
    if mean_depth is not None and mean_depth < layers[0]:
        raise ValueError(f"mean_depth must be at least {layers[0]}, the first exit's layer, got {mean_depth:g}")
    numbers = torch.tensor(layers)

    def keeps(price: float) -> bool:
        chosen = allocate(agreement, layers, price)
        if mean_depth is not None:
            return float(chosen.double().mean()) <= mean_depth
        index = torch.searchsorted(numbers, chosen)
        return float(agrees.gather(1, index[:, None]).double().mean()) >= expected_agreement

    low, high = 0.0, 1.0  # at 1 a layer costs more than any agreement is worth
    for _ in range(50):
        middle = (low + high) / 2
        if keeps(middle) == (mean_depth is not None):
            high = middle
        else:
            low = middle
    return high if mean_depth is not None else low

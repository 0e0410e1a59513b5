"""Allocates depth by the probability that each exit gives the last exit's answer (*our addition*)."""

from __future__ import annotations

import torch

from geep_triton.checks import check_number
from geep_triton.tokens.ragged import to_device

DEFAULT_AGREEMENT = 0.98  # default agreement with the last exit on held-out texts


def check_budget(policy: str, price: float | None, mean_depth: float | None, agreement: float | None) -> None:
    """Check that exactly one of the three is given, and is in range.

    Args:
        policy: its name, for errors.
        price: of a layer, in agreement, 0..1.
        mean_depth: in layers, at least 1.
        agreement: share of texts, 0..1.

    Raises:
        ValueError: not exactly one is given, or it is out of range.
        TypeError: it is no number.
    """
    values = {"price": price, "mean_depth": mean_depth, "agreement": agreement}
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"{policy} needs exactly one of price, mean_depth and agreement, got {list(given) or 'none'}")
    for name, value in given.items():
        check_number(name, value, *((1.0,) if name == "mean_depth" else (0.0, 1.0)))


def allocate(agreement: torch.Tensor, layers: tuple[int, ...], price: float) -> torch.Tensor:
    """The exit with the highest value, which is its agreement minus `price` for every layer.

    If the tokens carry no information, all samples get the same depth, as with a constant depth.

    Args:
        agreement: [N, E], probability that each exit gives the last exit's answer.
        layers: the layers of the E exits, ascending.
        price: price of a layer, in agreement.

    Returns:
        [N] int64, the shallowest of the best layers, on the device of `agreement`.
    """
    numbers = to_device(torch.tensor(layers), agreement.device)
    return numbers[(agreement - price * numbers).argmax(-1)]


def price_for(
    agreement: torch.Tensor,
    agrees: torch.Tensor,
    layers: tuple[int, ...],
    mean_depth: float | None = None,
    expected_agreement: float | None = None,
) -> float:
    """The price at which `allocate` keeps a budget: a maximum of the mean depth or a minimum of the mean agreement.

    Args:
        agreement: [N, E], predicted for texts like those to come.
        agrees: [N, E] bool, whether each exit did give the last exit's answer.
        layers: the layers of the E exits, ascending.
        mean_depth: maximum of the mean depth, in layers.
        expected_agreement: minimum of the mean agreement, 0..1.

    Raises:
        ValueError: not exactly one budget is given, or the budget is out of range.
    """
    if (mean_depth is None) == (expected_agreement is None):
        raise ValueError("price_for needs exactly one of mean_depth and expected_agreement")
    if expected_agreement is not None:
        check_number("agreement", expected_agreement, 0.0, 1.0)
    if mean_depth is not None:
        check_number("mean_depth", mean_depth)
        if mean_depth < layers[0]:
            raise ValueError(
                f"mean_depth must be at least {layers[0]}, the first layer at which texts may leave, got {mean_depth:g}"
            )
    numbers, least = torch.tensor(layers), expected_agreement or 0.0

    def keeps(price: float) -> bool:
        chosen = allocate(agreement, layers, price)
        if mean_depth is not None:
            return float(chosen.double().mean()) <= mean_depth
        index = torch.searchsorted(numbers, chosen)
        return float(agrees.gather(1, index[:, None]).double().mean()) >= least

    low, high = 0.0, 1.0  # no agreement is worth more than 1, the price of a single layer here
    for _ in range(50):
        middle = (low + high) / 2
        if keeps(middle) == (mean_depth is not None):
            high = middle
        else:
            low = middle
    return high if mean_depth is not None else low

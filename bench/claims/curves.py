"""Compares families of policies at the same mean depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EQUAL_DEPTHS = 20  # mean depths at which two families are compared
Curve = Sequence[dict[str, float]]  # a family's settings, each with its mean_layers and accuracy


def equal_depth(pairs: Sequence[tuple[Curve, Curve]]) -> dict[str, float]:
    """Accuracy of one family less that of another at the same mean depths, where both have settings: worst and mean.

    Args:
        pairs: (ours, theirs) of each model; at each depth the mean over the models counts.
    """
    points = [[sorted((point["mean_layers"], point["accuracy"]) for point in curve) for curve in pair] for pair in pairs]
    low = max(curve[0][0] for pair in points for curve in pair)
    high = min(curve[-1][0] for pair in points for curve in pair)
    depths = np.linspace(low, high, EQUAL_DEPTHS)
    by_model = [np.subtract(*(np.interp(depths, *zip(*curve, strict=True)) for curve in pair)) for pair in points]
    difference = np.mean(by_model, axis=0)
    return {"worst": float(difference.min()), "mean": float(difference.mean()), "from": float(low), "to": float(high)}

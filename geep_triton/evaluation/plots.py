"""Pictures of what a policy does; needs matplotlib (extra "plots")."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from geep_triton.evaluation.measure import Measurement


def plot_exit_histogram(histograms: Mapping[str, Mapping[int, int]], path: str | os.PathLike) -> None:
    """Bars of how many samples left after each layer, one panel per policy, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(histograms), 3), layout="constrained")
    axes = figure.subplots(1, len(histograms), sharey=True, squeeze=False)[0]
    for axis, (policy, histogram) in zip(axes, histograms.items(), strict=True):
        total = sum(histogram.values())
        axis.bar(list(histogram), [100 * count / total for count in histogram.values()], color="#3b6ea5")
        axis.set_title(policy)
        axis.set_xlabel("exit layer")
        axis.set_xticks(list(histogram))
    axes[0].set_ylabel("samples, %")
    figure.savefig(path, dpi=120)


def plot_accuracy_speed(measurements: Sequence[Measurement], path: str | os.PathLike) -> None:
    """Accuracy against samples per second, one line per family of policies ("threshold", "constant", ...), as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    families: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        families.setdefault(measurement.policy.partition(":")[0], []).append(measurement)
    for family, points in families.items():
        points = sorted(points, key=lambda point: point.mean_layers)
        x, y = [point.samples_per_second for point in points], [100 * point.accuracy for point in points]
        axis.plot(x, y, marker="o", label=family)
    axis.set_xlabel("samples per second")
    axis.set_ylabel("accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)

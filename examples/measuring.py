"""Measures the accuracy and speed of policies on labelled rows, and plots them (matplotlib, extra "plots")."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from geep_triton.engine.checks import label_ids
from geep_triton.engine.engine import Engine
from geep_triton.engine.predictions import Predictions
from geep_triton.timing import in_turns
from geep_triton.tokens.columns import Row
from geep_triton.tokens.samples import check_columns, check_rows


@dataclass(frozen=True)
class Measurement:
    """One policy measured on labelled data.

    Attributes:
        policy: its short form, e.g. "threshold:0.3".
        accuracy: 0..1.
        mean_layers: mean number of layers run per sample.
        samples_per_second: samples per second of wall-clock time.
    """

    policy: str
    accuracy: float
    mean_layers: float
    samples_per_second: float


def measure(
    engines: dict[str, Engine], rows: Sequence[Row], rounds: int, report: Callable[[str], None] | None = None
) -> tuple[list[Measurement], dict[str, Predictions]]:
    """Run every engine over the rows, interleaved, after one warm-up batch each that is not measured.

    Args:
        engines: engines by the name of their policy.
        rows: rows with text, label (class names, or numbers) and optionally text_pair.
        rounds: number of times that each engine answers all rows. Speed is that of the median round.
        report: called with the name of each finished run.

    Returns:
        One measurement per engine, and its last predictions.

    Raises:
        ValueError: there are no rows, a row has no label, or an engine's model does not know a label.
        TypeError: `rows` are not rows.
    """
    check_rows(rows)
    for index, row in enumerate(rows):
        check_columns(row, ("label",))
        if row["label"] is None or row["label"] == "":
            raise ValueError(f"row {index} has no label")
    labels = [row["label"] for row in rows]
    numbers = {name: {label: index for index, label in of.model.config.id2label.items()} for name, of in engines.items()}
    truth = {name: label_ids(labels, len(rows), numbers[name]) for name in engines}
    predictions: dict[str, Predictions] = {}

    def run(name: str) -> None:
        predictions[name] = engines[name].predict(rows)

    for engine in engines.values():
        engine.predict(rows[:64])
    seconds = in_turns({name: partial(run, name) for name in engines}, rounds, report)
    measurements = [
        Measurement(
            name,
            float((predictions[name].label_ids == truth[name]).double().mean()),
            predictions[name].mean_layers,
            len(rows) / statistics.median(seconds[name]),
        )
        for name in engines
    ]
    return measurements, predictions


def plot_exit_histogram(histograms: Mapping[str, Mapping[int, int]], path: str | os.PathLike) -> None:
    """Plot the number of samples that left after each layer, with one panel per policy, as PNG."""
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
    """Plot accuracy against samples per second, with one line per family of policies ("threshold", "constant", ...), as PNG."""
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

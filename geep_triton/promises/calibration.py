"""What a calibration found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One policy on the calibration samples.

    Attributes:
        policy: its short form.
        family: the name of its family; see `geep_triton.promises.families`.
        agreement: share of the calibration samples that get the last exit's answer; of a family that was fitted to half of
            them, share of the other half, as all that follows.
        accuracy: share that get the right one; None without labels.
        mean_layers: layers run a sample, on average.
        samples_per_second: wall clock here; None where it was not measured.
        speed_up: over full depth in the same run.
    """

    policy: str
    family: str
    agreement: float
    accuracy: float | None
    mean_layers: float
    samples_per_second: float | None = None
    speed_up: float | None = None


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        promise: which of "agreement", "max_accuracy_drop", "mean_depth", "speedup", and its value.
        method: "learn-then-test" or "conformal"; see `calibrate`.
        confidence: with which "agreement" and "max_accuracy_drop" hold for texts like the calibration's; None: on average, or
            it is not they that were asked for.
        samples: calibration samples.
        dtype: in which the engine ran; in another one the promise does not hold.
        device: kind of device that it ran on, "cpu" or "cuda"; below float32 each rounds in its own way.
        max_length: most tokens that the engine let a sample have; truncation: whether it cut longer ones.
        exit_table: digest of the model's; None: it had none.
        exit_temperatures: of the model.
        chosen: the fastest candidate; with "mean_depth" and "speedup" the one that agrees most.
        candidates: full depth, and the best setting of each family that keeps the promise, measured; with "conformal" the
            chosen one is not among them, since it is set on samples that had no part in choosing its family.
        unsafe: families of which no setting was shown to keep the promise.
        curve: the settings of the chosen family, from cautious to bold, some of them measured.
    """

    promise: tuple[str, float]
    method: str
    confidence: float | None
    samples: int
    dtype: str
    device: str
    max_length: int
    truncation: bool
    exit_table: str | None
    exit_temperatures: list[float] | None
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    unsafe: tuple[str, ...]
    curve: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """As saved in the model's `exit_config.calibration`: of the curve the points that were measured."""
        values = asdict(self)
        values["curve"] = [asdict(point) for point in self.curve if point.samples_per_second is not None]
        return values | {"promise": list(self.promise)}

    def plot(self, path: str | Path) -> None:
        """Agreement, accuracy and measured samples/s over mean layers of the chosen family, as PNG. Needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        points = sorted(self.curve, key=lambda point: point.mean_layers)
        layers = [point.mean_layers for point in points]
        axes.plot(layers, [point.agreement for point in points], marker=".", label="same answer as all layers")
        if self.chosen.accuracy is not None:
            axes.plot(layers, [point.accuracy for point in points], marker=".", label="accuracy")
        axes.axvline(self.chosen.mean_layers, color="gray", linestyle=":", label=self.chosen.family)
        axes.set(xlabel="mean layers", ylabel="share of the calibration samples")
        measured = [point for point in points if point.samples_per_second is not None]
        speed = axes.twinx()
        speed.plot(
            [point.mean_layers for point in measured],
            [point.samples_per_second for point in measured],
            color="gray", marker="x", linestyle="--", label="samples/s",
        )  # fmt: skip
        speed.set(ylabel="samples/s", ylim=(0, None))
        handles = [*axes.get_legend_handles_labels()[0], *speed.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, loc="lower right")
        figure.savefig(path, dpi=120)

"""The result of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geep_triton.calibrated import Breakdown
from geep_triton.calibrated import Candidate as Candidate
from geep_triton.exit_config import Promises


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        promises: name -> value, as `calibrate` was asked for them.
        method: "learn-then-test" or "conformal"; see `calibrate`.
        confidence: with which each promise on answers holds for texts like those of the calibration. None: it holds on average,
            or a budget was asked for.
        samples: how many samples there were.
        dtype: of the layers under the chosen policy; the promise holds in no other.
        device: kind of device on which it ran, "cpu" or "cuda"; below float32 each rounds in its own way.
        max_length: the most tokens that the engine let a sample have.
        truncation: whether it cut longer samples.
        exit_table: digest of the model's exit table; None: it had none.
        exit_temperatures: of the model.
        decision: of the model, see `ExitConfig`.
        tolerance: the same.
        chosen: the fastest candidate, where some families must be clearly faster than others
            (`geep_triton.promises.families.FRAGILE`); with "mean_depth" and "speedup" the candidate that agrees most.
        candidates: full depth, and the best setting of each family that keeps the promise, all measured. With "conformal" the
            chosen policy is not among them: its setting comes from samples that had no part in the choice of its family.
        unsafe: families without a setting that was shown to keep the promise.
        curve: the settings of the chosen family, from cautious to bold. Some of them are measured.
        full_depths: full depth in each dtype that was tried, measured, whether or not it keeps the promise. The first is the
            full model, whose answers the others are compared with.
        runner_speeds: dtype -> runner -> texts a second at full depth, where runners were compared.
        runner: the name of the runner under the chosen policy.
        reference: dtype of the full model whose answers the promise is about.
        int8_layers: digest of the model's layers in int8, if the chosen policy runs them.
        breakdown: how the samples go through the model under the chosen policy: all of them, or those to which its family was
            not fitted, as for the candidates' figures. Counts only, no texts.
    """

    promises: Promises
    method: str
    confidence: float | None
    samples: int
    dtype: str
    device: str
    max_length: int
    truncation: bool
    exit_table: str | None
    exit_temperatures: list[float] | None
    decision: float | tuple[float, ...] | None
    tolerance: float | None
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    unsafe: tuple[str, ...]
    curve: tuple[Candidate, ...] = field(repr=False)  # dozens
    full_depths: tuple[Candidate, ...]
    runner_speeds: Mapping[str, Mapping[str, float]]
    runner: str
    reference: str
    int8_layers: str | None
    breakdown: Breakdown = field(repr=False)

    @property
    def promise(self) -> tuple[str, float | Mapping[str, float]]:
        """The first promise: its name and value."""
        return next(iter(self.promises.items()))

    def to_dict(self) -> dict[str, Any]:
        """As it is saved in the model's `exit_config.calibration`, with the measured points of the curve only."""
        values = asdict(self)
        values["curve"] = [asdict(point) for point in self.curve if point.samples_per_second is not None]
        return values | {"promise": list(self.promise)}

    def plot(self, path: str | Path) -> None:
        """Draw agreement, accuracy and measured samples/s over mean layers of the chosen family. Needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        points = sorted(self.curve, key=lambda point: point.mean_layers)
        layers = [point.mean_layers for point in points]
        axes.plot(layers, [point.agreement for point in points], marker=".", label="same answer as all layers")
        if self.chosen.accuracy is not None:
            accuracies = [math.nan if point.accuracy is None else point.accuracy for point in points]
            axes.plot(layers, accuracies, marker=".", label="accuracy")
        axes.axvline(self.chosen.mean_layers, color="gray", linestyle=":", label=self.chosen.family)
        axes.set(xlabel="mean layers", ylabel="share of the calibration samples")
        measured = [(point.mean_layers, point.samples_per_second) for point in points if point.samples_per_second is not None]
        speed = axes.twinx()
        speed.plot(
            [depth for depth, _ in measured],
            [speed for _, speed in measured],
            color="gray", marker="x", linestyle="--", label="samples/s",
        )  # fmt: skip
        speed.set(ylabel="samples/s", ylim=(0, None))
        handles = [*axes.get_legend_handles_labels()[0], *speed.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, loc="lower right")
        figure.savefig(path, dpi=120)

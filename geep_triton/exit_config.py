"""How a model is served: its policy, thresholds, temperatures and calibration, in exit_config.json beside config.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from geep_triton.checks import LARGEST_SCORE, check_bool, check_choice, check_int, check_number, shorten
from geep_triton.tensor_files import refuse_pointer

EXIT_CONFIG_FILE = "exit_config.json"
WEIGHTS = "weights"  # the file's name for the digest of the weights that it was saved with
# Version 0.1 kept these in config.json: their names there -> where they are here. Skipping is a part of the policy now.
OLD_FIELDS = {
    "exit_policy": "policy", "exit_thresholds": "thresholds", "exit_temperatures": "temperatures",
    "calibration": "calibration", "skipping": "policy",
}  # fmt: skip
# Promises and their highest values.
PROMISES = {
    "agreement": 1.0, "label_agreement": 1.0, "class_recall": 1.0, "max_accuracy_drop": 1.0, "mean_depth": 1e6, "speedup": 1e6
}  # fmt: skip
PROMISES_ON_ANSWERS = ("agreement", "label_agreement", "class_recall", "max_accuracy_drop")  # the others are on costs
Promises: TypeAlias = Mapping[str, float | Mapping[str, float]]  # name -> value, or label -> value
NEW_FIELDS = ("decision", "tolerance", "ranking", "ranking_calibration", "max_length", "truncation")
FASTEST = 1e12  # texts a second
FEWEST_TOKENS = 3  # of a text's most: two special ones around one
NUMBERS = ("thresholds", "temperatures", "decision", "tolerance")  # fields of one number or several


@dataclass
class ExitConfig:
    """How a model is served. Each field is checked when it is set, and lists and arrays of numbers become tuples.

    Attributes:
        policy: short form of the policy that `Engine` uses by default, e.g. "threshold:0.2"; `calibrate` sets it. None: "full".
        thresholds: for the policy "threshold", under which a sample leaves where its uncertainty is at most this: one number in
            [0, 1] for every exit, or one for each exit but the last.
        temperatures: one number above 0 for each exit, by which its logits are divided; `fit_temperatures` sets them. None: 1
            for all.
        calibration: what `calibrate` found, as `Calibration.to_dict` gives it.
        decision: the score from which on a text counts as positive; or the probability from which on a multi-label model gives
            a label, one for all labels or one each. None: .5 for probabilities, none for other scores.
        tolerance: scores that differ by at most this are the same answer. None: only their side of the decision counts.
        ranking: short form of who leaves early in `Engine.rank`, e.g. "top:10,margins=1.5/0.8,layers=2/4"; `calibrate_ranking`
            sets it. None: nobody.
        ranking_calibration: what `calibrate_ranking` found, as `RankCalibration.to_dict` gives it.
        max_length: the most tokens of a text that the model was trained with; `geep train` sets it. An engine takes no longer
            ones unless it, or the calibration, says another length. None: what model and tokenizer can take.
        truncation: whether an engine cuts longer texts where neither it nor the calibration says so. None: False.

    Raises:
        TypeError: a value has another type.
        ValueError: a value is out of range.
        AttributeError: there is no such field.
    """

    policy: str | None = None
    thresholds: float | tuple[float, ...] | None = None
    temperatures: tuple[float, ...] | None = None
    calibration: dict[str, Any] | None = None
    decision: float | tuple[float, ...] | None = None
    tolerance: float | None = None
    ranking: str | None = None
    ranking_calibration: dict[str, Any] | None = None
    max_length: int | None = None
    truncation: bool | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NUMBERS:
            value = _plain(value)
        if name in ("policy", "ranking"):
            _check_type(name, value, str)
        elif name == "thresholds":
            _check_thresholds(value)
        elif name == "temperatures":
            _check_temperatures(value)
        elif name == "calibration":
            _check_calibration(value)
        elif name == "ranking_calibration":
            _check_type(name, value, dict)
        elif name == "decision":
            _check_decision(value)
        elif name == "tolerance":
            _check_tolerance(value)
        elif name == "truncation":
            _check_type(name, value, bool)
        elif name == "max_length":
            if value is not None:
                check_int(name, value, FEWEST_TOKENS)
        else:
            known = ", ".join(field.name for field in fields(self))
            raise AttributeError(f"an ExitConfig has no field {name!r}; it has {known}")
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExitConfig:
        """Make one of its fields by name. Those that are missing have their defaults.

        Raises:
            ValueError: there is no such field, or a value is out of range.
            TypeError: a value has another type.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown field {shorten(name)}; known: {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_old_config(cls, values: Mapping[str, Any]) -> ExitConfig:
        """Make one of a config.json of version 0.1, which had these fields under other names.

        There a field "skipping" said how samples skip layers. Here the policy says it, and so does the policy that the
        calibration chose, since an engine compares the two.

        Raises:
            ValueError: a value is out of range.
            TypeError: a value has another type.
        """
        skipping = values.get("skipping")
        _check_type("skipping", skipping, str)
        found = cls(**{name: values[old] for old, name in OLD_FIELDS.items() if old in values and old != "skipping"})
        if skipping is not None:
            found.policy = f"{found.policy or 'full'}+skip:{skipping}"
            calibration = found.calibration or {}
            chosen = calibration.get("chosen", {})
            if "policy" in chosen:
                found.calibration = calibration | {"chosen": chosen | {"policy": f"{chosen['policy']}+skip:{skipping}"}}
        return found

    @property
    def answers_by(self) -> str:
        """All that decides here what exits answer and which answers are the same, as JSON. Forecasts hold only for one such."""
        return json.dumps({name: getattr(self, name) for name in ("temperatures", "decision", "tolerance")})

    def judge_by(self, decision: float | Sequence[float] | None, tolerance: float | None) -> None:
        """Take a decision and a tolerance where they are given. TypeError or ValueError as when a field is set."""
        for name, value in (("decision", decision), ("tolerance", tolerance)):
            if value is not None:
                setattr(self, name, value)

    def take_over(self, other: ExitConfig) -> None:
        """Take copies of the values of another one."""
        for name, value in asdict(other).items():
            setattr(self, name, value)

    def runner_speeds(self, dtype: str) -> dict[str, float]:
        """Runner -> texts a second in a dtype, as the calibration measured it. Empty where it compared no runners."""
        speeds = ((self.calibration or {}).get("runner_speeds") or {}).get(dtype) or {}
        return dict(speeds)

    def check_fits(self, num_exits: int) -> None:
        """Raise ValueError unless thresholds and temperatures are as many as a model with `num_exits` exits needs."""
        if isinstance(self.thresholds, tuple) and len(self.thresholds) != num_exits - 1:
            raise ValueError(
                f"thresholds must be one number, or one per exit but the last ({num_exits - 1}), got {len(self.thresholds)}"
            )
        if self.temperatures is not None and len(self.temperatures) != num_exits:
            raise ValueError(f"temperatures must be one per exit ({num_exits}), got {len(self.temperatures)}")

    def digest(self) -> str:
        """SHA-256 (hex) over all fields. What was read has the same digest as what was written."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """All fields by name. Fields that older files did not have are left out where they are not set, as in those files."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in NEW_FIELDS}


def write_exit_config(exit_config: ExitConfig, folder: str | os.PathLike, weights: str | None) -> None:
    """Write `exit_config.json` into a folder.

    Args:
        exit_config: what to write.
        folder: it must exist.
        weights: digest of the model's weights; None: not known.
    """
    text = json.dumps(exit_config.to_dict() | {WEIGHTS: weights}, indent=2)
    Path(folder, EXIT_CONFIG_FILE).write_text(f"{text}\n", encoding="utf-8")


def read_exit_config(path: str | os.PathLike) -> tuple[ExitConfig, str | None]:
    """Read an `exit_config.json`. Returns what it says, and the digest of the weights that it was saved with (None: not told).

    Raises:
        ValueError: the file is a git LFS pointer, holds no JSON object, or has an unknown field or a value that does not fit.
    """
    refuse_pointer(path)
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged file, expected JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged file, expected a JSON object, got {shorten(values)}")
    weights = values.pop(WEIGHTS, None)
    try:
        _check_type(WEIGHTS, weights, str)
        return ExitConfig.from_dict(values), weights
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    """Numbers as Python has them: those of numpy and torch become floats or ints, and several become a tuple.

    Nobody would check an element that is set later, and a file takes no others.
    """
    if hasattr(value, "tolist"):  # an array or a tensor, also of no dimensions
        value = value.tolist()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_SCORE:
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _check_type(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind | None):
        raise TypeError(f"{name} must be a {kind.__name__} or None, got {shorten(value)}")


def _check_thresholds(thresholds: Any) -> None:
    """Raise unless `thresholds` is None, one number in [0, 1], or some of them."""
    if thresholds is None:
        return
    for value in thresholds if isinstance(thresholds, tuple) else (thresholds,):
        check_number("each of thresholds", value, 0.0, 1.0)


def _check_temperatures(temperatures: Any) -> None:
    """Raise unless `temperatures` is None or a tuple of numbers above 0."""
    if temperatures is None:
        return
    if not isinstance(temperatures, tuple):
        raise TypeError(f"temperatures must be a list of numbers, got {shorten(temperatures)}")
    for value in temperatures:
        check_number("each of temperatures", value, 1e-6, 1e6)


def _check_decision(decision: Any) -> None:
    """Raise unless `decision` is None, one finite number, or some of them."""
    if decision is None:
        return
    if not isinstance(decision, (int, float, tuple)):
        raise TypeError(f"decision must be a number, or a list of one for each label in their order, got {shorten(decision)}")
    for value in decision if isinstance(decision, tuple) else (decision,):
        check_number("decision", value, -LARGEST_SCORE, LARGEST_SCORE)


def _check_tolerance(tolerance: Any) -> None:
    """Raise unless `tolerance` is None or a finite number from 0."""
    if tolerance is not None:
        check_number("tolerance", tolerance, 0.0, LARGEST_SCORE)


def _check_calibration(calibration: Any) -> None:
    """Raise unless `calibration` is None or may come from `calibrate`. Only what an engine reads of it is checked."""
    _check_type("calibration", calibration, dict)
    if calibration is None:
        return
    promise, chosen = calibration.get("promise"), calibration.get("chosen", {})
    if not isinstance(promise, (list, tuple)) or len(promise) != 2 or not isinstance(chosen, dict):
        raise ValueError(
            f"calibration must be what `calibrate` found, with a promise [name, number], got {shorten(calibration)}"
        )
    promises = calibration.get("promises", {})
    _check_type("promises of calibration", promises, dict)
    for name, value in {promise[0]: promise[1], **promises}.items():
        check_choice("promise of calibration", name, PROMISES)
        for number in value.values() if isinstance(value, dict) else (value,):
            check_number(f"{name} that calibration promises", number, 0.0, PROMISES[name])
    _check_type("dtype of calibration", calibration.get("dtype", ""), str)
    speeds = calibration.get("runner_speeds", {})
    _check_type("runner_speeds of calibration", speeds, dict)
    for dtype, by_runner in (speeds or {}).items():
        _check_type(f"runner_speeds of calibration in {dtype}", by_runner, dict)
        for runner, value in (by_runner or {}).items():
            check_number(f"runner_speeds of calibration in {dtype} by {runner}", value, 0.0, FASTEST)
    if "truncation" in calibration:
        check_bool("truncation of calibration", calibration["truncation"])
    if "max_length" in calibration:
        check_int("max_length of calibration", calibration["max_length"], 1)

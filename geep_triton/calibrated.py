"""What a calibration says of a model, as it is saved in exit_config.json: read by cards and reports, of any version."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from geep_triton.exit_config import PROMISES_ON_ANSWERS, Promises

Read = TypeVar("Read")


@dataclass(frozen=True)
class Candidate:
    """One policy and its figures on the calibration samples.

    A family that was fitted to half of the samples is judged by the other half.

    Attributes:
        policy: its short form.
        family: the name of its family; see `geep_triton.promises.families`.
        agreement: the share of samples that get the last exit's answer.
        accuracy: the share of samples that get the right answer; None without labels.
        mean_layers: how many layers a sample runs on average.
        samples_per_second: by the wall clock of this machine; None where it was not measured.
        speed_up: how many times as fast as full depth in the same run, in the model's own dtype.
        dtype: of the layers; None: not told, as by older versions, which tried one dtype.
    """

    policy: str
    family: str
    agreement: float
    accuracy: float | None
    mean_layers: float
    samples_per_second: float | None = None
    speed_up: float | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class AtExit:
    """What happens at one exit.

    Attributes:
        layer: of the exit.
        leaving: how many texts are answered there.
        leaving_same: how many of these get the last exit's answer.
        same: to how many of all texts this exit gives the last exit's answer.
    """

    layer: int
    leaving: int
    leaving_same: int
    same: int


@dataclass(frozen=True)
class Group:
    """Texts that have something in common.

    Attributes:
        name: what it is, such as "9-16" tokens or a class.
        texts: how many they are.
        layers: how many layers they run together.
        same: how many of them get the last exit's answer.
    """

    name: str
    texts: int
    layers: int
    same: int

    @property
    def mean_layers(self) -> float:
        """How many layers one of them runs on average."""
        return self.layers / self.texts

    @property
    def agreement(self) -> float:
        """The share of them that get the last exit's answer."""
        return self.same / self.texts


@dataclass(frozen=True)
class Breakdown:
    """How texts go through a model under one policy, in counts. It holds no texts.

    Attributes:
        texts: how many there are.
        by: what `by_answer` tells apart: "classes", "labels" or "scores" of the full model.
        exits: one for each exit of the model.
        by_length: groups by number of tokens, ascending.
        by_answer: groups by the full model's answer. A text with several labels is in several of them.
    """

    texts: int
    by: str
    exits: tuple[AtExit, ...]
    by_length: tuple[Group, ...]
    by_answer: tuple[Group, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Breakdown:
        """Make one of what `dataclasses.asdict` gave. ValueError, TypeError or KeyError where it is something else."""
        exits = tuple(AtExit(**{name: _count(value) for name, value in each.items()}) for each in values["exits"])
        groups = [tuple(map(_group, values[name])) for name in ("by_length", "by_answer")]
        return cls(_count(values["texts"]), str(values["by"]), exits, *groups)


@dataclass(frozen=True)
class Calibrated:
    """A saved calibration. What an older version did not write is None or empty, and `missing` names it.

    Attributes:
        promises: name -> value, as `calibrate` was asked for them.
        confidence: with which each promise on answers holds. None: on average, or not known.
        method: "learn-then-test" or "conformal".
        samples: how many texts there were.
        dtype: of the layers.
        device: kind of device.
        max_length: the most tokens of a text.
        truncation: whether longer texts were cut.
        chosen: the policy that is used.
        candidates: full depth and the best setting of each family that keeps the promise.
        unsafe: families without a setting that was shown to keep the promise.
        curve: settings of the chosen family that were measured.
        breakdown: how the texts went through the model under the chosen policy.
        missing: names of what could not be read.
        runner: that ran the layers. None: not told.
        full_depths: full depth in each dtype that was tried, that of the full model first. Empty: not told.
        runner_speeds: dtype -> runner -> texts a second at full depth, where runners were compared.
        reference: dtype of the full model whose answers the promise is about. None: that of the layers.
    """

    promises: Promises
    confidence: float | None = None
    method: str | None = None
    samples: int | None = None
    dtype: str | None = None
    device: str | None = None
    max_length: int | None = None
    truncation: bool | None = None
    chosen: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    unsafe: tuple[str, ...] = ()
    curve: tuple[Candidate, ...] = ()
    breakdown: Breakdown | None = None
    missing: tuple[str, ...] = ()
    runner: str | None = None
    full_depths: tuple[Candidate, ...] = ()
    runner_speeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reference: str | None = None

    @classmethod
    def of(cls, calibration: Mapping[str, Any]) -> Calibrated:
        """Read `exit_config.calibration`. What is missing or of another form there is named in `missing`."""
        name, value = calibration["promise"]
        readers: dict[str, Callable[[Any], Any]] = {
            "method": _text, "samples": _count, "dtype": _text, "device": _text, "max_length": _count, "truncation": _flag,
            "chosen": _candidate, "candidates": _several(_candidate), "unsafe": _several(_text), "curve": _several(_candidate),
            "breakdown": Breakdown.from_dict,
        }  # fmt: skip
        newer: dict[str, Callable[[Any], Any]] = {
            "runner": _text, "full_depths": _several(_candidate), "runner_speeds": _by_dtype, "reference": _text,
        }  # fmt: skip
        readers.update({name: read for name, read in newer.items() if name in calibration})
        found: dict[str, Any] = {}
        missing = []
        for part, read in readers.items():
            try:
                found[part] = read(calibration[part])
            except (KeyError, TypeError, ValueError, AttributeError):
                missing.append(part)
        confidence = calibration.get("confidence")
        return cls(
            promises=dict(calibration.get("promises", {name: value})),
            confidence=confidence if isinstance(confidence, float) else None,
            missing=tuple(missing),
            **found,
        )

    @property
    def on_answers(self) -> bool:
        """Whether something is promised about answers, not only about costs."""
        return any(name in PROMISES_ON_ANSWERS for name in self.promises)

    @property
    def agreement(self) -> float | None:
        """The share of texts that shall get the full model's answer. None: that was not promised."""
        value = self.promises.get("agreement")
        return None if isinstance(value, Mapping) else value

    def sentences(self) -> list[str]:
        """What is promised, in plain sentences."""
        full = "all layers" if self.reference is None or self.dtype == "float32" else f"all layers in {self.reference}"
        return [sentence for name, value in self.promises.items() for sentence in _sentences(name, value, full)]

    def how_sure(self) -> str:
        """With which confidence, in a plain sentence."""
        if not self.on_answers:
            return "This is a budget. Nothing is promised about answers."
        if self.confidence is not None:
            return f"This holds with {percent(self.confidence)} confidence for texts like those of the calibration."
        if self.method == "conformal":
            return "This holds on average over the texts that might have been given; one calibration may fall short."
        return "With which confidence is not recorded."

    def holds_for(self) -> str:
        """With what the promise was made, in a plain sentence. Empty: nothing of it is recorded."""
        parts = [] if self.dtype is None else [f"layers in {self.dtype}"]
        if self.runner is not None:
            parts.append(f"by runner “{self.runner}”")
        if self.device is not None:
            parts.append(f"on {DEVICES.get(self.device, self.device)}")
        if self.max_length is not None:
            parts.append(f"for texts of at most {self.max_length:,} tokens{', longer ones cut' if self.truncation else ''}")
        return f"It was made with {' '.join(parts)}." if parts else ""

    def with_chosen(self) -> list[Candidate]:
        """The candidates, and the chosen one, which is not always among them."""
        chosen = [] if self.chosen is None or self.chosen in self.candidates else [self.chosen]
        return [*self.candidates, *chosen]

    def named(self, candidate: Candidate) -> str:
        """A candidate in words: its family, and its dtype where several were tried."""
        several = len(self.full_depths) > 1 and candidate.dtype is not None
        return f"{candidate.family} in {candidate.dtype}" if several else candidate.family

    def over_own_full_depth(self, candidate: Candidate) -> float | None:
        """How many times as fast a candidate is as full depth in its own dtype. None: that was not measured."""
        own = {full.dtype: full.speed_up for full in self.full_depths}.get(candidate.dtype, 1.0)
        return None if candidate.speed_up is None or not own else candidate.speed_up / own

    def why_so(self) -> list[str]:
        """What dtype and runner were chosen by, in plain sentences. Empty where no others were tried."""
        found = []
        if len(self.full_depths) > 1:
            first, others = self.full_depths[0], self.full_depths[1:]
            told = [f"{each.dtype} {_rate(each)} ({percent(each.agreement)} get the same answer)" for each in others]
            found.append(f"Full depth answered, timed in turns: {first.dtype} {_rate(first)}; {'; '.join(told)}.")
            kept = {each.dtype for each in self.candidates}
            failed = [each.dtype for each in others if each.dtype is not None and each.dtype not in kept]
            if failed:
                shown = "shown to keep the promise" if self.on_answers else "within the budget"
                found.append(f"No policy in {' or '.join(failed)} was {shown}, so none was taken.")
        for dtype, speeds in self.runner_speeds.items():
            by_runner = ", ".join(f"{value:,.0f} by “{name}”" for name, value in speeds.items())
            found.append(f"Runners in {dtype}, texts a second at full depth on some texts: {by_runner}.")
        return found

    def gains(self) -> list[str]:
        """What the chosen policy gains, and what comes next, in plain sentences. Empty where nothing of it is recorded."""
        if self.chosen is None:
            return []
        others = [each for each in self.candidates if (each.policy, each.dtype) != (self.chosen.policy, self.chosen.dtype)]
        others.sort(key=lambda each: each.samples_per_second or 0.0, reverse=True)
        told = [f"“{self.named(self.chosen)}” answers {_rate(self.chosen)}, {percent(self.chosen.agreement)} of them the same"]
        told += [f"“{self.named(each)}” {_rate(each)}, {percent(each.agreement)}" for each in others[:1]]
        return [f"{'; the fastest other candidate, '.join(told)}."]

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def ranking_sentences(calibration: Mapping[str, Any]) -> list[str]:
    """What `exit_config.ranking_calibration` promises, and what it found, in plain sentences as far as it can be read."""
    try:
        name, value = calibration["promise"]
        top_k, chosen, confidence = _count(calibration["top_k"]), calibration["chosen"], _number(calibration["confidence"])
        promised = {
            "same_top_k": f"At least {percent(value)} of queries get the best {top_k} candidates of all layers, in order.",
            "max_ndcg_drop": f"The nDCG of the best {top_k} candidates is at most {value:g} below that of all layers.",
            "max_mrr_drop": f"The MRR of the best {top_k} candidates is at most {value:g} below that of all layers.",
        }[name]
        return [
            f"{promised} This holds with {percent(confidence)} confidence for queries like those of the calibration.",
            f"Of {_count(calibration['queries']):,} queries a half judged: {percent(_number(chosen['same_top_k']))} get the "
            f"same best {top_k}, in {_number(chosen['mean_layers']):.1f} layers for a candidate on average.",
        ]
    except (KeyError, TypeError, ValueError):
        return ["The calibration of its rankings cannot be read: it is damaged, or of another version."]


DEVICES = {"cpu": "a CPU", "cuda": "a GPU"}


def percent(share: float) -> str:
    """A share as percents, with as many digits as tell it from 100 %: .9 -> "90 %", .9995 -> "99.95 %"."""
    if share == 1:
        return "100 %"
    digits = next((digits for digits in range(1, 6) if round(100 * share, digits) < 100), 6)
    return f"{100 * share:.{digits}f}".removesuffix(".0") + " %"


def brief(policy: str) -> str:
    """A policy's short form for people, its numbers in four digits: "threshold:0.71371" -> "threshold:0.7137"."""
    return re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda found: f"{float(found[0]):.4g}", policy)


def _sentences(name: str, value: float | Mapping[str, float], full: str) -> list[str]:
    """What one promise says, in plain sentences: one, or one for each label. `full` names what answers are held to."""
    by_label = value if isinstance(value, Mapping) else {}
    if name == "class_recall":
        return [
            f"At least {percent(share)} of the texts that {full} give “{label}” get it." for label, share in by_label.items()
        ]
    if name == "label_agreement":
        if not isinstance(value, Mapping):
            return [f"Each label is given, or not given, as by {full} for at least {percent(value)} of texts."]
        return [
            f"“{label}” is given, or not given, as by {full} for at least {percent(share)} of texts."
            for label, share in by_label.items()
        ]
    if isinstance(value, Mapping):
        return []
    return [
        {
            "agreement": f"At least {percent(value)} of texts get the answer that {full} give.",
            "max_accuracy_drop": f"Accuracy is at most {value:g} ({100 * value:.4g} % of texts) below that of {full}.",
            "mean_depth": f"A text runs at most {value:g} layers on average.",
            "speedup": f"Texts are answered at least {value:g} times as fast as by {full}.",
        }[name]
    ]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value)


def _several(read: Callable[[Any], Read]) -> Callable[[Sequence[Any]], tuple[Read, ...]]:
    return lambda values: tuple(map(read, values))


def _rate(candidate: Candidate) -> str:
    return "not measured" if candidate.samples_per_second is None else f"{candidate.samples_per_second:,.0f} texts a second"


def _by_dtype(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {dtype: {name: _number(value) for name, value in speeds.items()} for dtype, speeds in values.items()}


def _candidate(values: Mapping[str, Any]) -> Candidate:
    accuracy, speed, speed_up = (
        None if values.get(name) is None else _number(values[name]) for name in ("accuracy", "samples_per_second", "speed_up")
    )
    agreement, mean_layers = (_number(values[name]) for name in ("agreement", "mean_layers"))
    dtype = None if values.get("dtype") is None else _text(values["dtype"])
    return Candidate(_text(values["policy"]), _text(values["family"]), agreement, accuracy, mean_layers, speed, speed_up, dtype)


def _group(values: Mapping[str, Any]) -> Group:
    group = Group(_text(values["name"]), *(_count(values[name]) for name in ("texts", "layers", "same")))
    if group.texts == 0:
        raise ValueError
    return group

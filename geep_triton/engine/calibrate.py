"""Choosing the fastest policy that keeps a promise, from a user's own texts and on this machine."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from geep_triton.checks import check_choice, check_int, check_number
from geep_triton.engine.checks import as_list, label_ids
from geep_triton.engine.families import FitSamples, families_of
from geep_triton.engine.policies import FullDepth, OneExitWarning, Policy, format_policy
from geep_triton.engine.simulate import simulate
from geep_triton.engine.timing import in_turns
from geep_triton.exits.guarantees import (
    betting_p_value,
    binomial_p_value,
    boldest_on_average,
    boldest_safe,
    samples_needed,
    samples_needed_on_average,
)
from geep_triton.modeling.model import MultiExitBert
from geep_triton.outputs import EveryExit, Tokens
from geep_triton.warn import warn

PROMISES_ON_ANSWERS = ("agreement", "max_accuracy_drop")
METHODS = ("learn-then-test", "conformal")
SEED = 0
MOST_SEEN = 0.1  # of the texts may be in the table; short ones come up again by chance
MEASURED_POINTS = 6  # of the chosen family's curve
FEWEST = 20  # texts to rank settings by
ATTEMPTS = 4  # at a speed-up
BEYOND = 1.03  # what is aimed at where that much speed-up is asked for: measurements scatter


@dataclass(frozen=True)
class Candidate:
    """One policy on the calibration samples.

    Attributes:
        policy: its short form.
        family: the name of its family; see `geep_triton.engine.families`.
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
    """What `Engine.calibrate` found.

    Attributes:
        promise: which of "agreement", "max_accuracy_drop", "mean_depth", "speedup", and its value.
        method: "learn-then-test" or "conformal"; see `Engine.calibrate`.
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
        """As saved in the model's `config.calibration`: of the curve the points that were measured."""
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


def calibrate(
    engine: Any,
    inputs: Any,
    labels: Sequence[str | int] | None,
    promise: tuple[str, float],
    method: str,
    confidence: float | None,
    rounds: int,
    speed_samples: int,
    progress: bool,
) -> Calibration:
    """See `Engine.calibrate`."""
    inputs = as_list(inputs)
    model: MultiExitBert = engine.model
    confidence = check_method(method, promise, confidence)
    check_promise(promise, labels, model)
    check_int("rounds", rounds, 1)
    check_int("speed_samples", speed_samples, 1)
    if model.config.num_labels < 2:
        raise ValueError("calibrate needs classes: a regression model (num_labels=1) runs at full or constant depth")
    if engine.skipping.mode == "planned" and promise[0] in PROMISES_ON_ANSWERS:
        raise ValueError(
            f"{promise[0]} is promised against the model at full depth, but with skipping='planned' even that follows "
            "predicted paths: calibrate with skipping='gates' or 'never', or to a mean_depth or speedup"
        )
    truth = None if labels is None else label_ids(labels, len(inputs), model.config.label2id)
    families = families_of(model)
    # The fastest of several is taken: each has its part of the error.
    share = None if confidence is None else 1 - (1 - confidence) / len(families)
    half = len(inputs) // 2
    unfitted = {family.name: slice(half if family.fitted else 0, None) for family in families}
    _refuse_too_few(promise, len(inputs), share)
    record = engine.every_exit(inputs)
    tokens, logits = record.tokens, record.logits
    _check_texts(model, tokens)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(SEED))
    judge = Judge(model, record, truth, order)
    first_half = order[:half]
    skipped = None if record.skipped is None else record.skipped[first_half]
    fit = FitSamples.of(logits[first_half], model.config.exit_layers, engine.layer_costs.stop_layers, skipped)
    policies = {family.name: family.policies(fit) for family in families}
    judged = {
        name: [judge(policy, name, unfitted[name]) for policy in several]
        for name, several in tqdm(policies.items(), desc="calibrate", disable=not progress)
    }
    # Not those that families were fitted to; with "conformal" not those that judge, which must have no part in choosing.
    timed = order[:half] if method == "conformal" else order.flip(0)
    timed_inputs = [inputs[row] for row in timed[:speed_samples].tolist()]
    full = judge(FullDepth(), "full").candidate

    def measure(settings: dict[str, list[int]]) -> dict[str, list[Candidate]]:
        """Family -> its settings, and full depth, measured in turns."""
        wanted = {f"{name} {index}": policies[name][index] for name, several in settings.items() for index in several}
        speeds = _measure(engine, {"full": FullDepth()} | wanted, timed_inputs, rounds)
        return {"full": [_timed(full, speeds["full"], speeds["full"])]} | {
            name: [_timed(judged[name][index].candidate, speeds[f"{name} {index}"], speeds["full"]) for index in several]
            for name, several in settings.items()
        }

    def choose(name: str, judging: slice, num_layers: float) -> int | None:
        return _choose(judged[name], promise, share, judging, num_layers)

    depth = model.config.num_hidden_layers
    # With "conformal" the first half chooses the family, and the second, which had no part in that, its setting.
    first = dict.fromkeys(unfitted, slice(0, half)) if method == "conformal" else unfitted
    layers_gained = dict.fromkeys(first, float(depth))  # mean layers times speed-up: L, were nothing lost on the way
    settings: dict[str, list[int]] = {name: [] for name in first}
    found: dict[str, list[Candidate]] = {}
    too_slow = list(first)
    for _ in range(ATTEMPTS if promise[0] == "speedup" else 1):
        for name in too_slow:
            index = choose(name, first[name], layers_gained[name])
            if index is not None and index not in settings[name]:
                settings[name].append(index)
        # All of them again: one that was held up must not pass for slow.
        found = measure(settings)
        too_slow = [name for name in settings if settings[name] and not _within(found[name], promise)]
        layers_gained |= {name: found[name][-1].mean_layers * found[name][-1].speed_up for name in too_slow}
        if not too_slow:
            break
    chosen = _best(list(chain(*found.values())), promise)
    kept = {name: _within(found[name], promise) for name in settings}
    candidates = found["full"] + [_most_faithful(several) for several in kept.values() if several]
    if method == "conformal" and chosen.family != "full":
        index = choose(chosen.family, slice(half, None), depth)
        again = measure({} if index is None else {chosen.family: [index]})
        chosen = _best(list(chain(*again.values())), promise)
    curve = [verdict.candidate for verdict in judged.get(chosen.family, [])] or [chosen]
    curve = _with_speeds(engine, curve, policies.get(chosen.family, [FullDepth()]), timed_inputs, rounds)
    return Calibration(
        promise,
        method,
        confidence,
        len(tokens),
        engine.dtype,
        model.device.type,
        engine.max_length,
        engine.truncation,
        None if model.exit_table is None else model.exit_table.digest(),
        model.config.exit_temperatures,
        chosen,
        tuple(candidates),
        tuple(name for name, several in kept.items() if not several),
        tuple(curve),
    )


def _with_speeds(
    engine: Any, curve: list[Candidate], policies: list[Policy], inputs: list[Any], rounds: int
) -> list[Candidate]:
    """The curve with some points measured: from one end to the other in equal steps of mean layers."""
    by_depth = sorted(range(len(curve)), key=lambda index: curve[index].mean_layers)
    low, high = (curve[by_depth[end]].mean_layers for end in (0, -1))
    wanted = [low + (high - low) * step / (MEASURED_POINTS - 1) for step in range(MEASURED_POINTS)]
    points = {min(by_depth, key=lambda index: abs(curve[index].mean_layers - depth)) for depth in wanted}
    speeds = _measure(engine, {"full": FullDepth()} | {str(index): policies[index] for index in points}, inputs, rounds)
    return [
        _timed(candidate, speeds[str(index)], speeds["full"]) if index in points else candidate
        for index, candidate in enumerate(curve)
    ]


def _best(candidates: list[Candidate], promise: tuple[str, float]) -> Candidate:
    """The fastest of those that keep a promise on answers; of those that are cheap enough the one that agrees most. The first
    candidate is full depth.
    """
    name, value = promise
    if name in PROMISES_ON_ANSWERS:
        # What runs as many layers as full depth is no faster, whatever was measured.
        saving = [candidate for candidate in candidates if candidate.mean_layers < candidates[0].mean_layers]
        return max(candidates[:1] + saving, key=lambda candidate: candidate.samples_per_second)
    cheap = _within(candidates, promise)
    if not cheap:
        best = max(candidates, key=lambda candidate: candidate.speed_up)
        raise ValueError(f"no policy is {value:g} times as fast here; {best.policy} reaches {best.speed_up:.2f}")
    return _most_faithful(cheap)


def _within(candidates: list[Candidate], promise: tuple[str, float]) -> list[Candidate]:
    """Those that are as cheap as was asked; all, where a promise is on answers."""
    name, value = promise
    if name == "speedup":
        return [candidate for candidate in candidates if candidate.speed_up >= value]
    return [candidate for candidate in candidates if name != "mean_depth" or candidate.mean_layers <= value]


def _most_faithful(candidates: list[Candidate]) -> Candidate:
    """The one that agrees most with full depth; of equals the fastest."""
    return max(candidates, key=lambda candidate: (candidate.agreement, candidate.samples_per_second))


def _check_texts(model: MultiExitBert, tokens: Tokens) -> None:
    """A table knows the texts it was built from too well: what it promises of them says nothing about others. And while texts
    that come again as often as they would be served are as they should be, a list that was repeated is not.
    """
    texts, table = tokens.hashes(), model.exit_table
    if table is not None and table.text_hashes is None:
        warn("the exit table does not know its texts, so nothing shows whether it was built from these: they must be others")
    elif table is not None:
        again = int(torch.isin(texts, table.text_hashes).sum())
        if again > MOST_SEEN * len(texts):
            raise ValueError(
                f"inputs: {again} of {len(texts)} texts are among those that the exit table was built from; calibrate on others"
            )
    distinct = texts.unique().numel()
    if distinct < (1 - MOST_SEEN) * len(texts):
        warn(f"only {distinct} of {len(texts)} texts are distinct: a promise takes each for a text of its own, drawn anew")


def check_method(method: str, promise: tuple[str, float], confidence: float | None) -> float | None:
    """The confidence to be had by `method`: None where a promise is kept on average, or is one on costs, which the samples at
    hand keep. ValueError where they do not fit.
    """
    check_choice("method", method, METHODS)
    if promise[0] not in PROMISES_ON_ANSWERS:
        if confidence is not None or method == "conformal":
            raise ValueError(
                f"confidence and method 'conformal' are for agreement and max_accuracy_drop, got {promise[0]}: what a policy "
                "costs is measured, not promised"
            )
        return None
    if method == "learn-then-test":
        confidence = 0.95 if confidence is None else confidence
        check_number("confidence", confidence, 0.5, 0.9999)
        return confidence
    if confidence is not None:
        raise ValueError(f"method 'conformal' keeps a promise on average and takes no confidence, got {confidence:g}")
    return None


def check_promise(promise: tuple[str, float], labels: Sequence[str | int] | None, model: MultiExitBert) -> None:
    """Raise ValueError unless the promise can be made of this model."""
    name, value = promise
    if name == "agreement":
        check_number(name, value, 0.5, 0.9999)
    elif name == "max_accuracy_drop":
        check_number(name, value, 0.0001, 0.5)
        if labels is None:
            raise ValueError("max_accuracy_drop needs labels; agreement needs none")
    elif name == "mean_depth":
        check_number(name, value, model.config.exit_layers[0], model.config.num_hidden_layers)
    else:
        check_number(name, value, 1.0, model.config.num_hidden_layers)


@dataclass(frozen=True, eq=False)
class Verdict:
    """One policy on the calibration samples, in the judge's random order.

    Attributes:
        candidate: its figures.
        disagrees: [N] bool.
        drop: [N] int64, whether the last exit is right less whether this answer is; None without labels.
    """

    candidate: Candidate
    disagrees: torch.Tensor
    drop: torch.Tensor | None


class Judge:
    """Simulates policies on recorded answers."""

    def __init__(self, model: MultiExitBert, record: EveryExit, truth: torch.Tensor | None, order: torch.Tensor) -> None:
        self.model, self.record = model, record
        self.truth, self.order = truth, order
        self.answers = record.logits.argmax(-1)
        self.layers = torch.tensor(model.config.exit_layers)

    def __call__(self, policy: Policy, family: str, rows: slice = slice(None)) -> Verdict:
        """How the policy answers the calibration samples; its candidate tells of `rows` in the judge's order."""
        exits = simulate(self.model, policy, self.record.tokens, self.record.logits, self.record.skipped)
        given = self.answers.gather(1, exits[:, None])[:, 0]
        disagrees, drop, accuracy = given != self.answers[:, -1], None, None
        if self.truth is not None:
            right = given == self.truth
            drop = ((self.answers[:, -1] == self.truth).long() - right.long())[self.order]
            accuracy = float(right[self.order[rows]].double().mean())
        agreement = 1 - float(disagrees[self.order[rows]].double().mean())
        mean_layers = float(self._layers_run(exits)[self.order[rows]].double().mean())
        candidate = Candidate(format_policy(policy), family, agreement, accuracy, mean_layers)
        return Verdict(candidate, disagrees[self.order], drop)

    def _layers_run(self, exits: torch.Tensor) -> torch.Tensor:
        """[N], up to the exit of this index, less those that were skipped: an early exit's own layer runs for all who leave."""
        depth = self.layers[exits]
        if self.record.skipped is None:
            return depth
        skipped = self.record.skipped.clone()
        rows = (depth < self.layers[-1]).nonzero()[:, 0]
        skipped[rows, depth[rows] - 1] = False
        return depth - skipped.cumsum(1).gather(1, depth[:, None] - 1)[:, 0]


def _refuse_too_few(promise: tuple[str, float], samples: int, confidence: float | None) -> None:
    """Fewer could show nothing, not even if no answer differed; without a confidence only half of them are judged by."""
    name, value = promise
    if name not in PROMISES_ON_ANSWERS:
        if samples < FEWEST:
            raise ValueError(f"{samples} texts are too few to choose a policy by: at least {FEWEST} are needed")
        return
    if confidence is None:
        needed = 2 * samples_needed_on_average(_risk(promise))
    else:
        needed = samples_needed(_risk(promise), confidence) if name == "agreement" else _samples_for_drop(value, confidence)
    if samples < needed:
        raise ValueError(
            f"{samples} texts are too few to promise {name}={value:g}: at least {needed} are needed even if no answer differs"
        )


def _risk(promise: tuple[str, float]) -> float:
    """The loss that a promise on answers allows, without the float's dust of 1 - .9."""
    name, value = promise
    return round(1 - value, 12) if name == "agreement" else value


def _samples_for_drop(drop: float, confidence: float) -> int:
    """Samples after which no drop at all is shown to be at most `drop`, by doubling and halving."""
    enough = 1
    while _p_value_of_drop(torch.zeros(enough), drop, confidence) > 1 - confidence:
        enough *= 2
    low = enough // 2
    while low + 1 < enough:
        middle = (low + enough) // 2
        safe = _p_value_of_drop(torch.zeros(middle), drop, confidence) <= 1 - confidence
        low, enough = (low, middle) if safe else (middle, enough)
    return enough


def _p_value_of_drop(drop: torch.Tensor, largest: float, confidence: float) -> float:
    """Drops are -1, 0 or 1 a sample; the bet wants them in [0, 1]."""
    return betting_p_value((drop + 1) / 2, (largest + 1) / 2, confidence)


def _choose(
    judged: Sequence[Verdict], promise: tuple[str, float], confidence: float | None, judging: slice, num_layers: float
) -> int | None:
    """Index of the setting of a family to take: the boldest that is safe, or the safest that is cheap enough.

    Args:
        judged: its settings, from cautious to bold.
        promise: its name and value.
        confidence: of this family; None: on average.
        judging: samples, in the judge's order, that had no part in making the settings.
        num_layers: mean layers times the speed-up that they gave, for a speed-up.
    """
    name, value = promise
    if name in ("mean_depth", "speedup"):
        target = value if name == "mean_depth" else num_layers / (BEYOND * value)
        cheap = [index for index, verdict in enumerate(judged) if verdict.candidate.mean_layers <= target]
        return min(cheap, key=lambda index: float(judged[index].disagrees[judging].double().mean()), default=None)
    losses = [(verdict.disagrees if name == "agreement" else verdict.drop)[judging] for verdict in judged]
    if confidence is None:
        return boldest_on_average(torch.stack(losses), _risk(promise))
    if name == "agreement":
        p_values = [binomial_p_value(int(loss.sum()), len(loss), _risk(promise)) for loss in losses]
    else:
        p_values = [_p_value_of_drop(loss, value, confidence) for loss in losses]
    return boldest_safe(p_values, confidence)


def _measure(engine: Any, policies: dict[str, Policy], inputs: list[Any], rounds: int) -> dict[str, float]:
    """Samples a second of each policy, median of interleaved rounds after a warm-up."""
    _ = engine.layer_costs  # measured once, for all of them
    engines = {name: engine.with_policy(policy) for name, policy in policies.items()}
    bar = tqdm(total=rounds * len(engines), desc="measure", unit="run", disable=not engine.progress)
    with warnings.catch_warnings(), bar:
        warnings.simplefilter("ignore", OneExitWarning)  # candidates, not what the user chose
        for e in engines.values():
            e.progress = False
            e.predict(inputs[:64])
        calls = {name: partial(e.predict, inputs) for name, e in engines.items()}
        seconds = in_turns(calls, rounds, lambda name: bar.update())
    return {name: len(inputs) / statistics.median(values) for name, values in seconds.items()}


def _timed(candidate: Candidate, speed: float, full: float) -> Candidate:
    return replace(candidate, samples_per_second=speed, speed_up=speed / full)

"""Choosing the fastest policy that keeps a promise, from a user's own texts and on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from geep_triton.checks import check_int, check_number, shorten
from geep_triton.engine.policies import (
    ConstantDepth,
    FullDepth,
    Patience,
    Policy,
    Predicted,
    Threshold,
    Verified,
    format_policy,
)
from geep_triton.engine.simulate import simulate
from geep_triton.engine.timing import in_turns
from geep_triton.exits.guarantees import betting_p_value, binomial_p_value, boldest_safe, samples_needed
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import score_exits
from geep_triton.outputs import Tokens

PROMISES = ("agreement", "max_accuracy_drop", "mean_depth", "speedup")
SETTINGS = 60  # of a family, from cautious to bold
SEED = 0
MOST_SEEN = 0.1  # of the texts may be in the table; short ones come up again by chance
PLANNING_PRICE = 0.05  # of a layer, where a check follows anyway


@dataclass(frozen=True)
class Candidate:
    """The boldest setting of one family of policies that keeps the promise, measured.

    Attributes:
        policy: its short form.
        agreement: share of the calibration samples that get the last exit's answer.
        accuracy: share that get the right one; None without labels.
        mean_layers: layers run a sample, on average.
        samples_per_second: wall clock here; None where it was not measured.
        speed_up: over full depth in the same run.
    """

    policy: str
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
        confidence: with which "agreement" and "max_accuracy_drop" hold for texts like the calibration's.
        samples: calibration samples.
        chosen: the fastest candidate.
        candidates: the best setting of each family that keeps the promise.
        curve: the settings of the chosen family, from cautious to bold.
    """

    promise: tuple[str, float]
    confidence: float
    samples: int
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    curve: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """As saved in the model's `config.calibration`; without the curve."""
        values = asdict(self)
        del values["curve"]
        return values | {"promise": list(self.promise)}

    def plot(self, path: str | Path) -> None:
        """Agreement (and accuracy) over mean layers of the chosen family, as PNG. Needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        points = sorted(self.curve, key=lambda point: point.mean_layers)
        layers = [point.mean_layers for point in points]
        axes.plot(layers, [point.agreement for point in points], marker=".", label="same answer as all layers")
        if self.chosen.accuracy is not None:
            axes.plot(layers, [point.accuracy for point in points], marker=".", label="accuracy")
        axes.axvline(self.chosen.mean_layers, color="gray", linestyle=":", label=self.chosen.policy)
        axes.set(xlabel="mean layers", ylabel="share of the calibration samples")
        axes.legend()
        figure.savefig(path, dpi=120)


def calibrate(
    engine: Any,
    inputs: Any,
    labels: Sequence[str | int] | None,
    promise: tuple[str, float],
    confidence: float,
    rounds: int,
    speed_samples: int,
    progress: bool,
) -> Calibration:
    """See `Engine.calibrate`."""
    if isinstance(inputs, (str, Mapping)) or not (isinstance(inputs, Sequence) or hasattr(inputs, "column_names")):
        raise TypeError(f"inputs must be a list of texts, tuples or rows, or a datasets.Dataset, got {type(inputs).__name__}")
    inputs = list(inputs)
    check_promise(promise, labels, engine.model, confidence)
    check_int("rounds", rounds, 1)
    check_int("speed_samples", speed_samples, 1)
    model: MultiExitBert = engine.model
    if model.config.num_labels < 2:
        raise ValueError("calibrate needs classes: a regression model (num_labels=1) runs at full or constant depth")
    share = 1 - (1 - confidence) / number_of_families(model)  # the fastest of several: each takes its part of the error
    if promise[0] in PROMISES[:2]:
        _refuse_too_few(promise, len(inputs), share)
    tokens, logits = engine.exit_logits(inputs)
    _refuse_seen(model, tokens)
    truth = None if labels is None else label_ids(labels, len(tokens), model.config.label2id)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(SEED))
    judge = Judge(model, tokens, logits, truth, order)
    families = policy_families(model, logits[order[: len(order) // 2]])
    judged = {
        name: [judge(policy) for policy in policies]
        for name, (policies, _) in tqdm(families.items(), desc="calibrate", disable=not progress)
    }
    timed_inputs = [inputs[row] for row in order[:speed_samples].tolist()]
    full = judge(FullDepth()).candidate
    shares = dict.fromkeys(families, 1.0)  # of what the saved layers allow, as far as it is known
    for _ in range(2 if promise[0] == "speedup" else 1):
        chosen_of = {
            name: _choose(judged[name], promise, share, held_out, model.config.num_hidden_layers / shares[name])
            for name, (_, held_out) in families.items()
        }
        chosen_of = {name: index for name, index in chosen_of.items() if index is not None}
        policies = {judged[name][index].candidate.policy: families[name][0][index] for name, index in chosen_of.items()}
        speeds = _measure(engine, {full.policy: FullDepth()} | policies, timed_inputs, rounds)
        found = {name: _timed(judged[name][index].candidate, speeds, full.policy) for name, index in chosen_of.items()}
        shares |= {name: model.config.num_hidden_layers / (c.mean_layers * c.speed_up) for name, c in found.items()}
    candidates = [_timed(full, speeds, full.policy), *found.values()]
    chosen = _best(candidates, promise)
    curves = {found[name].policy: tuple(verdict.candidate for verdict in judged[name]) for name in found}
    return Calibration(promise, confidence, len(tokens), chosen, tuple(candidates), curves.get(chosen.policy, (full,)))


def _best(candidates: list[Candidate], promise: tuple[str, float]) -> Candidate:
    """The fastest of those that keep a promise on answers; of those that are cheap enough the one that agrees most."""
    name, value = promise
    if name in PROMISES[:2]:
        return max(candidates, key=lambda candidate: candidate.samples_per_second)
    cheap = [
        candidate
        for candidate in candidates
        if (candidate.mean_layers <= value if name == "mean_depth" else candidate.speed_up >= value)
    ]
    if not cheap:
        best = max(candidates, key=lambda candidate: candidate.speed_up)
        raise ValueError(f"no policy is {value:g} times as fast here; {best.policy} reaches {best.speed_up:.2f}")
    return max(cheap, key=lambda candidate: (candidate.agreement, candidate.samples_per_second))


def number_of_families(model: MultiExitBert) -> int:
    """How many `policy_families` makes of this model."""
    if len(model.config.exit_layers) == 1:
        return 1
    table = model.exit_table
    return 4 + (0 if table is None else 3 if table.agreement is None else 5)


def _refuse_seen(model: MultiExitBert, tokens: Tokens) -> None:
    """A table knows the texts it was built from too well: what it promises of them says nothing about others."""
    if model.exit_table is None or model.exit_table.records is None:
        return
    seen = {tuple(row.tolist()) for row in _split(model.exit_table.records.tokens)}
    again = sum(tuple(row.tolist()) in seen for row in _split(tokens))
    if again > MOST_SEEN * len(tokens):
        raise ValueError(
            f"inputs: {again} of {len(tokens)} texts are among those that the exit table was built from; calibrate on others"
        )


def _split(tokens: Tokens) -> tuple[torch.Tensor, ...]:
    return tokens.ids.split(tokens.lengths.tolist())


def check_promise(
    promise: tuple[str, float], labels: Sequence[str | int] | None, model: MultiExitBert, confidence: float
) -> None:
    """Raise ValueError unless the promise can be made of this model."""
    name, value = promise
    check_number("confidence", confidence, 0.5, 0.9999)
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


def label_ids(labels: Sequence[str | int], samples: int, label2id: dict[str, int]) -> torch.Tensor:
    """[N] int64 from names or ids. ValueError where one is unknown or their number is another."""
    if len(labels) != samples:
        raise ValueError(f"labels must be one per text ({samples}), got {len(labels)}")
    # A name that is a number is a name: stars 1 to 5 are not ids 0 to 4.
    known = {**{index: index for index in label2id.values()}, **{str(name): index for name, index in label2id.items()}}
    keys = [str(label) if str(label) in known else label for label in labels]
    unknown = [label for label in keys if label not in known]
    if unknown:
        raise ValueError(f"labels: unknown label {shorten(unknown[0])}; known: {', '.join(map(str, label2id))}")
    return torch.tensor([known[label] for label in keys])


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

    def __init__(
        self, model: MultiExitBert, tokens: Tokens, logits: torch.Tensor, truth: torch.Tensor | None, order: torch.Tensor
    ) -> None:
        self.model, self.tokens, self.logits = model, tokens, logits
        self.truth, self.order = truth, order
        self.answers = logits.argmax(-1)
        self.layers = torch.tensor(model.config.exit_layers)

    def __call__(self, policy: Policy) -> Verdict:
        """How the policy answers the calibration samples."""
        exits = simulate(self.model, policy, self.tokens, self.logits)
        given = self.answers.gather(1, exits[:, None])[:, 0]
        disagrees, drop, accuracy = given != self.answers[:, -1], None, None
        if self.truth is not None:
            right = given == self.truth
            drop = ((self.answers[:, -1] == self.truth).long() - right.long())[self.order]
            accuracy = float(right.double().mean())
        candidate = Candidate(
            format_policy(policy), 1 - float(disagrees.double().mean()), accuracy, float(self.layers[exits].double().mean())
        )
        return Verdict(candidate, disagrees[self.order], drop)


def policy_families(model: MultiExitBert, fit: torch.Tensor) -> dict[str, tuple[list[Policy], bool]]:
    """Name -> policies from cautious to bold, and whether they were fitted to the first half of the samples.

    Args:
        model: what it has decides what can be tried: the table policies need an exit table.
        fit: [N, E, C], the first half's answers, for thresholds of each layer's own.
    """
    early = model.config.exit_layers[:-1]
    if not early:
        return {"full": ([FullDepth()], False)}
    uncertainty = score_exits(fit[:, :-1].flatten(0, 1), 1.0).uncertainty.view(len(fit), len(early))
    agrees = fit[:, :-1].argmax(-1) == fit[:, -1:].argmax(-1)
    grid = torch.logspace(-4, 0, SETTINGS).tolist()
    per_layer = [thresholds_at(uncertainty, agrees, share) for share in torch.linspace(0, 0.2, SETTINGS).tolist()]
    families: dict[str, tuple[list[Policy], bool]] = {
        "threshold": ([Threshold(threshold) for threshold in grid], False),
        "threshold per layer": ([Threshold(values) for values in per_layer], True),
        "patience": ([Patience(patience) for patience in range(len(early), 0, -1)], False),
        "constant": ([ConstantDepth(layer) for layer in reversed(early)], False),
    }
    if model.exit_table is not None:
        families["predicted"] = ([Predicted(quantile / 20) for quantile in range(20, 0, -1)], False)
        families["verified"] = ([Verified(threshold) for threshold in grid], False)
        families["verified per layer"] = ([Verified(values) for values in per_layer], True)
    if model.exit_table is not None and model.exit_table.agreement is not None:
        prices = [0.0, *torch.logspace(-4, -0.5, SETTINGS).tolist()]
        families["allocated"] = ([Predicted(price=price) for price in prices], False)
        families["allocated, verified"] = ([Verified(threshold, price=PLANNING_PRICE) for threshold in grid], False)
    return families


def thresholds_at(uncertainty: torch.Tensor, agrees: torch.Tensor, share: float) -> tuple[float, ...]:
    """Per layer the highest threshold under which at most `share` of the samples that pass it disagree; 0 where none does.

    Args:
        uncertainty, agrees: [N, E - 1].
        share: 0..1.
    """
    values, order = uncertainty.sort(0)
    wrong = (~agrees).gather(0, order).cumsum(0)
    passing = torch.arange(1, len(values) + 1)[:, None]
    holds = wrong <= share * passing
    last = torch.where(holds, passing, 0).amax(0)
    return tuple(float(values[count - 1, layer]) if count else 0.0 for layer, count in enumerate(last.tolist()))


def _refuse_too_few(promise: tuple[str, float], samples: int, confidence: float) -> None:
    """Fewer could show nothing, not even if no answer differed."""
    name, value = promise
    needed = samples_needed(1 - value, confidence) if name == "agreement" else _samples_for_drop(value, confidence)
    if samples < needed:
        raise ValueError(
            f"{samples} texts are too few to promise {name}={value:g}: at least {needed} are needed even if no answer differs"
        )


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
    judged: Sequence[Verdict], promise: tuple[str, float], confidence: float, held_out: bool, num_layers: float
) -> int | None:
    """Index of the setting of a family to try: the boldest that is safe, or the safest that is cheap enough."""
    name, value = promise
    if name in ("mean_depth", "speedup"):
        target = value if name == "mean_depth" else num_layers / value
        cheap = [index for index, verdict in enumerate(judged) if verdict.candidate.mean_layers <= target]
        return max(cheap, key=lambda index: judged[index].candidate.agreement, default=None)
    p_values = []
    for verdict in judged:
        begin = len(verdict.disagrees) // 2 if held_out else 0
        if name == "agreement":
            judging = verdict.disagrees[begin:]
            p_values.append(binomial_p_value(int(judging.sum()), len(judging), 1 - value))
        else:
            p_values.append(_p_value_of_drop(verdict.drop[begin:], value, confidence))
    return boldest_safe(p_values, confidence)


def _measure(engine: Any, policies: dict[str, Policy], inputs: list[Any], rounds: int) -> dict[str, float]:
    """Samples a second of each policy, median of interleaved rounds after a warm-up."""
    _ = engine.layer_costs  # measured once, for all of them
    engines = {name: engine.with_policy(policy) for name, policy in policies.items()}
    for e in engines.values():
        e.predict(inputs[:64])
    seconds = in_turns({name: partial(e.predict, inputs) for name, e in engines.items()}, rounds)
    return {name: len(inputs) / statistics.median(values) for name, values in seconds.items()}


def _timed(candidate: Candidate, speeds: dict[str, float], full: str) -> Candidate:
    speed = speeds[candidate.policy]
    return Candidate(**asdict(candidate) | {"samples_per_second": speed, "speed_up": speed / speeds[full]})

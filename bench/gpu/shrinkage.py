"""Part 5 asks whether predicting exits pays: plans and tables beside batches that shrink, at one promise of agreement.

This is experiment E of the claims, declared before it runs. The models are those of the inputs whose layers were trained with
their exits (`bench.gpu.tuned`). Half of the texts calibrate each family alone, by the library's test in sequence; the other
half is timed and judged, token ids in, answers out, in windows of several sizes. On a data set, and in one way of running the
layers,

- predicting *pays* if in some window a plan that gives the full model's answer to at least `PROMISE` of the timed texts answers
  `OVER_SHRINKING` times as many of them a second as the fastest policy whose batches shrink, by the median of `ROUNDS` rounds'
  ratios, and in each round more than every policy that does not predict;
- it *does not pay* if all windows were measured, and in none a plan is faster than the fastest policy whose batches shrink, by
  that median.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from transformers import PreTrainedTokenizerBase

from bench.gpu.inputs import OPTIONS, GivenModel
from bench.gpu.setting import Cells, Setting
from bench.rows import Found, found
from bench.timing import quiet_garbage_collector
from geep_triton import Engine, MultiExitBert
from geep_triton.engine.predictions import EveryExit
from geep_triton.policies.leave import Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.risk import LowRisk
from geep_triton.policies.start import LastLayer
from geep_triton.policies.text import format_policy
from geep_triton.promises.families import CONSTANT, FitSamples, families_of
from geep_triton.promises.guarantees import binomial_p_value, boldest_safe
from geep_triton.promises.simulate import simulate
from geep_triton.timing import in_turns
from geep_triton.tokens.ragged import Tokens

PROMISE, CONFIDENCE = 0.98, 0.95  # of agreement with the last exit; of each family alone
OVER_SHRINKING = 1.05
ROUNDS = 5
WINDOWS = (64, 256, 1_024, 4_096)
FULL, ORACLE = "full depth", "oracle"
# Families that score texts on their way, whose batches shrink or whose survivors are pooled; and those that predict exits and
# sort by them.
SCORED = ("threshold", "risk")
REGROUPED = {"batches shrink": "never", "pooled": "always"}
SHRINKING, POOLED = (tuple(f"{name}, {how}" for name in SCORED) for how in REGROUPED)
PLANS = ("planned", "predicted, learned", "allocated")
UNPREDICTED = (FULL, CONSTANT, *SHRINKING, *POOLED)
WAYS = ("plain", "graphs")
MIX = 0x1E3779B97F4A7C15  # odd, from the golden ratio

Seconds = Mapping[str, Sequence[float]]  # name of a policy -> of each round


def cells(setting: Setting) -> Cells:
    tuned = [one for one in setting.given if one.tuned]
    for way in WAYS:
        subjects = [Subject(setting, one, way) for one in tuned]
        for window in setting.sizes.shrinking_windows:
            for subject in subjects:
                yield f"{subject.given.name}, windows of {window}, {way}", partial(compared, subject, window)


@dataclass(frozen=True, eq=False)
class Known:
    """A start at exits that are known beforehand, as if by a predictor that is never wrong.

    Attributes:
        known: [N] int64, ascending, `hashes_of` the texts.
        layers: [N] int64, the layers of their exits.
    """

    known: torch.Tensor
    layers: torch.Tensor

    @classmethod
    def of(cls, model: MultiExitBert, record: EveryExit) -> Known:
        """The first exits that give the last one's answer."""
        layers = torch.tensor(model.config.exit_layers)[agreeing(model, record).int().argmax(1)]
        known, order = hashes_of(record.tokens).sort()
        return cls(known, layers[order])

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Accept every model."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The exits of texts that are all known: [N] int64."""
        return self.layers[torch.searchsorted(self.known, hashes_of(tokens))]


def hashes_of(tokens: Tokens) -> torch.Tensor:
    """[N] int64, a hash of each text, made in few steps: `Tokens.hashes` would cost as much as a layer."""
    places = torch.arange(len(tokens.ids)) - torch.repeat_interleave(tokens.offsets[:-1], tokens.lengths)
    mixed = tokens.ids * MIX
    mixed = (mixed ^ (mixed >> 29)) * (MIX + 2 * places)
    sums = torch.cat([mixed.new_zeros(1), mixed.cumsum(0)])
    return sums[tokens.offsets[1:]] - sums[tokens.offsets[:-1]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model whose layers run in one way, and its policies. All is made when it is first asked for."""

    setting: Setting
    given: GivenModel
    way: str

    @cached_property
    def engine(self) -> Engine:
        """Runs all layers. Its model is in half precision, and copied, since ways change models."""
        model = copy.deepcopy(self.given.model).to(self.setting.machine.device, torch.bfloat16)
        return Engine(model, self.given.tokenizer, "full", runner=self.setting.made(self.way, model), **OPTIONS)

    @cached_property
    def parts(self) -> tuple[EveryExit, EveryExit]:
        """Every exit's answers to the texts that calibrate, and to those that are timed: every second one each."""
        record = self.engine.every_exit(self.given.rows)
        calibrating, timed = (record.select(torch.arange(first, len(record.tokens), 2)) for first in (0, 1))
        return calibrating, timed

    @cached_property
    def policies(self) -> dict[str, Policy]:
        """By name. Families without a setting that was shown to be safe are left out."""
        calibrating, timed = self.parts
        engine, model = self.engine, self.engine.model
        named = {FULL: Policy(LastLayer()), ORACLE: Policy(Known.of(model, timed))}
        for family, policy in promised(model, calibrating, engine.layer_costs.stop_layers).items():
            if isinstance(policy.leave, Sure | LowRisk):
                for how, regroup in REGROUPED.items():
                    named[f"{family}, {how}"] = replace(policy, leave=replace(policy.leave, regroup=regroup))
            else:
                named[family] = policy
        return named

    @cached_property
    def engines(self) -> dict[str, Engine]:
        """One for each policy. They share what layers cost, and are made once, since each checks the tokenizer."""
        return {name: self.engine.with_policy(policy) for name, policy in self.policies.items()}


def agreeing(model: MultiExitBert, record: EveryExit) -> torch.Tensor:
    """[N, E] bool, whether each exit gives the last one's answer."""
    return model.answers.agree(record.logits, record.logits[:, -1:])


def promised(model: MultiExitBert, record: EveryExit, score_cost: float) -> dict[str, Policy]:
    """Family -> its boldest policy that is shown to keep `PROMISE` on these texts, as `calibrate` shows it.

    Args:
        model: with an exit table.
        record: every exit's answers to the texts that calibrate.
        score_cost: of a text at an exit, in layers.
    """
    agrees = agreeing(model, record)
    fit = FitSamples.of(record, model.config.exit_layers, score_cost, model.answers)
    chosen = {}
    for family in families_of(model, every=True):
        if family.name not in (*SCORED, CONSTANT, *PLANS):
            continue
        policies = family.policies(fit)
        right = [agrees.gather(1, simulate(model, one, record.tokens, record.logits)[:, None]) for one in policies]
        p_values = [binomial_p_value(int((~of).sum()), len(agrees), 1 - PROMISE) for of in right]
        if (index := boldest_safe(p_values, CONFIDENCE)) is not None:
            chosen[family.name] = policies[index]
    return chosen


def compared(subject: Subject, window: int) -> list[Found]:
    """Time every policy in turns in windows of this size."""
    calibrating, timed = subject.parts
    sizes, distinct = subject.setting.sizes, len(timed.tokens)
    count = min(max(sizes.shrinking_batches * window, sizes.shrinking_texts[0]), sizes.shrinking_texts[1])
    texts = timed.select(torch.arange(count) % distinct)
    calls = {}
    for name, engine in subject.engines.items():
        engine.window = window
        calls[name] = partial(engine.predict, texts.tokens)
    start = time.perf_counter()
    first = {name: call() for name, call in calls.items()}
    prepared = time.perf_counter() - start
    with quiet_garbage_collector():
        seconds = in_turns(calls, ROUNDS)
    answers, config = texts.logits[:, -1].argmax(-1), subject.engine.model.config
    facts = {
        "window": window,
        "way": subject.way,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "texts": count,
        "distinct_texts": min(count, distinct),
        "calibrated_on": len(calibrating.tokens),
        "first_seconds": prepared,
    }
    measured = [found("", facts)]
    for name, result in first.items():
        median = statistics.median(seconds[name])
        metrics = {
            "seconds": median,
            "each_seconds": seconds[name],
            "texts_per_second": count / median,
            "agreement": float((result.label_ids.cpu() == answers)[:distinct].double().mean()),
            "mean_layers": result.mean_layers,
        }
        policy = {} if name == ORACLE else {"policy": format_policy(subject.policies[name])}
        measured.append(found(name, metrics | policy))
    return measured


def fastest(seconds: Seconds, names: Sequence[str]) -> str | None:
    """The one of these policies that takes the fewest seconds, by the median of the rounds; None: none of them is there."""
    there = [name for name in names if name in seconds]
    return min(there, key=lambda name: statistics.median(seconds[name])) if there else None


def ratios(seconds: Sequence[float], of_other: Sequence[float]) -> list[float]:
    """How many times as many texts a second as another policy, in each round."""
    return [other / own for own, other in zip(seconds, of_other, strict=True)]


def verdict(windows: Mapping[int, Seconds], agreement: Mapping[int, Mapping[str, float]]) -> str:
    """Whether predicting exits pays, as declared above: "pays", "does not pay", "undecided" or "not measured".

    Args:
        windows: by the texts of a window.
        agreement: likewise, of each policy on the timed texts.
    """
    medians, measured = [0.0], 0
    for window, seconds in windows.items():
        shrinking = fastest(seconds, SHRINKING)
        if shrinking is None:
            continue
        measured += window in WINDOWS
        rivals = [seconds[name] for name in UNPREDICTED if name in seconds]
        for name in PLANS:
            if name not in seconds or agreement[window][name] < PROMISE:
                continue
            over = ratios(seconds[name], seconds[shrinking])
            medians.append(statistics.median(over))
            in_each = all(ratio > 1 for rival in rivals for ratio in ratios(seconds[name], rival))
            if medians[-1] >= OVER_SHRINKING and in_each:
                return "pays"
    if not measured:
        return "not measured"
    return "does not pay" if measured == len(WINDOWS) and max(medians) <= 1 else "undecided"

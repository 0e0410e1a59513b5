"""Part 5 asks whether predicting exits pays: plans and tables beside batches that shrink, at one promise of agreement.

This is experiment E of the claims, declared before it runs. The models are those of the inputs whose layers were trained with
their exits (`bench.gpu.tuned`). Half of the texts calibrate each family alone, by the library's test in sequence; the other
half is timed and judged, token ids in, answers out, in windows of several sizes. On a data set

- predicting *pays* if in some window a plan answers at least `OVER_SHRINKING` times as many texts a second as thresholds in
  batches that shrink, by the median of at least `LEAST_ROUNDS` rounds' ratios, and in each round more than those and than the
  same thresholds with survivors pooled;
- it *does not pay* if in no window a plan is faster than batches that shrink, by that median.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from bench.gpu.inputs import OPTIONS, GivenModel, load_inputs
from bench.gpu.setting import Cells, Setting
from bench.rows import Found, found
from bench.timing import quiet_garbage_collector
from geep_triton import Engine, MultiExitBert
from geep_triton.engine.predictions import EveryExit
from geep_triton.policies.leave import Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import LastLayer
from geep_triton.policies.text import format_policy
from geep_triton.promises.families import CONSTANT, FitSamples, families_of
from geep_triton.promises.guarantees import binomial_p_value, boldest_safe
from geep_triton.promises.simulate import simulate
from geep_triton.timing import in_turns
from geep_triton.tokens.ragged import Tokens

PROMISE, CONFIDENCE = 0.98, 0.95  # of agreement with the last exit; of each family alone
FULL, ORACLE = "full depth", "oracle"
SHRINKING, POOLED = "thresholds, batches that shrink", "thresholds, pooled"
PLANS = ("planned", "predicted, learned", "allocated", "allocated+threshold")  # families that predict exits and sort by them
FAMILIES = ("threshold", "risk", CONSTANT, *PLANS)
OVER_SHRINKING = 1.05
LEAST_ROUNDS = 5
WAYS = ("graphs", "plain")
MOST_SECONDS = 8.0  # of a comparison


def cells(setting: Setting) -> Cells:
    if setting.inputs is None:
        print("part shrinkage: no --inputs folder, nothing to measure", flush=True)
        return
    tuned = [one for one in load_inputs(setting.inputs) if one.tuned]
    if not tuned:
        print("part shrinkage: the inputs hold no model that `bench.gpu.tuned` put there, nothing to measure", flush=True)
    for way in WAYS:
        subjects = [Subject(setting, one, way) for one in tuned]
        for window in setting.sizes.shrinking_windows:
            for subject in subjects:
                yield f"{subject.given.name}, windows of {window}, {way}", partial(compared, setting, subject, window)


@dataclass(frozen=True, eq=False)
class Known:
    """A start at exits that are known beforehand, as if by a predictor that is never wrong and costs next to nothing.

    Attributes:
        layers: the ids of a text -> the layer of its exit.
    """

    layers: Mapping[tuple[int, ...], int]

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Accept every model."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The exits of texts that are all known."""
        return torch.tensor([self.layers[text] for text in texts_of(tokens)])


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
        chosen = promised(model, calibrating, engine.layer_costs.stop_layers)
        named = {FULL: Policy(LastLayer()), ORACLE: Policy(Known(first_agreeing(model, timed)))}
        threshold = chosen.pop("threshold", None)
        if threshold is not None and isinstance(threshold.leave, Sure):
            named[SHRINKING] = replace(threshold, leave=replace(threshold.leave, regroup="never"))
            named[POOLED] = replace(threshold, leave=replace(threshold.leave, regroup="always"))
            named["thresholds, as costs say"] = threshold
        return named | chosen


def texts_of(tokens: Tokens) -> list[tuple[int, ...]]:
    """The ids of each text, which are known on the host."""
    ids, offsets = tokens.ids.tolist(), tokens.offsets.tolist()
    return [tuple(ids[start:end]) for start, end in pairwise(offsets)]


def first_agreeing(model: MultiExitBert, record: EveryExit) -> dict[tuple[int, ...], int]:
    """The ids of a text -> the layer of the first exit that gives the last one's answer."""
    agrees = model.answers.agree(record.logits, record.logits[:, -1:])
    layers = torch.tensor(model.config.exit_layers)[agrees.int().argmax(1)]
    return dict(zip(texts_of(record.tokens), layers.tolist(), strict=True))


def promised(model: MultiExitBert, record: EveryExit, score_cost: float) -> dict[str, Policy]:
    """Family -> its boldest policy that is shown to keep `PROMISE` on these texts, as `calibrate` shows it.

    Args:
        model: with an exit table.
        record: every exit's answers to the texts that calibrate.
        score_cost: of a text at an exit, in layers.
    """
    agrees = model.answers.agree(record.logits, record.logits[:, -1:])
    fit = FitSamples.of(record, model.config.exit_layers, score_cost, model.answers)
    chosen = {}
    for family in families_of(model, every=True):
        if family.name not in FAMILIES:
            continue
        policies = family.policies(fit)
        right = [agrees.gather(1, simulate(model, one, record.tokens, record.logits)[:, None]) for one in policies]
        failures = [int((~of).sum()) for of in right]
        p_values = [binomial_p_value(count, len(agrees), 1 - PROMISE) for count in failures]
        if (index := boldest_safe(p_values, CONFIDENCE)) is not None:
            chosen[family.name] = policies[index]
    return chosen


def compared(setting: Setting, subject: Subject, window: int) -> list[Found]:
    """Time every policy in turns in windows of this size."""
    calibrating, timed = subject.parts
    texts = timed.select(torch.arange(max(window, setting.sizes.least_texts)) % len(timed.tokens))
    policies, engine = subject.policies, subject.engine
    engines = {name: engine.with_policy(policy) for name, policy in policies.items()}
    for each in engines.values():
        each.window = window
    calls = {name: partial(each.predict, texts.tokens) for name, each in engines.items()}
    first = {name: call() for name, call in calls.items()}
    with quiet_garbage_collector():
        seconds = in_turns(calls, LEAST_ROUNDS, limit=MOST_SECONDS)
    answers = texts.logits[:, -1].argmax(-1)
    facts = {"window": window, "way": subject.way, "layers": engine.model.config.num_hidden_layers, "promise": PROMISE}
    measured = [found("", facts | {"texts": len(answers), "calibrated_on": len(calibrating.tokens)})]
    for name, result in first.items():
        median = statistics.median(seconds[name])
        metrics = {
            "seconds": median,
            "each_seconds": seconds[name],
            "texts_per_second": len(answers) / median,
            "agreement": float((result.label_ids.cpu() == answers).double().mean()),
            "mean_layers": result.mean_layers,
        }
        measured.append(found(name, metrics | ({} if name == ORACLE else {"policy": format_policy(policies[name])})))
    return measured


def ratios(seconds: Sequence[float], of_other: Sequence[float]) -> list[float]:
    """How many times as many texts a second as another policy, in each round."""
    return [other / own for own, other in zip(seconds, of_other, strict=True)]


def verdict(windows: Iterable[Mapping[str, Sequence[float]]]) -> str:
    """Whether predicting exits pays on a data set, as declared above: "pays", "does not pay", "undecided" or "not measured".

    Args:
        windows: for each window, the seconds of each round by the name of a policy.
    """
    medians: list[float] = []
    for seconds in windows:
        if not {SHRINKING, POOLED} <= seconds.keys() or len(seconds[SHRINKING]) < LEAST_ROUNDS:
            continue
        for name in seconds.keys() & set(PLANS):
            over_shrinking, over_pooled = (ratios(seconds[name], seconds[other]) for other in (SHRINKING, POOLED))
            medians.append(statistics.median(over_shrinking))
            if medians[-1] >= OVER_SHRINKING and min(*over_shrinking, *over_pooled) > 1:
                return "pays"
    if not medians:
        return "not measured"
    return "undecided" if max(medians) > 1 else "does not pay"

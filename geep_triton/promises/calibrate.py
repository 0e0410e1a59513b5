"""Choosing the fastest policy that keeps a promise, from a user's own texts and on this machine."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from tqdm.auto import tqdm

from geep_triton.checks import check_int, check_kind
from geep_triton.engine.checks import as_list, label_ids
from geep_triton.engine.engine import Engine
from geep_triton.engine.promise import Promise
from geep_triton.exit_config import PROMISES_ON_ANSWERS
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.policy import OneExitWarning, Policy
from geep_triton.policies.start import LastLayer
from geep_triton.promises.calibration import Calibration, Candidate
from geep_triton.promises.families import CONSTANT, FitSamples, error_shares, families_of
from geep_triton.promises.judge import Judge
from geep_triton.promises.terms import check_method, check_promise, choose_setting, refuse_too_few, samples_for
from geep_triton.timing import in_turns
from geep_triton.tokens.ragged import Tokens
from geep_triton.warn import warn

SEED = 0
FEWEST_DISTINCT = 0.9  # of the texts; short ones come up again by chance
MEASURED_POINTS = 6  # of the chosen family's curve
ATTEMPTS = 4  # at a speed-up
# A constant depth is taken only if it is so many times as fast as the best other policy, full depth among them: it looks at no
# text, so that under shifted texts it broke 73 % of its promises, where policies that score every exit broke none.
CLEARLY_FASTER = 1.1


def calibrate(
    engine: Engine,
    inputs: Any,
    labels: Sequence[str | int] | None = None,
    *,
    agreement: float | None = None,
    max_accuracy_drop: float | None = None,
    mean_depth: float | None = None,
    speedup: float | None = None,
    method: str = "learn-then-test",
    confidence: float | None = None,
    rounds: int = 3,
    speed_samples: int = 512,
    save: bool = True,
) -> Calibration:
    """Find the fastest policy that keeps a promise on answers, or the most faithful one within a budget, and use it.

    The promises on answers hold with `confidence` for texts like the given ones (fixed-sequence Learn-then-Test,
    Angelopoulos et al. 2021; `geep_triton.promises.families.error_shares` says how the families of policies share the error).
    With the method "conformal" they hold on average over the texts one might have given (conformal risk control, Angelopoulos
    et al. 2022): that is bolder, and fewer texts will do, but any one calibration may fall short. With `mean_depth` or
    `speedup` the policy that agrees most among those that are cheap enough is taken; those are not promises about answers. In
    int8 an answer varies a little with the texts beside it, on which a promise, made of one run, says nothing. The full model
    is the model at its last exit. It skips layers as the engine's policy says, and so does the policy that is found.

    Args:
        engine: gets the policy that was found.
        inputs: a list of what `predict` takes, or a `datasets.Dataset`; not trained on. Those that the exit table was
            built from are left out, with a warning. The more there are, the bolder is the policy that can be shown to be safe.
        labels: names or ids, one per text; only "max_accuracy_drop" needs them.
        agreement: share of texts that must get the full model's answer, e.g. .98.
        max_accuracy_drop: by how much accuracy may lie below the full model's, e.g. .01.
        mean_depth: mean layers a text may take.
        speedup: over full depth, measured here.
        method: "learn-then-test" or "conformal".
        confidence: of the promise by "learn-then-test"; None: .95.
        rounds, speed_samples: how speed is measured: the median of interleaved rounds over so many texts.
        save: keep the policy in `model.exit_config`, so that `save_pretrained` saves it and `Engine(...)` uses it.

    Raises:
        ValueError: not exactly one promise, or one out of range; too few texts for it that the exit table does not know
            (the error says how many are needed); labels that do not fit; no policy is as fast as asked; and
            all that `predict` raises.
        TypeError: no engine, or inputs of another type.
    """
    check_kind("engine", engine, Engine)
    promises = {
        "agreement": agreement, "max_accuracy_drop": max_accuracy_drop, "mean_depth": mean_depth, "speedup": speedup
    }  # fmt: skip
    given = [(name, value) for name, value in promises.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"calibrate needs exactly one of {', '.join(promises)}, got {len(given)}")
    result = find_policy(engine, inputs, labels, given[0], method, confidence, rounds, speed_samples)
    engine.policy = result.chosen.policy
    engine.promise = None if agreement is None else Promise.made(engine.model, agreement)
    if save:
        served = engine.model.exit_config
        served.policy, served.skipping = result.chosen.policy, None
        served.calibration = result.to_dict()
    return result


def find_policy(
    engine: Engine,
    inputs: Any,
    labels: Sequence[str | int] | None,
    promise: tuple[str, float],
    method: str,
    confidence: float | None,
    rounds: int,
    speed_samples: int,
) -> Calibration:
    """See `calibrate`; nothing of the engine is changed."""
    inputs = as_list(inputs)
    model: MultiExitBert = engine.model
    confidence = check_method(method, promise, confidence)
    check_promise(promise, labels, model)
    check_int("rounds", rounds, 1)
    check_int("speed_samples", speed_samples, 1)
    if model.config.num_labels < 2:
        raise ValueError("calibrate needs classes: a regression model (num_labels=1) runs at full or constant depth")
    skip = engine.policy.skip
    if engine.policy.skip_on(model).mode == "planned" and promise[0] in PROMISES_ON_ANSWERS:
        raise ValueError(
            f"{promise[0]} is promised against the model at full depth, but with '+skip:planned' even that follows predicted "
            "paths: calibrate an engine of policy 'full+skip:gates' or 'full+skip:never', or to a mean_depth or speedup"
        )
    truth = None if labels is None else label_ids(labels, len(inputs), model.config.label2id)
    families = families_of(model)
    # The fastest of several is taken: each has its part of the error.
    confidences: dict[str, float | None] = dict.fromkeys((family.name for family in families), None)
    if confidence is not None:
        confidences = {name: 1 - (1 - confidence) * share for name, share in error_shares(families).items()}
    needed = samples_for(promise, confidences.values())
    refuse_too_few(promise, len(inputs), needed)
    record = engine.every_exit(inputs)
    rows = _unknown(model, record.tokens)
    if known := len(inputs) - len(rows):
        refuse_too_few(promise, len(rows), needed, f", once {known} that the exit table knows are left out")
        warn(
            f"inputs: {known} of {len(inputs)} texts are among those that the exit table was built from, which prove nothing: "
            "they are left out"
        )
        record, inputs = record.select(rows), [inputs[row] for row in rows.tolist()]
        truth = None if truth is None else truth[rows]
    _warn_of_repeated(record.tokens)
    half = len(inputs) // 2
    unfitted = {family.name: slice(half if family.fitted else 0, None) for family in families}
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(SEED))
    judge = Judge(model, record, truth, order)
    fit = FitSamples.of(record.select(order[:half]), model.config.exit_layers, engine.layer_costs.stop_layers)
    full_depth = Policy(LastLayer(), skip=skip)
    policies = {family.name: [replace(policy, skip=skip) for policy in family.policies(fit)] for family in families}
    judged = {
        name: [judge(policy, name, unfitted[name]) for policy in several]
        for name, several in tqdm(policies.items(), desc="calibrate", disable=not engine.progress)
    }
    # Not those that families were fitted to; with "conformal" not those that judge, which must have no part in choosing.
    timed = order[:half] if method == "conformal" else order.flip(0)
    timed_inputs = [inputs[row] for row in timed[:speed_samples].tolist()]
    full = judge(full_depth, "full").candidate

    def measure(settings: dict[str, list[int]]) -> dict[str, list[Candidate]]:
        """Family -> its settings, and full depth, measured in turns."""
        wanted = {f"{name} {index}": policies[name][index] for name, several in settings.items() for index in several}
        speeds = _measure(engine, {"full": full_depth} | wanted, timed_inputs, rounds)
        return {"full": [_timed(full, speeds["full"], speeds["full"])]} | {
            name: [_timed(judged[name][index].candidate, speeds[f"{name} {index}"], speeds["full"]) for index in several]
            for name, several in settings.items()
        }

    def choose(name: str, judging: slice, num_layers: float) -> int | None:
        return choose_setting(judged[name], promise, confidences[name], judging, num_layers)

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
    curve = _with_speeds(engine, curve, policies.get(chosen.family, [full_depth]), timed_inputs, rounds, full_depth)
    return Calibration(
        promise,
        method,
        confidence,
        len(inputs),
        engine.dtype,
        model.device.type,
        engine.max_length,
        engine.truncation,
        None if model.exit_table is None else model.exit_table.digest(),
        model.exit_config.temperatures and list(model.exit_config.temperatures),
        chosen,
        tuple(candidates),
        tuple(name for name, several in kept.items() if not several),
        tuple(curve),
    )


def _with_speeds(
    engine: Engine, curve: list[Candidate], policies: list[Policy], inputs: list[Any], rounds: int, full_depth: Policy
) -> list[Candidate]:
    """The curve with some points measured: from one end to the other in equal steps of mean layers."""
    by_depth = sorted(range(len(curve)), key=lambda index: curve[index].mean_layers)
    low, high = (curve[by_depth[end]].mean_layers for end in (0, -1))
    wanted = [low + (high - low) * step / (MEASURED_POINTS - 1) for step in range(MEASURED_POINTS)]
    points = {min(by_depth, key=lambda index: abs(curve[index].mean_layers - depth)) for depth in wanted}
    speeds = _measure(engine, {"full": full_depth} | {str(index): policies[index] for index in points}, inputs, rounds)
    return [
        _timed(candidate, speeds[str(index)], speeds["full"]) if index in points else candidate
        for index, candidate in enumerate(curve)
    ]


def _best(candidates: list[Candidate], promise: tuple[str, float]) -> Candidate:
    """The fastest of those that keep a promise on answers; of those that are cheap enough the one that agrees most. The first
    candidate is full depth. A constant depth must be `CLEARLY_FASTER` than the others to be taken for a promise on answers.
    """
    name, value = promise
    if name in PROMISES_ON_ANSWERS:
        # What runs as many layers as full depth is no faster, whatever was measured.
        saving = [candidate for candidate in candidates if candidate.mean_layers < candidates[0].mean_layers]
        return max(candidates[:1] + saving, key=_handicapped_speed)
    cheap = _within(candidates, promise)
    if not cheap:
        best = max(candidates, key=lambda candidate: candidate.speed_up)
        raise ValueError(f"no policy is {value:g} times as fast here; {best.policy} reaches {best.speed_up:.2f}")
    return _most_faithful(cheap)


def _handicapped_speed(candidate: Candidate) -> float:
    return candidate.samples_per_second / (CLEARLY_FASTER if candidate.family == CONSTANT else 1)


def _within(candidates: list[Candidate], promise: tuple[str, float]) -> list[Candidate]:
    """Those that are as cheap as was asked; all, where a promise is on answers."""
    name, value = promise
    if name == "speedup":
        return [candidate for candidate in candidates if candidate.speed_up >= value]
    return [candidate for candidate in candidates if name != "mean_depth" or candidate.mean_layers <= value]


def _most_faithful(candidates: list[Candidate]) -> Candidate:
    """The one that agrees most with full depth; of equals the fastest."""
    return max(candidates, key=lambda candidate: (candidate.agreement, candidate.samples_per_second))


def _unknown(model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
    """[M] int64, the samples that the exit table was not built from: of its own texts it knows too much to tell of others."""
    table = model.exit_table
    if table is None or table.text_hashes is None:
        if table is not None:
            warn(
                "the exit table does not know its texts, so nothing shows whether it was built from these: they must be others"
            )
        return torch.arange(len(tokens))
    return (~torch.isin(tokens.hashes(), table.text_hashes)).nonzero()[:, 0]


def _warn_of_repeated(tokens: Tokens) -> None:
    """Texts that come again as often as they would be served are as they should be, but a list that was repeated is not."""
    texts = tokens.hashes()
    distinct = texts.unique().numel()
    if distinct < FEWEST_DISTINCT * len(texts):
        warn(f"only {distinct} of {len(texts)} texts are distinct: a promise takes each for a text of its own, drawn anew")


def _measure(engine: Engine, policies: dict[str, Policy], inputs: list[Any], rounds: int) -> dict[str, float]:
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

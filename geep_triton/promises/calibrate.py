"""Calibration: the choice of the fastest policy that keeps a promise, on a user's own texts and machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from geep_triton.checks import check_int, check_kind
from geep_triton.engine.checks import as_list, label_ids
from geep_triton.engine.engine import Engine
from geep_triton.engine.promise import Promise
from geep_triton.exit_config import PROMISES_ON_ANSWERS
from geep_triton.modeling.model import MultiExitBert
from geep_triton.promises.calibration import Calibration
from geep_triton.promises.families import Family, error_shares, families_of
from geep_triton.promises.search import Samples, Search
from geep_triton.promises.terms import check_method, check_promise, refuse_too_few, samples_for
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import Inputs
from geep_triton.warn import warn

FEWEST_DISTINCT = 0.9  # of the texts; short texts come again by chance


def calibrate(
    engine: Engine,
    inputs: Inputs,
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
    """Find the fastest policy that keeps a promise on answers, or the most faithful policy within a budget, and use it.

    A promise on answers holds with `confidence` for texts like the given ones (fixed-sequence Learn-then-Test, Angelopoulos et
    al. 2021; `geep_triton.promises.families.error_shares` says how the families of policies share the error). By the method
    "conformal" it holds on average over the texts that might have been given (conformal risk control, Angelopoulos et al.
    2022). That is bolder and needs fewer texts, but one calibration may fall short. `mean_depth` and `speedup` promise nothing
    about answers: of all policies that are cheap enough, the one that agrees most is taken. In int8 an answer varies a little
    with the texts beside it; a promise is made of one run and does not cover that. The full model is the model at its last
    exit. It skips layers as the engine's policy says, and so does the policy that is found.

    Args:
        engine: it gets the policy that was found.
        inputs: a list of what `predict` takes, or a `datasets.Dataset`. The model was not trained on them. Those that the exit
            table was built from are left out, with a warning. More inputs can show bolder policies to be safe.
        labels: names or ids, one per text; only "max_accuracy_drop" needs them.
        agreement: the share of texts that must get the full model's answer, e.g. .98.
        max_accuracy_drop: by how much accuracy may lie below the full model's, e.g. .01.
        mean_depth: how many layers a text may take on average.
        speedup: how many times as fast as full depth, measured here.
        method: "learn-then-test" or "conformal".
        confidence: of a promise by "learn-then-test"; None: .95.
        rounds: speed is the median of so many interleaved rounds.
        speed_samples: speed is measured on so many texts.
        save: keep the policy in `model.exit_config`, so that `save_pretrained` saves it and `Engine(...)` uses it.

    Raises:
        ValueError: there is not exactly one promise, or it is out of range; the texts that the exit table does not know are too
            few (the error says how many are needed); labels do not fit; no policy is as fast as asked; and whatever `predict`
            raises.
        TypeError: `engine` is no engine, or inputs have another type.
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
        served.policy, served.calibration = result.chosen.policy, result.to_dict()
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
    """See `calibrate`. This changes nothing of the engine."""
    inputs, model = as_list(inputs), engine.model
    confidence = check_method(method, promise, confidence)
    check_promise(promise, labels, model)
    check_int("rounds", rounds, 1)
    check_int("speed_samples", speed_samples, 1)
    _check_engine(engine, promise)
    truth = None if labels is None else label_ids(labels, len(inputs), model.config.label2id)
    families = families_of(model)
    confidences = _confidences(families, confidence)
    samples = _samples(engine, inputs, truth, promise, samples_for(promise, confidences.values()))
    search = Search(engine, samples, families, confidences, promise, method, rounds, speed_samples)
    chosen, candidates, unsafe, curve = search.run()
    return Calibration(
        promise=promise,
        method=method,
        confidence=confidence,
        samples=len(samples.inputs),
        dtype=engine.dtype,
        device=model.device.type,
        max_length=engine.max_length,
        truncation=engine.truncation,
        exit_table=None if model.exit_table is None else model.exit_table.digest(),
        exit_temperatures=None if model.exit_config.temperatures is None else list(model.exit_config.temperatures),
        chosen=chosen,
        candidates=candidates,
        unsafe=unsafe,
        curve=curve,
    )


def _check_engine(engine: Engine, promise: tuple[str, float]) -> None:
    """Raise ValueError for a model without classes, or a policy against whose full depth nothing can be promised."""
    if engine.model.config.num_labels < 2:
        raise ValueError("calibrate needs classes: a regression model (num_labels=1) runs at full or constant depth")
    if engine.policy.skip_on(engine.model).mode == "planned" and promise[0] in PROMISES_ON_ANSWERS:
        raise ValueError(
            f"{promise[0]} is promised against the model at full depth, but with '+skip:planned' even that follows predicted "
            "paths: calibrate an engine of policy 'full+skip:gates' or 'full+skip:never', or to a mean_depth or speedup"
        )


def _confidences(families: Sequence[Family], confidence: float | None) -> dict[str, float | None]:
    """Family -> the confidence of its own test. The fastest of several is taken, so that each has its part of the error."""
    if confidence is None:
        return dict.fromkeys((family.name for family in families), None)
    return {name: 1 - (1 - confidence) * share for name, share in error_shares(families).items()}


def _samples(engine: Engine, inputs: list[Any], truth: torch.Tensor | None, promise: tuple[str, float], needed: int) -> Samples:
    """Every exit's answers to the inputs that the exit table does not know. ValueError where they are fewer than `needed`."""
    refuse_too_few(promise, len(inputs), needed)
    record = engine.every_exit(inputs)
    rows = _unknown(engine.model, record.tokens)
    if known := len(inputs) - len(rows):
        refuse_too_few(promise, len(rows), needed, f", once {known} that the exit table knows are left out")
        warn(
            f"inputs: {known} of {len(inputs)} texts are among those that the exit table was built from, which prove nothing: "
            "they are left out"
        )
        record, inputs = record.select(rows), [inputs[row] for row in rows.tolist()]
        truth = None if truth is None else truth[rows]
    _warn_of_repeated(record.tokens)
    return Samples(inputs, record, truth)


def _unknown(model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
    """[M] int64, the samples that the exit table was not built from. On its own texts it does better than on others."""
    table = model.exit_table
    if table is None or table.text_hashes is None:
        if table is not None:
            warn(
                "the exit table does not know its texts, so nothing shows whether it was built from these: they must be others"
            )
        return torch.arange(len(tokens))
    return (~torch.isin(tokens.hashes(), table.text_hashes)).nonzero()[:, 0]


def _warn_of_repeated(tokens: Tokens) -> None:
    """Warn of many equal texts. Texts may come again as often as they will be served, but a list must not be repeated."""
    texts = tokens.hashes()
    distinct = texts.unique().numel()
    if distinct < FEWEST_DISTINCT * len(texts):
        warn(f"only {distinct} of {len(texts)} texts are distinct: a promise takes each for a text of its own, drawn anew")

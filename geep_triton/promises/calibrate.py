"""Calibration: the choice of the fastest policy that keeps a promise, on a user's own texts and machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from geep_triton.answers import Answers, Score
from geep_triton.checks import check_int, check_kind
from geep_triton.engine.checks import as_list
from geep_triton.engine.engine import Engine
from geep_triton.engine.promise import Promise
from geep_triton.engine.truth import true_answers
from geep_triton.exit_config import Promises
from geep_triton.modeling.int8_layers import Int8Layers
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.text import parse_policy
from geep_triton.promises.breakdown import breakdown
from geep_triton.promises.calibration import Calibration
from geep_triton.promises.contenders import AUTO, Samples, check_dtypes, contenders, int8_layers_kept, with_scales
from geep_triton.promises.families import FULL, Family, error_shares, families_of
from geep_triton.promises.guarantees import warn_of_repeated
from geep_triton.promises.search import Cell, Search, cells_of
from geep_triton.promises.terms import Term, check_method, read_terms, refuse_too_few, samples_for
from geep_triton.runners.base import Runner
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import Inputs
from geep_triton.warn import warn


def calibrate(
    engine: Engine,
    inputs: Inputs,
    labels: Sequence[Any] | None = None,
    *,
    agreement: float | None = None,
    label_agreement: float | Mapping[str, float] | None = None,
    class_recall: Mapping[str, float] | None = None,
    max_accuracy_drop: float | None = None,
    mean_depth: float | None = None,
    speedup: float | None = None,
    decision: float | Sequence[float] | None = None,
    tolerance: float | None = None,
    dtypes: str | Sequence[str] | None = None,
    method: str = "learn-then-test",
    confidence: float | None = None,
    rounds: int = 3,
    speed_samples: int = 512,
    save: bool = True,
) -> Calibration:
    """Find the fastest policy that keeps promises on answers, or the most faithful policy within a budget, and use it.

    Several promises on answers may be asked for, and are kept together, each with the confidence. What the same answer is
    depends on the model: the same class; the same set of labels; for a score the same side of the decision, and a difference of
    at most the tolerance, as far as they are set.

    A promise on answers holds with `confidence` for texts like the given ones (fixed-sequence Learn-then-Test, Angelopoulos et
    al. 2021; `geep_triton.promises.families.error_shares` says how the families of policies share the error). By the method
    "conformal" it holds on average over the texts that might have been given (conformal risk control, Angelopoulos et al.
    2022). That is bolder and needs fewer texts, but one calibration may fall short. Families that break promises more easily
    where texts change (`geep_triton.promises.families.FRAGILE`) are taken only where they are clearly faster. `mean_depth` and
    `speedup` promise nothing about answers: of all policies that are cheap enough, the one that agrees most is taken. The full
    model is the model at its last exit. It skips layers as the engine's policy says, and so does the policy that is found.

    `dtypes` are tried besides the engine's own, on a CPU: each runs by the fastest runner for it, and its answers are compared
    with the full model in the engine's own dtype, float32. A dtype has its part of the error, and only one that keeps the
    promise at full depth is taken. So a calibrated engine is as fast as the fastest full depth that keeps the promise, or
    faster. Texts that gave layers in int8 their scales do not judge them: where the model has no such layers, up to half of the
    texts give them. `quantize` finds them on other texts beforehand.

    Args:
        engine: it gets the policy that was found.
        inputs: a list of what `predict` takes, or a `datasets.Dataset`. The model was not trained on them. Those that the exit
            table was built from are left out, with a warning. More inputs can show bolder policies to be safe.
        labels: the true answers, one per text: names or ids; numbers for a score; lists of names for sets of labels. Only
            "max_accuracy_drop" needs them.
        agreement: the share of texts that must get the full model's answer, e.g. .98.
        label_agreement: of a multi-label model: for each label, the share of texts for which it must be given, or not given, as
            by the full model. One share for all labels, or a share for some by name.
        class_recall: class or label by name -> the share of those texts that must get it to which the full model gives it, e.g.
            {"toxic": .99}. It does not bound how many others get it too: ask for an agreement besides.
        max_accuracy_drop: by how much accuracy may lie below the full model's, e.g. .01. A set of labels is right as a whole; a
            score is right where it would agree with the true one.
        mean_depth: how many layers a text may take on average.
        speedup: how many times as fast as full depth, measured here.
        decision: see `ExitConfig`; it becomes the model's own. None: the model's own counts.
        tolerance: the same.
        dtypes: a list with "bfloat16", "int8" or both; or "auto": those of them in which this CPU has instructions for
            products. []: only runners are compared. None: the engine's own dtype and runner.
        method: "learn-then-test" or "conformal".
        confidence: of a promise by "learn-then-test"; None: .95.
        rounds: speed is the median of so many interleaved rounds.
        speed_samples: speed is measured on so many texts.
        save: keep the policy in `model.exit_config`, so that `save_pretrained` saves it and `Engine(...)` uses it.

    Raises:
        ValueError: there is no promise, or a budget besides another; a value is out of range or does not fit the model;
            the texts that the exit table does not know are too few (the error says how many are needed); labels do not fit; no
            policy is as fast as asked; dtypes are given for an engine that is not in float32, whose model is on another device
            or was converted in place (`Engine.from_pretrained` does so); and whatever `predict` and `quantize` raise.
        TypeError: `engine` is no engine, or inputs have another type.
    """
    check_kind("engine", engine, Engine)
    given = {
        "agreement": agreement, "label_agreement": label_agreement, "class_recall": class_recall,
        "max_accuracy_drop": max_accuracy_drop, "mean_depth": mean_depth, "speedup": speedup,
    }  # fmt: skip
    promises = {name: value for name, value in given.items() if value is not None}
    with _judged_by(engine.model, decision, tolerance):
        outcome = find_policy(engine, inputs, labels, promises, method, confidence, rounds, speed_samples, dtypes)
    result = outcome.calibration
    if outcome.runner is not engine.runner:
        engine.runner = outcome.runner
    engine.policy = result.chosen.policy
    engine.promise = Promise.made(engine.model, result.promises, result.reference)
    if save:
        served = engine.model.exit_config
        served.policy, served.calibration = result.chosen.policy, result.to_dict()
        engine.model.int8_layers = outcome.int8_layers
    return result


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `find_policy` found.

    Attributes:
        calibration: as `calibrate` returns it.
        runner: of the engine under the chosen policy.
        int8_layers: that the model shall have: in int8 those of the runner, else those that it had.
    """

    calibration: Calibration
    runner: Runner[Any]
    int8_layers: Int8Layers | None


def find_policy(
    engine: Engine,
    inputs: Any,
    labels: Sequence[Any] | None,
    promises: Promises,
    method: str,
    confidence: float | None,
    rounds: int,
    speed_samples: int,
    dtypes: str | Sequence[str] | None = None,
) -> Outcome:
    """See `calibrate`. This changes nothing of the engine and its model."""
    inputs, model = as_list(inputs), engine.model
    terms = read_terms(promises, labels, model)
    confidence = check_method(method, terms, confidence)
    check_int("rounds", rounds, 1)
    check_int("speed_samples", speed_samples, 1)
    _check_engine(engine, terms[0])
    others = check_dtypes(dtypes, engine)
    truth = None if labels is None else true_answers(labels, len(inputs), model.config)
    families = families_of(model)
    # Policies in the engine's own dtype shall have a chance: by them goes how many texts are needed.
    shared = confidences_of(families, [engine.dtype, *others], confidence)
    own = [share for (dtype, _), share in shared.items() if dtype == engine.dtype]
    samples = _samples(engine, inputs, truth, {term: samples_for(term, own) for term in terms})
    with int8_layers_kept(model):
        if "int8" in others:
            judges = max(samples_for(term, [shared["int8", FULL]]) for term in terms)
            ordered = with_scales(engine, samples, judges, dtypes == AUTO)
            samples = samples if ordered is None else ordered
            others = [dtype for dtype in others if dtype != "int8" or ordered is not None]
        confidences = confidences_of(families, [engine.dtype, *others], confidence)
        running = {one.dtype: one for one in contenders(engine, samples, others, dtypes is not None)}
        int8_layers = model.int8_layers
    cells = cells_of(families, list(running))
    search = Search(list(running.values()), samples, cells, confidences, terms, method, rounds, speed_samples)
    found = search.run()
    chosen, taken, judging = found.chosen, running[found.chosen.dtype or engine.dtype], search.judging(found.chosen)
    full, policy = samples.record.logits[judging, -1], parse_policy(chosen.policy)
    calibration = Calibration(
        promises=dict(promises),
        method=method,
        confidence=confidence,
        samples=len(samples.inputs),
        dtype=taken.dtype,
        device=model.device.type,
        runner=taken.engine.runner.name,
        reference=engine.dtype,
        int8_layers=int8_layers.digest() if taken.dtype == "int8" and int8_layers is not None else None,
        max_length=engine.max_length,
        truncation=engine.truncation,
        exit_table=None if model.exit_table is None else model.exit_table.digest(),
        exit_temperatures=None if model.exit_config.temperatures is None else list(model.exit_config.temperatures),
        decision=model.exit_config.decision,
        tolerance=model.exit_config.tolerance,
        chosen=chosen,
        candidates=found.candidates,
        unsafe=found.unsafe,
        curve=found.curve,
        full_depths=found.full_depths,
        runner_speeds={dtype: contender.runner_speeds for dtype, contender in running.items() if contender.runner_speeds},
        breakdown=breakdown(model, policy, taken.record.select(judging), full),
    )
    return Outcome(calibration, taken.engine.runner, int8_layers if taken.dtype == "int8" else model.int8_layers)


@contextmanager
def _judged_by(model: MultiExitBert, decision: float | Sequence[float] | None, tolerance: float | None) -> Iterator[None]:
    """Set the model's decision and tolerance where they are given. If the calibration fails, they are as they were."""
    served, before = model.exit_config, (model.exit_config.decision, model.exit_config.tolerance)
    try:
        served.judge_by(decision, tolerance)
        _ = model.answers
        yield
    except BaseException:
        served.decision, served.tolerance = before
        raise


def _check_engine(engine: Engine, term: Term) -> None:
    """Raise ValueError for a policy against whose full depth nothing can be promised."""
    if engine.policy.skip_on(engine.model).mode == "planned" and term.on_answers:
        raise ValueError(
            f"{term.name} is promised against the model at full depth, but with '+skip:planned' even that follows predicted "
            "paths: calibrate an engine of policy 'full+skip:gates' or 'full+skip:never', or to a mean_depth or speedup"
        )


def confidences_of(families: Sequence[Family], dtypes: Sequence[str], confidence: float | None) -> dict[Cell, float | None]:
    """The confidence of each cell's own test. The fastest of several is taken, so that each has its part of the error.

    Dtypes have equal parts. Families share that of their dtype once its full depth has passed with the whole; see
    `geep_triton.promises.search.Search.choose`.
    """
    cells = cells_of(families, dtypes)
    if confidence is None:
        return dict.fromkeys(cells, None)
    shares = error_shares(families)
    return {cell: 1 - (1 - confidence) * (shares.get(cell[1], 1.0) / len(dtypes)) for cell in cells}


def _samples(engine: Engine, inputs: list[Any], truth: torch.Tensor | None, needed: Mapping[Term, int]) -> Samples:
    """Every exit's answers to the inputs that the exit table does not know. ValueError where they are fewer than `needed`."""
    for term, least in needed.items():
        refuse_too_few(term, len(inputs), least)
    record = engine.every_exit(inputs)
    rows = _unknown(engine.model, record.tokens)
    if known := len(inputs) - len(rows):
        for term, least in needed.items():
            refuse_too_few(term, len(rows), least, f", once {known} that the exit table knows are left out")
        warn(
            f"inputs: {known} of {len(inputs)} texts are among those that the exit table was built from, which prove nothing: "
            "they are left out"
        )
        record, inputs = record.select(rows), [inputs[row] for row in rows.tolist()]
        truth = None if truth is None else truth[rows]
    for term, least in needed.items():
        if term.name == "class_recall":
            having = int(engine.model.answers.given(record.logits[:, -1])[:, term.label].sum())
            refuse_too_few(term, having, least, f" (of all {len(inputs)} texts, those to which the full model gives it)")
    warn_of_repeated(record.tokens.hashes().unique().numel(), len(inputs), "texts", "text")
    _warn_of_one_answer(engine.model.answers, record.logits[:, -1])
    return Samples.shuffled(inputs, record, truth)


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


def _warn_of_one_answer(answers: Answers, full: torch.Tensor) -> None:
    """Warn where the full model's logits [N, C] are one answer: exits that know no text give it too."""
    if not isinstance(answers, Score):
        given = answers.given(full)
        if bool((given == given[:1]).all()):
            names = [answers.id2label[index] for index in given[0].nonzero()[:, 0].tolist()]
            warn(f"the full model gives all {len(full)} texts the same answer, {names}: that exits agree shows little")
        return
    if answers.decision is None:
        return
    above = answers.given(full)
    if above.all() or not above.any():
        scores = answers.scores(full)
        warn(
            f"the full model's scores of all {len(full)} texts lie on one side of the decision {answers.decision:g} (they are "
            f"{float(scores.min()):.3g} to {float(scores.max()):.3g}): that they stay there shows little"
        )

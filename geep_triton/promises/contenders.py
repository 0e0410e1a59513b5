"""The ways of running layers that a calibration compares: the model's own dtype, and lower ones against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from geep_triton.checks import check_choice, shorten
from geep_triton.compat import has_onednn_int8
from geep_triton.engine.engine import Engine
from geep_triton.engine.predictions import EveryExit
from geep_triton.engine.quantize import FEWEST_TEXTS, TOKENS, quantize
from geep_triton.modeling.int8_layers import layers_digest
from geep_triton.modeling.model import MultiExitBert
from geep_triton.promises.speeds import full_depth, speeds_of
from geep_triton.promises.terms import CannotPromise
from geep_triton.runners.make import DTYPES, check_quantizable, dtype_name, make_runner, multiplied_here, runners_to_compare
from geep_triton.warn import warn

AUTO = "auto"
SEED = 0
TIMED, ROUNDS = 64, 3  # texts and rounds in which runners are compared


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a calibration.

    Attributes:
        inputs: N inputs.
        record: every exit's answers to them.
        truth: their true answers, as `geep_triton.engine.truth.true_answers` gives them; None: not known.
        order: [N] int64, the random order in which they fit, judge and are timed.
        gave_scales: so many of the first samples in this order gave the model's layers in int8 their scales.
    """

    inputs: list[Any]
    record: EveryExit
    truth: torch.Tensor | None
    order: torch.Tensor
    gave_scales: int = 0

    @classmethod
    def shuffled(cls, inputs: list[Any], record: EveryExit, truth: torch.Tensor | None) -> Samples:
        """Put them into a random order, always the same."""
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(SEED))
        return cls(inputs, record, truth, order)


@dataclass(frozen=True, eq=False)
class Contender:
    """One way of running layers, and what it answered.

    Attributes:
        engine: it runs layers so.
        record: every exit's answers to the samples.
        seen: so many of the first samples in their order made its layers, so that others must judge it.
        runner_speeds: runner -> texts a second at full depth, where its runner was chosen by them.
    """

    engine: Engine
    record: EveryExit
    seen: int = 0
    runner_speeds: Mapping[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Of its layers."""
        return self.engine.dtype


def check_dtypes(dtypes: str | Sequence[str | torch.dtype] | None, engine: Engine) -> list[str]:
    """The dtypes to try besides the engine's own.

    Args:
        dtypes: as `calibrate` is given them. "auto": those in which this CPU has instructions for products, without int8 where
            the model has no layers for it.
        engine: whose full depth they are compared with.

    Raises:
        ValueError: a dtype is unknown or not for this model, or the engine cannot be compared with others.
        TypeError: `dtypes` is no list of names.
    """
    if dtypes is None:
        return []
    model = engine.model
    if dtypes != AUTO and (isinstance(dtypes, str) or not isinstance(dtypes, Sequence)):
        raise TypeError(f"dtypes must be a list of names, or {AUTO!r}, got {shorten(dtypes)}")
    names = multiplied_here() if dtypes == AUTO else [str(name).removeprefix("torch.") for name in dtypes]
    for name in names:
        check_choice("each of dtypes", name, [name for name in DTYPES if name != "float16"])
    if model.device.type != "cpu":
        raise ValueError(f"dtypes are compared on a CPU, got a model on {model.device.type}: give the engine one dtype")
    if model.converted is not None:
        raise ValueError(
            "dtypes: the engine converted its model, which other dtypes need as it was: "
            "Engine(MultiExitBert.from_pretrained(...), tokenizer, 'full')"
        )
    if engine.dtype != "float32" or dtype_name(model) != "float32":
        raise ValueError(
            "dtypes are compared with a model in float32 that runs in float32, got one in "
            f"{dtype_name(model)} that runs in {engine.dtype}: Engine(model, tokenizer, 'full', dtype='float32')"
        )
    if model.exit_config.ranking is not None:
        raise ValueError(
            "dtypes: the model's ranking was calibrated in one dtype, and would be served in another: set "
            "model.exit_config.ranking = None first, and calibrate the ranking again afterwards"
        )
    if "int8" in names and (why := why_no_int8(model)):
        if dtypes != AUTO:
            raise ValueError(f"dtypes: {why}")
        warn(f"dtype 'int8' is left out: {why}")
        names.remove("int8")
    return [name for name in dict.fromkeys(names) if name != engine.dtype]


def why_no_int8(model: MultiExitBert) -> str:
    """Why the model has no layers in int8; empty where it can have them."""
    if not has_onednn_int8():
        return "this torch comes without oneDNN's int8 products"
    try:
        check_quantizable(model, "int8")
    except ValueError as error:
        return str(error)
    return ""


def with_scales(engine: Engine, samples: Samples, judges: int, leave_out: bool) -> Samples | None:
    """Have the model's layers in int8, and put the samples first that gave them their scales: others must judge them.

    Layers that the model has stay. Else they get their scales from samples, at most half of them.

    Args:
        engine: it records no samples here.
        samples: of the calibration.
        judges: how many samples must be left to judge.
        leave_out: give up, with a warning, instead of raising an error where there are too few samples.

    Returns:
        The samples in their new order; None: they are too few.

    Raises:
        CannotPromise: they are too few.
    """
    model, tokens = engine.model, samples.record.tokens
    if model.int8_layers is None or model.int8_layers.source != layers_digest(model):
        judges = max(judges, FEWEST_TEXTS)
        if len(tokens) < FEWEST_TEXTS + judges:
            why = (
                f"{len(tokens)} texts are too few for dtype 'int8': at least {FEWEST_TEXTS + judges} are needed, "
                f"{FEWEST_TEXTS} for its scales and {judges} to judge it; or give the model int8_layers of other texts"
            )
            if not leave_out:
                raise CannotPromise(why)
            warn(f"{why}; it is left out")
            return None
        enough = int((tokens.lengths[samples.order].cumsum(0) < TOKENS).sum())
        count = max(FEWEST_TEXTS, min(enough, len(tokens) // 2, len(tokens) - judges))
        texts = [samples.inputs[row] for row in samples.order[:count].tolist()]
        settings: dict[str, Any] = {name: getattr(engine, name) for name in ("max_length", "truncation", "columns", "progress")}
        model.int8_layers = quantize(model, engine.tokenizer, texts, **settings)
    gave = torch.isin(tokens.hashes(), model.int8_layers.text_hashes)[samples.order]
    return replace(samples, order=torch.cat([samples.order[gave], samples.order[~gave]]), gave_scales=int(gave.sum()))


def contenders(engine: Engine, samples: Samples, dtypes: Sequence[str], compare_runners: bool) -> list[Contender]:
    """The engine itself, and an engine for each of `dtypes`, with its answers to the samples.

    Args:
        engine: whose policies and settings the others have.
        samples: that all answer.
        dtypes: of the others.
        compare_runners: let each run by the fastest runner, the engine's own among them.
    """
    found = [Contender(engine, samples.record)]
    if compare_runners:
        own, speeds = with_fastest_runner(engine, engine.dtype, samples)
        found = [Contender(own, samples.record, runner_speeds=speeds)]
    for dtype in dtypes:
        other, speeds = with_fastest_runner(engine, dtype, samples)
        seen = samples.gave_scales if dtype == "int8" else 0
        found.append(Contender(other, other.every_exit(samples.inputs), seen, speeds))
    return found


def with_fastest_runner(engine: Engine, dtype: str, samples: Samples) -> tuple[Engine, dict[str, float]]:
    """The engine in a dtype by the runner that is fastest at full depth, and texts a second of all that were tried."""
    model = engine.model
    runners = {engine.runner.name: engine.runner} if dtype == engine.dtype else {}
    for name in runners_to_compare(model, dtype):
        if name not in runners:
            runners[name] = make_runner(model, name, dtype)
    engines = {name: engine if one is engine.runner else engine.with_runner(one) for name, one in runners.items()}
    if len(engines) == 1:
        return next(iter(engines.values())), {}
    inputs = [samples.inputs[row] for row in samples.order.flip(0)[:TIMED].tolist()]
    speeds = speeds_of({name: (one, full_depth(one)) for name, one in engines.items()}, inputs, ROUNDS, engine.progress)
    return engines[max(speeds, key=lambda name: speeds[name])], speeds


@contextmanager
def int8_layers_kept(model: MultiExitBert) -> Iterator[None]:
    """Give a model its layers in int8 back after the block."""
    before = model.int8_layers
    try:
        yield
    finally:
        model.int8_layers = before

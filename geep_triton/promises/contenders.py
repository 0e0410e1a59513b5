"""The ways of running layers that a calibration compares: the model's own dtype, and lower ones against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from geep_triton.checks import check_choice, shorten
from geep_triton.engine.engine import Engine
from geep_triton.engine.predictions import EveryExit
from geep_triton.engine.quantize import FEWEST_TEXTS, TOKENS, quantize
from geep_triton.modeling.int8_layers import layers_digest
from geep_triton.modeling.model import MultiExitBert
from geep_triton.promises.terms import CannotPromise
from geep_triton.runners.fastest import fastest, layer_seconds, multiplied_here
from geep_triton.runners.make import DTYPES, check_convertible, dtype_name, has_choice, make_runner

AUTO = "auto"
SEED = 0


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a calibration.

    Attributes:
        inputs: N inputs.
        record: every exit's answers to them.
        truth: their true answers, as `geep_triton.engine.truth.true_answers` gives them; None: not known.
        order: [N] int64, the random order in which they fit, judge and are timed.
    """

    inputs: list[Any]
    record: EveryExit
    truth: torch.Tensor | None
    order: torch.Tensor

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
        seen: so many of the first samples in their order gave its layers their scales, so that others must judge it.
        layer_seconds: runner -> seconds of a layer, where its runner was chosen by them.
    """

    engine: Engine
    record: EveryExit
    seen: int = 0
    layer_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Of its layers."""
        return self.engine.dtype


def check_dtypes(dtypes: str | Sequence[str] | None, engine: Engine) -> list[str]:
    """The dtypes to try besides the engine's own.

    Args:
        dtypes: as `calibrate` is given them. "auto": those in which this CPU has instructions for products, if the model's
            layers can be converted.
        engine: whose full depth they are compared with.

    Raises:
        ValueError: a dtype is unknown, the engine cannot be compared with others, or its model cannot be converted.
        TypeError: `dtypes` is no list of names.
    """
    if dtypes is None:
        return []
    model = engine.model
    if isinstance(dtypes, str) and dtypes != AUTO:
        raise TypeError(f"dtypes must be a list of names, or {AUTO!r}, got {shorten(dtypes)}")
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
            f"{dtype_name(model)} that runs in {engine.dtype}"
        )
    check_convertible(model, "dtypes")
    names = multiplied_here() if dtypes == AUTO else list(dtypes)
    for name in names:
        check_choice("each of dtypes", name, [name for name in DTYPES if name != "float16"])
    return [name for name in dict.fromkeys(names) if name != engine.dtype]


def contenders(engine: Engine, samples: Samples, dtypes: Sequence[str], seconds: Mapping[str, float]) -> list[Contender]:
    """The engine itself, and an engine for each of `dtypes`, with its answers to the samples.

    Layers in int8 that the model does not have get their scales from the first samples.

    Args:
        engine: whose policies and settings the others have.
        samples: that all answer.
        dtypes: of the others.
        seconds: of a layer of the engine, where its runner was chosen by them.
    """
    found = [Contender(engine, samples.record, layer_seconds=seconds)]
    for dtype in dtypes:
        seen = _find_scales(engine, samples) if dtype == "int8" else 0
        other, seconds = with_fastest_runner(engine, dtype)
        found.append(Contender(other, other.every_exit(samples.inputs), seen, seconds))
    return found


def with_fastest_runner(engine: Engine, dtype: str) -> tuple[Engine, dict[str, float]]:
    """The engine in a dtype, with the faster of the runners for it, and their seconds of a layer where there are several."""
    model = engine.model
    seconds = layer_seconds(model, dtype) if has_choice(model, dtype) else {}
    name = fastest(seconds) if seconds else "onednn" if dtype == "int8" else "torch"
    if (name, dtype) == (engine.runner.name, engine.dtype):
        return engine, seconds
    return engine.with_runner(make_runner(model, name, dtype)), seconds


def _find_scales(engine: Engine, samples: Samples) -> int:
    """Quantize the model if it has no layers in int8 of its own weights. Returns how many of the first samples that took."""
    model = engine.model
    if model.int8_layers is not None and model.int8_layers.source == layers_digest(model):
        return 0
    lengths = samples.record.tokens.lengths[samples.order]
    if len(lengths) < 2 * FEWEST_TEXTS:
        raise CannotPromise(
            f"{len(lengths)} texts are too few for dtype 'int8': at least {2 * FEWEST_TEXTS} are needed, a half for its scales "
            "and a half to judge it"
        )
    count = max(FEWEST_TEXTS, int((lengths.cumsum(0) < TOKENS).sum()))
    count = min(count, len(lengths) // 2)
    texts = [samples.inputs[row] for row in samples.order[:count].tolist()]
    settings = {"max_length": engine.max_length, "truncation": engine.truncation, "columns": engine.columns}
    model.int8_layers = quantize(model, engine.tokenizer, texts, progress=engine.progress, **settings)
    return count


@contextmanager
def int8_layers_kept(model: MultiExitBert) -> Iterator[None]:
    """Give a model its layers in int8 back if the block fails."""
    before = model.int8_layers
    try:
        yield
    except BaseException:
        model.int8_layers = before
        raise

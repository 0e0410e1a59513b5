"""Calls everything that a user can call with wrong arguments, which must raise a TypeError or ValueError on purpose.

An error is on purpose if it comes from a `raise` of this package, for fields of a configuration from transformers' check of
that field, and for paths from Python itself. An error that torch or Python stumbles over later is not. A refused call leaves
nothing behind: the engine answers as before.
"""

from __future__ import annotations

import linecache
import random
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

import geep_triton
from bench.faults.callables import targets
from bench.faults.campaign import Outcome, Part
from bench.faults.material import make_texts
from bench.faults.target import Target
from geep_triton import Engine
from geep_triton.checks import shorten

PACKAGE = Path(geep_triton.__file__).parent
TEXTS = make_texts(4, 3, odd=0.0)


@dataclass
class Made:
    """Everything that is called, the engine that all calls share, and its answers."""

    targets: list[Target]
    engine: Engine
    logits: torch.Tensor


def prepare(folder: Path) -> Made:
    """Make small models and all that is called of them."""
    found = targets(folder)
    engine = next(target.call.__self__ for target in found if target.name == "Engine.predict")
    return Made(found, engine, engine.predict(TEXTS).logits)


def case(made: Made, folder: Path, seed: int) -> Outcome:
    """Make one call with one or two wrong arguments."""
    random_, outcome = random.Random(seed), Outcome()
    target = random_.choice(made.targets)
    names = [name for name in target.refuses if target.refuses[name]()]
    chosen = random_.sample(names, 2 if len(names) > 1 and random_.random() < 0.2 else 1)
    wrong = {name: random_.choice(target.refuses[name]()) for name in chosen}
    words = f"{target.name}({', '.join(f'{name}={shorten(value, 60)}' for name, value in wrong.items())})"
    outcome.counts[target.name.partition("(")[0]] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = target.call(**(dict(target.valid) | wrong))
    except Exception as error:
        if (why := not_on_purpose(error, list(wrong))) is not None:
            outcome.faults.append(f"{words}: {why}")
    else:
        outcome.faults.append(f"{words}: taken without a word, gave {shorten(found, 60)}")
    if not torch.equal(made.engine.predict(TEXTS).logits, made.logits):
        outcome.faults.append(f"{words}: the engine answers otherwise since then")
    return outcome


def not_on_purpose(error: Exception, names: list[str]) -> str | None:
    """What is wrong with the error that a wrong argument raised; None: it says what was wrong."""
    text, frame = str(error), traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {shorten(text, 160)} ({Path(frame.filename).name}:{frame.lineno})"
    if isinstance(error, StrictDataclassError):
        return None if any(name in text for name in names) else said
    if isinstance(error, OSError) or "PathLike" in text or "null byte" in text:
        return None  # what opening a file raises says which file, or what a path must be
    if not isinstance(error, (TypeError, ValueError)):
        return said
    line = linecache.getline(frame.filename, frame.lineno).strip()
    ours = Path(frame.filename).is_relative_to(PACKAGE) and line.startswith("raise")
    return None if ours and len(text.split()) > 2 else said


PART = Part("inputs", "a call with arguments that are wrong", prepare, case)

"""Timing policies on engines, in turns."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, TypeVar

from tqdm.auto import tqdm

from geep_triton.engine.engine import Engine
from geep_triton.policies.policy import OneExitWarning, Policy
from geep_triton.policies.start import LastLayer
from geep_triton.timing import rates

WARM_UP = 64  # inputs
Name = TypeVar("Name", bound=Hashable)


def full_depth(engine: Engine) -> Policy:
    """All layers, skipping as the engine's policy does."""
    return Policy(LastLayer(), skip=engine.policy.skip)


def speeds_of(
    runs: Mapping[Name, tuple[Engine, Policy]], inputs: list[Any], rounds: int, progress: bool = False
) -> dict[Name, float]:
    """Samples a second of each policy on its engine: the median of interleaved rounds after a warm-up."""
    for engine, _ in runs.values():
        _ = engine.layer_costs  # measured once, for all of its policies
    engines = {name: engine.with_policy(policy) for name, (engine, policy) in runs.items()}
    bar = tqdm(total=rounds * len(engines), desc="measure", unit=" runs", disable=not progress)
    with warnings.catch_warnings(), bar:
        warnings.simplefilter("ignore", OneExitWarning)  # candidates, not what the user chose
        for e in engines.values():
            e.progress = False
            e.predict(inputs[:WARM_UP])
        calls = {name: partial(e.predict, inputs) for name, e in engines.items()}
        return rates(calls, len(inputs), rounds, lambda name: bar.update())

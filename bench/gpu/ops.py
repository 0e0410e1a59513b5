"""Part 5: each op beside its rivals at the shapes that the engine makes, and its launch configurations by graph replay."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench.gpu.setting import Cells, Setting
from bench.ops import MAKERS, Case, all_cases, first_case, measure, rows_of
from bench.tune import tuned

ROUNDS = 11


def cases(setting: Setting) -> Iterator[Case]:
    """All sizes; in a rehearsal the smallest of each op."""
    device = setting.machine.device
    if setting.machine.rehearsal:
        return (first_case(op, device) for op in MAKERS)
    return all_cases(device)


def cells(setting: Setting) -> Cells:
    for case in cases(setting):
        # How far a search went differs from run to run.
        size = (f"{key} {value:g}" for key, value in case.config.items() if key != "probes")
        name = ", ".join([case.op, *size])
        yield name, partial(beside_rivals, setting, case)
        yield f"tune, {name}", partial(configurations, setting, case)


@torch.inference_mode()
def beside_rivals(setting: Setting, case: Case) -> dict[str, Any]:
    """A row a provider."""
    rounds = 2 if setting.machine.rehearsal else ROUNDS
    return {"ops": list(rows_of(case, measure(case, setting.machine.device, rounds)))}


def configurations(setting: Setting, case: Case) -> dict[str, Any]:
    """Candidates, fastest first."""
    return {"candidates": tuned(case, setting.machine)}

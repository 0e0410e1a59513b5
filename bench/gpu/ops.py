"""Part 6: each op beside its rivals at the shapes that the engine makes, and its launch configurations by graph replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench.gpu.setting import Cells, Setting
from bench.ops.cases import MAKERS, Case, all_cases, first_case, measure, rows_of
from bench.ops.tune import tuned

ROUNDS = 11
TUNED = 3  # cases of an op


def cases(setting: Setting) -> Iterator[Case]:
    """All sizes; in a rehearsal the smallest of each op."""
    device = setting.machine.device
    if setting.machine.rehearsal:
        return (first_case(op, device) for op in MAKERS)
    return all_cases(device)


def cells(setting: Setting) -> Cells:
    for case in cases(setting):
        yield name_of(case), partial(beside_rivals, setting, case)
    tuned_before: Counter[str] = Counter()
    for case in cases(setting):
        tuned_before[case.op] += 1
        if tuned_before[case.op] <= TUNED:
            yield f"tune, {name_of(case)}", partial(configurations, setting, case)


def name_of(case: Case) -> str:
    """The op and its sizes, but for how far a search went, which differs from run to run."""
    return ", ".join([case.op, *(f"{key} {value:g}" for key, value in case.config.items() if key != "probes")])


@torch.inference_mode()
def beside_rivals(setting: Setting, case: Case) -> dict[str, Any]:
    """A row a provider."""
    rounds = 2 if setting.machine.rehearsal else ROUNDS
    return {"ops": list(rows_of(case, measure(case, setting.machine.device, rounds)))}


def configurations(setting: Setting, case: Case) -> dict[str, Any]:
    """Candidates, fastest first."""
    return {"candidates": tuned(case, setting.machine)}

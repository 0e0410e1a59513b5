"""Part 7 times each op beside its rivals at the shapes that the engine makes, and its launch configurations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch

from bench.gpu.setting import Cells, Setting
from bench.ops.cases import MAKERS, Case, all_cases, first_case, found_of, measure
from bench.ops.tune import tuned
from bench.rows import Found

ROUNDS = 11
TUNED = 3  # cases of an op


def cases(setting: Setting) -> Iterator[Case]:
    """The cases of all sizes, or in a rehearsal the smallest of each op."""
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
            yield f"tune, {name_of(case)}", partial(tuned, case, setting.machine)


def name_of(case: Case) -> str:
    """The op and its sizes, without how far a search went, since that differs from run to run."""
    return ", ".join([case.op, *(f"{key} {value:g}" for key, value in case.config.items() if key != "probes")])


@torch.inference_mode()
def beside_rivals(setting: Setting, case: Case) -> list[Found]:
    """The time of each provider of the op."""
    rounds = 2 if setting.machine.rehearsal else ROUNDS
    found = found_of(case, measure(case, setting.machine.device, rounds))
    return [one._replace(config={"op": case.op, **one.config}) for one in found]

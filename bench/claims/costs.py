"""What each way to save reaches at equal FLOPs, from the answers that `bench.claims.train` recorded.

    GEEP_DATA=../shared/data python -m bench.claims.costs --work WORK --backbone E5

Each trained model that has records gets one file: what it reaches where it saves 2, 2.5, 3, .. times the FLOPs of the full
model, which is the last exit of FastBERT (A and D; of GEEP where FastBERT is not trained) or of exits without gates (B). The
full model's own file must be there first, but its records need not stay. Nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell, file_of, has_result, run_missing
from bench.claims import arms
from bench.claims.arms import Arm
from bench.claims.command import parsed, parser_of
from bench.claims.design import LOST_ON_MOST, A, B, D
from bench.claims.design import Cell as Declared
from bench.claims.rows import Rows, rows_of
from bench.claims.runs import Runner
from bench.claims.sets import SETS
from bench.claims.systems import FULL, Records, Truth, commonest, systems_of
from bench.data import data_folder
from bench.environment import RESULTS
from bench.rows import Found, found, read
from bench.rows import records as as_records
from bench.training import declared, digest
from geep_triton.training.dataset import label_names

OUTPUT = RESULTS / "claims" / "costs"
ARMS = {arm.name: arm for experiment in (A, B, D) for arm in experiment.arms}


def run(records: Records, rows: Rows, arm: Arm, full: Mapping[str, Any] | None) -> list[Found]:
    """The systems of an arm.

    Args:
        records: of the data set and the seed.
        rows: of the data set.
        arm: whose records are there.
        full: what the full model's file says of it; None: the arm is the full model.
    """
    truth, facts = Truth.of(records, rows, arm), []
    if full is None:
        full = truth.full(records, arm)
        facts = [found(FULL, full)]
    least = full["tune"] - LOST_ON_MOST[0]
    return [*facts, *(found(name, truth.reached(system, least)) for name, system in systems_of(records, rows, arm))]


def of_data_sets(limit: int | None) -> list[Found]:
    """What is known of each data set that is there, before anything is trained."""
    facts = []
    for data_set in SETS.values():
        if not (data_folder() / data_set.name).is_dir():
            continue
        rows = rows_of(data_set, limit)
        numbers_of = {name: index for index, name in enumerate(label_names(rows.test))}
        labels = torch.tensor([numbers_of[str(row["label"])] for row in rows.test])
        numbers = {"train": len(rows.train), "tune": len(rows.tune), "test": len(rows.test)}
        share = float(labels.bincount().max()) / len(labels)
        score = commonest(data_set, labels, rows.test)
        facts.append(found(data_set.name, {"rows": numbers, "commonest": score, "commonest_share": share}))
    return facts


def known_sets(limit: int | None) -> dict[str, Any]:
    """All that the facts of the data sets follow from."""
    return {"data_sets": [asdict(data_set) for data_set in SETS.values()], "limit": limit}


def declaration_of(cell: Declared, full: Arm, limit: int | None) -> dict[str, Any]:
    """All that the costs of a model follow from, its training and the full model's among it."""
    of_full = {"arm": full.name, "training": digest(declared(replace(cell, arm=full), limit))}
    return declared(cell, limit) | {"full": of_full}


def cells(runner: Runner, output: Path) -> Iterator[Cell]:
    """The data sets, and a cell for each model whose records are there and whose full model has, or gets, a file."""
    yield Cell("data_sets", known_sets(runner.limit), lambda _: of_data_sets(runner.limit))
    early = (dict.fromkeys((*A.data_sets, *D.data_sets)), A.arms, (arms.FASTBERT, arms.GEEP))
    for data_sets, known, fulls in (early, (B.data_sets, B.arms, (arms.EXITS,))):
        for data_set in data_sets:
            for seed in range(1, B.seeds + 1):
                yield from of_seed(runner, output, Records(runner, data_set, seed), known, fulls)


def of_seed(
    runner: Runner, output: Path, records: Records, known: Iterable[Arm], fulls: Sequence[Arm]
) -> Iterator[Cell]:  # fmt: skip
    """The cells of a data set and a seed.

    Args:
        runner: knows the folders of the records.
        output: where the full model's file is.
        records: of the data set and the seed.
        known: arms that get cells.
        fulls: whose last exit may be the full model, the first one that is there.
    """

    def cell_of(arm: Arm) -> Declared:
        return Declared(records.data_set, arm, records.seed)

    def has_file(arm: Arm) -> bool:
        return has_result(output, cell_of(arm).name, declaration_of(cell_of(arm), arm, runner.limit))

    full = next((arm for arm in fulls if records.has(arm) or has_file(arm)), None)
    if full is None:
        return

    def of(arm: Arm) -> list[Found]:
        file = file_of(output, cell_of(full).name)
        facts = None if arm == full else next(one for one in as_records(read(file)) if one["system"] == FULL)
        return run(records, rows_of(records.data_set, runner.limit), arm, facts)

    for arm in (full, *(arm for arm in known if arm != full)):
        if records.has(arm) and (arm not in arms.SMALL or records.has(arms.FASTBERT)):
            declaration = declaration_of(cell_of(arm), full, runner.limit)
            yield Cell(cell_of(arm).name, declaration, lambda _, arm=arm: of(arm))


def main() -> None:
    arguments = parsed(parser_of(__doc__, OUTPUT))
    runner = Runner(arguments.work, arguments.backbone, float("inf"), arguments.limit_samples)
    run_missing("claims", list(cells(runner, arguments.output)), arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()

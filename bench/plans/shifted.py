"""How the families of `calibrate` keep their promises on texts of other kinds than they were calibrated on.

    GEEP_DATA=../shared/data python -m bench.plans.shifted --work WORK --e5 E5

Each model answers texts of its own data set and of the three others, whose every exit is recorded here. Random halves of its
own judge texts calibrate: of each family the boldest setting that is shown to be safe. The other half judges that setting, and
so do the texts of other kinds, where full depth says what each answer should be. Nothing is timed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from bench.answers.data import recorded_rows
from bench.answers.replay import Replay, answered
from bench.answers.tasks import Trained
from bench.answers.training import folder_of
from bench.cells import Cell, run_missing
from bench.environment import RESULTS
from bench.plans.command import parser_of
from bench.plans.library import load
from bench.plans.promised import PROMISES, half_of
from bench.plans.record import recorded, recorded_cells
from bench.plans.tasks import TASKS
from bench.rows import Found, found
from bench.training import declared
from geep_triton.engine.predictions import EveryExit
from geep_triton.promises.terms import Term
from geep_triton.tokens.encoder import Encoder

OUTPUT = RESULTS / "plans" / "shifted"
TEXTS = 1_000  # of each other data set
CALIBRATIONS = 10
STOP_COST = 0.5  # in layers
OWN = "own"


def others_of(cell: Trained, texts: int) -> dict[str, list[dict[str, str]]]:
    """Rows of the data sets that a model was not trained for."""
    rows = {task.name: recorded_rows(task) for task in TASKS if task != cell.task}
    return {name: random.Random(0).sample(of, min(texts, len(of))) for name, of in rows.items()}


def measured(folder: Path, rows: Mapping[str, list[dict[str, str]]], max_length: int, calibrations: int) -> Iterator[Found]:
    """For each family, promise and kind of texts the agreement of its calibrations, and how many of them break the promise."""
    model, tokenizer, record = load(folder)
    encoder = Encoder(tokenizer, max_length, truncation=True)
    kinds = {}
    for name, of_kind in rows.items():
        part = recorded(model, encoder, of_kind)
        kinds[name] = EveryExit(part.tokens, part.logits)
        agreement = model.answers.agree(part.logits, part.logits[:, -1:]).double().mean(0)
        yield found("", {"agreement_by_exit": agreement.tolist()}, texts=name)
    replay = Replay(model, record, (), STOP_COST)
    for promise in PROMISES:
        replay.terms = (Term("agreement", promise),)
        shares: dict[tuple[str, str], list[float]] = {}
        for seed in range(calibrations):
            ours, others = half_of(len(record.tokens), seed)
            for family, policy in replay.boldest(ours).items():
                shares.setdefault((family, OWN), []).extend(replay.kept(policy, others))
                for name, of_kind in kinds.items():
                    [broken] = answered(model, of_kind, replay.terms, policy).losses()
                    shares.setdefault((family, name), []).append(1 - float(broken.double().mean()))
        for (family, name), values in shares.items():
            yield found(family, summary(values, promise), promise=promise, texts=name)


def summary(values: list[float], promise: float) -> dict[str, float]:
    """Of the agreement that the calibrations of a family reach."""
    reached = torch.tensor(values, dtype=torch.double)
    broken = float((reached < promise - 1e-9).double().mean())
    return {"agreement": float(reached.mean()), "lowest": float(reached.min()), "broken": broken, "calibrations": len(values)}


def cell_of(cell: Trained, arguments: argparse.Namespace) -> Cell:
    """A measurement of one model."""
    limit = arguments.limit_samples
    settings = {"texts": min(TEXTS, limit or TEXTS), "calibrations": arguments.calibrations, "stop_cost": STOP_COST}

    def run(deadline: float) -> list[Found]:
        rows = others_of(cell, settings["texts"])
        return list(measured(folder_of(cell, arguments.work, limit), rows, cell.task.max_length, arguments.calibrations))

    return Cell(cell.name, declared(cell, limit) | settings, run)


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    parser.add_argument("--calibrations", type=int, default=CALIBRATIONS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = [cell_of(cell, arguments) for cell in recorded_cells(arguments)]
    run_missing("plans shifted", cells, arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()

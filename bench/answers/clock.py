"""What `calibrate` chooses for scores, label sets and classes, and what it comes to on held-out texts, by the wall clock too.

    python -m bench.answers.clock --work WORK --e5 E5

Reads the models that `bench.answers.train` left in WORK. Nothing else should run on the machine.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import AutoTokenizer

from bench.answers.command import parser_of, run_trained
from bench.answers.data import recorded_rows
from bench.answers.promised import PROMISED, Promised
from bench.answers.replay import compared
from bench.answers.tasks import Trained
from bench.answers.training import settings_of
from bench.environment import RESULTS
from bench.rates import rates
from bench.rows import Found, found
from geep_triton import Engine, MultiExitBert, calibrate
from geep_triton.policies.policy import OneExitWarning
from geep_triton.promises.terms import Term, read_terms
from geep_triton.tokens.columns import Row

OUTPUT = RESULTS / "answers" / "clock"
CHOOSING = 128  # texts on which `calibrate` measures each family's speed
TIMED = 512  # held-out texts on which that of the chosen policy is measured
ROUNDS = 3


def shares_kept(model: MultiExitBert, terms: tuple[Term, ...], logits: torch.Tensor, full: torch.Tensor) -> list[float]:
    """For each promise the share of the texts that it is about and that it is kept for.

    Args:
        model: its `answers` compare.
        terms: the promises.
        logits: [N, C] of the policy.
        full: [N, C] of the last exit.
    """
    shares = []
    for term in terms:
        same, counted = compared(model.answers, term, logits, full)
        shares.append(float((same if counted is None else same[counted]).double().mean()))
    return shares


def speed_up(full: Engine, exits: Engine, rows: list[Row], rounds: int = ROUNDS) -> dict[str, float]:
    """How many times as fast as full depth, in turns; and how far full depth drifted meanwhile."""
    found, drift = rates({"full": full, "exits": exits}, rows, rounds)
    return {"speed_up": found["exits"] / found["full"], "full_per_second": found["full"], "drift": drift}


def measured(engine: Engine, rows: list[Row], wanted: tuple[Promised, ...], timed: int = TIMED) -> list[Found]:
    """Calibrate on a random half of the rows for each promise, and measure the chosen policy on the others.

    Args:
        engine: at full depth.
        rows: the labels are not used.
        wanted: the promises.
        timed: on so many of the held-out texts speed is measured.
    """
    half, model = len(rows) // 2, engine.model
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    ours, others = ([rows[index] for index in part] for part in (order[:half], order[half:]))
    full = engine.with_policy("full")
    whole = full.predict(others)
    results = []
    for one in wanted:
        model.exit_config.decision, model.exit_config.tolerance = None, None
        exits = engine.with_policy("full")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OneExitWarning)
            chosen = calibrate(exits, ours, **one.promises, **one.comparison, speed_samples=CHOOSING, save=False).chosen
            given = exits.predict(others)
            terms = read_terms(one.promises, None, model)
            kept = shares_kept(model, terms, given.logits, whole.logits)
            least = min(range(len(kept)), key=lambda index: kept[index] - terms[index].value)
            speed = speed_up(full, exits, others[:timed])
        results.append(
            found(
                "calibrated",
                {
                    "family": chosen.family,
                    "policy": chosen.policy,
                    "promised": terms[least].value,
                    "kept": kept[least],  # of several promises the one that is nearest to being broken
                    "mean_layers": given.mean_layers,
                    **speed,
                },
                promise=one.name,
            )
        )
    facts = {"calibration": len(ours), "held_out": len(others), "timed": min(timed, len(others))}
    return [found("", facts | {"num_layers": model.config.num_hidden_layers}), *results]


def main() -> None:
    arguments = parser_of(__doc__, OUTPUT).parse_args()

    def run(cell: Trained, folder: Path) -> list[Found]:
        model, tokenizer = MultiExitBert.from_pretrained(folder / "model"), AutoTokenizer.from_pretrained(folder / "model")
        engine = Engine(model, tokenizer, "full", **settings_of(cell.task))
        return measured(engine, recorded_rows(cell.task, arguments.limit_samples), PROMISED[cell.task.name])

    run_trained("answers clock", arguments, PROMISED, run, {"threads": arguments.threads})


if __name__ == "__main__":
    main()

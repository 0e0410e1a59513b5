"""What each family of `calibrate` comes to by the wall clock, at the setting that keeps a promise.

    GEEP_DATA=../shared/data python -m bench.plans.clock --work WORK --e5 E5

Reads the models and records that `bench.plans.train` and `bench.plans.record` left in WORK. The exit table learns from the
recorded table texts. A half of the judge texts calibrates: of each family the boldest setting that is shown to be safe. All of
them are timed in turns with full depth on texts of the other half. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench.answers.replay import Replay
from bench.answers.tasks import Trained
from bench.answers.training import folder_of, settings_of
from bench.cells import Cell, run_missing
from bench.claims.promises import filling
from bench.environment import RESULTS
from bench.plans.command import parser_of
from bench.plans.library import load
from bench.plans.promised import PROMISES, half_of
from bench.plans.record import recorded_cells
from bench.rates import rates
from bench.rows import Found, found
from bench.training import declared
from geep_triton import Engine, MultiExitBert
from geep_triton.policies.policy import OneExitWarning, Policy
from geep_triton.policies.text import format_policy
from geep_triton.promises.families import TRIED, Family, families_of
from geep_triton.promises.terms import Term

OUTPUT = RESULTS / "plans" / "clock"
BUDGETS = (1_024, 4_096, 16_384)  # tokens of a batch
TIMED_TOKENS = 4_096  # of the timed texts, or those of one batch where that is more
LARGE, OF_LARGE = 16_384, (0.98,)  # the promises that are timed from this token budget on, where texts are many
ROUNDS = 3
FULL = "full"
# Starts by tokens, which `calibrate` tried until they were timed here.
STARTED = ("predicted+threshold", "predicted+threshold per layer", "predicted, learned+threshold")


def timed_families(model: MultiExitBert) -> list[Family]:
    """The families that `calibrate` tries, and `STARTED`. All of them share the error."""
    return [family for family in families_of(model, every=True) if family.name in TRIED + STARTED]


def chosen(replay: Replay, rows: torch.Tensor, promise: float) -> dict[str, Policy]:
    """Family -> its boldest policy that is shown to keep a promise on these rows; full depth besides."""
    replay.terms = (Term("agreement", promise),)
    return {FULL: replay.full} | replay.boldest(rows)


def measured(folder: Path, cell: Trained, budgets: Sequence[int], rounds: int) -> Iterator[Found]:
    """Agreement, layers and speed of every family, at every promise and token budget."""
    model, tokenizer, record = load(folder)
    ours, others = half_of(len(record.tokens), 0)
    engine = Engine(model, tokenizer, FULL, **settings_of(cell.task))
    terms = (Term("agreement", PROMISES[0]),)
    replay = Replay(model, record, terms, engine.layer_costs.stop_layers, timed_families(model))
    yield found("", {"stop_layers": engine.layer_costs.stop_layers, "num_layers": model.config.num_hidden_layers})
    by_promise = {promise: chosen(replay, ours, promise) for promise in PROMISES}
    for promise, policies in by_promise.items():
        replay.terms = (Term("agreement", promise),)
        for family, policy in policies.items():
            [kept] = replay.kept(policy, others)
            settings = {"promise": promise, "policy": format_policy(policy)}
            yield found(family, {"agreement": kept, "mean_layers": replay.mean_layers(policy, others)}, **settings)
    held_out = record.tokens.select(others)
    for budget in budgets:
        texts = held_out.select(torch.tensor(filling(held_out.lengths, max(TIMED_TOKENS, budget))))
        of_budget = Engine(model, tokenizer, FULL, token_budget=budget, **settings_of(cell.task))
        timed = OF_LARGE if budget >= LARGE else PROMISES
        policies = {format_policy(policy): policy for promise in timed for policy in by_promise[promise].values()}
        engines = {form: of_budget.with_policy(policy) for form, policy in policies.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OneExitWarning)
            by_form, drift = rates(engines, texts, rounds)
        facts = {"drift": drift, "texts": len(texts), "stop_layers": of_budget.layer_costs.stop_layers}
        yield found(FULL, facts, token_budget=budget)
        for form, rate in by_form.items():
            speed = {"texts_per_second": rate, "speed_up": rate / by_form[FULL]}
            yield found("policy", speed, policy=form, token_budget=budget)


def cell_of(cell: Trained, arguments: argparse.Namespace) -> Cell:
    """A measurement of one model."""
    budgets = tuple(arguments.token_budgets)
    settings = {
        "budgets": list(budgets), "rounds": arguments.rounds, "threads": arguments.threads,
        "timed_tokens": TIMED_TOKENS, "of_large": OF_LARGE,
    }  # fmt: skip
    folder = folder_of(cell, arguments.work, arguments.limit_samples)
    declaration = declared(cell, arguments.limit_samples) | settings
    name = cell.name if budgets == BUDGETS else f"{cell.name}.{'_'.join(map(str, budgets))}"  # those of a model may be several
    return Cell(name, declaration, lambda _: list(measured(folder, cell, budgets, arguments.rounds)))


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    parser.add_argument("--token-budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = [cell_of(cell, arguments) for cell in recorded_cells(arguments)]
    run_missing("plans clock", cells, arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()

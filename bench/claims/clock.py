"""The wall clock of the models that stayed: thresholds over full depth, in turns in the same run.

    GEEP_DATA=../shared/data python -m bench.claims.clock --work WORK --backbone E5 --threads 2

For each data set of D, GEEP's model of the first seed at thresholds from 0 to 1; of B, the exits without gates and the chosen
SmartBERT, each at the thresholds that save 2, 2.5 and 3 times the FLOPs. Texts are test rows. Nothing else should run on the
machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from bench.cells import Cell, run_missing
from bench.claims import arms
from bench.claims.arms import Arm
from bench.claims.command import parsed, parser_of
from bench.claims.costs import ARMS
from bench.claims.costs import OUTPUT as COSTS
from bench.claims.design import REDUCTIONS, B, D
from bench.claims.design import Cell as Declared
from bench.claims.leaving import at_reduction, curve
from bench.claims.promises import filling
from bench.claims.rows import rows_of
from bench.claims.runs import Runner
from bench.claims.saving import chosen_gates, read_costs
from bench.claims.sets import DataSet
from bench.claims.systems import FULL, Records, Truth
from bench.environment import RESULTS
from bench.rates import rates
from bench.rows import Found, found
from bench.training import declared
from geep_triton import Engine, MultiExitBert
from geep_triton.policies.policy import OneExitWarning

OUTPUT = RESULTS / "claims" / "clock"
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
TOKEN_BUDGET = 4_096
TIMED_TOKENS = 8_192
ROUNDS = 3
SEED = 1
Forms = Sequence[tuple[Arm, Mapping[str, str]]]  # arms, and the short forms of their policies by name


def timed(runner: Runner, data_set: DataSet, forms: Forms, plain: Arm) -> Iterator[Found]:
    """Speed of each arm's policies over full depth of the plain arm's model.

    Args:
        runner: knows the models' folders.
        data_set: whose test rows are timed.
        forms: of each arm's policies.
        plain: an arm without gates, whose full depth is the baseline.
    """
    rows = rows_of(data_set, runner.limit).test
    settings = {"max_length": data_set.max_length, "truncation": True, "token_budget": TOKEN_BUDGET}
    engines: dict[str, Engine] = {}
    for arm, policies in forms:
        model = MultiExitBert.from_pretrained(runner.folder_of(Declared(data_set, arm, SEED)) / "model").eval()
        engine = Engine(model, runner.tokenizer, FULL, **settings)
        if arm == plain:
            engines[FULL] = engine
        engines |= {f"{arm.name} {name}": engine.with_policy(form) for name, form in policies.items()}
    tokens = engines[FULL].encode(rows)
    texts = tokens.select(torch.tensor(filling(tokens.lengths, TIMED_TOKENS)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneExitWarning)  # a threshold of 1 tells no texts apart
        speeds, drift = rates(engines, texts, ROUNDS)
    yield found("", {"texts": len(texts), "drift": drift})
    for name, speed in speeds.items():
        yield found(name, {"texts_per_second": speed, "speed_up": speed / speeds[FULL]})


def thresholds_of_d() -> Forms:
    """GEEP's thresholds."""
    return [(arms.GEEP, {f"{threshold:g}": f"threshold:{threshold}" for threshold in THRESHOLDS})]


def thresholds_of_b(runner: Runner, data_set: DataSet, gates: str) -> Forms:
    """The thresholds at which both models save so many times the FLOPs."""
    records, rows = Records(runner, data_set, SEED), rows_of(data_set, runner.limit)
    truth, forms = Truth.of(records, rows, arms.EXITS), []
    for arm in B.arms:
        if arm.name not in (arms.EXITS.name, gates):
            continue
        suffix = "" if arm == arms.EXITS else "+skip:gates"
        points = curve(records.leaving(arm, "test"), truth.flops["test"], truth.scores["test"])
        wanted = {reduction: at_reduction(points, reduction) for reduction in REDUCTIONS}
        of_arm = {
            f"{reduction:g}x": f"threshold:{point.threshold}{suffix}"
            for reduction, point in wanted.items()
            if point is not None and point.threshold is not None
        }
        forms.append((arm, of_arm))
    return forms


def cells(runner: Runner, costs: Path) -> Iterator[Cell]:
    """Of the models that are there."""

    def there(data_set: DataSet, *names: str) -> bool:
        models = (Declared(data_set, ARMS[name], SEED) for name in names)
        return all((runner.folder_of(model) / "model").is_dir() for model in models)

    for data_set in D.data_sets:
        if there(data_set, arms.GEEP.name):
            yield _cell(runner, data_set, arms.GEEP, thresholds_of_d())
    known = read_costs(costs)
    for data_set in B.data_sets:
        gates = chosen_gates(known, data_set.name)
        if gates is not None and there(data_set, arms.EXITS.name, gates):
            yield _cell(runner, data_set, arms.EXITS, thresholds_of_b(runner, data_set, gates))


def _cell(runner: Runner, data_set: DataSet, plain: Arm, forms: Forms) -> Cell:
    settings = {
        "forms": {arm.name: policies for arm, policies in forms}, "token_budget": TOKEN_BUDGET, "rounds": ROUNDS,
        "timed_tokens": TIMED_TOKENS, "threads": torch.get_num_threads(),
    }  # fmt: skip
    declaration = declared(Declared(data_set, plain, SEED), runner.limit) | settings
    return Cell(f"{data_set.name}.{plain.name}.clock", declaration, lambda _: list(timed(runner, data_set, forms, plain)))


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    parser.add_argument("--costs", type=Path, default=COSTS, help="what bench.claims.costs wrote")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parsed(parser)
    torch.set_num_threads(arguments.threads)
    runner = Runner(arguments.work, arguments.backbone, float("inf"), arguments.limit_samples)
    run_missing("claims clock", list(cells(runner, arguments.costs)), arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()

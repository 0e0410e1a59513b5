"""The page on the papers' claims, from whatever cells have results; says what is missing."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.claims import arms
from bench.claims.design import (
    EARLY_EXITS,
    EXPERIMENTS,
    HEAD_LEARNING_RATE,
    INFORMED,
    LEARNING_RATE,
    LEAST_SEEDS,
    LEAST_SETS,
    POWER,
    RELEVANT,
)
from bench.claims.judging import Runs, judge, read_runs
from bench.claims.saving import drops, read_costs, read_data_sets, skippings
from bench.environment import RESULTS
from bench.report.claims_costs import drops_section, read_speeds, skipping_section
from bench.report.claims_exits import by_exit_section, each_section, recipes_section, verdicts_section
from bench.report.claims_flops import equal_flops_section
from bench.report.tables import lines
from bench.rows import read, records

FOLDER = RESULTS / "claims"
INTRODUCTION = f"""# What the papers claim

Made by `python -m bench.report` from `bench/results/claims`, which `python -m bench.claims.train`, `.costs` and `.clock`
write. Data sets, arms, seeds, margins and endpoints are declared in `bench/claims/design.py` and `arms.py`, before the runs;
which rules were changed when the first cells were there stands under `Claim` in `design.py`. The model is
multilingual-e5-small: 12 layers of width 384, dequantized from 4 bit, its word embeddings frozen. Up to 4,000 training rows, up
to 5,000 test rows, subsets and splits of ours, learning rates of {LEARNING_RATE:g} (heads and gates: {HEAD_LEARNING_RATE:g}),
heads that read the mean of the tokens: compare methods, not the papers' tables. Gu et al. and GEEP's exit table are *our
reconstruction*.

Bounds are one-sided with 95 % confidence: of the pooled difference Student's t over the data sets' means, of each data set a
bootstrap over seeds and rows (with one seed, rows alone). Several claims are not corrected for. "Supported" needs the lower
bound where the table says, "refuted" the upper bound below it. **Power if equal** is the probability that the test says
"supported" if the two methods do not differ on any data set (of a claim to be better: if it is better by
{100 * RELEVANT:g} points on each). With less than {POWER:.0%}, on less than {LEAST_SETS} data sets or {LEAST_SEEDS} seeds
there is no verdict. Data sets on which the full model is less than {100 * INFORMED:g} points above the commonest class do
not count."""

SHRINKING = """## Batches that shrink

GEEP predicts exits so that batches need not shrink. Whether that pays is experiment E, which needs a GPU: [the page on
GPUs](gpu.md) has its verdict, or says that none has measured it."""
RULES = {
    "binomial": "binomial test, in sequence (ours)",
    "betting": "betting, in sequence (RC-EENN's upper confidence bound)",
    "mapie": "Hoeffding and Bentkus, Bonferroni and Holm (MAPIE)",
    "on average": "conformal, on average (RC-EENN's and CALM's)",
}


def controlled_section(folder: Path) -> str:
    """Rules of risk control beside each other."""
    found = [one for one in records(read(folder)) if one["system"] in RULES]
    if not found:
        return ""
    promises, rows = sorted({one["promise"] for one in found}, reverse=True), []
    splits = max(one["of"] for one in found)
    for rule, name in RULES.items():
        cells: list[str] = []
        for promise in promises:
            of_rule = [one for one in found if one["system"] == rule and one["promise"] == promise]
            kept = statistics.mean(one["kept"] / one["of"] for one in of_rule)
            worst = min(of_rule, key=lambda one: one["kept"] / one["of"])
            layers = statistics.mean(one["layers"] for one in of_rule)
            cells += [f"{kept:.1%} (worst {worst['kept']} of {worst['of']})", f"{layers:.2f}"]
        rows.append([name, *cells])
    models = len({one["case"] for one in found})
    text = (
        "## Rules of risk control\n\nThe same thresholds of entropy at every exit, the same calibration texts: which threshold "
        f"does each rule choose? Calibrations that keep their promise, of {splits} for each of {models} models (`python -m "
        "bench.plans.controlled`), and the mean layers of a text. All rules but the last promise to keep it with 95 % "
        f"confidence, so that {0.95 * splits:.0f} of {splits} are asked for, but for chance. MAPIE's is its default, for any "
        "set of thresholds. Its fixed sequence, for thresholds in order as with ours, was not measured."
    )
    columns = ["rule", *(f"{what} {promise:g}" for promise in promises for what in ("keeps", "layers,"))]
    return f"{text}\n\n{lines(columns, rows)}"


def missing_section(runs: Runs) -> str:
    """What is declared and not run."""
    parts = []
    for experiment in EXPERIMENTS.values():
        cells = list(experiment.cells())
        there = sum(cell.seed in runs.get((cell.data_set.name, cell.arm.name), {}) for cell in cells)
        parts.append(f"{experiment.name} {there} of {len(cells)}")
    return f"Trained of what is declared: {', '.join(parts)}."


def uncommitted_section(folder: Path) -> str:
    """How many files of results say that they were made by code that was not committed."""
    files = filter(None, map(read, folder.rglob("*.jsonl")))
    commits = [rows[0].environment["commit"] for rows in files]
    dirty = sum(commit.endswith("-dirty") for commit in commits)
    if not dirty:
        return ""
    return f"{dirty} of the {len(commits)} files of results were made while changes to the code were not committed yet."


def page(folder: Path = FOLDER) -> str:
    """The whole page."""
    runs, costs = read_runs(folder / "training"), read_costs(folder / "costs")
    data_sets = read_data_sets(folder / "costs")
    commonest = {name: one["commonest"] for name, one in data_sets.items()}
    judged = [(claim, judge(claim, runs, commonest)) for claim in EARLY_EXITS]
    speeds = read_speeds(folder / "clock")
    parts = [
        INTRODUCTION,
        " ".join(filter(None, (missing_section(runs), uncommitted_section(folder)))),
        verdicts_section(judged),
        each_section(judged, runs, commonest),
        by_exit_section(runs),
        recipes_section(runs),
        equal_flops_section(costs),
        drops_section(drops(costs, data_sets), speeds.get(arms.GEEP.name, {})),
        skipping_section(skippings(costs, data_sets), speeds.get(arms.EXITS.name, {})),
        SHRINKING,
        controlled_section(RESULTS / "plans" / "controlled"),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"

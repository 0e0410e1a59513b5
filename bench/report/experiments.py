"""The page on the grid's claims and a plot per data set, from whatever cells have results; says what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from bench.claims.grid import ALL, CLAIMS, DATA_SETS, METHODS, Claim, DataSet, cells
from bench.claims.pooling import sign_flip
from bench.claims.verdicts import Results, Verdict, judge, machine_of, read_results, seconds_of
from bench.environment import RESULTS
from bench.report.tables import lines, markdown, signed, spread

READINGS = {
    "early": "Supported where the mean over the early exits is higher, with its interval.",
    "no worse": "Supported where at no exit it is more than {margin:g} point lower, with the intervals of all exits at once; a "
    "few hundred test samples (rte, wnli) are too few to show that.",
    "time": "Supported where it takes less time at every seed.",
}
NAMES = {"accuracy": "accuracy", "map": "MAP"}
INTRODUCTION = """# Experiments on the training claims

Made by `python -m bench.report` from `bench/results/experiments`, which `python -m bench.claims.experiments`
writes; every exit's metrics and single answers stand there. Grid, sizes and hypotheses are declared in
`bench/claims/grid.py`, before the runs. Test samples, training subsets and splits are ours: compare methods, not papers'
tables. Intervals are paired bootstraps over seeds and test samples (questions for MAP). Of one seed they hold for the models
trained here, and another seed may move a difference by more than they say: then believe what the data sets agree on. Seconds
are those of the CPU's cores, or on the wall where a GPU worked; both methods with a curriculum share their difficulties.
Training times are compared on one kind of machine only."""


def claim_section(claim: Claim, results: Results) -> str:
    verdicts = {data_set: judge(claim, data_set, results) for data_set in claim.data_sets}
    shown = [line(data_set, verdict) for data_set, verdict in verdicts.items() if verdict is not None]
    missing = [data_set for data_set, verdict in verdicts.items() if verdict is None]
    early = [verdict.early.estimate for verdict in verdicts.values() if verdict is not None]
    parts = [
        f"**Claim {claim.number}.** {claim.hypothesis}",
        f"`{claim.method}` less `{claim.baseline}`, in points, and its training time over that of `{claim.baseline}`. "
        + READINGS[claim.reading].format(margin=100 * claim.margin),
        markdown(pd.DataFrame(shown)) if shown else "",
        f"Missing: {', '.join(missing)}." if missing else "",
        over_data_sets(early) if claim.reading != "time" else "",
    ]
    return "\n\n".join(filter(None, parts))


def line(data_set: str, verdict: Verdict) -> dict[str, str]:
    worst = min(verdict.exits, key=lambda interval: interval.low)
    shown = [signed(one.estimate, one.low, one.high) for one in (verdict.early, worst, verdict.exits[-1])]
    return {
        "data set": data_set, "early exits (95 % interval)": shown[0], "exit of the lowest bound": shown[1],
        "last exit": shown[2], "training time": times(verdict.seconds), "seeds": str(len(verdict.seeds)), "claim": verdict.word,
    }  # fmt: skip


def times(seconds: Sequence[float]) -> str:
    """Over the baseline's."""
    return f"{spread(seconds, 2)}x" if seconds else "-"


def over_data_sets(early: Sequence[float]) -> str:
    """The early exits' differences as draws of one data set each, which training at another seed would move, too."""
    if len(early) < 2:
        return ""
    return (
        f"Over {len(early)} data sets: early exits {100 * statistics.mean(early):+.1f} points, higher on "
        f"{sum(value > 0 for value in early)}; sign-flip p = {sign_flip(early):.2f}."
    )


def data_sets_section(results: Results) -> str:
    """Each method's metric, mean over the depth, on each data set; mean over seeds."""
    shown = []
    for data_set in DATA_SETS:
        runs = {
            method.name: results[data_set.name, method.name] for method in METHODS if (data_set.name, method.name) in results
        }
        if not runs:
            continue
        some = next(iter(next(iter(runs.values())).values()))
        limit = some["declaration"].get("limit")
        shown.append({
            "data set": data_set.name + (f" (a trial on {limit} samples, without meaning)" if limit else ""),
            "metric": NAMES[data_set.metric],
            "trained on": f"{some['samples.train']:,}", "tested on": f"{some['samples.test']:,}",
            **{method: spread([run["area"] for run in of.values()]) for method, of in runs.items()},
            "joint's training, s": f"{seconds_of(runs['joint'][max(runs['joint'])]):.0f}" if "joint" in runs else None,
        })  # fmt: skip
    note = "**All data sets**: the metric's mean over the depth, from first to last exit; a range is that of the seeds."
    return f"{note}\n\n{markdown(pd.DataFrame(shown))}" if shown else ""


def summary_section(results: Results) -> str:
    """Every method less plain joint training, mean over the data sets that have both."""
    methods = []
    for method in METHODS:
        claim = Claim("", "", method.name, "joint", "early", ALL)
        found = [verdict for name in ALL if (verdict := judge(claim, name, results)) is not None]
        if method.name == "joint" or not found:
            continue
        cells = []
        for values in ([verdict.early.estimate for verdict in found], [verdict.exits[-1].estimate for verdict in found]):
            cells += [f"{100 * statistics.mean(values):+.2f}", f"{sum(value > 0 for value in values)} of {len(values)}"]
        seconds = [statistics.mean(verdict.seconds) for verdict in found if verdict.seconds]
        methods.append([method.name, len(found), *cells, times(seconds)])
    columns = ["method", "data sets", "early exits", "better on", "last exit", "better on", "training time"]
    note = (
        "**All methods**, less `joint` on the same data sets and seeds, in points, mean over data sets; and training time, "
        "difficulties included, over that of `joint`."
    )
    return f"{note}\n\n{lines(columns, methods)}"


def missing_section(results: Results) -> str:
    seeds = sorted({seed for runs in results.values() for seed in runs}) or [1]
    missing = [cell.name for cell in cells(seeds) if cell.seed not in results.get((cell.data_set.name, cell.method.name), {})]
    if not missing:
        return f"No cell is missing at seeds {', '.join(map(str, seeds))}."
    return f"Missing at seeds {', '.join(map(str, seeds))}: {', '.join(missing)}."


def page(folder: Path = RESULTS / "experiments") -> str:
    """The whole page."""
    results = read_results(folder)
    machines = sorted({machine_of(run) for runs in results.values() for run in runs.values()})
    parts = [
        INTRODUCTION,
        f"Machines: {'; '.join(machines) or 'none yet'}.",
        missing_section(results),
        summary_section(results),
    ]
    parts += [*(claim_section(claim, results) for claim in CLAIMS), data_sets_section(results)]
    parts += [f"![{data_set.name}: each method over depth]({data_set.name}.png)" for data_set in measured(results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def plot(data_set: DataSet, results: Results, path: Path) -> None:
    """The metric over depth, one line per method, the seeds' range shaded, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for method in METHODS:
        runs = results.get((data_set.name, method.name), {})
        if not runs:
            continue
        layers = next(iter(runs.values()))["exit_layers"]
        values = 100 * torch.tensor([run[f"metrics.{data_set.metric}"] for run in runs.values()])
        (drawn,) = axis.plot(layers, values.mean(0), marker="o", label=f"{method.name} ({len(runs)})")
        axis.fill_between(layers, values.amin(0), values.amax(0), color=drawn.get_color(), alpha=0.15)
    axis.set_xlabel("exit after layer")
    axis.set_ylabel(f"{NAMES[data_set.metric]}, %")
    axis.set_title(data_set.name)
    axis.grid(alpha=0.3)
    axis.legend(title="method (seeds)")
    figure.savefig(path, dpi=120)


def plots(folder: Path) -> None:
    """Write a PNG for each data set that has results."""
    results = read_results(RESULTS / "experiments")
    for data_set in measured(results):
        plot(data_set, results, folder / f"{data_set.name}.png")


def measured(results: Results) -> list[DataSet]:
    """The data sets that have results."""
    return [data_set for data_set in DATA_SETS if any(name == data_set.name for name, _ in results)]

"""The page on the grid's claims and a plot per data set, from whatever cells have results; says what is missing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.experiments.grid import ALL, CLAIMS, DATA_SETS, METHODS, Claim, DataSet, cells
from bench.experiments.run import OUTPUT
from bench.report_policies import spread
from geep_triton.evaluation.metrics import Interval, paired_bootstrap

READINGS = {
    "early": "Supported where the mean over the early exits is higher, with its interval.",
    "no worse": "Supported where at no exit it is more than {margin:g} point lower, with the intervals of all exits at once; a "
    "few hundred test samples (rte, wnli) are too few to show that.",
    "time": "Supported where it takes less time at every seed.",
}
NAMES = {"accuracy": "accuracy", "map": "MAP"}

Results = dict[tuple[str, str], dict[int, dict[str, Any]]]  # (data set, method) -> seed -> what the file holds


def read_results(folder: Path) -> Results:
    """The results of cells as they are declared now; those of an older declaration count as missing.

    Raises:
        ValueError: results on rows of several sources, which must not be compared.
    """
    seeds = sorted({int(path.name.split(".")[-2]) for path in folder.glob("*.*.*.json")})
    results: Results = {}
    sources: set[str] = set()
    for cell in cells(seeds):
        path = folder / f"{cell.name}.json"
        if not path.is_file():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        of_the_run = {name: value for name, value in result["declaration"].items() if name in ("source", "limit")}
        if result["declaration"] == cell.declaration() | of_the_run:
            results.setdefault((cell.data_set.name, cell.method.name), {})[cell.seed] = result
            sources.add(of_the_run["source"])
    if len(sources) > 1:
        raise ValueError(
            f"{folder} holds results on rows from {' and '.join(sorted(sources))}: keep them in folders of their own"
        )
    return results


def scores_of(result: dict[str, Any]) -> torch.Tensor:
    """[E, N] scores of single samples, or questions, at each exit."""
    metric = result["declaration"]["data_set"]["metric"]
    return torch.tensor([[float(x) for x in (line.split() if metric == "map" else line)] for line in result["scores"]])


def all_scores(runs: dict[int, dict[str, Any]], seeds: Sequence[int]) -> torch.Tensor:
    """[R, E, N], a run for each seed."""
    return torch.stack([scores_of(runs[seed]) for seed in seeds])


def machine_of(run: dict[str, Any]) -> str:
    """What its seconds depend on."""
    where = run["environment"]
    return f"{where['gpu'] or where['cpu']}, {where['threads']} threads"


def seconds_of(run: dict[str, Any], what: str) -> float:
    """Seconds of "training" or "difficulty": on the wall where a GPU worked, else of the CPU's cores."""
    return run[what]["cpu_seconds" if run["environment"]["gpu"] is None else "wall_seconds"]


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a claim on a data set.

    Attributes:
        early: difference over the early exits, mean over exits.
        exits: difference at each exit.
        seconds: training time of the method, its difficulties included, over that of the baseline, for each seed that both
            trained on one kind of machine.
        seeds: that both have.
        word: "supported", "refuted" or "undecided"; of one seed it says so.
    """

    early: Interval
    exits: tuple[Interval, ...]
    seconds: tuple[float, ...]
    seeds: tuple[int, ...]
    word: str


def judge(claim: Claim, data_set: str, results: Results) -> Verdict | None:
    """Paired over seeds and test samples; None while a side has no result."""
    method, baseline = (results.get((data_set, name), {}) for name in (claim.method, claim.baseline))
    seeds = sorted(set(method) & set(baseline))
    if not seeds:
        return None
    first, second = all_scores(method, seeds), all_scores(baseline, seeds)
    early = paired_bootstrap(first[:, :-1].mean(1), second[:, :-1].mean(1))
    # All exits at once (Bonferroni): one in twenty of many exits would lie outside by chance.
    confidence = 1 - 0.05 / first.shape[1]
    exits = tuple(paired_bootstrap(a, b, confidence) for a, b in zip(first.unbind(1), second.unbind(1), strict=True))
    seconds = tuple(
        sum(seconds_of(method[seed], what) for what in ("training", "difficulty"))
        / sum(seconds_of(baseline[seed], what) for what in ("training", "difficulty"))
        for seed in seeds
        if machine_of(method[seed]) == machine_of(baseline[seed])
    )
    word = _word(claim, early, exits, seconds)
    return Verdict(early, exits, seconds, tuple(seeds), word + " (1 seed)" * (len(seeds) == 1))


def _word(claim: Claim, early: Interval, exits: Sequence[Interval], seconds: Sequence[float]) -> str:
    if claim.reading == "early":
        return "supported" if early.low > 0 else "refuted" if early.high < 0 else "undecided"
    if claim.reading == "time":
        if not seconds:
            return "undecided"
        return "supported" if max(seconds) < 1 else "refuted" if min(seconds) > 1 else "undecided"
    if any(exit_.high < -claim.margin for exit_ in exits):
        return "refuted"
    return "supported" if all(exit_.low > -claim.margin for exit_ in exits) else "undecided"


def percent(interval: Interval) -> str:
    """Points of a hundred, with the interval."""
    return f"{100 * interval.estimate:+.1f} ({100 * interval.low:+.1f} .. {100 * interval.high:+.1f})"


def claim_section(claim: Claim, results: Results) -> str:
    lines = [
        f"**Claim {claim.number}.** {claim.hypothesis}",
        "",
        f"`{claim.method}` less `{claim.baseline}`, in points, and its training time over that of `{claim.baseline}`. "
        f"{READINGS[claim.reading].format(margin=100 * claim.margin)}",
        "",
        "| data set | early exits (95 % interval) | exit of the lowest bound | last exit | training time | seeds | claim |",
        "|---|---|---|---|---|---|---|",
    ]
    verdicts = {data_set: judge(claim, data_set, results) for data_set in claim.data_sets}
    for data_set, verdict in verdicts.items():
        if verdict is None:
            lines.append(f"| {data_set} | missing | | | | | |")
            continue
        worst = min(verdict.exits, key=lambda interval: interval.low)
        shown = " | ".join(percent(interval) for interval in (verdict.early, worst, verdict.exits[-1]))
        seconds = times(verdict.seconds)
        lines.append(f"| {data_set} | {shown} | {seconds} | {len(verdict.seeds)} | {verdict.word} |")
    early = [verdict.early.estimate for verdict in verdicts.values() if verdict is not None]
    return "\n".join([*lines, "", *over_data_sets(early if claim.reading != "time" else [])])


def times(seconds: Sequence[float]) -> str:
    """Over the baseline's."""
    return f"{spread(seconds, 2)}x" if seconds else "-"


def over_data_sets(early: Sequence[float]) -> list[str]:
    """The early exits' differences as draws of one data set each, which training at another seed would move, too."""
    if len(early) < 2:
        return []
    return [
        f"Over {len(early)} data sets: early exits {100 * statistics.mean(early):+.1f} points, higher on "
        f"{sum(value > 0 for value in early)}; sign-flip p = {sign_flip(early):.2f}."
    ]


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p value of a mean of 0 where each difference could as well have the other sign; exact."""
    observed = abs(sum(differences)) - 1e-12
    flips = list(product((1, -1), repeat=len(differences)))
    return statistics.mean(
        abs(sum(sign * value for sign, value in zip(flip, differences, strict=True))) >= observed for flip in flips
    )


def data_set_section(data_set: DataSet, results: Results) -> str | None:
    """Each method's metric at each exit, mean over seeds; None without any result."""
    rows = {method.name: results[data_set.name, method.name] for method in METHODS if (data_set.name, method.name) in results}
    if not rows:
        return None
    some = next(iter(next(iter(rows.values())).values()))
    layers, limit = some["exit_layers"], some["declaration"].get("limit")
    note = f"; a trial on {limit} samples, without meaning" if limit else ""
    lines = [
        f"**{data_set.name}** ({NAMES[data_set.metric]} on {some['samples']['test']:,} test samples, trained on "
        f"{some['samples']['train']:,}, {data_set.epochs:g} epochs a step of training{note})",
        "",
        "| method | " + " | ".join(f"exit {layer}" for layer in layers) + " | mean over depth | lowest .. highest seed | "
        "training, s | difficulty, s | seeds |",
        "|---|" + "---|" * (len(layers) + 5),
    ]
    for method, runs in rows.items():
        values = torch.tensor([run["metrics"][data_set.metric] for run in runs.values()]).mean(0).tolist()
        areas = [run["area"] for run in runs.values()]
        latest = max(runs)  # seconds of several kinds of machine have no mean
        seconds, difficulty = (seconds_of(runs[latest], what) for what in ("training", "difficulty"))
        lines.append(
            f"| {method} | " + " | ".join(f"{value:.3f}" for value in values) + f" | {statistics.mean(areas):.3f} | "
            f"{min(areas):.3f} .. {max(areas):.3f} | {seconds:.0f} | {difficulty:.0f} | {len(runs)} |"
        )
    if data_set.metric == "map":
        mrr = {method: [run["metrics"]["mrr"] for run in runs.values()] for method, runs in rows.items()}
        lines += ["", "| MRR | " + " | ".join(f"exit {layer}" for layer in layers) + " |", "|---|" + "---|" * len(layers)]
        lines += [
            f"| {method} | " + " | ".join(f"{value:.3f}" for value in torch.tensor(values).mean(0).tolist()) + " |"
            for method, values in mrr.items()
        ]
    return "\n".join(lines)


def summary_section(results: Results) -> str:
    """Every method less plain joint training, mean over the data sets that have both."""
    lines = [
        "**All methods**, less `joint` on the same data sets and seeds, in points, mean over data sets; and training time, "
        "difficulties included, over that of `joint`.",
        "",
        "| method | data sets | early exits | better on | last exit | better on | training time |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        claim = Claim("", "", method.name, "joint", "early", ALL)
        found = [verdict for name in ALL if (verdict := judge(claim, name, results)) is not None]
        if method.name == "joint" or not found:
            continue
        cells = []
        for values in ([verdict.early.estimate for verdict in found], [verdict.exits[-1].estimate for verdict in found]):
            cells += [f"{100 * statistics.mean(values):+.2f}", f"{sum(value > 0 for value in values)} of {len(values)}"]
        seconds = [statistics.mean(verdict.seconds) for verdict in found if verdict.seconds]
        lines.append(f"| {method.name} | {len(found)} | {' | '.join(cells)} | {times(seconds)} |")
    return "\n".join(lines)


def missing_section(results: Results) -> str:
    seeds = sorted({seed for runs in results.values() for seed in runs}) or [1]
    missing = [cell.name for cell in cells(seeds) if cell.seed not in results.get((cell.data_set.name, cell.method.name), {})]
    if not missing:
        return f"No cell is missing at seeds {', '.join(map(str, seeds))}."
    return f"Missing at seeds {', '.join(map(str, seeds))}: {', '.join(missing)}."


def page(folder: Path = OUTPUT) -> str:
    """The whole page."""
    results = read_results(folder)
    machines = sorted({machine_of(run) for runs in results.values() for run in runs.values()})
    parts = [
        "# Experiments on the training claims",
        "Made by `python -m bench.report` from the files in `bench/results/experiments`, which "
        "`python -m bench.experiments.run` writes. Grid, sizes and hypotheses are declared in `bench/experiments/grid.py`, "
        "before the runs. Test samples, training subsets and splits are ours: compare methods, not papers' tables. "
        "Intervals are paired bootstraps over seeds and test samples (questions for MAP). Of one seed they hold for the models "
        "trained here, and another seed may move a difference by more than they say: then believe what the data sets agree "
        "on. Seconds are those of the CPU's cores, or on the wall where a GPU worked, in the "
        "tables of data sets the last seed's; both methods with a curriculum share their difficulties. "
        "Training times are compared on one kind of machine only.",
        f"Machines: {'; '.join(machines) or 'none yet'}.",
        missing_section(results),
        summary_section(results),
        *(claim_section(claim, results) for claim in CLAIMS),
        *filter(None, (data_set_section(data_set, results) for data_set in DATA_SETS)),
    ]
    return "\n\n".join(parts) + "\n"


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
        values = 100 * torch.tensor([run["metrics"][data_set.metric] for run in runs.values()])
        (line,) = axis.plot(layers, values.mean(0), marker="o", label=f"{method.name} ({len(runs)})")
        axis.fill_between(layers, values.amin(0), values.amax(0), color=line.get_color(), alpha=0.15)
    axis.set_xlabel("exit after layer")
    axis.set_ylabel(f"{NAMES[data_set.metric]}, %")
    axis.set_title(data_set.name)
    axis.grid(alpha=0.3)
    axis.legend(title="method (seeds)")
    figure.savefig(path, dpi=120)


def plots(folder: Path = OUTPUT) -> None:
    """A PNG for each data set that has results, beside them."""
    results = read_results(folder)
    for data_set in DATA_SETS:
        if any(name == data_set.name for name, _ in results):
            plot(data_set, results, folder / f"{data_set.name}.png")

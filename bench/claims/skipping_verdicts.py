"""What the runs of the skipping experiment say about the abstract's two claims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.claims.metrics import Interval
from bench.claims.skipping import DATA_SETS, TOLERATED, VARIANTS, Trained
from bench.rows import read, records

SEEDS = {"rte": 5, "wnli": 5}
OTHER_SEEDS = 3
RESAMPLES = 1_000
HARDLY = 1.2  # times fewer FLOPs: less is no help

Run = list[dict[str, Any]]  # the records of a cell: the first are its facts (system "")
Runs = list[Run]  # of one data set and variant, a seed each


def read_runs(folder: Path) -> dict[tuple[str, str], Runs]:
    """(data set, variant) -> results of cells as they are declared now; those of an older declaration count as missing."""
    cells: dict[str, Run] = {}
    for one in records(read(folder)):
        cells.setdefault(one["case"], []).append(one)
    runs: dict[tuple[str, str], Runs] = {}
    for case, run in cells.items():
        name, variant, seed = case.split(".")
        if name not in DATA_SETS or variant not in VARIANTS:
            continue
        declared = run[0]["declaration"]
        if declared == Trained(DATA_SETS[name], variant, int(seed), declared["limit"]).declaration():
            runs.setdefault((name, variant), []).append(run)
    return runs


def facts(run: Run) -> dict[str, Any]:
    """What the whole cell has in common."""
    found: dict[str, Any] = {}
    for one in run:
        found |= one if one["system"] == "" else {}
    return found


def point(run: Run, system: str) -> dict[str, Any]:
    """A system's point of the curve at its chosen threshold."""
    return next(one for one in run if one["system"] == system and one.get("chosen"))


def flops(at: dict[str, Any]) -> float:
    return sum(at[f"flops.{part}"] for part in ("layers", "heads", "gates"))


def reduction(run: Run, system: str) -> float:
    """Times fewer FLOPs than full depth without gates."""
    return flops(point(run, "bert")) / flops(point(run, system))


def speed(run: Run, name: str, rival: str) -> float:
    """Times as many samples a second."""
    rates = {one["system"]: one["samples_per_second"] for one in run if "samples_per_second" in one}
    return rates[name] / rates[rival]


def over_seeds(runs: Runs, value: Callable[[Run], float]) -> Interval:
    """Mean, lowest and highest seed."""
    values = [value(run) for run in runs]
    return Interval(statistics.mean(values), min(values), max(values))


def digits(text: str) -> np.ndarray:
    return np.array([int(one) for one in text])


def score(metric: str, answers: np.ndarray, labels: np.ndarray) -> float:
    """As of `CLASS_METRICS`, of two classes where it is Matthews' correlation, but fast enough for thousands of resamples."""
    if metric == "accuracy":
        return float((answers == labels).mean())
    constant = (answers == answers[0]).all() or (labels == labels[0]).all()
    return 0.0 if constant else float(np.corrcoef(answers, labels)[0, 1])


def lost(runs: Runs, system: str) -> Interval:
    """Score of a system less that of full depth on the same samples, mean over seeds; 95 % interval of a paired bootstrap that
    draws seeds and samples.
    """
    labels, metric = digits(facts(runs[0])["labels"]), runs[0][0]["declaration"]["data_set"]["metric"]
    pairs = [tuple(digits(point(run, name)["answers"]) for name in (system, "bert")) for run in runs]

    def difference(seeds: Sequence[int], rows: Any) -> float:
        return statistics.mean(
            score(metric, pairs[seed][0][rows], labels[rows]) - score(metric, pairs[seed][1][rows], labels[rows])
            for seed in seeds
        )

    random = torch.Generator().manual_seed(0)
    draws = [
        difference(
            torch.randint(len(runs), (len(runs),), generator=random).tolist(),
            torch.randint(len(labels), (len(labels),), generator=random).numpy(),
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return Interval(difference(range(len(runs)), slice(None)), low, high)


def first_claim(runs: Runs) -> str:
    """The verdict on claim 1: SmartBERT computes 2 to 3 times less at a minimal drop."""
    saved, loss = over_seeds(runs, lambda run: reduction(run, "smartbert")), lost(runs, "smartbert")
    if saved.low >= 2 and loss.low >= -TOLERATED:
        return "supported"
    return "refuted" if saved.high < 2 or loss.high < -TOLERATED else "undecided"


def second_claim(runs: Runs) -> str:
    """The verdict on claim 2: entropy exits hardly help and skipping does."""
    exits, skips = (over_seeds(runs, lambda run, s=system: reduction(run, s)) for system in ("exits", "skipping"))
    exits_loss, skips_loss = (lost(runs, system) for system in ("exits", "skipping"))
    if exits.high < HARDLY < skips.low and skips_loss.low >= -TOLERATED:
        return "supported"
    exits_help = exits.low >= HARDLY and exits_loss.low >= -TOLERATED
    return "refuted" if exits_help or skips.high <= HARDLY or skips_loss.high < -TOLERATED else "undecided"


def majority(run: Run) -> float:
    """Score of answering the commonest class always."""
    labels = digits(facts(run)["labels"])
    return score(run[0]["declaration"]["data_set"]["metric"], np.full_like(labels, np.bincount(labels).argmax()), labels)


def chosen_variants(found: dict[tuple[str, str], Runs]) -> list[str]:
    """Where several variants were trained: the one that the tuning rows choose for smartbert, at the seeds that all have."""
    lines = []
    for name in DATA_SETS:
        variants = {variant: runs for (data_set, variant), runs in found.items() if data_set == name}
        if len(variants) < 2:
            continue
        seeds = set.intersection(*({run[0]["declaration"]["seed"] for run in runs} for runs in variants.values()))
        if not seeds:
            continue
        shared = {
            variant: [point(run, "smartbert") for run in runs if run[0]["declaration"]["seed"] in seeds]
            for variant, runs in variants.items()
        }
        tuning = {
            variant: [statistics.mean(at[f"tune_{what}"] for at in chosen) for what in ("score", "layers")]
            for variant, chosen in shared.items()
        }
        best = max(score for score, _ in tuning.values())
        chosen = min((layers, variant) for variant, (score, layers) in tuning.items() if score >= best - TOLERATED)[1]
        seen = ", ".join(f"{variant} {score:.3f} at {layers:.2f} layers" for variant, (score, layers) in tuning.items())
        lines.append(f"- {name}, seed {', '.join(map(str, sorted(seeds)))}: {chosen} (smartbert on the tuning rows: {seen}).")
    return lines


def missing(found: dict[tuple[str, str], Runs]) -> list[str]:
    """Seeds without a result at the published settings."""
    return [
        f"{name}.published.{seed}"
        for name in DATA_SETS
        for seed in range(1, SEEDS.get(name, OTHER_SEEDS) + 1)
        if seed not in {run[0]["declaration"]["seed"] for run in found.get((name, "published"), [])}
    ]

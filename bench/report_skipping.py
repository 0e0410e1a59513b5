"""The page on the skipping experiment, from whatever cells have results; says what is missing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.skipping import BATCH, DATA_SETS, OUTPUT, TOLERATED, VARIANTS, Cell
from geep_triton.evaluation.metrics import CLASS_METRICS, Interval

SYSTEMS = ("bert", "exits", "skipping", "smartbert", "planned")
SEEDS = {"rte": 5, "wnli": 5}
OTHER_SEEDS = 3
RESAMPLES = 1_000
HARDLY = 1.2  # times fewer FLOPs: less is no help
RELEASED = (("ours", "32"), ("smartbert", "1"))  # systems held against the released loop, and their batches
TIMED = ("samples", "batch_samples")  # number of samples, of those in batches where they are others

Runs = list[dict[str, Any]]  # of one data set and variant, a seed each


def read_runs(folder: Path) -> dict[tuple[str, str], Runs]:
    """(data set, variant) -> results of cells as they are declared now; those of an older declaration count as missing."""
    runs: dict[tuple[str, str], Runs] = {}
    for path in sorted(folder.glob("*.*.*.json")):
        name, variant, seed = path.stem.split(".")
        if name not in DATA_SETS or variant not in VARIANTS:
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["declaration"] == Cell(DATA_SETS[name], variant, int(seed), result["declaration"]["limit"]).declaration():
            runs.setdefault((name, variant), []).append(result)
    return runs


def point(run: dict[str, Any], system: str, threshold: float | str | None = "chosen") -> dict[str, Any]:
    """A system's point of the curve, at a threshold or at the chosen one."""
    points = [point for point in run["curve"] if point["system"] == system]
    return next(p for p in points if (p["chosen"] if threshold == "chosen" else p["threshold"] == threshold))


def reduction(run: dict[str, Any], at: dict[str, Any]) -> float:
    """Times fewer FLOPs than full depth without gates."""
    return sum(point(run, "bert")["flops"].values()) / sum(at["flops"].values())


def over_seeds(runs: Runs, value: Callable[[dict[str, Any]], float]) -> Interval:
    """Mean, lowest and highest seed."""
    values = [value(run) for run in runs]
    return Interval(statistics.mean(values), min(values), max(values))


def lost(runs: Runs, system: str, threshold: float | str | None = "chosen") -> Interval:
    """Score of a system less that of full depth on the same samples, mean over seeds; 95 % interval of a paired bootstrap that
    draws seeds and samples.
    """
    labels = torch.tensor([int(label) for label in runs[0]["labels"]])
    classes = int(labels.max()) + 1
    metric = CLASS_METRICS[runs[0]["declaration"]["data_set"]["metric"]]

    def answers(at: dict[str, Any]) -> torch.Tensor:
        return F.one_hot(torch.tensor([int(answer) for answer in at["answers"]]), classes).float()

    pairs = [(answers(point(run, system, threshold)), answers(point(run, "bert"))) for run in runs]

    def difference(seeds: Sequence[int], rows: torch.Tensor) -> float:
        return statistics.mean(
            metric(pairs[seed][0][rows], labels[rows]) - metric(pairs[seed][1][rows], labels[rows]) for seed in seeds
        )

    random = torch.Generator().manual_seed(0)
    draws = [
        difference(
            torch.randint(len(runs), (len(runs),), generator=random).tolist(),
            torch.randint(len(labels), (len(labels),), generator=random),
        )
        for _ in range(RESAMPLES)
    ]
    low, high = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval(difference(range(len(runs)), torch.arange(len(labels))), low, high)


def times(interval: Interval) -> str:
    return f"{interval.estimate:.2f}x ({interval.low:.2f} .. {interval.high:.2f})"


def points(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.1f} ({100 * interval.low:+.1f} .. {100 * interval.high:+.1f})"


def speed(run: dict[str, Any], name: str, batch: str, rival: str) -> float:
    rates = run["speed"]["samples_per_second"]
    return rates[f"{name}@{batch}"] / rates[rival]


def section(name: str, variant: str, runs: Runs) -> str:
    """A data set under a variant: each system at its chosen threshold."""
    samples, metric, limit = runs[0]["samples"], DATA_SETS[name].metric, runs[0]["declaration"]["limit"]
    layers = runs[0]["num_layers"]
    trial = f"; a trial on {limit} samples, without meaning" if limit else ""
    lines = [
        f"**{name}, {variant}** ({samples['train']:,} training, {samples['tune']:,} tuning and {samples['test']:,} test "
        f"samples, {len(runs)} of {SEEDS.get(name, OTHER_SEEDS)} seeds{trial})",
        "",
        f"| system | threshold | {metric} | less bert's, points | FLOPs, times fewer | mean layers of {layers} | "
        f"speed-up, one sample | speed-up, {BATCH:,} tokens |",
        "|---|---|---|---|---|---|---|---|",
        f"| the commonest class | - | {majority(runs[0]):.3f} | | | | | |",
    ]
    for system in SYSTEMS:
        score = over_seeds(runs, lambda run, s=system: point(run, s)["score"])
        depth = statistics.mean(point(run, system)["mean_layers"] for run in runs)
        saved = over_seeds(runs, lambda run, s=system: reduction(run, point(run, s)))
        one, many = (
            over_seeds(runs, lambda run, s=system, b=batch: speed(run, s, b, f"bert@{b}")) for batch in ("1", str(BATCH))
        )
        lines.append(
            f"| {system} | {thresholds(runs, system)} | {score.estimate:.3f} ({score.low:.3f} .. {score.high:.3f}) | "
            f"{points(lost(runs, system))} | "
            f"{times(saved)} | {depth:.2f} | {times(one)} | {times(many)} |"
        )
    gated = [point(run, "skipping")["skip_histogram"] for run in runs]
    rates = [statistics.mean(layer) / samples["test"] for layer in zip(*gated, strict=True)]
    ours, alone = (over_seeds(runs, lambda run, s=s, b=b: speed(run, s, b, "released")) for s, b in RELEASED)
    moved = max(run["speed"]["released_moved"] for run in runs)
    timed = [sorted({f"{run['speed'].get(key, run['speed']['samples']):,}" for run in runs}) for key in TIMED]
    rate, batched = (over_seeds(runs, lambda run, b=b: run["speed"]["samples_per_second"][f"bert@{b}"]) for b in ("1", BATCH))
    lines += [
        "",
        f"Share of the samples that skip layers 1 to {layers}: {', '.join(f'{rate:.0%}' for rate in rates)}. Against the "
        f"released loop over single samples: ours in batches of 32 {times(ours)}, the same answers but for {moved:.1%} of the "
        f"samples; ours one at a time, at the chosen threshold, {times(alone)}.",
        "",
        f"Timed on {' or '.join(timed[0])} samples one at a time, and {' or '.join(timed[1])} in batches; bert takes "
        f"{rate.estimate:.0f} and {batched.estimate:.0f} a second.",
    ]
    return "\n".join(lines)


def majority(run: dict[str, Any]) -> float:
    """Score of answering the commonest class always."""
    labels = torch.tensor([int(label) for label in run["labels"]])
    logits = F.one_hot(labels.mode().values, int(labels.max()) + 1).float().expand(len(labels), -1)
    return CLASS_METRICS[run["declaration"]["data_set"]["metric"]](logits, labels)


def thresholds(runs: Runs, system: str) -> str:
    """Those chosen, seed by seed, each once."""
    found = dict.fromkeys(point(run, system)["threshold"] for run in runs)
    return ", ".join("never" if threshold is None else f"{threshold:g}" for threshold in found)


def curve_section(name: str, variant: str, runs: Runs) -> str:
    """Every threshold: score and FLOPs."""
    thresholds = sorted({at["threshold"] for at in runs[0]["curve"] if at["threshold"] is not None})
    kinds = ("exits", "smartbert", "planned")
    lines = [
        f"Threshold by threshold, {DATA_SETS[name].metric} at times fewer FLOPs ({name}, {variant}):",
        "",
        "| threshold | " + " | ".join(kinds) + " |",
        "|---|" + "---|" * len(kinds),
    ]
    for threshold in (None, *thresholds):
        cells = []
        for system in kinds:
            score, saved = (
                statistics.mean(values)
                for values in zip(
                    *((point(r, system, threshold)["score"], reduction(r, point(r, system, threshold))) for r in runs),
                    strict=True,
                )
            )
            cells.append(f"{score:.3f} at {saved:.2f}x")
        lines.append(f"| {'never' if threshold is None else f'{threshold:g}'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims_section(found: dict[tuple[str, str], Runs]) -> str:
    """The abstract's two claims, as hypotheses stated before the runs."""
    lines = [
        "**Claim 1.** SmartBERT computes 2 to 3 times less at a minimal drop. Read as: at the chosen threshold every seed has "
        f"at least 2 times fewer FLOPs than bert, and the score is with confidence at most {100 * TOLERATED:g} point lower.",
        "",
        "**Claim 2.** On rte and wnli entropy exits hardly help and skipping does. Read as: at their chosen thresholds exits "
        f"have less than {HARDLY:g} times fewer FLOPs at every seed, and skipping more at every seed, its score with "
        f"confidence at most {100 * TOLERATED:g} point lower. Refuted where exits have more, their score with confidence as "
        "little lower, or skipping has less, or its score is with confidence lower.",
        "",
        "| data set | variant | seeds | claim 1 | claim 2 |",
        "|---|---|---|---|---|",
    ]
    for (name, variant), runs in found.items():
        second = second_claim(runs) if name in SEEDS else "-"
        lines.append(f"| {name} | {variant} | {len(runs)} | {first_claim(runs)} | {second} |")
    return "\n".join(lines)


def first_claim(runs: Runs) -> str:
    """The verdict on claim 1."""
    saved, loss = over_seeds(runs, lambda run: reduction(run, point(run, "smartbert"))), lost(runs, "smartbert")
    if saved.low >= 2 and loss.low >= -TOLERATED:
        return "supported"
    return "refuted" if saved.high < 2 or loss.high < -TOLERATED else "undecided"


def second_claim(runs: Runs) -> str:
    """The verdict on claim 2."""
    exits, skips = (over_seeds(runs, lambda run, s=system: reduction(run, point(run, s))) for system in ("exits", "skipping"))
    exits_loss, skips_loss = (lost(runs, system) for system in ("exits", "skipping"))
    if exits.high < HARDLY < skips.low and skips_loss.low >= -TOLERATED:
        return "supported"
    exits_help = exits.low >= HARDLY and exits_loss.low >= -TOLERATED
    return "refuted" if exits_help or skips.high <= HARDLY or skips_loss.high < -TOLERATED else "undecided"


def variants_section(found: dict[tuple[str, str], Runs]) -> str | None:
    """Where several variants were trained: the one that the tuning rows choose for smartbert, at the seeds that all have; None
    without such a set.
    """
    lines = []
    for name in DATA_SETS:
        variants = {variant: runs for (data_set, variant), runs in found.items() if data_set == name}
        if len(variants) < 2:
            continue
        seeds = set.intersection(*({run["declaration"]["seed"] for run in runs} for runs in variants.values()))
        if not seeds:
            continue
        shared = {variant: [run for run in runs if run["declaration"]["seed"] in seeds] for variant, runs in variants.items()}
        tuning = {
            variant: [statistics.mean(point(run, "smartbert")[f"tune_{what}"] for run in runs) for what in ("score", "layers")]
            for variant, runs in shared.items()
        }
        best = max(score for score, _ in tuning.values())
        chosen = min((layers, variant) for variant, (score, layers) in tuning.items() if score >= best - TOLERATED)[1]
        seen = ", ".join(f"{variant} {score:.3f} at {layers:.2f} layers" for variant, (score, layers) in tuning.items())
        numbers = ", ".join(map(str, sorted(seeds)))
        lines.append(f"- {name}, seed {numbers}: {chosen} (smartbert on the tuning rows: {seen}).")
    if not lines:
        return None
    choice = f"the fewest layers at a score at most {100 * TOLERATED:g} point below the best's"
    return "\n".join([f"Variants, chosen by the tuning rows alone ({choice}):", "", *lines])


def missing_section(found: dict[tuple[str, str], Runs]) -> str:
    """Seeds without a result at the published settings, and variants without one; these are tried where they may help."""
    missing = [
        f"{name}.published.{seed}"
        for name in DATA_SETS
        for seed in range(1, SEEDS.get(name, OTHER_SEEDS) + 1)
        if seed not in {run["declaration"]["seed"] for run in found.get((name, "published"), [])}
    ]
    published = f"Missing: {', '.join(missing)}." if missing else "No cell at the published settings is missing."
    untried = ", ".join(variant for variant in VARIANTS if variant not in {variant for _, variant in found})
    return f"{published} {f'Variants not tried: {untried}.' if untried else 'Every variant was tried on some data set.'}"


def page(folder: Path = OUTPUT) -> str:
    """The whole page."""
    found = read_runs(folder)
    machines = sorted(
        f"{run['environment']['gpu'] or run['environment']['cpu']}, {run['environment']['threads']} threads, torch "
        f"{run['environment']['torch']}"
        for runs in found.values()
        for run in runs
    )
    parts = [
        "# Skipping layers",
        "Made by `python -m bench.report` from the files in `bench/results/skipping`, which "
        "`python -m bench.skipping` writes; systems, variants and sizes are declared there. Backbone MiniLM-L6; test samples "
        "and splits are ours: no figure is comparable with the paper's. Differences of scores with 95 % paired bootstraps over "
        "seeds and test samples; all other brackets are the lowest and the highest seed. FLOPs are those that really "
        "ran, gates, heads and padding included. Speed-up is wall clock over bert in the same run, without `packed`.",
        f"Machines: {'; '.join(dict.fromkeys(machines)) or 'none yet'}.",
        missing_section(found),
        claims_section(found),
        *filter(None, [variants_section(found)]),
        *(f"{section(*key, runs)}\n\n{curve_section(*key, runs)}" for key, runs in found.items()),
    ]
    return "\n\n".join(parts) + "\n"

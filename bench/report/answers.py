"""The page on scores, label sets, classes and rankings with exits, from whatever cells have results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bench.answers.promised import PROMISED, RANKED
from bench.answers.tasks import BACKBONES, SEEDS, TASKS, WIKIQA
from bench.environment import RESULTS
from bench.report.tables import machine, markdown, spread
from bench.rows import read, table
from geep_triton.promises.guarantees import binomial_interval

PAYS = 1.05  # times as fast as full depth; less than that is noise
LASTS = 0.95  # of all layers: who runs more saves nothing
ALLOWED = 0.05
TITLES = {
    "yelp_stars": "yelp_stars, one score (1 to 5 stars)",
    "go_emotions": "go_emotions, sets of 28 labels",
    "wikiqa": "wikiqa, ranking",
    "sst2": "sst2, recall of one class",
}
INTRODUCTION = """# Scores, label sets and rankings, measured

Made by `python -m bench.report` from `bench/results/answers`, which `python -m bench.answers.train`, `.promises`, `.clock` and
`.ranking` write; tasks, models and promises are declared in `bench/answers`. Splits are ours, and the models are trained on few
texts: no figure of a model is comparable with a paper's. Promises are about the same model at full depth. Figures are means
over the seeds, with the lowest and the highest in brackets."""
MODELS = """## The models

Recipe `joint`, an exit after every layer. minilm has 6 layers (all-MiniLM-L6), e5 has 12 (multilingual-e5-small, dequantized
from 4 bit). The metric of some exits on the recorded texts of dev and test: mean squared error (lower is better), micro F1,
accuracy. The last column is the last exit. The rankings of wikiqa have a section of their own."""
KEPT = """## Promises on held-out texts

Calibrated on a random half of the recorded texts, measured on the others. *Kept* is the share of the held-out
texts, of several promises that which is nearest to being broken. Speed-up is wall clock beside full depth in the same run;
a dash where it is not measured yet, and then the policy is the one with the fewest mean layers instead of the fastest."""
DRAWS = """## How often promises are broken

Calibrations at random on recorded exits, half as many texts each as are recorded, at a confidence of 95 %. *As a population*:
texts are drawn with replacement, and all recorded texts are the truth, so that this counts how often the promise itself fails;
5 % may. In brackets the 95 % interval of that share; **bold** where the interval lies above 5 %. *Measured lower*: the recorded
texts are split at random, and the other half shows less than was promised, by however little. That is no test of the promise,
since the other half is a sample too, and unlucky where the first was lucky. It is what a user sees who measures again."""
RERANKED = """## Ranking

{queries} questions with {candidates} candidates each: a question's own, and those answers of other questions that share the
most words with it. Calibrated on as many other questions. Full depth runs in batches sorted by length."""


def results(kind: str, folder: Path = RESULTS, suite: str = "answers") -> pd.DataFrame:
    """Rows of one kind of cells; each has its task, backbone and seed. Empty where there are none."""
    found = read(folder / suite / kind)
    if not found:
        return pd.DataFrame()
    frame = table(found)
    declared = frame["declaration"]
    return frame.assign(
        task=declared.map(lambda one: one["task"]["name"]),
        model=declared.map(lambda one: one["backbone"]["name"]),
        seed=declared.map(lambda one: one["seed"]),
    )


def page(folder: Path = RESULTS) -> str:
    """The whole page."""
    trained, promised, timed, ranked = (results(kind, folder) for kind in ("training", "promises", "clock", "ranking"))
    trained = trained if trained.empty else trained[trained["system"] == "training"]
    parts = [INTRODUCTION, not_there(trained, timed), models_section(trained)]
    sections = list(filter(None, (task_section(task, promised, timed) for task in PROMISED)))
    parts += [KEPT, *sections] if sections else []
    parts += [draws_section(promised), ranking_section(ranked), setting(trained, timed)]
    return "\n\n".join(filter(None, parts)) + "\n"


def not_there(trained: pd.DataFrame, timed: pd.DataFrame) -> str:
    """How many cells have no result yet."""
    wanted = len(TASKS) * len(BACKBONES) * len(SEEDS)
    missing = {"trained": wanted - len(trained), "timed": len(PROMISED) * len(BACKBONES) * len(SEEDS) - cells_of(timed)}
    said = [f"{count} are not {what}" for what, count in missing.items() if count > 0]
    return f"Of the {wanted} models {' and '.join(said)} yet." if said else ""


def cells_of(found: pd.DataFrame) -> int:
    """How many cells the rows are of."""
    return 0 if found.empty else found["case"].nunique()


def models_section(trained: pd.DataFrame) -> str:
    """The metric of some exits."""
    if trained.empty:
        return ""
    shown = []
    for (task, model), rows in in_order(trained):
        if task == WIKIQA.name:  # its squared error says little about the order of candidates
            continue
        by_exit = pd.DataFrame(rows["by_exit"].tolist())
        layers = rows["exit_layers"].iloc[0]
        parts = {"after 1/3": 1 / 3, "after 1/2": 1 / 2, "after 2/3": 2 / 3}
        shown.append(
            {
                "task": task,
                "model": model,
                "seeds": len(rows),
                "texts": either(rows["samples.train"]),
                "metric": either(rows["metric"]),
            }
            | {"first": spread(by_exit[0])}
            | {name: spread(by_exit[layers_at(layers, part)]) for name, part in parts.items()}
            | {"last": spread(by_exit[by_exit.columns[-1]])}
        )
    return f"{MODELS}\n\n{markdown(pd.DataFrame(shown))}"


def layers_at(layers: list[int], share: float) -> int:
    """Index of the exit after this share of the layers."""
    return layers.index(round(share * layers[-1]))


def task_section(task: str, promised: pd.DataFrame, timed: pd.DataFrame) -> str:
    """What each promise reached on held-out texts, and where it does not pay."""
    if promised.empty and timed.empty:
        return ""
    shown, unpaid = [], []
    for one in PROMISED[task]:
        for backbone in BACKBONES:
            rows = of_promise(timed, task, backbone.name, one.name, "calibrated")
            layers = num_layers(timed, task, backbone.name)
            if rows.empty:
                rows = of_promise(promised, task, backbone.name, one.name, "held out")
                layers = num_layers(promised, task, backbone.name)
            if rows.empty:
                continue
            broken = int((rows["kept"] < rows["promised"]).sum())
            has_speed = "speed_up" in rows and rows["speed_up"].notna().all()
            shown.append({
                "promise": one.name, "model": backbone.name, "seeds": len(rows),
                "promised": either(rows["promised"]), "kept": spread(rows["kept"]) + (f", broken {broken}" if broken else ""),
                "mean layers": f"{spread(rows['mean_layers'], 2)} of {layers}", "family": counted(rows["family"]),
                "speed-up": f"{spread(rows['speed_up'], 2)}x" if has_speed else None,
            })  # fmt: skip
            if has_speed and rows["speed_up"].mean() < PAYS:
                unpaid.append(f"On {backbone.name} exits do not pay for {one.name!r}: {rows['speed_up'].mean():.2f}x.")
            elif rows["mean_layers"].mean() > LASTS * layers:
                unpaid.append(f"On {backbone.name} hardly a text may leave under {one.name!r}.")
    if not shown:
        return ""
    return "\n\n".join([f"### {TITLES[task]}", markdown(pd.DataFrame(shown)), *([" ".join(unpaid)] if unpaid else [])])


def draws_section(promised: pd.DataFrame) -> str:
    """How many of the calibrations at random broke their promises, over all seeds."""
    if promised.empty:
        return ""
    shown = []
    for task, several in {**PROMISED, WIKIQA.name: (RANKED,)}.items():
        for one in several:
            for backbone in BACKBONES:
                population, halves = (
                    of_promise(promised, task, backbone.name, one.name, system) for system in ("population", "splits")
                )
                if population.empty:
                    continue
                layers = num_layers(promised, task, backbone.name)
                shown.append({
                    "task": task, "promise": one.name, "model": backbone.name,
                    "as a population": broken_share(population),
                    "measured lower": f"{int(halves['broken'].sum())} of {int(halves['draws'].sum())}",
                    "mean layers": f"{population['mean_layers'].mean():.2f} of {layers}",
                })  # fmt: skip
    return f"{DRAWS}\n\n{markdown(pd.DataFrame(shown))}" if shown else ""


def broken_share(rows: pd.DataFrame) -> str:
    """How many were broken, with the interval of their share."""
    broken, draws = int(rows["broken"].sum()), int(rows["draws"].sum())
    low, high = binomial_interval(broken, draws, 0.95)
    said = f"{broken} of {draws} ({low:.1%} .. {high:.1%})"
    return f"**{said}**" if low > ALLOWED else said


def ranking_section(ranked: pd.DataFrame) -> str:
    """Reranking: the same first candidates, and how much faster."""
    if ranked.empty:
        return ""
    facts = ranked[ranked["system"] == ""].iloc[0]
    shown = []
    for (_, model), rows in in_order(ranked[ranked["system"] == "calibrated"]):
        layers = num_layers(ranked, "wikiqa", model)
        has_speed = "speed_up" in rows and rows["speed_up"].notna().all()
        shown.append({
            "model": model, "seeds": len(rows), "promised": either(rows["promised"]),
            "same first": spread(rows["kept"]), "mean layers": f"{spread(rows['mean_layers'], 2)} of {layers}",
            "MRR, full depth": spread(rows["full_mrr"]), "MRR": spread(rows["mrr"]),
            "speed-up": f"{spread(rows['speed_up'], 2)}x" if has_speed else None,
        })  # fmt: skip
    text = RERANKED.format(queries=f"{facts['queries']:.0f}", candidates=f"{facts['candidates']:.0f}")
    return f"{text}\n\n{markdown(pd.DataFrame(shown))}"


def setting(trained: pd.DataFrame, timed: pd.DataFrame) -> str:
    """Where it was measured."""
    said = []
    for what, rows in (("Trained", trained), ("Timed", timed)):
        if not rows.empty:
            where = list(rows["environment"])
            said.append(f"{what} on {either(map(machine, where))}, {either(one['date'] for one in where)}")
    return "; ".join(said) + "." if said else ""


def in_order(rows: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """(task, model) and its rows, as they are declared."""
    groups = [
        ((task.name, backbone.name), rows[(rows["task"] == task.name) & (rows["model"] == backbone.name)])
        for task in TASKS
        for backbone in BACKBONES
    ]
    return [(names, of_group) for names, of_group in groups if not of_group.empty]


def of_promise(rows: pd.DataFrame, task: str, model: str, promise: str, system: str) -> pd.DataFrame:
    """Those of one promise, all seeds."""
    if rows.empty:
        return rows
    wanted = (rows["task"] == task) & (rows["model"] == model) & (rows["system"] == system)
    return rows[wanted & (rows["promise"] == promise)]


def num_layers(rows: pd.DataFrame, task: str, model: str) -> int:
    """Of the model; 0 where it has no rows."""
    if rows.empty:
        return 0
    found = rows[(rows["task"] == task) & (rows["model"] == model) & (rows["system"] == "")]
    return 0 if found.empty else int(found["num_layers"].iloc[0])


def counted(names: Iterable[Any]) -> str:
    """Names, and how often each comes."""
    return ", ".join(f"{name} ({count})" for name, count in Counter(names).items())


def either(values: Iterable[Any]) -> str:
    """Different values, ascending."""
    return " or ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(set(values)))

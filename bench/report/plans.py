"""The page on plans: families of exit policies on recorded exits, by what a look at a text costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.answers.tasks import SEEDS
from bench.environment import RESULTS
from bench.plans.families import ORACLE, PER_LAYER
from bench.plans.outcomes import HEAD_COST
from bench.plans.promised import CONFIDENCE, PROMISES, STOP_COSTS
from bench.plans.tasks import BACKBONES, TASKS
from bench.report.answers import results
from bench.report.tables import machine, markdown, spread

SHOWN = 0.98  # the promise whose costs are shown for each data set
# Nothing is learned for them, except which exits are used.
PLAIN = (
    *("threshold", "threshold at 1 exit", "threshold at 2 exits", "threshold at 2 exits, all texts"),
    *("threshold at 3 exits, all texts", "threshold, spaced exits"),
)
# Shown for each data set; the page shows the means of all, and the files have the rest.
TABULATED = (
    *(PER_LAYER, "constant", *PLAIN[:2], PLAIN[3], PLAIN[5], "risk", "risk at 1 exit", "risk at 2 exits"),
    *("risk at 2 exits, with states", "risk at 2 exits, with the table", "planned", "replanned", "planned ahead, the table"),
    *("threshold, started by the table", "predicted, mean"),
)
DRAWN = (
    *("constant", "threshold", "threshold at 2 exits, all texts", "threshold, started by the table", "risk at 2 exits"),
    *("planned", "replanned"),
)
SHOWN_RATIOS = (0.9, 1.6)  # in the picture, so that lines near 1 can be told apart
NAMED = 3  # families in a sentence
PLAN, THRESHOLD, BEST = "planned", "threshold", "the best plain threshold"
RIVALS = (
    *("constant", "predicted, mean", "planned ahead, the table", THRESHOLD, PER_LAYER, BEST),
    *("risk at 1 exit", "risk at 2 exits"),
)
PICTURE = "plans.png"
INTRODUCTION = """# Looks and plans, measured

Made by `python -m bench.report` from `bench/results/plans`, which `python -m bench.plans.train` and `.promised` write; models,
families and costs are declared in `bench/plans`. Every exit was recorded once, and policies answer from the record: no speed is
measured here. The cost of a text is the layers that it runs, plus *c* layers for each look at it, that is, each time it is
scored or planned, plus {head:g} of a layer (at most *c*) where a head answers it without a look. A plan before the first layer
counts as a look, though a table's looks up tokens only. What is learned, and which exits a family uses, comes from texts of a
table without labels; other texts calibrate and judge."""
MODELS = """## The models

Share of the judge's texts on which the exits after a part of the layers already agree with the last one, and the layers of
the *oracle*, which leaves at the first exit that agrees. No policy can know that."""
COSTS = """## Costs of a text

In layers, under a promise of {shown:g} agreement with full depth, for *c* = {costs}: mean over calibrations, then over the
seeds, with the lowest and the highest seed in brackets. Each calibration takes a random half of the judge's texts and of each
family the boldest setting that is shown safe with {confidence:.0%} confidence; the other half is measured. Families are each
alone here: none shares its error with others. The lowest cost of a column is bold."""
HELPS = """## What helps

Cost of each family over that of the best family of plain thresholds of the same model, promise and *c*: mean over data sets,
seeds and promises ({promises}); less than 1 is better. The plain ones are {plain}.
The best of them is picked by the very costs that are shown, which favours thresholds. *All texts*: nothing is learned for plain
thresholds, so that all texts of the table may choose exits, where other families have a part of it. *Cheaper* counts the
models, promises and costs where the ratio is below 1."""
PLANS = """## Where a plan wins

A plan (`planned`) looks at each text once, at one exit. Cost of the plan over that of others on the same data set, promise and
*c*: mean, and in brackets in how many cases the plan is cheaper. In the mean it costs less than a threshold at every exit
{every}, and less than {best} {starts}."""
KEPT = """## Promises

*Failed*: texts are drawn with replacement, and all recorded texts are the truth, so that this counts how often the promise
itself fails, of which {allowed:.0%} is allowed. *Measured lower*: the other half shows less than was promised, by however
little, which is a sample too. *None safe*: no setting was shown to be safe, and all layers ran."""


def page(folder: Path = RESULTS) -> str:
    """The whole page."""
    found, introduction = results("promised", folder, "plans"), INTRODUCTION.format(head=HEAD_COST)
    if found.empty:
        return f"{introduction}\n\nNot yet measured.\n"
    costs = promised(found)
    parts = [
        introduction,
        not_there(found),
        models_section(found),
        f"![Cost over that of the best plain threshold, by the cost of a look]({PICTURE})",
        plans_section(costs),
        helps_section(costs),
        kept_section(costs),
        costs_section(found, costs),
        setting(found),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def promised(found: pd.DataFrame) -> pd.DataFrame:
    """A line for each family of each model, promise and cost of a look, with its cost over the best plain threshold's."""
    rows = found[found["promise"].notna()]
    keys = ["task", "model", "seed", "promise", "stop_cost"]
    best = rows[rows["system"].isin(PLAIN)].groupby(keys)["cost"].min().rename("best")
    joined = rows.merge(best.reset_index(), on=keys)
    return joined.assign(ratio=joined["cost"] / joined["best"])


def not_there(found: pd.DataFrame) -> str:
    """How many models have no result yet."""
    wanted = len(TASKS) * len(BACKBONES) * len(SEEDS)
    missing = wanted - found["case"].nunique()
    return f"Of the {wanted} models {missing} are not measured yet." if missing > 0 else ""


def models_section(found: pd.DataFrame) -> str:
    """How early exits agree, and what the oracle runs."""
    shown = []
    facts, bound = found[found["num_layers"].notna()], found[(found["system"] == ORACLE)]
    for task, model in in_order(found):
        rows = of_model(facts, task, model)
        layers = int(rows["num_layers"].iloc[0])
        exits = {part: round(layers * of) - 1 for part, of in {"1/3": 1 / 3, "1/2": 1 / 2, "2/3": 2 / 3}.items()}
        by_exit = pd.DataFrame(rows["agreement_by_exit"].tolist())
        shown.append({
            "data": task, "model": model, "seeds": len(rows), "table texts": f"{rows['texts.table'].mean():,.0f}",
            "judge texts": f"{rows['texts.judge'].mean():,.0f}", "first exit": spread(by_exit[0]),
            **{part: spread(by_exit[index]) for part, index in exits.items()},
            "oracle's layers": f"{spread(of_model(bound, task, model).groupby('seed')['layers'].first(), 2)} of {layers}",
        })  # fmt: skip
    return f"{MODELS}\n\n{markdown(pd.DataFrame(shown))}"


def costs_section(found: pd.DataFrame, costs: pd.DataFrame) -> str:
    """For each data set the cost of each family on each model."""
    text = COSTS.format(shown=SHOWN, costs=", ".join(f"{cost:g}" for cost in STOP_COSTS), confidence=CONFIDENCE)
    parts = [text]
    at_promise = costs[(costs["promise"] == SHOWN) & costs["system"].isin(TABULATED)]
    for task in dict.fromkeys(task for task, _ in in_order(found)):
        of_task = at_promise[at_promise["task"] == task]
        columns = of_task[["model", "stop_cost"]].drop_duplicates().sort_values(["model", "stop_cost"], key=place)
        lines: dict[str, dict[str, str]] = {family: {"family": family} for family in TABULATED}
        for model, cost in columns.itertuples(index=False):
            cell = of_task[(of_task["model"] == model) & (of_task["stop_cost"] == cost)].groupby("system")["cost"]
            lowest = cell.mean().min()
            for family, values in cell:
                said = spread(values, 2)
                lines[str(family)][f"{model}, {cost:g}"] = f"**{said}**" if values.mean() == lowest else said
        parts.append(f"### {task}\n\n{markdown(pd.DataFrame(lines.values()))}")
    return "\n\n".join(parts)


def helps_section(costs: pd.DataFrame) -> str:
    """Each family's cost over that of the best plain threshold, and what that says."""
    text = HELPS.format(plain="; ".join(PLAIN), promises=", ".join(f"{promise:g}" for promise in PROMISES))
    means = costs.groupby(["model", "stop_cost", "system"])["ratio"].mean()
    shown = []
    for family in families_of(costs):
        rows = costs[costs["system"] == family]
        line: dict[str, object] = {"family": family}
        for backbone in BACKBONES:
            for cost in STOP_COSTS:
                ratio = means.get((backbone.name, cost, family))
                line[f"{backbone.name}, {cost:g}"] = None if ratio is None else f"{ratio:.3f}"
        shown.append(line | {"cheaper": f"{int((rows['ratio'] < 1 - 1e-9).sum())} of {len(rows)}"})
    return "\n\n".join([text, best_sentences(costs), markdown(pd.DataFrame(shown).dropna(axis=1, how="all"))])


def by_family(costs: pd.DataFrame) -> pd.DataFrame:
    """A column for each family's costs, and for the best plain threshold's; a line for each model, cost of a look and case."""
    keys = ["model", "stop_cost", "task", "seed", "promise"]
    best = costs.groupby(keys)["best"].first()
    return costs.pivot(index=keys, columns="system", values="cost").assign(**{BEST: best})


def plans_section(costs: pd.DataFrame) -> str:
    """The plan's cost over that of others, by model and cost of a look."""
    compared, shown = by_family(costs), []
    for model in models_of(costs):
        for cost in STOP_COSTS:
            rows = compared.loc[model, cost]
            ratios = {rival: rows[PLAN] / rows[rival] for rival in RIVALS}
            line = {"model": model, "c": f"{cost:g}", "cases": len(rows)}
            shown.append(line | {rival: f"{of.mean():.3f} ({int((of < 1).sum())})" for rival, of in ratios.items()})
    text = PLANS.format(starts=pays_from(costs, BEST), every=pays_from(costs, THRESHOLD), best=BEST)
    return f"{text}\n\n{markdown(pd.DataFrame(shown))}"


def pays_from(costs: pd.DataFrame, rival: str) -> str:
    """From which cost of a look a plan costs less than a rival in the mean, for each model."""
    compared, said = by_family(costs), {}
    ratios = compared[PLAN] / compared[rival]
    for model in models_of(costs):
        wins = [ratios.loc[model, cost].mean() < 1 for cost in STOP_COSTS]
        first = next((cost for index, cost in enumerate(STOP_COSTS) if all(wins[index:])), None)
        said[model] = "at none of these *c*" if first is None else f"from *c* = {first:g}"
    if len(set(said.values())) == 1:
        return f"{next(iter(said.values()))} on {' and '.join(said)}"
    return " and ".join(f"{where} on {model}" for model, where in said.items())


def models_of(costs: pd.DataFrame) -> list[str]:
    """Those that have rows, as they are declared."""
    return [backbone.name for backbone in BACKBONES if backbone.name in set(costs["model"])]


def best_sentences(costs: pd.DataFrame) -> str:
    """For each model and cost of a look, the families that cost least."""
    said = []
    for model in models_of(costs):
        for cost in STOP_COSTS:
            rows = costs[(costs["model"] == model) & (costs["stop_cost"] == cost)]
            least = rows.groupby("system")["ratio"].mean().sort_values()[:NAMED]
            named = ", ".join(f"{family} ({ratio:.3f})" for family, ratio in least.items())
            said.append(f"- {model}, *c* = {cost:g}: {named}")
    return "\n".join([f"The {NAMED} families with the lowest mean:", "", *said])


def kept_section(costs: pd.DataFrame) -> str:
    """How often calibrations failed, over all families, and where most."""
    failing, lower, none = (
        costs.dropna(subset=[name]).groupby("system")[name].mean().sort_values(ascending=False)
        for name in ("failed", "broken", "none_safe")
    )
    above = costs[costs["failed"] > 1 - CONFIDENCE]
    never = [family for family in none.index if none[family] == 0]
    lines = [
        f"Failed: {costs['failed'].mean():.1%} of all calibrations, most often {listed(failing)}. The share is above "
        f"{1 - CONFIDENCE:.0%} in {len(above)} of {costs['failed'].notna().sum()} families, models and costs.",
        f"Measured lower: {costs['broken'].mean():.1%}, most often {listed(lower)}.",
        f"None safe: {costs['none_safe'].mean():.1%}, most often {listed(none)}; never in {len(never)} of {len(none)}.",
    ]
    if PER_LAYER in set(costs["system"]):
        lines.append(f"*Failed* is not measured of `{PER_LAYER}`, which is fitted to a part of each calibration.")
    return "\n\n".join([KEPT.format(allowed=1 - CONFIDENCE), " ".join(lines)])


def listed(shares: pd.Series) -> str:
    """The first families of a sorted series, with their shares."""
    return ", ".join(f"{family} ({share:.1%})" for family, share in shares[:NAMED].items())


def setting(found: pd.DataFrame) -> str:
    """Where and how it was computed."""
    where = sorted({f"{machine(one)}, {one['date']}" for one in found["environment"]})
    first = found["declaration"].iloc[0]
    return (
        f"{first['splits']} calibrations of each family, {first['fitted_splits']} of `{PER_LAYER}`; up to {first['settings']} "
        f"settings for each choice of exits; nets learn from {first['learned_share']:.0%} of the table's texts, the others "
        f"choose exits. Computed on {'; '.join(where)}."
    )


def plot(path: Path, folder: Path = RESULTS) -> None:
    """Cost over that of the best plain threshold, by the cost of a look: a panel for each model, as PNG, if measured."""
    from matplotlib.figure import Figure

    found = results("promised", folder, "plans")
    if found.empty:
        return
    costs = promised(found)
    costs = costs[costs["promise"] == SHOWN]
    models = models_of(costs)
    figure = Figure(figsize=(5 * len(models), 4), layout="constrained")
    for axis, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        rows = costs[costs["model"] == model]
        for family in DRAWN:
            by_data = rows[rows["system"] == family].groupby(["stop_cost", "task"])["ratio"].mean()
            means = by_data.groupby("stop_cost").mean()
            axis.plot(means.index, means, marker="o", label=family)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_ylim(*SHOWN_RATIOS)
        axis.set_xticks(STOP_COSTS, [f"{cost:g}" for cost in STOP_COSTS])
        axis.minorticks_off()
        axis.set_xlabel("cost of a look, layers")
        axis.set_ylabel(f"cost over the best threshold, promise {SHOWN:g}")
        axis.set_title(f"{model}, {rows['task'].nunique()} data sets")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def families_of(costs: pd.DataFrame) -> list[str]:
    """Their names, in the order of the rows."""
    return list(dict.fromkeys(costs["system"]))


def in_order(found: pd.DataFrame) -> list[tuple[str, str]]:
    """(task, model) that have rows, as they are declared."""
    there = set(zip(found["task"], found["model"], strict=True))
    return [pair for pair in ((task.name, backbone.name) for task in TASKS for backbone in BACKBONES) if pair in there]


def of_model(rows: pd.DataFrame, task: str, model: str) -> pd.DataFrame:
    """Those of a data set and a model, all seeds."""
    return rows[(rows["task"] == task) & (rows["model"] == model)]


def place(column: pd.Series) -> Sequence[float] | pd.Series:
    """Models in the order in which they are declared, other values as they are."""
    names = {backbone.name: index for index, backbone in enumerate(BACKBONES)}
    return column.map(names) if column.name == "model" else column

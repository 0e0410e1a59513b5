"""The page on the families that `calibrate` tries: their speed under promises, and other kinds of text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.answers.tasks import SEEDS
from bench.environment import RESULTS
from bench.plans.clock import BUDGETS, FULL, LARGE, OF_LARGE, STARTED
from bench.plans.promised import PROMISES
from bench.plans.shifted import OWN
from bench.plans.tasks import BACKBONES, TASKS
from bench.report import plans
from bench.report.answers import results
from bench.report.tables import machine, markdown, spread
from geep_triton.promises.families import CLEARLY_FASTER, FRAGILE, least_gain
from geep_triton.report.findings import listed

SHOWN, SHOWN_BUDGET = 0.98, 4_096  # for each data set
GROUPS = {
    "thresholds": ("threshold", "threshold per layer", "margin"),
    "started by tokens": (*STARTED, "allocated+threshold"),
    "constant": ("constant",),
    "risk": ("risk",),
    "planned": ("planned",),
}
CLOSE = 0.02  # of the fastest: no family is faster than another by less
INTRODUCTION = """# Families, measured

Made by `python -m bench.report` from `bench/results/plans`, which `python -m bench.plans.clock` and `.shifted` write. These are
the kinds of policy that `calibrate` tries, and for speed three that it tried until they were timed here. The models are those
of [Looks and plans](plans.md), with an exit table from their table texts. A random half of the judge texts calibrates. Of each
family the boldest setting counts that is shown to keep the promise, where all families share the error of 5 %."""
SPEED = """## Speed

Wall clock over the same engine at full depth, in turns in the same run: mean over data sets and seeds, in square brackets how
many cells where that differs. A family that could not keep a promise on some model, or that a model does not have (`margin` at
two classes), counts as full depth, 1, there, since that is what it comes to. With {large:,} tokens a batch only {of_large} is
timed."""
FASTEST = """Of all models, promises and token budgets, how often a family is the fastest, and how often within {close} of that,
which is noise. *Taken*: what `calibrate` would take of these figures. It takes {fragile} only where they
are {gain:g} times as fast as the others, since promises by them break more easily [on other texts](#other-kinds-of-text). By
that rule the mean speed-up is {reached}."""
BY_DATA = """## Data sets

Speed-up under a promise of {shown:g} with {budget:,} tokens a batch; of several families the fastest. In round brackets the
lowest and the highest seed. *Agreement* is the lowest that one of them has on the other half of the judge texts."""
SHIFTS = """## Other kinds of text

Each model answers {texts:,} texts of each of the three data sets that it was not made for, under settings that were calibrated
on its own, {calibrations} times for each promise, where a score costs {cost:g} of a layer. *Broken* is the share of
calibrations and data sets with an agreement below the promise, by however little; *agreement* is the mean, and *lowest* that of
the worst calibration and data set. A promise holds for texts like those that it was calibrated on, and for no others: the
column *own* is a check, the others say what a family does where texts change unnoticed."""


def page(folder: Path = RESULTS) -> str:
    """The whole page."""
    timed, shifted = (results(kind, folder, "plans") for kind in ("clock", "shifted"))
    parts = [INTRODUCTION, not_there(timed, shifted), *speed_sections(timed), shift_section(shifted)]
    return "\n\n".join(filter(None, parts)) + "\n"


def readme_lines(folder: Path = RESULTS) -> str:
    """README's lines on what foretells exits best; empty where nothing is timed."""
    timed = results("clock", folder, "plans")
    if timed.empty:
        return ""
    found = speeds(timed)
    found = found[(found["promise"] == SHOWN) & (found["token_budget"] == SHOWN_BUDGET)]
    cells = found["case"].unique()
    best = {
        name: found[found["system"].isin(families)].groupby("case")["speed_up"].max().reindex(cells).fillna(1.0).mean()
        for name, families in GROUPS.items()
    }
    costs, shifted = (results(kind, folder, "plans") for kind in ("promised", "shifted"))
    pays = "" if costs.empty else plan_pays(plans.promised(costs))
    kinds = {
        "risk": "`risk`: small nets foretell from an exit's answer whether it will stay",
        "thresholds": "thresholds, the best kind for each model: an exit's answer must be sure enough",
        "planned": "`planned`: each text is looked at once, and then its exit is planned",
        "constant": "all texts leave at one layer",
    }
    return "\n".join(
        (
            "Which texts leave? How many times as fast as all layers, under a promise that at least "
            f"{SHOWN:.0%} of answers stay, on {len(cells)} trained models:\n",
            *(f"- {best[name]:.2f} times, {words}" for name, words in kinds.items()),
            f"\n{breaks(shifted)}Tokens alone foretell too little. {pays}[Families](docs/results/families.md), "
            "[looks and plans](docs/results/plans.md).",
        )
    )


def breaks(shifted: pd.DataFrame) -> str:
    """How often promises by the nets and by a threshold are broken on other kinds of text."""
    if shifted.empty:
        return ""
    others = shifted[(shifted["promise"] == SHOWN) & (shifted["texts"] != OWN)].groupby("system")["broken"].mean()
    return (
        f"A promise is for texts like those of its calibration. On texts of other data sets `risk` breaks {others['risk']:.0%} "
        f"of these promises, and one threshold {others['threshold']:.0%}, so `calibrate` takes `risk` only where it is "
        f"{CLEARLY_FASTER:g} times as fast as the others. "
    )


def plan_pays(costs: pd.DataFrame) -> str:
    """From which cost of a look a plan does."""
    every, best = (plans.pays_from(costs, rival) for rival in (plans.THRESHOLD, plans.BEST))
    return (
        "With *c* the cost of a look at an answer, in layers, a plan costs less than a threshold at every exit "
        f"{every}, and than the best plain thresholds {best}. "
    )


def not_there(timed: pd.DataFrame, shifted: pd.DataFrame) -> str:
    """How many models have no result yet."""
    wanted = len(TASKS) * len(BACKBONES) * len(SEEDS)
    there = {
        what: 0 if found.empty else found.groupby(["task", "model", "seed"]).ngroups
        for what, found in {"timed": timed, "served other texts": shifted}.items()
    }
    missing = {what: wanted - count for what, count in there.items()}
    said = [f"{count} are not {what}" for what, count in missing.items() if count]
    return f"Of the {wanted} models {' and '.join(said)} yet." if said else ""


def speeds(timed: pd.DataFrame) -> pd.DataFrame:
    """A line for each family of each model, promise and token budget: its agreement, mean layers and speed-up."""
    judged = timed[timed["agreement"].notna()][["case", "task", "model", "seed", "system", "promise", "policy", "agreement",
                                                "mean_layers"]]  # fmt: skip
    clocked = timed[timed["system"] == "policy"][["case", "policy", "token_budget", "speed_up"]]
    found = judged.merge(clocked, on=["case", "policy"])
    return found[(found["token_budget"] < LARGE) | found["promise"].isin(OF_LARGE)]


def speed_sections(timed: pd.DataFrame) -> list[str]:
    """What is said of the clock."""
    if timed.empty:
        return []
    found = speeds(timed)
    text = SPEED.format(large=LARGE, of_large=" and ".join(f"{promise:g}" for promise in OF_LARGE))
    tables = [f"Promised {promise:g}:\n\n{speed_table(found, promise)}" for promise in PROMISES]
    return [text, models_timed(found), *tables, fastest(found), by_data(found), setting(timed)]


def models_timed(found: pd.DataFrame) -> str:
    """How many models are timed at each token budget, where that differs."""
    counts = found.groupby(["token_budget", "model"])["case"].nunique()
    if counts.groupby("model").nunique().max() == 1:
        return ""
    said = [
        f"{backbone.name}: " + ", ".join(f"{number} with {int(budget):,}" for (budget, _), number in of_model.items())
        for backbone in BACKBONES
        if not (of_model := counts[counts.index.get_level_values(1) == backbone.name]).empty
    ]
    return f"Models that are timed, by tokens a batch: {'; '.join(said)}."


def speed_table(found: pd.DataFrame, promise: float) -> str:
    """Each family's mean speed-up by model and token budget."""
    rows = found[found["promise"] == promise]
    full = rows[rows["system"] == FULL].set_index(["case", "token_budget"])
    lines = []
    for family in dict.fromkeys(found["system"]):
        line: dict[str, object] = {"family": family}
        of_family = rows[rows["system"] == family].set_index(["case", "token_budget"])["speed_up"]
        for backbone in BACKBONES:
            for budget in BUDGETS:
                cells = full[(full["model"] == backbone.name) & (full.index.get_level_values(1) == budget)].index
                if len(cells) == 0:
                    continue
                reached = of_family.reindex(cells)
                if reached.notna().any():
                    note = "" if reached.notna().all() else f" [{int(reached.notna().sum())}]"
                    line[f"{backbone.name}, {budget:,}"] = f"{reached.fillna(1.0).mean():.2f}x{note}"
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def fastest(found: pd.DataFrame) -> str:
    """How often each family is the fastest, or close to it."""
    keys = ["case", "promise", "token_budget"]
    best = found.groupby(keys)["speed_up"].transform("max")
    cells = found.groupby(keys).ngroups
    close = found[found["speed_up"] >= (1 - CLOSE) * best]["system"].value_counts()
    first = found[found["speed_up"] == best].drop_duplicates(keys)["system"].value_counts()
    chosen = taken(found)
    counts = chosen["system"].value_counts()
    lines = [
        {"family": family, "fastest": f"{first.get(family, 0)} of {cells}", f"within {CLOSE:.0%}": close.get(family, 0)}
        | {"taken": "-" if family in STARTED else str(counts.get(family, 0))}
        for family in dict.fromkeys(found["system"])
    ]
    means = chosen.groupby("promise")["speed_up"].mean()[::-1]
    reached = listed([f"{value:.2f} times under {promise:g}" for promise, value in means.items()])
    fragile = listed([f"`{family}`" for family in FRAGILE])
    text = FASTEST.format(close=f"{CLOSE:.0%}", gain=CLEARLY_FASTER, fragile=fragile, reached=reached)
    return f"{text}\n\n{markdown(pd.DataFrame(lines))}"


def taken(found: pd.DataFrame) -> pd.DataFrame:
    """The line of the family that `calibrate` would take, for each model, promise and token budget."""
    tried = found[~found["system"].isin(STARTED)]
    counted = tried["speed_up"] / tried["system"].map(least_gain)
    return tried.loc[counted.groupby([tried["case"], tried["promise"], tried["token_budget"]]).idxmax()]


def by_data(found: pd.DataFrame) -> str:
    """The fastest of each group of families on each data set."""
    rows = found[(found["promise"] == SHOWN) & (found["token_budget"] == SHOWN_BUDGET)]
    lines = []
    for task in TASKS:
        for backbone in BACKBONES:
            of_model = rows[(rows["task"] == task.name) & (rows["model"] == backbone.name)]
            if of_model.empty:
                continue
            line: dict[str, object] = {"data": task.name, "model": backbone.name, "seeds": of_model["seed"].nunique()}
            for name, families in GROUPS.items():
                best = of_model[of_model["system"].isin(families)].groupby("seed")["speed_up"].max()
                line[name] = f"{spread(best, 2)}x" if len(best) else None
            lines.append(line | {"agreement": f"{of_model['agreement'].min():.3f}"})
    if not lines:
        return ""
    return f"{BY_DATA.format(shown=SHOWN, budget=SHOWN_BUDGET)}\n\n{markdown(pd.DataFrame(lines))}"


def setting(timed: pd.DataFrame) -> str:
    """Where and how it was timed, and what a score costs there."""
    where = sorted({f"{machine(one)}, {one['date']}" for one in timed["environment"]})
    drift, cost = timed["drift"].dropna(), timed[timed["num_layers"].notna()].groupby("model")["stop_layers"].mean()
    costs = ", ".join(f"{value:.3f} of a layer on {name}" for name, value in cost.items())
    return (
        f"Timed on {'; '.join(where)}. Full depth at the end of a round differed from that at its start by "
        f"{drift.mean():.1%} in the mean and {drift.max():.1%} at most. A score cost {costs}."
    )


def shift_section(shifted: pd.DataFrame) -> str:
    """How promises are kept on other kinds of text."""
    if shifted.empty:
        return ""
    rows, lines = shifted[shifted["promise"].notna()], []
    for family in dict.fromkeys(rows["system"]):
        line: dict[str, object] = {"family": family}
        for promise in PROMISES:
            of_family = rows[(rows["system"] == family) & (rows["promise"] == promise)]
            others = of_family[of_family["texts"] != OWN]
            if not others.empty:
                own = of_family[of_family["texts"] == OWN]
                line |= {
                    f"{promise:g}: own broken": f"{own['broken'].mean():.0%}",
                    f"{promise:g}: others broken": f"{others['broken'].mean():.0%}",
                    f"{promise:g}: agreement": f"{others['agreement'].mean():.3f}",
                    f"{promise:g}: lowest": f"{others['lowest'].min():.3f}",
                }
        lines.append(line)
    declared = shifted["declaration"].iloc[0]
    text = SHIFTS.format(texts=declared["texts"], calibrations=declared["calibrations"], cost=declared["stop_cost"])
    return f"{text}\n\n{markdown(pd.DataFrame(lines))}"

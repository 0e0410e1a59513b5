"""The page on policies: promises, predictors and depths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bench.environment import RESULTS
from bench.report.tables import machine, markdown, spread
from bench.rows import read, table

INTRODUCTION = """# Policies, measured

Made by `python -m bench.report` from `bench/results/promises`, `bench/results/predictors.jsonl`,
`bench/results/policies.jsonl` and `bench/results/depth.jsonl`, which hold every policy, seed and token budget. Speed-up
is wall clock over the same engine at full depth in the same run. *Share of L / mean layers* is how much of the speed-up that
the saved layers allow was reached; where long texts stay longer, that of a token's mean layers is the honest bound."""

PROMISES = """## Promises

Calibrated on dev texts and a part of the test texts, measured on the others (`python -m bench.claims.promises`): of each
family of policies the boldest setting that is shown to keep the promise with 95 % confidence. The models' checkpoints were
chosen on the same dev texts, which makes those a little easier than new ones. Mean over the seeds; in brackets the lowest and
the highest, in square ones the number of seeds where not all were measured. *Chosen* counts the seeds in which `calibrate`,
at the engine's own token budget, took the family. The texts that were timed are few: differences of a few hundredths are
noise, and where they hold fewer tokens than a batch, that token budget is one batch."""

PREDICTORS = """## Predictors

Every predictor ranks the test texts from easy to hard, and the ranks get the exits that the threshold takes on these texts,
as many of each, so that all have the same mean depth (`python -m bench.claims.predictors`). Rank correlation with the
threshold's exits, and in brackets agreement with all layers; tables of n-grams up to 2 over the most texts."""
SHOWN = 0.98  # the promise whose families are shown
# Families by the names that result files of version 0.1 have -> their names today.
OLD_FAMILIES = {
    "verified": "predicted+threshold",
    "verified per layer": "predicted+threshold per layer",
    "verified, learned": "predicted, learned+threshold",
    "allocated, verified": "allocated+threshold",
}


def promises(folder: Path = RESULTS) -> pd.DataFrame:
    """A line for each policy of each promise, data set and seed, and further ones for token budgets and other texts."""
    found = table(read(folder / "promises"))
    declared = found["declaration"]
    named = found.assign(data=declared.map(lambda one: one["name"]), seed=declared.map(lambda one: one["seed"]))
    return named.rename(columns={"system": "family"}).replace({"family": OLD_FAMILIES})


def judged(found: pd.DataFrame) -> pd.DataFrame:
    """Those of the policies on the texts that they were calibrated for, over all token budgets."""
    return found[found["policy"].notna() & found["token_budget"].isna() & found["texts"].isna()]


def timed(found: pd.DataFrame) -> pd.DataFrame:
    return found[found["policy"].notna() & found["token_budget"].notna()]


def speed_up(rows: pd.DataFrame, budget: float, seeds: int) -> str:
    """Mean and range over the seeds that were measured at this token budget."""
    values = rows.loc[rows["token_budget"] == budget, "speed_up"]
    if values.empty:
        return "-"
    return f"{spread(values, 2)}x" + (f" [{len(values)}]" if len(values) < seeds else "")


def usual_budget(found: pd.DataFrame) -> float:
    """The token budget at which most seeds were measured, of those the smallest."""
    counts = Counter(found[["seed", "token_budget"]].drop_duplicates()["token_budget"])
    return max(counts, key=lambda budget: (counts[budget], -budget))


def accuracy_section(found: pd.DataFrame) -> str:
    """What `calibrate` reached in accuracy and at each token budget, and on which texts and machine."""
    speeds = timed(found)
    budgets = sorted(speeds["token_budget"].unique())
    shown = []
    for (data, promise), rows in judged(found).groupby(["data", "promise"], sort=False):
        chosen = rows[rows["chosen"] == True]  # noqa: E712 - a column of flags and gaps
        fast = speeds[(speeds["data"] == data) & (speeds["promise"] == promise) & (speeds["chosen"] == True)]  # noqa: E712
        shown.append({
            "data": data, "promised agreement": f"{promise:g}", "agreement": spread(chosen["agreement"]),
            "accuracy": spread(chosen["accuracy"]),
            "of all layers": f"{rows.loc[rows['family'] == 'full', 'accuracy'].mean():.3f}",
            "mean layers": spread(chosen["mean_layers"], 2),
            **{f"{budget:,.0f} tokens a batch": speed_up(fast, budget, len(chosen)) for budget in budgets},
        })  # fmt: skip
    note = "In round brackets the lowest and the highest seed, in square ones the number of seeds where not all were measured."
    where = [f"- {data}: {setting(rows)}" for data, rows in found.groupby("data", sort=False)]
    return "\n".join(["The policy that was chosen:", "", markdown(pd.DataFrame(shown)), "", note, "", *where])


def setting(found: pd.DataFrame) -> str:
    """Texts, machine, versions and dates of a data set's seeds."""
    facts = found[found["num_layers"].notna()]
    first, declared, where = facts.iloc[0], facts["declaration"].iloc[0], facts["environment"].iloc[0]
    dates = sorted({one["date"] for one in found["environment"]})
    texts = either(found["speed_samples"].dropna().astype(int))
    rounds = either(
        [*facts["declaration"].map(lambda one: one["rounds"]), *found.get("rounds", pd.Series()).dropna().astype(int)]
    )
    return (
        f"{first['texts.calibration']:,.0f} calibration texts, {first['texts.test']:,.0f} others measured, exit table from "
        f"{first['texts.table']:,.0f}; {first['num_layers']:.0f} layers, recipe `{first['training.recipe']}`, "
        f"{either(f'{one:g}' for one in facts['training.epochs'])} epochs, at most {declared['max_length']} tokens; speed over "
        f"{texts} texts in {rounds} rounds; {machine(where)}, {' to '.join(sorted({dates[0], dates[-1]}))}; {len(facts)} seeds"
    )


def either(values: Iterable[object]) -> str:
    """Different values, ascending."""
    return " or ".join(map(str, sorted(set(values))))


def chosen_section(found: pd.DataFrame) -> str:
    """What was chosen, and what it reached of the bound."""
    lines = []
    for (data, promise), rows in judged(found).groupby(["data", "promise"], sort=False):
        chosen = rows[rows["chosen"] == True]  # noqa: E712
        speeds = timed(found[(found["data"] == data) & (found["promise"] == promise)])
        usual = speeds[(speeds["chosen"] == True) & (speeds["token_budget"] == usual_budget(speeds))]  # noqa: E712
        kept = sum(chosen["agreement"] >= promise)
        lines.append({
            "data": data, "promised": f"{promise:g}",
            "chosen": ", ".join(f"{family} ({count})" for family, count in Counter(chosen["family"]).items()),
            "agreement": spread(chosen["agreement"]) + ("" if kept == len(chosen) else f", kept in {kept} of {len(chosen)}"),
            "mean layers": spread(chosen["mean_layers"], 2), "speed-up": spread(usual["speed_up"], 2) + "x",
            "share of L / mean layers": f"{usual['share_of_bound'].mean():.0%}",
            "of a token": f"{usual['share_of_token_bound'].mean():.0%}",
        })  # fmt: skip
    return markdown(pd.DataFrame(lines))


def families_section(found: pd.DataFrame) -> str:
    """Speed-up of every family under one promise, at each data set's usual token budget; how many seeds had it."""
    speeds = timed(found[found["promise"] == SHOWN])
    lines: dict[str, dict[str, str]] = {}
    for (data, family), rows in speeds.groupby(["data", "family"], sort=False):
        usual = rows[rows["token_budget"] == usual_budget(speeds[speeds["data"] == data])]
        lines.setdefault(family, {"family": family})[data] = f"{spread(usual['speed_up'], 2)}x [{len(usual)}]"
    shown = markdown(pd.DataFrame(lines.values()))
    return f"Speed-up of each family that promises {SHOWN:g}, in square brackets of how many seeds:\n\n{shown}"


def families_alone(found: pd.DataFrame) -> pd.DataFrame:
    """Without full depth, and without the policies that are measured once more with batches that shrink."""
    return found[~found["family"].str.endswith("batch shrinks") & (found["family"] != "full")]


def broken_section(found: pd.DataFrame) -> str:
    """How many promises each family broke on other kinds of text and on those of its calibration, at all seeds and promises."""
    served = families_alone(found[found["texts"].notna() & found["policy"].notna()])
    if served.empty:
        return ""
    own = judged(found[found["data"].isin(served["data"])])
    data, texts, promised = (", ".join(map(str, dict.fromkeys(served[name]))) for name in ("data", "texts", "promise"))
    lines = [
        {"family": family, f"on {data}": broken(own[own["family"] == family]), "on other kinds": broken(rows)}
        for family, rows in served.groupby("family", sort=False)
    ]
    return (
        f"Promises broken: the policies of {data} that promise {promised}, all seeds, on {data} and each on {texts}. A promise "
        "counts as broken where the measured agreement is lower than promised, by however little. There are fewer promises "
        "where a family had no setting that keeps one, and no line where a model has no such family (`margin` at two classes)."
        f"\n\n{markdown(pd.DataFrame(lines))}"
    )


def broken(rows: pd.DataFrame) -> str:
    """How many of these policies agree less than they promise."""
    count = sum(rows["agreement"] < rows["promise"])
    return f"{count} of {len(rows)} ({count / len(rows):.0%})"


def shift_section(found: pd.DataFrame) -> str:
    """Where other kinds of text were served: agreement there, and what the audit said."""
    others = found[found["texts"].notna() & (found["promise"] == SHOWN)]
    served = others[others["policy"].notna()]
    if served.empty:
        return ""
    data, seed = served[["data", "seed"]].iloc[0]
    served, audits = (
        served[(served["data"] == data) & (served["seed"] == seed)],
        others[(others["family"] == "audit") & (others["data"] == data)],
    )
    audits = audits[audits["seed"] == seed]
    own = judged(found[(found["promise"] == SHOWN) & (found["data"] == data) & (found["seed"] == seed)]).assign(texts=data)
    every = families_alone(pd.concat([own, served]))
    figure = every["agreement"].map("{:.3f}".format) + " at " + every["mean_layers"].map("{:.2f}".format)
    shown = every.assign(figure=figure).pivot(index="family", columns="texts", values="figure")
    shown = shown[[data, *(name for name in shown if name != data)]].reset_index()
    told = "; ".join(
        f"{row['texts']} {row['agreement']:.3f} ({row['interval'][0]:.3f}-{row['interval'][1]:.3f}), "
        f"{'not shown broken' if row['holds'] else 'broken'}"
        for _, row in audits.iterrows()
    )
    return (
        f"The policies of {data}, seed {seed}, that promise {SHOWN:g} there, on other kinds of text: agreement, and the mean "
        f"layers that they take there.\n\n{markdown(shown)}\n\nThe audit of the chosen policy, half of the texts (agreement, "
        "its interval for one look, and whether the promise is shown to be broken, judged as if one looked after every text): "
        f"{told}."
    )


def predictors_section(found: pd.DataFrame) -> str:
    figure = found["rank_correlation"].map("{:.3f}".format) + " (" + found["agreement"].map("{:.3f}".format) + ")"
    most = found.groupby("case")["texts"].transform("max")
    shown = found[found["ngram"].isna() | ((found["ngram"] == 2) & (found["texts"] == most))].assign(figure=figure)
    order = shown["system"].drop_duplicates()
    shown = shown[shown["system"] != ""].pivot(index="system", columns="case", values="figure")
    return markdown(
        shown.reindex([name for name in order if name]).replace("^nan", "-", regex=True).reset_index(names="predictor")
    )


def depth_section(found: pd.DataFrame) -> str:
    policies = found[found["speed_up"].notna()]
    figure = policies["speed_up"].map("{:.2f}x".format) + " (" + policies["share_of_bound"].map("{:.0%}".format) + ")"
    shown = policies.assign(figure=figure).pivot(index="case", columns="system", values="figure")
    kept = [
        name
        for name in policies["system"].drop_duplicates()
        if name.startswith(("hugg", "constant:1", "constant:3", "predicted"))
    ]
    return (
        "## Depth\n\nEach depth in turns with full depth (`python -m bench.claims.depth`): speed-up, and in brackets its share "
        f"of L / mean layers.\n\n{markdown(shown[kept].reset_index())}"
    )


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown."""
    found = promises(folder)
    predictors = table(read(folder / "predictors.jsonl"))
    parts = [
        INTRODUCTION,
        PROMISES,
        chosen_section(found),
        accuracy_section(found),
        families_section(found),
        broken_section(found),
        shift_section(found),
    ]
    parts += [PREDICTORS, predictors_section(predictors), depth_section(table(read(folder / "depth.jsonl")))]
    return "\n\n".join(filter(None, parts)) + "\n"

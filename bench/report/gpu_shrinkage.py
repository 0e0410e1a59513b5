"""The part of the page on GPUs about batches that shrink: whether it pays to predict exits, as experiment E declares it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pandas as pd

from bench.gpu.shrinkage import (
    FULL,
    LEAST_ROUNDS,
    ORACLE,
    OVER_SHRINKING,
    PLANS,
    POOLED,
    PROMISE,
    SHRINKING,
    ratios,
    verdict,
)
from bench.report.tables import markdown
from geep_triton.promises.families import CONSTANT

TITLE = "### Does it pay to predict exits?"
OTHERS = {FULL: "full depth", SHRINKING: "batches that shrink", POOLED: "pooled", "risk": "risk", CONSTANT: "constant depth"}

Seconds = dict[str, list[float]]  # name of a policy -> of each round


def shrinkage(found: pd.DataFrame) -> Iterator[str]:
    """Texts a second of each policy in each window, and the verdict of each data set."""
    yield TITLE
    yield ""
    yield (
        f"Fine-tuned models of twelve layers, each policy calibrated to {PROMISE:.0%} of the full model's answers; token ids"
        " in, answers out: texts a second. *Batches that shrink* and *pooled* are the same thresholds at every exit. A *plan*"
        f" is the fastest that predicts exits and sorts by them ({'; '.join(PLANS)}). The *oracle* knows each text's exit."
        f" Predicting pays on a data set where in some window a plan is {OVER_SHRINKING} times as fast as batches that shrink,"
        f" and faster than both in each of {LEAST_ROUNDS} rounds. It does not where in none it is faster than batches that"
        " shrink."
    )
    yield ""
    named = found["key"].str.extract(r"(?P<model>.*), windows of (?P<window>\d+), (?P<way>.*)")
    found = found.assign(model=named["model"], texts_in=named["window"], way=named["way"])
    found = found[found["seconds"].notna() & (found["system"] != "")]
    rows, verdicts = [], []
    for (model, way), of_model in found.groupby(["model", "way"], sort=False):
        windows = {int(size): seconds_of(part) for size, part in of_model.groupby("texts_in")}
        verdicts.append(f"- {model}, layers {way}: **{verdict(windows.values())}**")
        for size in sorted(windows):
            rates = of_model[of_model["texts_in"] == str(size)].set_index("system")["texts_per_second"]
            rows.append({"model": f"{model}, {way}", "window": f"{size:,}"} | line(rates, windows[size]))
    yield markdown(pd.DataFrame(rows))
    yield ""
    yield from verdicts


def seconds_of(found: pd.DataFrame) -> Seconds:
    """Of each policy in one window."""
    return dict(zip(found["system"], found["each_seconds"], strict=True))


def line(rates: pd.Series, seconds: Seconds) -> dict[str, str]:
    """A window's row: texts a second."""
    row = {title: f"{rates[name]:,.0f}" if name in rates else "-" for name, title in OTHERS.items()}
    plans = [name for name in PLANS if name in rates]
    if plans:
        best = max(plans, key=lambda name: rates[name])
        row["best plan"] = f"{rates[best]:,.0f} ({best})"
        for other in (SHRINKING, POOLED):
            over = ratios(seconds[best], seconds[other]) if other in seconds else None
            row[f"over {OTHERS[other]}"] = "-" if over is None else f"{statistics.median(over):.2f}x"
    return row | {"oracle": f"{rates[ORACLE]:,.0f}"}

"""The part of the page on GPUs about batches that shrink: whether it pays to predict exits, as experiment E declares it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

import pandas as pd

from bench.gpu.shrinkage import (
    CONFIDENCE,
    FULL,
    ORACLE,
    OVER_SHRINKING,
    PLANS,
    POOLED,
    PROMISE,
    REGROUPED,
    ROUNDS,
    SHRINKING,
    UNPREDICTED,
    WINDOWS,
    Seconds,
    fastest,
    ratios,
    verdict,
)
from bench.report.tables import markdown
from geep_triton.promises.families import CONSTANT

TITLE = "### Does it pay to predict exits?"
GROUPS = {"constant depth": (CONSTANT,), "batches that shrink": SHRINKING, "pooled": POOLED, "plan": PLANS}

Numbers = Mapping[str, float]  # of each policy


def shrinkage(found: pd.DataFrame) -> Iterator[str]:
    """Texts a second of each kind of policy in each window, and the verdicts. Nothing where no window was measured."""
    if "each_seconds" not in found or found["each_seconds"].isna().all():
        return
    named = found["key"].str.extract(r"(?P<model>.*), windows of (?P<window>\d+), (?P<way>.*)")
    found = found.drop(columns=["window", "way"], errors="ignore").join(named)
    measured = found.dropna(subset=["each_seconds"])
    rows, verdicts = [], []
    for (model, way), of_model in measured.groupby(["model", "way"], sort=False):
        windows = {int(size): part.set_index("system") for size, part in of_model.groupby("window")}
        seconds = {size: dict(part["each_seconds"]) for size, part in windows.items()}
        agreement = {size: dict(part["agreement"]) for size, part in windows.items()}
        verdicts.append(f"- {model}, layers {way}: **{verdict(seconds, agreement)}**")
        for size in sorted(windows):
            rates = dict(windows[size]["texts_per_second"])
            rows.append({"model": f"{model}, {way}", "window": f"{size:,}"} | line(rates, seconds[size], agreement[size]))
    shape = found.dropna(subset=["layers"])[["layers", "width"]].drop_duplicates()
    shapes = " and ".join(f"{row.layers:.0f} layers of width {row.width:.0f}" for row in shape.itertuples())
    yield TITLE
    yield ""
    yield (
        f"Models of {shapes}, fine-tuned with their exits, whose changes were rounded to four bits. Each family of policies"
        f" was calibrated alone, with {CONFIDENCE:.0%} confidence, to {PROMISE:.0%} of the full model's answers. Token ids in,"
        " answers out: texts a second of the fastest of each kind, and the share of the full model's answers on other texts."
        " *Batches that shrink* and *pooled* are of texts that are scored by thresholds or risk. A *plan* predicts exits and"
        f" sorts by them ({'; '.join(PLANS)}). The *oracle* knows the first exit that has each answer. *Over* compares the"
        " fastest plan that keeps the promise here with the fastest whose batches shrink, and with the fastest that does not"
        f" predict. It pays where in some window a plan is {OVER_SHRINKING} times as fast as batches that shrink, and in each"
        f" of {ROUNDS} rounds faster than all that do not predict. It does not pay where in none of {len(WINDOWS)} windows a"
        " plan is faster than batches that shrink."
    )
    yield ""
    yield markdown(pd.DataFrame(rows))
    yield ""
    yield from verdicts


def family_of(name: str) -> str:
    """The family of a policy, without what becomes of its batches."""
    for how in REGROUPED:
        name = name.removesuffix(f", {how}")
    return name


def line(rates: Numbers, seconds: Seconds, agreement: Numbers) -> dict[str, str]:
    """A window's row."""
    row = {"full depth": f"{rates[FULL]:,.0f}"}
    for title, names in GROUPS.items():
        best = fastest(seconds, names)
        kind = "" if best is None or len(names) == 1 else f"{family_of(best)}, "
        row[title] = "-" if best is None else f"{rates[best]:,.0f} ({kind}{agreement[best]:.1%})"
    kept = fastest(seconds, [name for name in PLANS if name in seconds and agreement[name] >= PROMISE])
    for title, names in (("over shrinking", SHRINKING), ("over all", UNPREDICTED)):
        rival = fastest(seconds, names)
        none = kept is None or rival is None
        row[title] = "-" if none else f"{statistics.median(ratios(seconds[kept], seconds[rival])):.2f}x"
    return row | {"oracle": f"{rates[ORACLE]:,.0f}"}

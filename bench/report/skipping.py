"""The page on the skipping experiment, from whatever cells have results; says what is missing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.claims.skipping import BATCH, DATA_SETS, TOLERATED, VARIANTS
from bench.claims.skipping_verdicts import (
    HARDLY,
    OTHER_SEEDS,
    SEEDS,
    Runs,
    chosen_variants,
    facts,
    first_claim,
    lost,
    majority,
    missing,
    over_seeds,
    point,
    read_runs,
    reduction,
    second_claim,
    speed,
)
from bench.environment import RESULTS
from bench.report.tables import machine, markdown, signed

SYSTEMS = ("bert", "exits", "skipping", "smartbert", "planned")
SHOWN = "published"  # the variant whose systems are shown
INTRODUCTION = """# Skipping layers

Made by `python -m bench.report` from `bench/results/skipping`, which `python -m bench.claims.skipping` writes;
every threshold, seed and variant stands there, systems, variants and sizes in `bench/claims/skipping.py`. Backbone MiniLM-L6;
test samples and splits are ours: no figure is comparable with the paper's. Differences of scores with 95 % paired bootstraps
over seeds and test samples; all other brackets are the lowest and the highest seed. FLOPs are those that really ran, gates,
heads and padding included. Speed-up is wall clock over bert in the same run, without `packed`; **bold** where exits and skips
are faster in both kinds of batches and the score is with confidence at most a point lower."""


CLAIMS = f"""**Claim 1.** SmartBERT computes 2 to 3 times less at a minimal drop. Read as: at the chosen threshold every seed
has at least 2 times fewer FLOPs than bert, and the score is with confidence at most {100 * TOLERATED:g} point lower.

**Claim 2.** On rte and wnli entropy exits hardly help and skipping does. Read as: at their chosen thresholds exits have less
than {HARDLY:g} times fewer FLOPs at every seed, and skipping more at every seed, its score with confidence at most
{100 * TOLERATED:g} point lower. Refuted where exits have more, their score with confidence as little lower, or skipping has
less, or its score is with confidence lower."""


def claims_section(found: dict[tuple[str, str], Runs]) -> str:
    """The abstract's two claims, as hypotheses stated before the runs."""
    lines = [
        {
            "data set": name, "variant": variant, "seeds": len(runs), "claim 1": first_claim(runs),
            "claim 2": second_claim(runs) if name in SEEDS else "-",
        }
        for (name, variant), runs in found.items()
    ]  # fmt: skip
    return f"{CLAIMS}\n\n{markdown(pd.DataFrame(lines))}"


def systems_section(found: dict[tuple[str, str], Runs]) -> str:
    """Each system at its chosen threshold, beside full depth."""
    lines, notes = [], []
    for (name, variant), runs in found.items():
        if variant != SHOWN:
            continue
        for system in SYSTEMS:
            score = over_seeds(runs, lambda run, s=system: point(run, s)["score"])
            saved = over_seeds(runs, lambda run, s=system: reduction(run, s))
            one, many = (over_seeds(runs, lambda run, s=system, b=b: speed(run, f"{s}@{b}", f"bert@{b}")) for b in (1, BATCH))
            difference = lost(runs, system)
            pays = system != "bert" and min(one.estimate, many.estimate) > 1 and difference.low >= -TOLERATED
            lines.append({
                "data set": f"{name} ({DATA_SETS[name].metric})", "system": f"**{system}**" if pays else system,
                "score": f"{score.estimate:.3f} ({score.low:.3f} .. {score.high:.3f})",
                "less bert's, points": signed(difference.estimate, difference.low, difference.high),
                "FLOPs, times fewer": times(saved),
                "speed-up, one sample": times(one), f"speed-up, {BATCH:,} tokens": times(many),
            })  # fmt: skip
        ours, alone = (over_seeds(runs, lambda run, s=s: speed(run, s, "released")) for s in ("ours@32", "smartbert@1"))
        moved = max(facts(run)["speed.released_moved"] for run in runs)
        limit = runs[0][0]["declaration"]["limit"]
        trial = f"; a trial on {limit} samples, without meaning" if limit else ""
        notes.append(
            f"- {name}, {len(runs)} of {SEEDS.get(name, OTHER_SEEDS)} seeds{trial}: the commonest class scores "
            f"{majority(runs[0]):.3f}. Against the released loop over single samples: ours in batches of 32 {times(ours)}, the "
            f"same answers but for {moved:.1%} of the samples; ours one at a time, at the chosen threshold, {times(alone)}."
        )
    return "\n\n".join([markdown(pd.DataFrame(lines)), "\n".join(notes)]) if lines else ""


def times(interval: tuple[float, float, float]) -> str:
    return f"{interval.estimate:.2f}x ({interval.low:.2f} .. {interval.high:.2f})"


def missing_section(found: dict[tuple[str, str], Runs]) -> str:
    lacking = missing(found)
    published = f"Missing: {', '.join(lacking)}." if lacking else "No cell at the published settings is missing."
    untried = ", ".join(variant for variant in VARIANTS if variant not in {variant for _, variant in found})
    return f"{published} {f'Variants not tried: {untried}.' if untried else 'Every variant was tried on some data set.'}"


def page(folder: Path = RESULTS / "skipping") -> str:
    """The whole page."""
    found = read_runs(folder)
    machines = sorted({machine(run[0]["environment"]) for runs in found.values() for run in runs})
    variants = chosen_variants(found)
    choice = f"the fewest layers at a score at most {100 * TOLERATED:g} point below the best's"
    parts = [
        INTRODUCTION,
        f"Machines: {'; '.join(machines) or 'none yet'}.",
        missing_section(found),
        claims_section(found),
        "\n".join([f"Variants, chosen by the tuning rows alone ({choice}):", "", *variants]) if variants else "",
        systems_section(found),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"

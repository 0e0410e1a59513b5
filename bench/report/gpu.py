"""The page on GPUs, made from the results of `python -m bench.gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from bench.environment import RESULTS
from bench.report.gpu_shrinkage import TITLE as SHRINKAGE_TITLE
from bench.report.gpu_shrinkage import shrinkage
from bench.report.tables import lines, markdown, microseconds
from bench.rows import read, table
from geep_triton.policies.text import describe, parse_policy

INTRODUCTION = """# On a GPU, measured

Made by `python -m bench.report` from `bench/results/gpu`, a line a measurement; `python -m bench.gpu` measures, in one
process of eight and a half minutes. Every step, system, op and launch configuration stands in the file.
"""
NOTHING = """**Nothing here yet: no GPU has run it.** Until one has, this library claims no speed on a GPU. To fill this page,
make a folder that travels, on a machine with texts, and run the script where the GPU is:

```bash
python -m bench.gpu.inputs inputs --data DATA
GEEP_COMMIT=$(git describe --always --dirty) python -m bench.gpu --inputs inputs --output bench/results/gpu/NAME
python -m bench.report
```
"""
NO_SHRINKAGE = f"""{SHRINKAGE_TITLE}

No GPU has measured it yet (experiment E of the claims; what would show it is declared in `bench/gpu/shrinkage.py`).
`bench.plans.saved` leaves fine-tuned models of twelve layers, and

```bash
python -m bench.gpu.tuned tuned --backbone E5 --models RUNS/sst2 RUNS/ag_news --most-rows 1300
GEEP_COMMIT=$(git describe --always --dirty) python -m bench.gpu --only shrinkage --inputs tuned --output bench/results/gpu/NAME
```

holds their plans against batches that shrink.
"""
OURS = "ours, "
STEPS = "layer|head|score_exits|partition|attention|copy to the host"  # whose seconds are shown


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown: a section for each card."""
    sections = [section(table(read(path))) for path in sorted((folder / "gpu").glob("*/results.jsonl"))] or [NOTHING]
    if not any(SHRINKAGE_TITLE in each for each in sections):
        sections.append(NO_SHRINKAGE)
    return "\n".join([INTRODUCTION, *sections])


def section(found: pd.DataFrame) -> str:
    """One machine's results."""
    named = found["case"].str.split(", ", n=1, expand=True)
    found = found.assign(part=named[0], key=named[1])
    machine, machines = found["environment"].iloc[-1], list(found["environment"])
    where = found["declaration"].iloc[-1]["gpu"] or f"a rehearsal on {machine['cpu']}, whose times mean nothing"
    versions = [f"{name} {machine[name]}" for name in ("driver", "cuda", "cudnn", "torch", "triton") if machine.get(name)]
    dates = " to ".join(sorted({min(one["date"] for one in machines), max(one["date"] for one in machines)}))
    commits = ", ".join(sorted({one["commit"] for one in machines}))
    parts = [f"## {where}\n\n{', '.join(versions)}; {dates}, commit {commits}."]
    for part, write in WRITERS.items():
        if part in set(found["part"]):
            parts.append("\n".join(write(found[found["part"] == part] if part != "dense" else found)))
    failed = found[found["error"].notna()] if "error" in found else found.iloc[:0]
    if len(failed):
        told = [f"- {row['part']}, {row['key']}: {last_line(row['error'])}" for _, row in failed.iterrows()]
        parts.append("\n".join(["### What failed", "", *told]))
    return "\n\n".join(parts) + "\n"


def with_sizes(found: pd.DataFrame) -> pd.DataFrame:
    """Systems with what their case has in common."""
    facts = ["length", "tokens", "way", "layers", "mean_tokens"]
    common = found[found["system"] == ""].reindex(columns=["case", *facts])
    systems = found[(found["system"] != "") & found["seconds"].notna()].drop(columns=facts, errors="ignore")
    return systems.merge(common, on="case")


def ways(found: pd.DataFrame) -> Iterator[str]:
    """The fastest of each kind on batches of each size, over the fastest that knows no exits."""
    systems, rows = with_sizes(found), []
    rates = systems.assign(rate=systems["samples_per_second"]).dropna(subset=["rate", "length"])
    for (length, tokens), size in rates.groupby(["length", "tokens"], sort=False):
        dense, early = size[size["part"] == "dense"], size[size["part"] == "exits"]
        is_ours = dense["system"].str.startswith(OURS)
        if dense[is_ours].empty or dense[~is_ours].empty:
            continue
        rival = dense.loc[dense.loc[~is_ours, "rate"].idxmax()]
        line = {
            "texts": f"{length:.0f} tokens",
            "batch": f"{tokens:,.0f} tokens",
            "rival, full depth": f"{rival['rate']:,.0f} ({rival['system']})",
        }
        own = dense.loc[dense.loc[is_ours, "rate"].idxmax()]
        line["ours, full depth"] = shown(own["rate"], rival["rate"], own["system"].removeprefix(OURS))
        for kind in ("planned", "scored"):
            for depth in ("3.5", "6.5"):
                of = early[early["system"].str.startswith(kind) & early["key"].str.contains(f"mean exit {depth}", regex=False)]
                best = of.loc[of["rate"].idxmax()] if len(of) else None
                line[f"{kind} {depth}"] = "-" if best is None else shown(best["rate"], rival["rate"], best["way"], own["rate"])
        rows.append(line)
    if not rows:
        return
    yield "### What comes of it"
    yield ""
    yield (
        "BERT's base shape in bfloat16, token ids in, answers out: texts a second of the fastest of each kind, and how many "
        "times as many as the fastest rival at full depth (which the last columns' mean exits, of 12 layers, would make 3.4 "
        "and 1.8 times as fast at best). **Bold** where it is faster than the rival and, with exits, than our "
        "own full depth. In brackets how layers ran."
    )
    yield ""
    yield markdown(pd.DataFrame(rows))
    absent = sorted(name.removeprefix("missing.") for name in found.filter(like="missing.").dropna(axis=1, how="all"))
    if absent:
        yield f"\nNot among the rivals: {', '.join(absent)}, which small batches would have to beat (the file says why)."
    yield (
        "\n*planned*: each text runs to the exit that it was told, and is not scored; *scored*: it is scored at each exit where"
        " some leave. *lean*: layers without what transformers' have around them, query, key and value in one product; the"
        " engine has them on a CPU only, so far."
    )


def shown(rate: float, rival: float, way: str, full: float = 0.0) -> str:
    """Over the rival; bold where it is faster, and than our own `full` depth."""
    over = f"{rate / rival:.2f}x"
    return f"{rate:,.0f}, {f'**{over}**' if rate > max(rival, full) else over} ({way})"


def ceilings(found: pd.DataFrame) -> Iterator[str]:
    """What the machine can do."""
    yield "### Ceilings"
    yield ""
    for _, row in found.iterrows():
        given = {name for name, value in row.items() if isinstance(value, float) and value == value}
        if "flops_per_second" in given:
            yield f"- matrix product of {row['size']:.0f} rows in bfloat16: {row['flops_per_second'] / 1e12:.0f} TFLOP/s"
        elif "bytes_per_second" in given:
            yield f"- copy, read and written: {row['bytes_per_second'] / 1e12:.2f} TB/s"
        elif "launch_seconds" in given:
            ask, wait = microseconds(row["launch_seconds"]), microseconds(row["wait_seconds"])
            yield f"- the host asks for a kernel in {ask}, and waits for one {wait}"
        elif "first_seconds" in given:
            first, worst, second = (microseconds(row[f"{name}_seconds"]) for name in ("first", "worst_first", "second"))
            times = f"{first} (median of {row['batches']:.0f}; at worst {worst})"
            yield f"- {row['key']}: the first call at a batch size {times}, the second {second}"


def tests(found: pd.DataFrame) -> Iterator[str]:
    """How many of the chosen tests passed."""
    yield "### Tests"
    yield ""
    for _, row in found.dropna(subset=["passed"]).iterrows() if "passed" in found else ():
        counts = {name: row[name] for name in ("passed", "failed", "skipped") if name in row}
        shown = [f"{count:.0f} {name}" for name, count in counts.items() if isinstance(count, float) and count == count]
        yield ", ".join(shown) + "."
    for _, row in found.dropna(subset=["message"]).iterrows() if "message" in found else ():
        yield f"- failed: {row['key']}: {last_line(row['message'])}"
    for _, row in found.dropna(subset=["kernels"]).iterrows() if "kernels" in found else ():
        yield f"{row['kernels']:.0f} kernels compiled, {len(row['failed'])} failed."


def steps(found: pd.DataFrame) -> Iterator[str]:
    """A layer's and a stop's steps: by the host's clock, and replayed by the device's for each size of batch."""
    taken = found[found["seconds"].notna() & (found["system"] != "") & found["system"].str.contains(STEPS)]
    yield "### Steps of a layer and of a stop, on the base shape"
    yield ""
    yield "What the host takes to ask for a step, and the device to do it, by tokens of a batch; half of the texts are padded."
    yield ""
    keys = list(dict.fromkeys(taken["key"]))
    each = {(row["system"], row["key"]): microseconds(row["seconds"]) for _, row in taken.iterrows()}
    rows = [[step, *(each.get((step, key), "-") for key in keys)] for step in dict.fromkeys(taken["system"])]
    yield lines(["step", *(key.removeprefix("device, ") for key in keys)], rows)


def costs(found: pd.DataFrame) -> Iterator[str]:
    """What a stop costs, in layers of a full batch."""
    named = found[found["key"] == "costs"].dropna(axis=1, how="all")
    ways = [name.removesuffix(".head_layers") for name in named if name.endswith(".head_layers")]
    yield "### What a stop costs"
    yield ""
    yield "In layers of a full batch:"
    yield ""
    for way in ways:
        head, stop, move = (named[f"{way}.{name}_layers"].iloc[0] for name in ("head", "stop", "move"))
        taken = microseconds(named[f"{way}.stop_seconds"].iloc[0])
        yield f"- layers {way}: a head takes {head:.2f}, a stop besides {stop:.2f} ({taken}), a move {move:.2f}"


def texts(found: pd.DataFrame) -> Iterator[str]:
    """Texts in: each policy in its best windows, beside the rival."""
    yield "### Texts in, answers out, exits trained"
    yield ""
    yield "Texts a second, each policy in its best windows, bold as above; in brackets the share of answers as of all layers."
    yield ""
    rows = []
    for key, systems in with_sizes(found).groupby("key", sort=False):
        best = systems.sort_values("texts_per_second", ascending=False)
        names = best["system"].str.partition(", windows")[0].map(in_todays_form)
        best = best.assign(policy=names).drop_duplicates("policy").set_index("policy")
        is_ours = best.index.str.startswith(OURS)
        rival = best[~is_ours]["texts_per_second"].max()
        line = {"model": f"{key} ({systems['mean_tokens'].iloc[0]:.0f} tokens a text)", "fastest rival": f"{rival:,.0f}"}
        full = best["texts_per_second"].get("ours, full", 0.0)
        for policy, row in best[is_ours].sort_index().iterrows():
            bar = 0.0 if policy == "ours, full" else full
            line[policy] = shown(row["texts_per_second"], rival, f"{row['agreement']:.1%}", bar)
        rows.append(line)
    yield markdown(pd.DataFrame(rows))


def in_todays_form(system: str) -> str:
    """A system's name, its policy in the short form of today: result files have those of version 0.1, as "verified:0.3"."""
    return OURS + describe(parse_policy(system.removeprefix(OURS))) if system.startswith(OURS) else system


WRITERS = {
    "dense": ways,
    "ceilings": ceilings,
    "tests": tests,
    "steps": steps,
    "exits": costs,
    "shrinkage": shrinkage,
    "texts": texts,
}


def last_line(text: str) -> str:
    """The last line of a message, which says most, in one."""
    return (text.strip().splitlines() or [""])[-1][:200]

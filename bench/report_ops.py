"""The page on the ops: what each compiled kernel takes, and each op beside its rivals. Made from result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.kernels import summary
from bench.ops import OURS

INTRODUCTION = """# The ops, measured

Made from the files in `bench/results` by `python -m bench.report`; `tests/test_report.py` holds it to them.
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def where(environment: dict[str, Any]) -> str:
    machine = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    return f"{machine}, torch {environment['torch']}, {environment['date']}, commit {environment['commit']}"


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown."""
    parts = [INTRODUCTION]
    kernels = folder / "kernels.json"
    if kernels.is_file():
        parts.append(kernels_section(read(kernels)))
    parts += [ops_section(read(path), path.stem) for path in sorted(folder.rglob("ops*.json"))]
    return "\n".join(parts)


def kernels_section(result: dict[str, Any]) -> str:
    versions = result["environment"]
    return f"""## Compiled kernels

Every kernel that can be launched, compiled ahead of time by `python -m bench.kernels` without a GPU
(Triton {versions["triton"]}, {versions["date"]}). "Spills" counts compiled kernels that keep registers in memory; it must be 0.

{summary(result["kernels"])}
"""


def ops_section(result: dict[str, Any], name: str) -> str:
    backend = "Triton" if result["environment"]["gpu"] else "PyTorch, as on every CPU"
    lines = [
        f"## Each op beside its rivals: `{name}`",
        "",
        f"{where(result['environment'])}; ours in {backend}. Median of {result['ops'][0]['rounds']} interleaved rounds, "
        "results checked first. A roof does less than the op, on purpose.",
        "",
        "| op | size | provider | time | items/s | GB/s | against ours |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = {}
    for row in result["ops"]:
        size = ", ".join(f"{key} {value:g}" for key, value in row["config"].items())
        if row["provider"] == OURS:
            ours[row["op"], size] = row["seconds"]
        lines.append(
            f"| {row['op']} | {size} | {row['provider']} | {row['seconds'] * 1e3:.3f} ms | {row['items_per_second']:.3g} | "
            f"{row['gb_per_second']:.2f} | {ours[row['op'], size] / row['seconds']:.2f}x |"
        )
    return "\n".join([*lines, "", f"![lookups](results/{name}.png)", "", reading(result)])


def rate(result: dict[str, Any], op: str, provider: str, **config: float) -> float:
    """Items a second of one row."""
    rows = [
        row
        for row in result["ops"]
        if (row["op"], row["provider"]) == (op, provider) and config.items() <= row["config"].items()
    ]
    return rows[0]["items_per_second"]


def reading(result: dict[str, Any]) -> str:
    """When hashing beats direct indexing, and when a CPU predictor does, with this file's numbers."""
    lookup = {"capacity": 1 << 20, "load": 0.5, "hit_rate": 1.0}
    window = {"samples": 4096, "ngram": 1}
    hashed, searched, direct = (
        rate(result, "lookup", provider, **lookup) / 1e6 for provider in (OURS, "torch.searchsorted", "direct gather")
    )
    empty, crowded = (rate(result, "lookup", OURS, capacity=1 << 20, load=load, hit_rate=0.0) / 1e6 for load in (0.25, 0.9))
    unigrams, bigrams = (rate(result, "predict_exits", OURS, samples=4096, ngram=n) / 1e6 for n in (1, 2))
    host = rate(result, "predict_exits", "NumPy on the host", **window) / 1e6
    bigram_gigabytes = 30522**2 * 16 * 4 / 1e9
    versus_search = "beats" if hashed > searched else "loses to"
    versus_host = "slower" if host < unigrams else "faster"
    return f"""**When to hash.** Where keys are small dense numbers they can be indexed directly: {direct:.0f} M lookups/s
against {hashed:.0f} M hashed ones at load .5 in a table of 2^20 slots; so token ids are never hashed. Bigrams of BERT's
vocabulary would need a direct table of {bigram_gigabytes:.0f} GB; there hashing is the choice, and it {versus_search} a binary
search over
sorted keys ({searched:.0f} M/s). Load decides what a miss costs: {empty:.1f} M/s at load .25, {crowded:.1f} M/s at .9; tables
grow at .5. Predicting a window of 4,096 samples handles {unigrams:.0f} M tokens/s with unigrams and {bigrams:.1f} M with
bigrams.

**When a CPU predictor does.** NumPy on the host, with unigrams, handles {host:.0f} M tokens/s, which is {versus_host} than ours
here. A machine that classifies S texts of 36 tokens a second spends S / {host / 36 * 1e6:,.0f} of its time on it: prediction on
the host is enough until that share counts, or until the tokens are on the GPU already.
"""


def plot(result: dict[str, Any], path: Path) -> None:
    """Lookups a second by load and hit rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for hit in (0.0, 0.5, 1.0):
        points = sorted(
            (row["config"]["load"], row["items_per_second"] / 1e6)
            for row in result["ops"]
            if row["op"] == "lookup" and row["provider"] == OURS and row["config"]["capacity"] == 1 << 20
            and row["config"]["hit_rate"] == hit
        )  # fmt: skip
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{hit:.0%} of the keys are there")
    axes.set(xlabel="share of slots taken", ylabel="million lookups a second", title=where(result["environment"]), ylim=0)
    axes.title.set_fontsize(7)
    axes.legend()
    figure.savefig(path, dpi=120)

"""The page on the ops: what each compiled kernel takes, and each op beside its rivals."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.environment import RESULTS
from bench.ops.cases import OURS
from bench.report.tables import markdown, measured_on
from bench.rows import read, table

INTRODUCTION = """# The ops, measured

Made by `python -m bench.report` from `bench/results/kernels.jsonl` and `bench/results/ops_cpu.jsonl`, which hold every
kernel and size."""
FACTS = (
    "case",
    "system",
    "environment",
    "declaration",
    "roof",
    "seconds",
    "items_per_second",
    "gb_per_second",
    "rounds",
    "took",
)


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown."""
    parts = [INTRODUCTION]
    if (folder / "kernels.jsonl").is_file():
        parts.append(kernels_section(table(read(folder / "kernels.jsonl"))))
    parts += [ops_section(table(read(path)), path.stem) for path in sorted(folder.glob("ops*.jsonl"))]
    return "\n\n".join(parts) + "\n"


def kernels_section(found: pd.DataFrame) -> str:
    where, lines = found["environment"].iloc[0], []
    for (kernel, architecture), group in found[found["registers"].notna()].groupby(["system", "case"], sort=False):
        registers = group["registers"]
        lines.append({
            "kernel": kernel.removesuffix("_kernel"), "architecture": architecture, "compiled": len(group),
            "registers": f"{registers.min():.0f}-{registers.max():.0f}",
            "shared memory": f"{group['shared_bytes'].max():.0f} B",
            "spills": sum(group["spills"] > 0), "widest load": f"{group['widest_load_bits'].max():.0f} bit",
        })  # fmt: skip
    return f"""## Compiled kernels

Every kernel that can be launched, compiled ahead of time by `python -m bench.ops.kernels` without a GPU
(Triton {where["triton"]}, {where["date"]}). "Spills" counts compiled kernels that keep registers in memory; it must be 0.

{markdown(pd.DataFrame(lines))}"""


def sized(found: pd.DataFrame) -> pd.DataFrame:
    """The providers' lines, with the size of each as a text."""
    rows = found[found["seconds"].notna()]
    sizes = rows.drop(columns=[*FACTS, "took"], errors="ignore")
    return rows.assign(
        size=[", ".join(f"{name} {value:g}" for name, value in one.dropna().items()) for _, one in sizes.iterrows()]
    )


def ops_section(found: pd.DataFrame, name: str) -> str:
    rows, lines = sized(found), []
    for op, of_op in rows.groupby("case", sort=False):
        shown = list(dict.fromkeys(of_op["size"]))
        for size in dict.fromkeys((shown[0], shown[len(shown) // 2], shown[-1])):
            by_provider = of_op[of_op["size"] == size].set_index("system")
            ours = by_provider.loc[OURS, "seconds"]
            rivals = by_provider[(by_provider.index != OURS) & ~by_provider["roof"].astype(bool)]["seconds"]
            fastest = rivals.idxmin() if len(rivals) else None
            lines.append({
                "op": op, "size": size, "ours": f"{1e3 * ours:.3f} ms",
                "fastest rival": f"{1e3 * rivals.min():.3f} ms ({fastest})" if fastest else "-",
                "against ours": f"{ours / rivals.min():.2f}x" if fastest else "-",
                "items/s": f"{by_provider.loc[OURS, 'items_per_second']:.3g}",
            })  # fmt: skip
    where = found["environment"].iloc[0]
    backend = "Triton" if where["gpu"] else "PyTorch, as on every CPU"
    return "\n\n".join([
        f"## Each op beside its rivals: `{name}`",
        f"{measured_on(where)}; ours in {backend}. Median of {rows['rounds'].iloc[0]:.0f} interleaved rounds, results checked "
        "first; the first, the middle and the last size of each.",
        markdown(pd.DataFrame(lines)),
        f"![lookups a second by load and hit rate]({name}.png)",
        reading(rows),
    ])  # fmt: skip


def rate(rows: pd.DataFrame, op: str, provider: str, **config: float) -> float:
    """Items a second of one row, in millions."""
    wanted = (rows["case"] == op) & (rows["system"] == provider)
    for name, value in config.items():
        wanted &= rows[name] == value
    return rows.loc[wanted, "items_per_second"].iloc[0] / 1e6


def reading(rows: pd.DataFrame) -> str:
    """When hashing beats direct indexing, and when a CPU predictor does, with this file's numbers."""
    providers = (OURS, "torch.searchsorted", "direct gather")
    hashed, searched, direct = (rate(rows, "lookup", one, capacity=1 << 20, load=0.5, hit_rate=1.0) for one in providers)
    empty, crowded = (rate(rows, "lookup", OURS, capacity=1 << 20, load=load, hit_rate=0.0) for load in (0.25, 0.9))
    unigrams, bigrams = (rate(rows, "predict_exits", OURS, samples=4096, ngram=n) for n in (1, 2))
    host = rate(rows, "predict_exits", "NumPy on the host", samples=4096, ngram=1)
    return f"""**When to hash.** Where keys are small dense numbers they can be indexed directly: {direct:.0f} M lookups/s
against {hashed:.0f} M hashed ones at load .5 in a table of 2^20 slots; so token ids are never hashed. Bigrams of BERT's
vocabulary would need a direct table of {30522**2 * 16 * 4 / 1e9:.0f} GB; there hashing is the choice, and it
{"beats" if hashed > searched else "loses to"} a binary search over sorted keys ({searched:.0f} M/s). Load decides what a miss
costs: {empty:.1f} M/s at load .25, {crowded:.1f} M/s at .9; tables grow at .5. Predicting a window of 4,096 samples handles
{unigrams:.0f} M tokens/s with unigrams and {bigrams:.1f} M with bigrams.

**When a CPU predictor does.** NumPy on the host, with unigrams, handles {host:.0f} M tokens/s, which is
{"slower" if host < unigrams else "faster"} than ours here. A machine that classifies S texts of 36 tokens a second spends
S / {host / 36 * 1e6:,.0f} of its time on it: prediction on the host is enough until that share counts, or until the tokens
are on the GPU already."""


def plot(found: pd.DataFrame, path: Path) -> None:
    """Lookups a second by load and hit rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lookups = found[(found["case"] == "lookup") & (found["system"] == OURS) & (found["capacity"] == 1 << 20)]
    for hit, rows in lookups.groupby("hit_rate"):
        points = rows.sort_values(["load", "items_per_second"])
        axes.plot(points["load"], points["items_per_second"] / 1e6, marker="o", label=f"{hit:.0%} of the keys are there")
    where = measured_on(found["environment"].iloc[0])
    axes.set(xlabel="share of slots taken", ylabel="million lookups a second", title=where, ylim=0)
    axes.title.set_fontsize(7)
    axes.legend()
    figure.savefig(path, dpi=120)

"""The page on the whole pipeline: a row a cell, ours beside the fastest rival; where exits pay, waiting, memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

import pandas as pd

from bench.environment import RESULTS
from bench.pipeline.__main__ import VERSION, slug
from bench.pipeline.segments import ENGINES
from bench.pipeline.systems import NOBODY
from bench.report.tables import machine, markdown, short
from bench.rows import read, table

INTRODUCTION = """# The pipeline, measured

Made by `python -m bench.report` from `bench/results/pipeline`, which `python -m bench.pipeline` writes: every
system, round and stage stands there. Answers are checked before anything is timed, systems of a cell run in turns, figures
are medians. Each round of throughput takes texts that no system has met; *met before* is the speed on other texts, those that
answers were checked on: they may leave elsewhere, so exits are to be compared within that column.
*Of the bound* is the speed over what the saved layers allow, (layers / mean layers) times full depth: ours in the
same way, and of the fastest rival of the same precision that runs all layers (above 100% where our full depth is faster, too).
The policies of trained models stand in the files, and uncalibrated ones are a threshold of 0.3. *Replayed* exits are those of
the trained twelve layers on BERT-base's shape with random weights: they say how fast, not how right. *Doubled* ones are those
of the six-layer MiniLM with their layers doubled, *drawn* ones nobody's. Ours runs its layers by the runner `onednn` where a
cell has that. An early exit is **bold** where it beats our own full depth and every rival beside it.
Cells marked * were measured by an older benchmark: every round took the same texts, and fewer rivals took part."""
INTRODUCTION_ELSEWHERE = """# The pipeline on other machines

Made by `python -m bench.report` from `bench/results/pipeline`. [The pipeline, measured](pipeline.md) says what was
measured, and what the columns are."""
TRAINED = {
    "e5": "multilingual-e5-small",
    "minilm": "MiniLM-L6",
}  # shapes of trained models; README shows the first that is there
COMMAND = "python -m bench.pipeline --texts NAME=FILE --models NAME=FOLDER"
TORCH = ("huggingface, length-sorted", "torch dynamic int8, length-sorted")
LATER = (  # what is not in every older result
    "again.samples_per_second",
    "shapes.distinct",
    "shapes.new",
    "rounds.wanted",
    "neighbours",
    "missing",
)
SEGMENTS = tuple(f"{name}{grid}" for name in ENGINES for grid in ("", ", grid"))
MAIN = ("calibrated", "threshold:0.3", "threshold, replayed")  # policies, the first that a cell has is shown
LOAD = 0.6  # of the waiting times shown


def results(folder: Path = RESULTS) -> pd.DataFrame:
    """A line for each case, system and configuration, with the kind of its cell, what it is of, and its machine."""
    found = table(read(folder / "pipeline")) if (folder / "pipeline").exists() else pd.DataFrame()
    if found.empty:
        return found
    names = found["case"].str.split(".", n=2, expand=True)
    current = found["declaration"].map(lambda declared: declared.get("version") == VERSION)
    what = names[2].str.replace(".", ", ") + current.map({True: "", False: " *"})
    found = found.reindex(columns=found.columns.union(LATER, sort=False))
    return found.assign(cell=names[0], device=names[1], what=what, current=current, machine=found["environment"].map(machine))


def machines(found: pd.DataFrame) -> list[str]:
    """First the machine with the most cells by today's benchmark, then by any."""
    cells = found.drop_duplicates(["machine", "case"]).groupby("machine")["current"].agg(["sum", "size"])
    return cells.sort_values(["sum", "size"], ascending=False).index.tolist()


def throughput(found: pd.DataFrame) -> pd.DataFrame:
    """A line for each throughput cell of one machine: ours beside rivals, in texts a second."""
    lines = []
    for case, cell in found[found["cell"] == "throughput"].groupby("case", sort=False):
        systems = cell[cell["samples_per_second"].notna()].set_index("system")
        speed, kind = systems["samples_per_second"], systems["kind"]
        full, alone = speed[kind == "full"], speed[(kind == "exits") & speed.index.str.contains("one at a time")]
        by_length = next((name for name in full.index if name in TORCH), None)  # none: its answers were not the model's
        way = ", onednn" if "ours, full, onednn" in speed else ""
        names = [f"ours, {policy}{way}" for policy in MAIN]
        early = systems.loc[next(name for name in names if name in systems.index)]
        nobody, everyone = (systems.loc[f"ours, {policy}{way}", "seconds"] for policy in (NOBODY, "full"))
        exits, met = whose_exits(cell), systems["again.samples_per_second"]
        fresh = met.notna().any()  # an older benchmark took the same texts in each round
        lines.append({
            "case": case, "what": cell["what"].iloc[0] + exits,
            "huggingface": speed.get(by_length), "rival": full.idxmax() if len(full) else "none", "fastest": full.max(),
            "alone": alone.max(),
            "full": speed[f"ours, full{way}"], "exits": early["samples_per_second"],
            "pays": all(early["samples_per_second"] > other for other in (speed[f"ours, full{way}"], *full, *alone)),
            "mean_layers": early["mean_layers"], "layers": systems["mean_layers"].max(),
            "agreement": None if exits else early["agreement"],
            "share": early["share_of_bound"], "rival_share": early["share_of_rival_bound"],
            "nobody": statistics.median(a / b for a, b in zip(nobody, everyone, strict=True)) - 1,
            "met": [met[kind == "full"].max(), met[f"ours, full{way}"], met[early.name]] if fresh else None,
            "shapes": cell["shapes.distinct"].max(), "new": cell["shapes.new"].max(), "fresh": fresh,
            "wanted": cell["rounds.wanted"].max(),
            "threads": cell["environment"].iloc[0]["threads"], "rounds": len(everyone),
            "texts": cell["texts.samples"].max(), "promise": cell["promise"].dropna().max() if "promise" in cell else None,
        })  # fmt: skip
    return pd.DataFrame(lines)


def whose_exits(cell: pd.DataFrame) -> str:
    """What a row says of exits that are not the model's own: on a random model those of trained layers are replayed."""
    if (cell["declaration"].map(lambda declared: declared.get("models", "")).isna()).all():
        return ", drawn"
    if cell["case"].iloc[0].split(".")[2] in TRAINED:
        return ""
    of_both = cell[["replayed_layers", "layers"]].max() if "replayed_layers" in cell else None
    return ", replayed" if of_both is not None and of_both["replayed_layers"] == of_both["layers"] else ", doubled"


def faster(line: pd.Series) -> str:
    """The speed of exits, bold where they pay."""
    return f"**{short(line['exits'])}**" if line["pays"] else short(line["exits"])


def rounds(line: pd.Series) -> str:
    """How many were timed, of how many that were wanted: the file had too few texts, or the time was up."""
    return f"{line['rounds']} of {line['wanted']:.0f}" if line["rounds"] < line["wanted"] else str(line["rounds"])


def throughput_section(found: pd.DataFrame) -> str:
    each = throughput(found)
    shown = pd.DataFrame({
        "model, texts, precision": each["what"],
        "Hugging Face, length-sorted": each["huggingface"].map(short, na_action="ignore"),
        "fastest rival, all layers": each["fastest"].map(short) + " (" + each["rival"].str.partition(",")[0] + ")",
        "best, one at a time": each["alone"].map(short),
        "ours, all layers": each["full"].map(short),
        "ours, exits": each.apply(faster, axis=1),
        "over the rival": (each["exits"] / each["fastest"]).map("{:.2f}x".format),
        "over ours": (each["exits"] / each["full"]).map("{:.2f}x".format),
        "mean layers": each["mean_layers"].map("{:.1f}".format) + " of " + each["layers"].map("{:.0f}".format),
        "same answer": each["agreement"].map(lambda one: "-" if one is None or one != one else f"{one:.1%}"),
        "of the bound": each["share"].map("{:.0%}".format),
        "of the rival's": each["rival_share"].map("{:.0%}".format),
        "more time if nobody leaves": each["nobody"].map("{:+.1%}".format),
        "texts": each["texts"].map("{:.0f}".format),
        "rounds": each.apply(rounds, axis=1),
        "met before: rival, ours, exits": each["met"].map(lambda met: met and ", ".join(map(short, met))),
        "shapes, new after the first round": [
            f"{line['shapes']:.0f}, {line['new']:.0f}" if line["fresh"] else None for _, line in each.iterrows()
        ],
    })  # fmt: skip
    return f"{markdown(shown)}\n\n![texts a second over accuracy, each cell]({plot_name(found)})"


def rivals_section(found: pd.DataFrame) -> str:
    """Every rival that runs all layers, each cell of today's benchmark, and why others are missing."""
    cells = found[(found["cell"] == "throughput") & found["current"]]
    if cells.empty:
        return "Not measured yet with all rivals."
    shown = cells[cells["kind"].isin(("full", "speed only", "ceiling")) & ~cells["system"].str.contains("random batches")]
    names = {name: name.removesuffix(", length-sorted") for name in shown["system"].unique()}
    lines = []
    for what, cell in cells.groupby("what", sort=False):
        of = {row["system"]: rival(row) for _, row in cell[cell["samples_per_second"].notna()].iterrows()}
        way = next(name for name in ("ours, full, onednn", "ours, full") if name in of)
        lines.append({"cell": what, "ours, full": of[way], **{title: of.get(name) for name, title in names.items()}})
    absent = cells[cells["missing"].notna()]
    absent = absent.assign(dtype=absent["case"].str.rsplit(".", n=1).str[1])
    reasons = [
        f"- {name}, {' and '.join(group['dtype'].unique())}: {reason}"
        for (name, reason), group in absent.groupby(["system", "missing"], sort=False)
    ]
    return (
        "Texts a second that no system has met; in brackets how many answers are the float32 model's, and the largest "
        "difference of a text's logits from those beside a copy of itself only: what its neighbours change. CrossEncoder runs "
        "a fresh head on the same layers, so only its speed counts. tf-idf, fitted to some of the model's answers, is a "
        f"ceiling of speed.\n\n{markdown(pd.DataFrame(lines))}\n\nMissing:\n\n" + "\n".join(reasons)
    )


def rival(row: pd.Series) -> str:
    """Speed, agreement and what neighbours change, as far as they are known."""
    judged = [f"{row['agreement']:.1%}"] if row["agreement"] == row["agreement"] and row["agreement"] is not None else []
    judged += [f"{row['neighbours']:.1g}"] if row["neighbours"] == row["neighbours"] else []
    return short(row["samples_per_second"]) + (f" ({', '.join(judged)})" if judged else "")


def latency_section(found: pd.DataFrame) -> str:
    waits = found[(found["cell"] == "latency") & (found["load"] == LOAD)]
    lines = []
    for case, cell in waits.groupby("case", sort=False):
        times = {row["system"]: f"{1000 * row['p50']:.0f}, {1000 * row['p99']:.0f}" for _, row in cell.iterrows()}
        what = cell["what"].iloc[0] + whose_exits(found[found["case"] == case])
        lines.append({"cell": what, "rival, length-sorted": next(iter(times.values())), **ways(times)})
    return (
        f"Median and 99th percentile in milliseconds at a load of {LOAD:g} of what the rival can take at full depth; other "
        f"loads and rivals are in the files.\n\n{markdown(pd.DataFrame(lines))}"
    )


def ways(of: dict[str, str]) -> dict[str, str]:
    """Ours at full depth and with exits, in the last way of running its layers that was measured."""
    names = [name for name in of if name.startswith("ours, ")]
    full, early = ([name for name in names if name.startswith("ours, full") == is_full] for is_full in (True, False))
    early = [name for name in early if "threshold" in name and "graphs" not in name]
    return {"ours, all layers": of[full[-1]], "ours, exits": of[early[-1]] if early else "-"}


def pays_section(found: pd.DataFrame) -> str:
    points = found[(found["cell"] == "pays") & found["speed_up"].notna()]
    lines = []
    for what, cell in points.groupby("what", sort=False):
        line = {"cell": what}
        for tokens, batch in cell.groupby("tokens", sort=False):
            nobody = batch[batch["system"] == "nobody leaves"]["speed_up"].iloc[0]
            line["one sample" if tokens == 1 else f"{tokens:,.0f} tokens"] = f"{pays_up_to(batch):.0%} ({nobody:.2f}x)"
        lines.append(line)
    return (
        "Up to which share of the layers that samples run scored exits are faster than full depth, by tokens of a batch; in "
        "brackets their speed where all are scored and nobody leaves. Random weights, exits replayed, every exit scored.\n\n"
        + markdown(pd.DataFrame(lines))
    )


def pays_up_to(points: pd.DataFrame) -> float:
    """The largest share of the layers at which, and below which, exits are faster than full depth; 0: at none."""
    ordered = points.sort_values("share")[["share", "speed_up"]].itertuples(index=False)
    return max((share for share, _ in takewhile(lambda point: point[1] > 1, ordered)), default=0.0)


def memory_section(found: pd.DataFrame) -> str:
    lines = []
    for what, cell in found[found["cell"] == "memory"].groupby("what", sort=False):
        own = {row["system"]: row["peak"] - row["before"] for _, row in cell.iterrows() if row["peak"] == row["peak"]}
        rival = own["huggingface, length-sorted"]
        shown = {name: f"{value:,.0f} ({value / rival:.2f}x)" for name, value in own.items()}
        line = {"cell": what, "Hugging Face": f"{rival:,.0f}"}
        line |= {form: shown.get(f"ours, {form}", "-") for form in ("full", "full, onednn", "full, onednn in place")}
        line["exits"] = next((shown[name] for name in shown if name.startswith("ours, threshold")), "-")
        line |= {name: shown.get(f"{name}, length-sorted", "-") for name in ("openvino", "onnxruntime")}
        lines.append(line)
    return f"Peak megabytes over an empty process, each system in one of its own.\n\n{markdown(pd.DataFrame(lines))}"


def growth_section(found: pd.DataFrame) -> str:
    lines, cells = [], found[found["cell"] == "growth"]
    few, many = cells["windows"].dropna().iloc[0]
    for what, cell in cells.groupby("what", sort=False):
        measured = [row for _, row in cell.iterrows() if row["grown"] == row["grown"]]
        names = [row["system"].removesuffix(", length-sorted") for row in measured]
        values = [f"{row['grown']:+.0f} ({row[f'after_{many}']:.0f})" for row in measured]
        lines.append({"cell": what, **dict(zip(names, values, strict=True))})
    return (
        f"Megabytes by which a process grew from {few} to {many} windows of texts that it had not met, and in brackets what it "
        f"held then. Each system runs in a process of its own.\n\n{markdown(pd.DataFrame(lines))}"
    )


def scaling_section(found: pd.DataFrame) -> str:
    points = found[(found["cell"] == "scaling") & found["size"].notna()]
    ends = pd.concat([each.iloc[[0, -1]] for _, each in points.groupby("axis", sort=False)])
    shown = pd.DataFrame({
        "grows": ends["axis"], "to": ends["size"].map("{:,.0f}".format), "samples": ends["samples"].map("{:,.0f}".format),
        "samples/s": (ends["samples"] / ends["seconds"]).map("{:.0f}".format),
        "MB grown": ends["megabytes_grown"].map("{:.0f}".format),
    })  # fmt: skip
    return markdown(shown)


def skips_section(found: pd.DataFrame) -> str:
    rates = found[(found["cell"] == "skips") & found["rate"].notna()]
    shown = pd.DataFrame({
        "layers skipped": rates["rate"].map("{:.0%}".format), "mean layers": rates["mean_layers"].map("{:.1f}".format),
        "samples/s": rates["samples_per_second"].map(short), "speed-up": rates["speed_up"].map("{:.2f}x".format),
        "of what they save": rates["share_of_bound"].map("{:.0%}".format),
    })  # fmt: skip
    return f"What the engine gains where paths are given: no gate runs. Answers checked one by one.\n\n{markdown(shown)}"


def segments_section(found: pd.DataFrame) -> str:
    """Layers by other engines under our exits: a line for each of them in each cell, beside our own."""
    lines = []
    for what, cell in found[(found["cell"] == "segments") & found["samples_per_second"].notna()].groupby("what", sort=False):
        of = cell.set_index("system")
        own = ", onednn" if "ours, full, onednn" in of.index else ""
        under = [name for name in SEGMENTS if f"ours, full, {name}" in of.index]
        main = next(name for name in MAIN if f"ours, {name}{own}" in of.index)
        for title, suffix in (("our own", own), *((name, f", {name}") for name in under)):
            alone = of["samples_per_second"].get(f"{title.removesuffix(', grid')}, length-sorted")
            full, early = of.loc[f"ours, full{suffix}"], of.loc[f"ours, {main}{suffix}"]
            lines.append({
                "cell": what, "layers by": title, "that engine alone, all layers": "-" if alone is None else short(alone),
                "ours, all layers": short(full["samples_per_second"]), "ours, exits": short(early["samples_per_second"]),
                "met before": f"{short(full['again.samples_per_second'])}, {short(early['again.samples_per_second'])}",
                "mean layers": f"{early['mean_layers']:.1f}",
            })  # fmt: skip
    return (
        "Texts a second where another engine runs the layers between two exits, as a model for each such run of layers that is "
        "built before anything is timed. *Grid*: batches are padded to few shapes. Heads and embeddings are torch's. "
        f"None of these engines is a runner of the package.\n\n{markdown(pd.DataFrame(lines))}"
    )


SECTIONS: tuple[tuple[str, str, Callable[[pd.DataFrame], str]], ...] = (
    ("Throughput, texts a second", "throughput", throughput_section),
    ("Rivals", "throughput", rivals_section),
    ("Layers by other engines under our exits", "segments", segments_section),
    ("Waiting times under random arrivals", "latency", latency_section),
    ("Where exits pay", "pays", pays_section),
    ("Peak memory", "memory", memory_section),
    ("Memory over fresh texts", "growth", growth_section),
    ("As work grows", "scaling", scaling_section),
    ("Skipped layers known beforehand", "skips", skips_section),
)
ELSEWHERE = (throughput_section, skips_section)  # of other machines than the first


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown."""
    found, parts = results(folder), [INTRODUCTION]
    if found.empty or not (found["device"] == "cuda").any():
        parts.append(
            "GPUs have [their own page](gpu.md); this benchmark's matrix has not run there yet: "
            f"`{COMMAND} --device cuda --only matrix --budget-minutes 6 --cell-minutes 2`."
        )
    if found.empty:
        return "\n\n".join([*parts, f"Not yet measured on a CPU: `{COMMAND}`."]) + "\n"
    first, *others = machines(found)
    if others:
        parts.append(f"[Other machines](pipeline_elsewhere.md): {', '.join(others)}.")
    return "\n\n".join([*parts, *sections(found, first, [section for *_, section in SECTIONS])]) + "\n"


def page_elsewhere(folder: Path = RESULTS) -> str:
    """The page of all machines but the one with the most cells, in Markdown."""
    found = results(folder)
    others = [] if found.empty else machines(found)[1:]
    parts = [part for name in others for part in sections(found, name, ELSEWHERE)]
    return "\n\n".join([INTRODUCTION_ELSEWHERE, *parts]) + "\n"


def sections(found: pd.DataFrame, machine: str, wanted: Sequence[Callable[[pd.DataFrame], str]]) -> list[str]:
    """A machine's part of a page: the sections of it that are wanted and have results."""
    of_machine, parts = found[found["machine"] == machine], [f"## {machine}"]
    for title, kind, section in SECTIONS:
        if section in wanted and (of_machine["cell"] == kind).any():
            parts += [f"### {title}", section(of_machine)]
    return parts


def readme_table(folder: Path = RESULTS) -> str:
    """README's: the trained model in float32 on the CPU with the most cells, a line for each data set, where it pays or not."""
    found = results(folder)
    if found.empty or not ((found["cell"] == "throughput") & (found["device"] == "cpu")).any():
        return "Not measured yet."
    cells = found[(found["cell"] == "throughput") & (found["device"] == "cpu")]
    name = machines(cells)[0]
    each = throughput(cells[cells["machine"] == name])
    shape, data, dtype = (each["case"].str.split(".").str[at] for at in (2, 3, 4))
    trained = next(name for name in TRAINED if (shape == name).any())
    wanted = (shape == trained) & (dtype == "float32")
    each, data = each[wanted], data[wanted]
    shown = pd.DataFrame({
        "texts": data,
        "Hugging Face": each["huggingface"].map(short),
        "fastest rival": each["fastest"].map(short) + " (" + each["rival"].str.partition(",")[0] + ")",
        "other early exits": each["alone"].map(short),
        "ours, all layers": each["full"].map(short),
        "ours, exits": each.apply(faster, axis=1),
        "layers run": each["mean_layers"].map("{:.1f}".format) + " of " + each["layers"].map("{:.0f}".format),
        "same answer": each["agreement"].map("{:.1%}".format),
    })  # fmt: skip
    model = f"{TRAINED[trained]}, {each['layers'].iloc[0]:.0f} layers, in float32"
    promises = each["promise"].dropna().unique()
    by = f"the policy that `calibrate` chose for {promises[0]}" if len(promises) == 1 else "a threshold of 0.3, not calibrated"
    texts = ", ".join(f"{line['texts'] * (line['rounds'] if line['fresh'] else 1):.0f}" for _, line in each.iterrows())
    where = f"exits do not pay on {(~each['pays']).sum()} of {len(each)} data sets, where few texts are easy. "
    twice = ", none twice" if each["fresh"].all() else ""
    note = (
        f"Texts a second: {model}, {name}. Rivals run all layers over batches sorted by length; other early exits answer one "
        f"text at a time, as their published code does. Exits are by {by}; {texts} texts were timed{twice}: too few to check a "
        "promise. **Bold** is faster than our own full depth and every rival; "
        f"{'' if each['pays'].all() else where}bfloat16, int8, BERT's base shape, other machines and rivals: "
        "[docs/results/pipeline.md](docs/results/pipeline.md)."
    )
    return f"{markdown(shown)}\n\n{note}"


def plot_name(found: pd.DataFrame) -> str:
    """File name of the plot of one machine's cells."""
    return f"pipeline_{slug(found['environment'].iloc[0])}.png"


def plot(found: pd.DataFrame, path: Path) -> None:
    """Texts a second over agreement with the full model, a panel for each throughput cell of a machine. Needs matplotlib."""
    from matplotlib.figure import Figure

    cells = dict(list(found[(found["cell"] == "throughput") & found["kind"].notna()].groupby("case", sort=False)))
    figure = Figure(figsize=(6, 4 * len(cells)), layout="constrained")
    panels = figure.subplots(len(cells), squeeze=False)[:, 0]
    for axes, (case, cell) in zip(panels, cells.items(), strict=True):
        judged = "accuracy" in cell and cell["accuracy"].notna().all()
        for kind in ("ours", "full", "truncated", "exits"):
            rows = cell[cell["kind"] == kind]
            axes.scatter(rows["accuracy" if judged else "agreement"], rows["samples_per_second"], label=kind, s=16)
        what = "accuracy" if judged else "same answer as all layers, float32"
        axes.set(title=case, xlabel=what, ylabel="samples/s", ylim=(0, None))
        axes.legend()
    figure.savefig(path, dpi=100)

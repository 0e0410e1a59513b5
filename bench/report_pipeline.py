"""The page on the whole pipeline: throughput beside every rival, where the time goes, waiting times, memory, growth."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.pipeline import VERSION
from bench.report_ops import read
from bench.systems import NOBODY

Result = dict[str, Any]

INTRODUCTION = """# The pipeline, measured

Made from the files in `bench/results/pipeline`, which `python -m bench.pipeline` writes, by `python -m bench.report`. Answers
are checked before anything is timed, systems of a table run in turns, figures are medians. *Share of the bound* is the speed
over what the saved layers allow, (layers / mean layers) times full depth: that of ours, and that of the fastest rival of the
same precision that runs all layers; in brackets by the mean layers of a token, the honest bound where long texts stay longer.
Cells of an *older benchmark* were measured before int8 took in the heads and rivals their last improvements (weights frozen
into what is compiled, int8 in place), with stages unpacked and waiting times of one pass.
*Replayed* exits are those of a model with random weights whose samples leave as they were recorded to do on a trained one.

What is lost on the bound: *heads*, one for every exit where a sample is scored, whose own arithmetic is a floor (see what
exits cost where nobody leaves); *pad, move, pool, decide*, above all the rows of survivors, copied together so that layers
multiply dense matrices; and *layers* beyond their share, where batches that shrank multiply fewer rows or pad more."""

SINGLE = ("memory", "scaling")  # cells that run once
BOUND, OVERHEAD, MEMORY, ROUNDS = 0.95, 0.02, 1.2, 20  # what was aimed at
COMMAND = "python -m bench.pipeline --texts NAME=FILE --models NAME=FOLDER"


def results(folder: Path = RESULTS) -> list[Result]:
    """All cells; those of another machine lie in a folder of their own."""
    return [read(path) for path in sorted((folder / "pipeline").rglob("*.json"))]


def machine(result: Result) -> str:
    """What it was measured on."""
    where = result["environment"]
    return f"{where['gpu'] or where['cpu']}, {where['threads']} thread{'s' * (where['threads'] != 1)}, torch {where['torch']}"


def by_machine(several: Iterable[Result]) -> dict[str, list[Result]]:
    """The cells of each machine; first the machine with the most by today's benchmark, then by any."""
    found = defaultdict(list)
    for result in several:
        found[machine(result)].append(result)
    return dict(sorted(found.items(), key=lambda item: (-sum(map(is_current, item[1])), -len(item[1]))))


def is_current(result: Result) -> bool:
    """Whether a cell was measured by today's benchmark."""
    return result["declaration"].get("version") == VERSION


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown."""
    machines = by_machine(results(folder))
    parts = [INTRODUCTION]
    if not any(".cuda." in result["cell"] for several in machines.values() for result in several):
        parts.append(f"Not yet measured on a GPU: `{COMMAND} --device cuda --only matrix --budget-minutes 6 --cell-minutes 2`.")
    if not machines:
        parts.append(f"Not yet measured on a CPU: `{COMMAND}`.")
    for name, several in machines.items():
        parts.append(f"## {name}")
        for title, kind, section in SECTIONS:
            found = [section(result) for result in several if result["cell"].startswith(f"{kind}.")]
            if found:
                parts += [f"### {title}", *found]
        cells = [result for result in several if result["cell"].startswith("throughput.")]
        if cells:
            parts.append(f"![samples a second over accuracy, each throughput cell](results/{plot_name(cells)})")
            parts += ["### Targets", targets(several), "### Where it does not pay", where_it_does_not_pay(cells)]
    return "\n\n".join(parts) + "\n"


def title_of(result: Result) -> str:
    """Cell, texts and date."""
    kind, _, *rest = result["cell"].split(".")
    notes = [rounds_of(result)] * (kind not in SINGLE) + [result["environment"]["date"]]
    notes += [] if is_current(result) else ["older benchmark"]
    return f"**{', '.join(rest)}** ({'; '.join(notes)})"


def rounds_of(result: Result) -> str:
    """How many were run; a limit of time may have left some of those asked for out."""
    limit = "" if result["declaration"].get("seconds") is None else "up to "
    if "systems" in result:
        limit, rounds = "", len(result["systems"][0]["seconds"])
    elif "heads" in result:
        limit, rounds = "", len(result["heads"][0]["ratios"])
    else:
        rounds = result["declaration"]["rounds"]
    return f"{limit}{rounds} round{'s' * (rounds != 1)}"


def way_shown(result: Result) -> str:
    """How ours runs its layers in the row that is shown where one is."""
    return "plain" if headline(result, "full", "packed") is None else "packed"


def overhead(result: Result) -> float:
    """Time of scoring everywhere where nobody leaves, over full depth: the median of rounds."""
    full, nobody = (headline(result, policy, way_shown(result))["seconds"] for policy in ("full", NOBODY))
    return statistics.median(scored / alone for scored, alone in zip(nobody, full, strict=True)) - 1


def in_way(result: Result) -> str:
    """How ours ran its layers where that is not said elsewhere."""
    return "" if result.get("way", "plain") == "plain" else f" ({result['way']})"


def headline(result: Result, name: str, way: str) -> Result | None:
    """The row of ours under a policy, its layers run in this way."""
    wanted = f"ours, {name}" + ("" if way == "plain" else f", {way}")
    return next((row for row in result["systems"] if row["system"] == wanted), None)


def percent(row: Result, key: str) -> str:
    return f"{row[key]:.0%} ({row[f'{key}_of_a_token']:.0%})"


def table(rows: list[Result]) -> list[str]:
    """Systems of one comparison."""
    lines = [
        "| system | mean layers | same answer as all layers | accuracy | samples/s | speed-up | share of the bound | "
        "of the rival's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['system']} | {row['mean_layers']:.2f} | {row['agreement']:.3f} | "
        f"{'-' if row.get('accuracy') is None else format(row['accuracy'], '.3f')} | {row['samples_per_second']:.1f} | "
        f"{row['speed_up']:.2f}x | {percent(row, 'share_of_bound')} | {percent(row, 'share_of_rival_bound')} |"
        for row in rows
    ]
    return lines


def throughput_section(result: Result) -> str:
    texts, seconds = result["texts"], result["compile_seconds"]
    lines = [
        title_of(result),
        "",
        f"{result['layers']} layers of width {result['width']}; {texts['samples']} texts of {texts['tokens']:,} tokens, the "
        f"longest {texts['longest']}; when all are scored and nobody leaves {overhead(result):+.1%} time over full depth "
        f"({way_shown(result)})" + ("." if seconds is None else f"; one layer compiled for all in {seconds:.0f} s."),
        "",
        *table(result["systems"]),
        "",
        *(f"Without {name}: {reason}." for name, reason in result["missing"].items()),
        "",
        f"Time of a window by stage{in_way(result)}: "
        + "; ".join(f"{name}: {shares(found)}" for name, found in result["stages"].items())
        + ".",
        "",
        *gap(result),
    ]
    return "\n".join(lines)


def shares(seconds: dict[str, float]) -> str:
    """The largest stage first."""
    total, ordered = sum(seconds.values()), sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{stage} {value / total:.1%}" for stage, value in ordered)


def gap(result: Result) -> list[str]:
    """What a policy spends beyond its share of full depth, by stage: the three largest."""
    full, lines = result["stages"]["full"], []
    for name, seconds in result["stages"].items():
        row = headline(result, name, result.get("way", "plain"))
        if name == "full" or row is None:
            continue
        share, total = row["mean_layers_of_a_token"] / result["layers"], sum(seconds.values())
        beyond = {stage: (value - share * full.get(stage, 0.0)) / total for stage, value in seconds.items()}
        largest = sorted(beyond.items(), key=lambda item: -abs(item[1]))[:3]
        lines.append(
            f"Beyond the {share:.0%} of full depth that a token's mean layers come to, {name} spends "
            f"{sum(beyond.values()):.1%} of its time: {', '.join(f'{stage} {value:+.1%}' for stage, value in largest)}."
        )
    return lines


def targets(several: list[Result]) -> str:
    """What was aimed at, and what each cell reaches."""
    lines, cells = [], [result for result in several if result["cell"].startswith("throughput.")]
    for result in cells:
        name, cell = next(name for name in result["stages"] if name != "full"), ", ".join(result["cell"].split(".")[2:])
        way, beyond = way_shown(result), overhead(result)
        row, policy = headline(result, name, way), name if way == "plain" else f"{name}, {way}"
        shares = (f"{percent(row, key)}{met(row[key] >= BOUND)}" for key in ("share_of_bound", "share_of_rival_bound"))
        lines.append((f"{cell}, {policy}", *shares, f"{beyond:+.1%}{met(beyond <= OVERHEAD)}"))
    for result in several:
        if not result["cell"].startswith("memory."):
            continue
        own = {name: values["peak"] - values["before"] for name, values in result["megabytes"].items()}
        over = {name: value / own["huggingface, length-sorted"] for name, value in own.items() if name.startswith("ours")}
        cell = ", ".join(result["cell"].split(".")[2:])
        lines += [
            (f"{cell}, {name.removeprefix('ours, ')}", "", "", "", f"{v:.2f}x{met(v <= MEMORY)}") for name, v in over.items()
        ]
    lines = [(*line, *[""] * (5 - len(line))) for line in lines]
    few = [cell for cell in cells if len(cell["systems"][0]["seconds"]) < ROUNDS]
    note = (
        f"Aimed at: {BOUND:.0%} of the bound and of the rival's (by a text's mean layers; in brackets by a token's), at most "
        f"{OVERHEAD:.0%} over full depth where nobody leaves, at most {MEMORY}x of Hugging Face's peak memory; medians of at "
        f"least {ROUNDS} rounds, which {len(few)} of {len(cells)} cells do not have. What is reached is marked *."
    )
    return "\n".join([note, "", *grid(("cell", "of the bound", "of the rival's", "nobody leaves", "memory"), lines)])


def met(reached: bool) -> str:
    return " *" if reached else ""


def where_it_does_not_pay(several: list[Result]) -> str:
    """Ours with early exits that are no faster than the fastest rival that runs all layers."""
    lines = []
    for result in several:
        rows = result["systems"]
        rival = max((row for row in rows if row["kind"] == "full"), key=lambda row: row["samples_per_second"])
        slower = [
            f"{row['system'].removeprefix('ours, ')} (mean layers {row['mean_layers']:.2f}, {ratio:.2f}x)"
            for row in rows
            if row["kind"] == "ours" and (ratio := row["samples_per_second"] / rival["samples_per_second"]) <= 1
        ]
        name = ", ".join(result["cell"].split(".")[2:])
        lines.append(f"- {name}, over {rival['system']}: {'; '.join(slower) or 'everything pays'}")
    return "\n".join(lines)


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, line by line."""
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in rows)]


def latency_section(result: Result) -> str:
    rows = (
        (row["system"], f"{row['load']:g}", f"{1000 * row['p50']:.1f}", f"{1000 * row['p99']:.1f}")
        for row in result["latencies"]
    )
    introduction = f"Load 1 is {result['rate_of_load_1']:.1f} texts a second; {result['samples']} arrivals."
    lines = grid(("system", "load", "median, ms", "99th percentile, ms"), rows)
    return "\n".join([title_of(result), "", introduction, "", *lines])


def pays_section(result: Result) -> str:
    points = result["points"]
    exits, tokens = dict.fromkeys(p["exits"] for p in points), dict.fromkeys(p["tokens"] for p in points)
    found = {(p["tokens"], p["exits"]): p for p in points}
    rows = [
        [
            "one sample" if size == 1 else f"{size:,}",
            *(f"{p['speed_up']:.2f}x at {p['share']:.0%}" for name in exits if (p := found[size, name])),
            f"{pays_up_to([found[size, name] for name in exits]):.0%}",
        ]
        for size in tokens
    ]
    introduction = (
        f"Scored exits over full depth{in_way(result)}, at the share of the layers that samples run; {result['samples']} "
        "texts, random weights, exits replayed, every exit scored until a sample leaves."
    )
    lines = grid(("tokens of a batch", *(f"exits {name}" for name in exits), "pays up to a share of"), rows)
    return "\n".join([title_of(result), "", introduction, "", *lines])


def pays_up_to(points: list[Result]) -> float:
    """The largest share of the layers at which, and below which, exits are faster than full depth; 0: at none."""
    paying = takewhile(lambda point: point["speed_up"] > 1, sorted(points, key=lambda point: point["share"]))
    return max((point["share"] for point in paying), default=0.0)


def overhead_section(result: Result) -> str:
    rows = ((row["head"], f"{row['overhead']:+.1%}", f"{row['flops']:+.1%}") for row in result["heads"])
    introduction = f"All exits scored, nobody leaves; {result['samples']} texts, random weights."
    lines = grid(("heads", "time over full depth", "FLOPs over full depth"), rows)
    return "\n".join([title_of(result), "", introduction, "", *lines])


def memory_section(result: Result) -> str:
    own = {name: values["peak"] - values["before"] for name, values in result["megabytes"].items()}
    rival = own["huggingface, length-sorted"]
    rows = ((name, f"{value:,.0f}", f"{value / rival:.2f}x") for name, value in own.items())
    lines = grid(("system", "peak over an empty process, MB", "of Hugging Face's"), rows)
    return "\n".join([title_of(result), "", *lines])


def scaling_section(result: Result) -> str:
    rows = (
        (
            f"{point['size']:,}",
            f"{point['samples']:,}",
            f"{point['seconds']:.2f}",
            f"{point['samples'] / point['seconds']:.0f}",
            f"{point['megabytes_grown']:.0f}",
        )
        for point in result["points"]
    )
    lines = grid((result["axis"], "samples", "seconds", "samples/s", "MB grown"), rows)
    return "\n".join([title_of(result), "", *lines])


def matrix_section(result: Result) -> str:
    ceilings = result["ceilings"]
    rates = ", ".join(f"{name} {share:.1%}" for name, share in result["share_of_gemm_rate"].items())
    lines = [
        title_of(result),
        "",
        f"Ceilings in the same run: {ceilings['flops_per_second'] / 1e12:.2f} TFLOP/s, "
        f"{ceilings['copied_bytes_per_second'] / 1e9:.0f} GB/s copied. Full depth reaches of that rate: {rates}.",
    ]
    lines += ["", *table(result["systems"])]
    if result["launches"]:
        lines += ["", "What the host launches in a window, kernels and graphs of many, and how often it waits for the GPU:", ""]
        lines += [f"- {name}: {', '.join(f'{found[kind]:,}' for kind in found)}" for name, found in result["launches"].items()]
    return "\n".join(lines)


def skips_section(result: Result) -> str:
    rows = (
        (
            f"{row['rate']:.0%}",
            f"{row['mean_layers']:.2f}",
            f"{row['samples_per_second']:.1f}",
            f"{row['speed_up']:.2f}x",
            f"{row['share_of_bound']:.0%}",
        )
        for row in result["rates"]
    )
    introduction = f"{result['layers']} layers, {result['samples']} samples over up to four paths known beforehand."
    lines = grid(("layers skipped", "mean layers", "samples/s", "speed-up", "share of what they save"), rows)
    return "\n".join([title_of(result), "", introduction, "", *lines])


SECTIONS = (
    ("Throughput", "throughput", throughput_section),
    ("Waiting times under random arrivals", "latency", latency_section),
    ("Where exits pay", "pays", pays_section),
    ("What exits cost where nobody leaves", "overhead", overhead_section),
    ("Peak memory", "memory", memory_section),
    ("As work grows", "scaling", scaling_section),
    ("Skipped layers", "skips", skips_section),
    ("Shapes", "matrix", matrix_section),
)


def plot_name(several: list[Result]) -> str:
    """File name of the plot of one machine's cells."""
    where = several[0]["environment"]
    machine = re.sub(r"\W+", "_", where["gpu"] or where["cpu"]).strip("_").lower()
    return f"pipeline_{machine}.png"


def plot(several: list[Result], path: Path) -> None:
    """Samples a second over agreement with the full model, a panel for each throughput cell. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4 * len(several)), layout="constrained")
    panels = figure.subplots(len(several), squeeze=False)[:, 0]
    for axes, result in zip(panels, several, strict=True):
        for kind in ("ours", "full", "truncated", "exits"):
            rows = [row for row in result["systems"] if row["kind"] == kind]
            right = [row["agreement"] if row.get("accuracy") is None else row["accuracy"] for row in rows]
            axes.scatter(right, [row["samples_per_second"] for row in rows], label=kind, s=16)
        judged = all(row.get("accuracy") is not None for row in result["systems"])
        what = "accuracy" if judged else "same answer as all layers, float32"
        axes.set(title=result["cell"], xlabel=what, ylabel="samples/s", ylim=(0, None))
        axes.legend()
    figure.savefig(path, dpi=100)

"""Turns result files into the README's table and the pages in bench/.

python -m bench.report            # rewrites the table between the markers in README.md, the pages in bench/, and plots
python -m bench.report --check    # fails where a page differs from the result files
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench import report_faults, report_gpu, report_ops, report_pipeline, report_policies, report_skipping
from bench.environment import RESULTS, ROOT
from bench.experiments import report as report_experiments
from bench.report_policies import families, promises, setting, speed_up, spread, token_budgets

BEGIN, END = "<!-- results: made by `python -m bench.report` -->", "<!-- results end -->"


def summary(folder: Path = RESULTS) -> str:
    """What `calibrate` reached, a line for each data set and promise: mean over seeds, the lowest and highest in brackets."""
    found = promises(folder)
    budgets = token_budgets([run for runs in found.values() for run in runs])
    lines = [
        "| data | promised agreement | agreement | accuracy | of all layers | mean layers | "
        + " | ".join(f"{int(budget):,} tokens a batch" for budget in budgets)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(budgets),
    ]
    for name, runs in found.items():
        rows = [(row["promise"], row) for run in runs for row in run["policies"] if row["chosen"]]
        for promise in sorted({promise for promise, _ in rows}, reverse=True):
            chosen = [row for value, row in rows if value == promise]
            full = statistics.mean(row["accuracy"] for row in families(runs)[promise, "full"])
            speeds = " | ".join(speed_up(chosen, budget) for budget in budgets)
            lines.append(
                f"| {name} | {promise:g} | {spread(row['agreement'] for row in chosen)} | "
                f"{spread(row['accuracy'] for row in chosen)} | {full:.3f} | "
                f"{spread((row['mean_layers'] for row in chosen), 2)} | {speeds} |"
            )
    where = [f"- {name}: {setting(runs)}; {len(runs)} seeds" for name, runs in found.items()]
    note = "In round brackets the lowest and the highest seed, in square ones the number of seeds where not all were measured."
    return "\n".join([*lines, "", note, "", *where])


def rivals(folder: Path = RESULTS) -> str:
    """Ours beside rivals on the CPU with the most cells, a line for each data set and shape that was measured there."""
    found = [cell for cell in report_pipeline.results(folder) if cell["cell"].startswith("throughput.cpu.")]
    if not found:
        return "Not measured yet."
    machine, cells = next(iter(report_pipeline.by_machine(found).items()))
    lines = [
        "| CPU, precision, texts | Hugging Face, length-sorted | fastest rival that runs all layers | one text at a time | "
        "ours, all layers | ours, exits | mean layers | answers as of all layers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        speed = {row["system"]: row["samples_per_second"] for row in cell["systems"]}
        kinds = {kind: [row["system"] for row in cell["systems"] if row["kind"] == kind] for kind in ("full", "exits", "ours")}
        sorted_ = next(name for name in kinds["full"] if name.endswith("length-sorted") and "onnx" not in name)
        fastest = max(kinds["full"], key=speed.get)
        alone = max((name for name in kinds["exits"] if "one at a time" in name), key=speed.get)
        way = ", packed" if "ours, full, packed" in speed else ""
        full = f"ours, full{way}"
        exits = next(name for name in kinds["ours"] if name in (f"ours, threshold:0.3{way}", f"ours, threshold, replayed{way}"))
        row = next(row for row in cell["systems"] if row["system"] == exits)
        _, _, shape, data, dtype = cell["cell"].split(".")
        model = f"MiniLM, {data}" if shape == "minilm" else f"BERT-{shape} shape, exits of {data} replayed"
        threads = "1 thread" if cell["environment"]["threads"] == 1 else f"{cell['environment']['threads']} threads"
        agreement = f"{row['agreement']:.1%}" if shape == "minilm" else "-"
        lines.append(
            f"| {model}, {dtype}, {threads} | {rounded(speed[sorted_])} | {rounded(speed[fastest])} "
            f"({fastest.partition(',')[0]}) | {rounded(speed[alone])} | {rounded(speed[full])} | **{rounded(speed[exits])}** | "
            f"{row['mean_layers']:.1f} of {cell['layers']} | {agreement} |"
        )
    note = (
        f"Texts a second, in turns, answers checked first; ours with `packed=True`, but for int8; {machine}. Every rival, and "
        "other machines: [bench/PIPELINE.md](bench/PIPELINE.md)."
    )
    return "\n".join([*lines, "", note])


def rounded(value: float) -> str:
    """Two digits at least."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def with_tables(readme: str, content: str) -> str:
    """README with what stands between the markers replaced."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must hold the lines {BEGIN!r} and {END!r}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def pages() -> dict[Path, str]:
    """Each page, and what it must say."""
    readme, folder = ROOT / "README.md", ROOT / "bench"
    return {
        readme: with_tables(readme.read_text(encoding="utf-8"), f"{rivals()}\n\n{summary()}"),
        folder / "POLICIES.md": report_policies.page(),
        folder / "OPS.md": report_ops.page(),
        folder / "GPU.md": report_gpu.page(),
        folder / "PIPELINE.md": report_pipeline.page(),
        folder / "SKIPPING.md": report_skipping.page(),
        folder / "EXPERIMENTS.md": report_experiments.page(),
        folder / "FAULTS.md": report_faults.page(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for path, text in pages().items():
        if arguments.check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            raise SystemExit(f"{path.name} differs from bench/results: run python -m bench.report")
        path.write_text(text, encoding="utf-8")
    if not arguments.check:
        for path in sorted(RESULTS.rglob("ops*.json")):
            report_ops.plot(report_ops.read(path), path.with_suffix(".png"))
        report_experiments.plots()
        cells = [cell for cell in report_pipeline.results() if cell["cell"].startswith("throughput.")]
        for several in report_pipeline.by_machine(cells).values():
            report_pipeline.plot(several, RESULTS / report_pipeline.plot_name(several))


if __name__ == "__main__":
    main()

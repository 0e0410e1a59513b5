"""Turns result files into the README's tables and the page on the ops.

python -m bench.report            # rewrites the tables between the markers in README.md, bench/OPS.md and its plots
python -m bench.report --check    # fails where README.md or bench/OPS.md differ from the result files
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from bench import report_ops
from bench.environment import RESULTS, ROOT

BEGIN, END = "<!-- results: made by `python -m bench.report` -->", "<!-- results end -->"


def tables(folder: Path = RESULTS) -> str:
    """A section per data set (exits, policies, predictors), and one for each measurement of depth or of promises."""
    makers = {"policies_*.json": section, "depth_*.json": depth_section, "promises_*.json": promises_section}
    return "\n\n".join(make(report_ops.read(path)) for pattern, make in makers.items() for path in sorted(folder.glob(pattern)))


def promises_section(result: dict[str, Any]) -> str:
    where, data = result["environment"], result["data"]
    budgets = list(result["policies"][0]["speed"])
    lines = [
        f"**Promises on {data['name']}** ({data['calibration']:,} calibration texts, {data['test']:,} others measured, "
        f"exit table from {data['table']:,}; confidence {result['settings']['confidence']:g}; {where['cpu']}, "
        f"{where['threads']} threads, torch {where['torch']}, {where['date']}). In bold what `calibrate` "
        "chose; speed-up over full depth in the same run.",
        "",
        "| promised agreement | policy | agreement | accuracy | mean layers | "
        + " | ".join(f"{int(budget):,} tokens a batch" for budget in budgets)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(budgets),
    ]
    for row in result["policies"]:
        name = f"**{row['policy']}**" if row["chosen"] else row["policy"]
        speeds = " | ".join(f"{row['speed'][budget]['speed_up']:.2f}x" for budget in budgets)
        lines.append(
            f"| {row['promise']:g} | {shorten_policy(name)} | {row['agreement']:.3f} | {row['accuracy']:.3f} | "
            f"{row['mean_layers']:.2f} | {speeds} |"
        )
    return "\n".join(lines)


def shorten_policy(form: str) -> str:
    """Numbers of a short form with three digits."""
    return re.sub(r"\d+\.\d{4,}(e-?\d+)?", lambda match: f"{float(match[0]):.3g}", form)


def depth_section(result: dict[str, Any]) -> str:
    where, shape = result["environment"], result["shape"]
    kind = "random weights" if shape["random"] else "trained"
    lines = [
        f"**Depth in turns with full depth: {result['settings']['texts']}** ({shape['layers']} layers of width "
        f"{shape['hidden_size']}, {kind}, {result['settings']['samples']} texts, {result['settings']['rounds']} turns; "
        f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date']})",
        "",
        "| policy | mean layers | samples/s | full depth, in turns | speed-up | share of L / mean layers |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['policy']} | {row['mean_layers']:.2f} | {row['samples_per_second']:.1f} | "
        f"{row['full_samples_per_second']:.1f} | {row['speed_up']:.2f}x | {row['share_of_bound']:.1%} |"
        for row in result["policies"]
    ]
    return "\n".join(lines)


def section(result: dict[str, Any]) -> str:
    data, where = result["data"], result["environment"]
    arguments = result["training"]["arguments"]
    exits = result["exit_accuracies"]
    kept = ", checkpoint best on dev" if arguments.get("keep_best") else ""
    minutes = "" if result["training"]["resumed_from"] else f" in {result['training']['seconds'] / 60:.0f} min"
    lines = [
        f"**{data['name']}** ({data['samples']:,} test samples; trained {arguments['epochs']:g} epochs by recipe "
        f"`{arguments['recipe']}`{minutes}{kept}; {where['cpu']}, {where['threads']} threads, torch {where['torch']}, "
        f"{where['date']})",
        "",
        "| exit after layer | " + " | ".join(map(str, result["exit_layers"])) + " |",
        "|---|" + "---|" * len(result["exit_layers"]),
    ]
    lines += [
        f"| accuracy, {split} | " + " | ".join(f"{value:.3f}" for value in values) + " |" for split, values in exits.items()
    ]
    lines += [
        "",
        "| policy | accuracy | same answer as all layers | mean layers | samples/s | speed-up | share of L / mean layers |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [policy_row(row) for row in result["policies"]]
    lines += [
        "",
        "| table threshold | decision | exact | over | under | rank corr. | mean layers | accuracy | constant depth | "
        "random | threshold exits | oracle |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [predictor_row(row) for row in result["predictors"]]
    return "\n".join(lines)


def policy_row(row: dict[str, Any]) -> str:
    accuracy, agreement = (f"{row[key]:.3f}" if key in row else "-" for key in ("accuracy", "agreement"))
    return (
        f"| {row['policy']} | {accuracy} | {agreement} | {row['mean_layers']:.2f} | {row['samples_per_second']:.0f} | "
        f"{row['speed_up']:.2f}x | {row['share_of_bound']:.0%} |"
    )


def predictor_row(row: dict[str, Any]) -> str:
    return (
        f"| {row['threshold']:g} | {row['decision']} | {row['exact_match']:.2f} | {row['over_prediction']:.2f} | "
        f"{row['under_prediction']:.2f} | {row['rank_correlation']:.2f} | {row['mean_layers']:.2f} | {row['accuracy']:.3f} | "
        f"{row['constant_accuracy']:.3f} | {row['random_accuracy']:.3f} | {row['threshold_accuracy']:.3f} at "
        f"{row['threshold_mean_layers']:.2f} | {row['oracle_accuracy']:.3f} at {row['oracle_mean_layers']:.2f} |"
    )


def with_tables(readme: str, content: str) -> str:
    """README with what stands between the markers replaced."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must hold the lines {BEGIN!r} and {END!r}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    readme, ops = ROOT / "README.md", ROOT / "bench" / "OPS.md"
    wanted = {readme: with_tables(readme.read_text(encoding="utf-8"), tables()), ops: report_ops.page()}
    for path, text in wanted.items():
        if arguments.check and path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path.name} differs from bench/results: run python -m bench.report")
        path.write_text(text, encoding="utf-8")
    if not arguments.check:
        for path in sorted(RESULTS.rglob("ops*.json")):
            report_ops.plot(report_ops.read(path), path.with_suffix(".png"))


if __name__ == "__main__":
    main()

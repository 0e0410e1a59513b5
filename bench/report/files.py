"""The page on runs over files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.report.tables import lines, measured_on
from bench.rows import read, records

INTRODUCTION = """# Runs over files

Made by `python -m bench.report` from `bench/results/files`, which `python -m bench.files` writes. `geep predict` answers
folders of parquet files (ids, texts, lists of strings), each run in a process of its own.
[The command line](../command_line.md#answer-files) says what is kept for a kill.
"""


def page(folder: Path = RESULTS / "files") -> str:
    found = records(read(folder))
    of = {(one["case"], one["system"]): one for one in found}
    whole = of["kills", "uninterrupted"]
    told = whole["declaration"]
    introduction = f"{told['model']}, policy `{told['policy']}`, texts of {told['texts']}. {measured_on(whole['environment'])}."
    return "\n".join([INTRODUCTION, introduction, "", *kills(whole, of["kills", "killed"]), *memory(of), *small(of)])


def kills(whole: dict[str, Any], killed: dict[str, Any]) -> list[str]:
    """What a run was that was killed, beside one that was not."""
    return [
        "## Killed at random moments",
        "",
        f"A folder of {whole['shards']} shards with {whole['rows']:,} rows was answered without a break, and again by a run "
        f"that was killed (SIGKILL) {killed['kills']} times, {killed['kills_inside_a_shard']} of them inside a shard, and "
        f"started again each time. No row is lost or doubled, and {killed['shards_of_the_same_bytes']} of {whole['shards']} "
        "outputs are the same bytes.",
        "",
        lines(
            ["run", "processes", "seconds"],
            [
                ("uninterrupted", 1, f"{whole['seconds']:.0f}"),
                ("killed", killed["kills"] + 1, f"{killed['seconds']:.0f}"),
            ],
        ),
        "",
        f"Each start takes {whole['loading_seconds']:.1f} s until the first row: Python, the model, the list of shards.",
        "",
    ]


def memory(of: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Peaks of memory by rows."""
    rows = [one for (case, system), one in of.items() if case == "memory" and system]
    return [
        "## Memory",
        "",
        lines(
            ["rows", "files", "peak, MB", "seconds"],
            [(f"{one['rows']:,}", one["shards"], f"{one['peak_mb']:.0f}", f"{one['seconds']:.0f}") for one in rows],
        ),
        "",
        "The peak is of the whole process, torch and the model included.",
        "",
    ]


def small(of: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """What small shards cost."""
    rows = [one for (case, system), one in of.items() if case == "small shards" and system]
    return [
        "## Small shards",
        "",
        "Shards of less than 1 MiB together share windows, so that their batches stay dense. Seconds without the start, median "
        "of interleaved rounds, with the range.",
        "",
        lines(
            ["rows", "files", "seconds"],
            [
                (
                    f"{one['rows']:,}",
                    one["shards"],
                    f"{one['seconds']:.1f} ({one['seconds.low']:.1f}-{one['seconds.high']:.1f})",
                )
                for one in rows
            ],
        ),
        "",
    ]

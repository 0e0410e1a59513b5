"""The table of docs/serving.md that says what one process costs, from the results of other pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.report.tables import lines, short
from bench.rows import read, records

Record = dict[str, Any]
EXITS, FULL = "ours, exits", "ours, all layers"
MANY_CLIENTS = 64
NOT_YET = "not yet measured"


def costs(folder: Path = RESULTS) -> str:
    """What scales with what."""
    serving, ray, files = (
        records(read(folder / name)) if (folder / name).is_dir() else [] for name in ("serving", "ray", "files")
    )
    rows = [
        ("a text over HTTP, by exits", _core_hours(serving, EXITS), "texts"),
        ("a text over HTTP, all layers", _core_hours(serving, FULL), "texts"),
        ("memory of a server", _memory(serving), "processes"),
        ("a start, until the first row of files", _start(files), "processes, also those of actors"),
        ("two nodes of one core beside one process, over files", _nodes(ray), "-"),
    ]
    return lines(["", "measured", "scales with"], rows)


def _core_hours(rows: list[Record], system: str) -> str:
    """What a million texts take while as many clients wait as fill batches."""
    waiting = [one for one in rows if one["case"] == "load" and one.get("load") == "clients that wait"]
    for one in waiting:
        if (one["system"], one["clients"]) == (system, MANY_CLIENTS):
            rate = one["answers_per_second"]
            return f"{rate:.0f} a second and core: {1e6 / rate / 3600:.1f} core-hours a million"
    return NOT_YET


def _memory(rows: list[Record]) -> str:
    for one in rows:
        if one["case"] == "memory" and one["system"] == EXITS:
            return f"{max(one['megabytes']):.0f} MB"
    return NOT_YET


def _start(rows: list[Record]) -> str:
    for one in rows:
        if one["case"] == "kills" and one["system"] == "uninterrupted":
            return f"{one['loading_seconds']:.0f} s"
    return NOT_YET


def _nodes(rows: list[Record]) -> str:
    of = {one["system"]: one for one in rows if one["case"] == "nodes"}
    if not of:
        return NOT_YET
    one, two = of["one process"], of["two nodes"]
    return f"{short(one['seconds'])} s and {short(two['seconds'])} s, of which {short(two['loading_seconds'])} s are the start"

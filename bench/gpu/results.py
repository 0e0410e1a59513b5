"""One file of results, a line each, on the disk as soon as it is there; what is in it is not measured again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench.rows import Found, Row, rows_of

FILE = "results.jsonl"


class Results:
    """The lines of a folder's results file, and new ones.

    A line holds `part`, `key`, the machine, and a measurement's values, or its `error`. Of two of one part and key the later
    counts, and of another card none does. A last line that a killed run left unfinished is cut off.

    Args:
        folder: made where it does not exist.
        machine: written into every new line.
    """

    def __init__(self, folder: Path, machine: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._machine = machine
        self.rows = read(self.path) if self.path.is_file() else []
        if self.path.is_file():
            whole = self.path.read_bytes()
            os.truncate(self.path, whole.rfind(b"\n") + 1)

    def done(self, part: str, key: str) -> bool:
        """Whether this was measured, without an error."""
        return "error" not in self.latest.get((part, key), {"error": "missing"})

    @property
    def latest(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(part, key) -> its last line, of this card."""
        return {(row["part"], row["key"]): row for row in self.rows if card(row["machine"]) == card(self._machine)}

    def add(self, part: str, key: str, values: dict[str, Any]) -> None:
        """Write a line, and wait until it is on the disk."""
        row = {"part": part, "key": key, **values, "machine": self._machine}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


def card(machine: dict[str, Any]) -> tuple[Any, ...]:
    """What figures must share to be compared."""
    return machine["gpu"], machine.get("dry_run", False)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


NAMES = ("system", "step", "provider")  # of a record, whichever it has
SETTINGS = ("config", "op", "roof", "block", "warps")  # of a record: what tells it from others


def schema_rows(path: Path) -> list[Row]:
    """The last line of each part and key as rows of the one schema: case "PART, KEY", a record's name its system."""
    latest = {(row["part"], row["key"], card(row["machine"])): row for row in read(path)}
    return [row for line in latest.values() for row in _rows_of_line(line)]


def _rows_of_line(line: dict[str, Any]) -> list[Row]:
    facts, measured = {}, []
    for name, value in line.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            for one in value:
                system = next((one[each] for each in NAMES if each in one), name)
                config = {each: one[each] for each in SETTINGS if each in one}
                config |= config.pop("config", {})
                measured.append(Found(system, {key: one[key] for key in one if key not in (*NAMES, *SETTINGS)}, config))
        elif name not in ("part", "key", "machine"):
            facts[name] = value
    case = f"{line['part']}, {line['key']}"
    return rows_of("gpu", case, [Found("", facts, {}), *measured], {}, line["machine"])

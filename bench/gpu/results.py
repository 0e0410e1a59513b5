"""One file of results, a line each, on the disk as soon as it is there; what is in it is not measured again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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

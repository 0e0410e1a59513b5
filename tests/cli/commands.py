"""Runs `geep` as a user runs it, and writes what it reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from geep_triton.cli import app

ROOT = Path(__file__).parent.parent.parent
ROWS = [
    ("the film was good", "pos"),
    ("a great book", "pos"),
    ("we liked the soup", "pos"),
    ("not bad", "pos"),
    ("the film was awful", "neg"),
    ("a dull book", "neg"),
    ("we hated the soup", "neg"),
    ("not good", "neg"),
]


def environment() -> dict[str, str]:
    """Variables for a process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def command(*arguments: object) -> list[str]:
    """A command line in a process of its own."""
    return [sys.executable, "-m", "geep_triton", *map(str, arguments)]


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, cwd=cwd, env=environment())


def understood(words: Sequence[str]) -> dict[str, Any]:
    """What `geep` takes words for, by parameter; an error, where there is no such command or option. Nothing is run."""
    group, words = typer.main.get_command(app.app), list(words)
    while words and words[0].startswith("--"):
        words.pop(0)
    if not words:
        return {}
    name, command, arguments = group.resolve_command(typer.Context(group), words)
    return command.make_context(name, arguments).params


def write(path: Path, rows: list) -> Path:
    """A JSON lines file of rows, and of lines as they are."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path

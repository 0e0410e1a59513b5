"""README's figures are the result files'."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from bench.environment import ROOT
from bench.report import pages, with_tables
from bench.report_policies import spread


def test_pages_show_the_result_files():
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m bench.report"


def test_spread():
    assert spread([0.5, 0.5]) == "0.500"
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 (1.0-3.0)"


def test_markers_are_required():
    with pytest.raises(ValueError, match="must hold the lines"):
        with_tables("# nothing", "tables")


def test_constraints_satisfy_the_project():
    pinned = dict(
        re.match(r"([\w-]+)==([\d.]+)$", line).groups()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    for requirement in importlib.metadata.requires("geep-triton"):
        name, minimum = re.match(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", requirement).groups()
        if minimum is None:
            continue
        numbers = [tuple(map(int, version.split("."))) for version in (pinned[name], minimum)]
        assert numbers[0] >= numbers[1], requirement


def test_ci_runs_the_readmes_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(line for line in readme.splitlines() if "-m pytest" in line)
    assert first.startswith("python3 -m venv")
    assert first in readme.split("```bash")[2]
    assert Path(ROOT / ".ci" / "run").stat().st_mode & 0o100

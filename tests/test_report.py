"""README's figures are the result files'."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from bench import report_ops
from bench.environment import ROOT
from bench.report import tables, with_tables


def test_readme_shows_the_result_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    content = tables()
    assert content
    assert readme == with_tables(readme, content)


def test_the_ops_page_shows_the_result_files():
    assert (ROOT / "bench" / "OPS.md").read_text(encoding="utf-8") == report_ops.page()


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

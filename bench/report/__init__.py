"""Turns the results into README's tables and the pages in bench/: what each must say."""

from __future__ import annotations

from pathlib import Path

from bench.environment import ROOT
from bench.report import experiments, faults, gpu, ops, pipeline, policies, skipping

BEGIN, END = "<!-- results: made by `python -m bench.report` -->", "<!-- results end -->"
MOST_LINES = 200  # of a page; the files have the rest


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
    tables = f"{pipeline.readme_table()}\n\n{policies.summary()}"
    return {
        readme: with_tables(readme.read_text(encoding="utf-8"), tables),
        folder / "POLICIES.md": policies.page(),
        folder / "OPS.md": ops.page(),
        folder / "GPU.md": gpu.page(),
        folder / "PIPELINE.md": pipeline.page(),
        folder / "SKIPPING.md": skipping.page(),
        folder / "EXPERIMENTS.md": experiments.page(),
        folder / "FAULTS.md": faults.page(),
    }

"""What README's table and the pages in docs/results must say, as the result files have it."""

from __future__ import annotations

from pathlib import Path

from bench.environment import ROOT
from bench.report import (
    answers,
    claims,
    families,
    faults,
    files,
    gpu,
    machines,
    ops,
    pipeline,
    plans,
    policies,
    ray,
    serving,
)

BEGIN, END = "<!-- results: made by `python -m bench.report` -->", "<!-- results end -->"
PAGES = ROOT / "docs" / "results"
MOST_LINES = 200  # of a page; the files have the rest


def with_tables(page: Path, content: str) -> str:
    """A page with what stands between the markers replaced."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} must hold the lines {BEGIN!r} and {END!r}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def pages() -> dict[Path, str]:
    """Each page, and what it must say."""
    readme, of_serving = ROOT / "README.md", ROOT / "docs" / "serving.md"
    return {
        readme: with_tables(readme, "\n\n".join(filter(None, (pipeline.readme_table(), families.readme_lines())))),
        of_serving: with_tables(of_serving, machines.costs()),
        PAGES / "policies.md": policies.page(),
        PAGES / "plans.md": plans.page(),
        PAGES / "families.md": families.page(),
        PAGES / "ops.md": ops.page(),
        PAGES / "gpu.md": gpu.page(),
        PAGES / "pipeline.md": pipeline.page(),
        PAGES / "pipeline_elsewhere.md": pipeline.page_elsewhere(),
        PAGES / "claims.md": claims.page(),
        PAGES / "answers.md": answers.page(),
        PAGES / "faults.md": faults.page(),
        PAGES / "files.md": files.page(),
        PAGES / "ray.md": ray.page(),
        PAGES / "serving.md": serving.page(),
    }

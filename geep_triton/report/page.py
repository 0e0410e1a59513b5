"""Renders a report as one self-contained HTML page."""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from geep_triton.calibrated import brief, percent
from geep_triton.engine.engine import Engine
from geep_triton.report import pictures
from geep_triton.report.data import SHOWN, ReportData, report_data
from geep_triton.report.findings import below_promise, deep_groups, unused_exits
from geep_triton.resumable import check_regular
from geep_triton.tokens.samples import Inputs

TEMPLATES = Path(__file__).parent / "templates"
LABELS_NAMED = 12  # of a model, in the head of the page; the number of the others is told
PALEST = 0.25  # layers that a fully shaded token adds at least, so that what adds nothing looks like nothing
NAMED_TOKENS = 3  # that add most, written out under a text


def write_report(engine: Engine, path: str | os.PathLike, texts: Inputs | None = None, show: int = SHOWN) -> ReportData:
    """Write a page that shows what a model promises, what it gains, and where exits do not pay.

    The page needs nothing but a browser: no network, no scripts. It has no text of a user's unless `texts` are given.

    Args:
        engine: its model's calibration is shown. Its policy counts for `texts` only.
        path: of the HTML file. A file that is there is replaced when the new one is complete.
        texts: a list of what `predict` takes, or a `datasets.Dataset`: every exit runs on them, and the page shows how deep
            they go. None: only what the calibration knows.
        show: how many of `texts` are explained: the deepest, and some of the shallowest. Their tokens are on the page then.

    Returns:
        What the page shows.

    Raises:
        ValueError: `path` is a folder, a link, a device or a pipe, or `show` is below 0; and what `explain` raises.
        TypeError: an argument has another type.
        OSError: writing fails.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path must be a file for the page, got the folder {path}")
    check_regular(path)
    data = report_data(engine, texts, show)
    _write(path, render(data))
    return data


def render(data: ReportData) -> str:
    """The page as HTML."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"percent": percent, "brief": brief}
    templates.globals |= {
        "pictures": pictures, "below_promise": below_promise, "deep_groups": deep_groups, "unused_exits": unused_exits,
        "zip": zip,
    }  # fmt: skip
    added = [
        abs(value)
        for shown in (() if data.given is None else data.given.shown)
        if shown.explanation.table is not None
        for value in shown.explanation.table.added
    ]
    return templates.get_template("page.html").render(
        data=data,
        found=data.calibrated,
        most=max([PALEST, *added]),
        labels_named=LABELS_NAMED,
        named_tokens=NAMED_TOKENS,
    )


def _write(path: Path, page: str) -> None:
    """Write a file beside its place, and move it there when it is complete."""
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        partial.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))  # a name may hold half a surrogate pair
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

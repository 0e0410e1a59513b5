"""What the commands over files share: their settings, and how they tell what was done."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from geep_triton.files.formats import parse_format
from geep_triton.files.run import Report
from geep_triton.files.settings import Settings


def settings_of(
    columns: str | None, prefix: str, bad_rows: str, out_format: str | None, overwrite: bool, window: int | None
) -> Settings:
    """The settings that options say. ValueError if a value is not known."""
    names = None if columns is None else tuple(name for name in columns.split(",") if name)
    form = None if out_format is None else parse_format(out_format)
    return Settings(names, prefix, bad_rows, form, overwrite, window)


def values_of(report: Report) -> dict[str, Any]:
    """The report in JSON values."""
    exits = {int(name.removeprefix("exit ")): count for name, count in report.counts.items() if name.startswith("exit ")}
    return {name: value for name, value in asdict(report).items() if name != "counts"} | {
        "exits": dict(sorted(exits.items())),
        "truncated": report.counts["truncated"],
        "mean_exit_layer": sum(layer * count for layer, count in exits.items()) / max(1, sum(exits.values())),
    }


def summary_of(report: Report) -> str:
    """The report in a few lines."""
    values = values_of(report)
    lines = [
        f"{report.answered} of {report.rows} rows answered, mean exit layer {values['mean_exit_layer']:.2f}: {report.output}"
    ]
    if report.bad:
        lines.append(f"{report.bad} rows could not be answered")
    if values["truncated"]:
        lines.append(f"{values['truncated']} texts were cut")
    if report.gone:
        lines.append(f"answered before, and no longer among the inputs: {', '.join(report.gone)}")
    return "\n".join(lines)

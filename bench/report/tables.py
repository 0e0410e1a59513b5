"""What all pages have in common: Markdown tables, figures with their ranges, and the machine that they are of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """A table; what is missing in it is a dash."""
    return lines(table.columns, table.itertuples(index=False))


def lines(columns: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table of anything that can be shown; None and NaN are dashes."""
    head, *body = (["-" if one is None or one != one else str(one) for one in row] for row in (columns, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, *body)).replace("\n", f"\n|{'---|' * len(head)}\n", 1)


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean, and in brackets the range where there is one."""
    values = list(values)
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low}-{high})"


def signed(estimate: float, low: float, high: float) -> str:
    """Points of a hundred, with their interval."""
    return f"{100 * estimate:+.1f} ({100 * low:+.1f} .. {100 * high:+.1f})"


def short(value: float) -> str:
    """Two digits at least."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def machine(environment: Mapping[str, Any]) -> str:
    """What figures must share to be compared."""
    threads = environment["threads"]
    name = environment["gpu"] or environment["cpu"]
    return f"{name}, {threads} thread{'s' * (threads != 1)}, torch {environment['torch']}"


def measured_on(environment: Mapping[str, Any]) -> str:
    return f"{machine(environment)}, {environment['date']}, commit {environment['commit']}"

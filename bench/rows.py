"""The one schema of all results: a row says what one metric of one system was, in which case, how it was set, and where.

A file of results has a line for each case, with what its rows share (declaration, environment), and below it a line for each
system and configuration, with its metrics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Range(NamedTuple):
    """A value, and the lowest and the highest of the rounds, seeds or resamples that it stands for."""

    value: float
    low: float
    high: float


class Found(NamedTuple):
    """What was measured of one system.

    Attributes:
        system: its name; "" for what the whole case has in common.
        metrics: name -> a number, text, flag, `Range` or None, a list of such (rounds, exits), or a mapping of further metrics,
            whose names are joined by dots.
        config: the sizes and settings that tell these metrics from others of the system in this case.
    """

    system: str
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]


def found(system: str, metrics: Mapping[str, Any], **config: Any) -> Found:
    """A `Found` whose configuration is given by keywords."""
    return Found(system, metrics, config)


def not_there(missing: Mapping[str, str]) -> list[Found]:
    """A row for each system that could not be measured: its name -> why."""
    return [found(name, {"missing": reason}) for name, reason in missing.items()]


@dataclass(frozen=True)
class Row:
    """One metric of one system.

    Attributes:
        suite, case: the benchmark and its measurement.
        system, metric, value: see `Found`.
        low, high: the ends of a `Range`.
        config: the sizes and settings of the system, and under "declaration" all that the results of the case follow from.
        environment: machine, versions, date and commit.
    """

    suite: str
    case: str
    system: str
    metric: str
    value: Any
    low: float | None = None
    high: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def rows_of(
    suite: str, case: str, measured: Iterable[Found], declaration: Mapping[str, Any], environment: Mapping[str, Any]
) -> list[Row]:
    """A row for each metric of what was measured."""
    declared = {"declaration": declaration} if declaration else {}
    return [
        Row(suite, case, one.system, name, *value, config={**declared, **one.config}, environment=environment)
        for one in measured
        for name, value in _leaves(one.metrics)
    ]


def _leaves(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (value if isinstance(value, Range) else (value,))


def save(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to a file, where they replace its rows of the same suite and case.

    The new file is on the disk before it replaces the old one, so a kill leaves either the old or the new.
    """
    rows = list(rows)
    new = {(row.suite, row.case) for row in rows}
    kept = [row for row in read(path) if (row.suite, row.case) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines([*kept, *rows]))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _lines(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for (suite, case, declaration, environment), members in groupby(rows, _shared):
        systems: list[dict[str, Any]] = []
        for row in members:
            config = {name: value for name, value in row.config.items() if name != "declaration"}
            last = systems[-1] if systems else {}
            if last.get("system") != row.system or last["config"] != config or row.metric in last["metrics"]:
                systems.append({"system": row.system, "config": config, "metrics": {}})
            alone = row.low is None and row.high is None
            systems[-1]["metrics"][row.metric] = row.value if alone else Range(row.value, row.low, row.high)._asdict()
        head = {"suite": suite, "case": case, "systems": len(systems)}
        yield {**head, "declaration": declaration, "environment": environment}
        yield from systems


def _shared(row: Row) -> tuple[Any, ...]:
    """What a row has in common with the others of its case."""
    return row.suite, row.case, row.config.get("declaration", {}), row.environment


def read(path: Path) -> list[Row]:
    """The rows of a file, or of all files of a folder, ordered by name.

    A file that does not exist has no rows. A case at the end of a file that was cut off is left out.

    Raises:
        ValueError: a file is not one of results.
    """
    if path.is_dir():
        return [row for file in sorted(path.rglob("*.jsonl")) for row in read(file)]
    if not path.is_file():
        return []
    try:
        return list(_rows(path.read_text(encoding="utf-8").split("\n")[:-1]))  # what has no end was cut off
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of results: {type(error).__name__}: {error}") from error


def _rows(written: Iterable[str]) -> Iterator[Row]:
    lines = map(json.loads, written)
    for head in lines:
        systems = list(islice(lines, head["systems"]))
        if len(systems) == head["systems"]:
            measured = [Found(**{**one, "metrics": _ranges(one["metrics"])}) for one in systems]
            yield from rows_of(head["suite"], head["case"], measured, head["declaration"], head["environment"])


def _ranges(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Range(**value) if isinstance(value, Mapping) else value for name, value in metrics.items()}


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Settings and metrics of each case, system and configuration. The ends of a range are "NAME.low" and "NAME.high"."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = json.dumps([row.suite, row.case, row.system, row.config, row.environment], sort_keys=True)
        one = merged.setdefault(key, {"case": row.case, "system": row.system, "environment": row.environment, **row.config})
        one[row.metric] = row.value
        one |= {f"{row.metric}.{end}": value for end in ("low", "high") if (value := getattr(row, end)) is not None}
    return list(merged.values())


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """A table with a line for each of `records`."""
    import pandas as pd

    return pd.DataFrame(records(rows))

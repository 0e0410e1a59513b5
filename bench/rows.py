"""One schema for every result: a row says what one metric of one system was, in which case, under what configuration, where.

Results lie in JSON lines, a line a row. What many rows share (an environment, a declaration) stands once in its file, in a line
`{"shared": "#digest", "is": {...}}` above the first row that names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
        config: sizes and settings that tell these metrics from the same system's others in this case.
    """

    system: str
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]


def found(system: str, metrics: Mapping[str, Any], **config: Any) -> Found:
    """A `Found` whose configuration is given by name."""
    return Found(system, metrics, config)


@dataclass(frozen=True)
class Row:
    """One metric of one system.

    Attributes:
        suite, case: of which benchmark, and which of its measurements.
        system, metric, value: see `Found`.
        low, high: of a `Range`.
        config: the system's sizes and settings; under "declaration" all that the case's results follow from.
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
    """Put rows into a file in the place of its rows of the same suite and case: all or nothing, a kill leaves the old file."""
    rows = list(rows)
    new = {(row.suite, row.case) for row in rows}
    kept = [row for row in read(path) if (row.suite, row.case) not in new] if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(_lines([*kept, *rows])), encoding="utf-8")
    part.replace(path)


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    known: set[str] = set()
    for row in rows:
        above: dict[str, Any] = {}

        def share(value: Any, above: dict[str, Any] = above) -> Any:
            if not isinstance(value, Mapping) or not value:
                return value
            name = "#" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
            above[name] = value
            return name

        config = {name: share(value) for name, value in row.config.items()}
        line = {**vars(row), "config": config, "environment": share(row.environment)}
        for name, value in above.items():
            if name not in known:
                known.add(name)
                yield json.dumps({"shared": name, "is": value}, ensure_ascii=False) + "\n"
        yield json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=False) + "\n"


def read(path: Path) -> list[Row]:
    """The rows of a file, or of all files of a folder, ordered by name."""
    if path.is_dir():
        return [row for file in sorted(path.rglob("*.jsonl")) for row in read(file)]
    shared: dict[str, Any] = {}
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        if "shared" in value:
            shared[value["shared"]] = value["is"]
            continue
        config = {name: shared.get(one, one) if isinstance(one, str) else one for name, one in value["config"].items()}
        where = shared[value["environment"]] if value["environment"] else {}
        rows.append(Row(**{"value": None} | value | {"config": config, "environment": where}))
    return rows


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A mapping for each case, system and configuration: settings and metrics, a range's ends as "NAME.low" and "NAME.high"."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = json.dumps([row.suite, row.case, row.system, row.config, row.environment], sort_keys=True)
        one = merged.setdefault(key, {"case": row.case, "system": row.system, "environment": row.environment, **row.config})
        one[row.metric] = row.value
        one |= {f"{row.metric}.{end}": value for end in ("low", "high") if (value := getattr(row, end)) is not None}
    return list(merged.values())


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """A line for each of `records`."""
    import pandas as pd

    return pd.DataFrame(records(rows))

"""The one schema: what is written is read, cells take their own place, and no value of the first results was lost."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import pytest

from bench.cells import Cell, OutOfTime, declared, run_missing
from bench.environment import RESULTS
from bench.rows import Range, found, read, records, rows_of, save

# Values in the nested files that these results were converted from, a list's one by one.
CONVERTED = {
    "depth": 590, "experiments": 1566, "faults": 101, "kernels": 1430, "ops": 352, "pipeline": 17336, "policies": 810,
    "predictors": 758, "promises": 43127, "skipping": 25776,
}  # fmt: skip
HERE, THERE = {"cpu": "a", "threads": 1}, {"cpu": "b", "threads": 2}


def size(value: Any) -> int:
    """How many values it holds."""
    if isinstance(value, (list, dict)):
        return sum(map(size, value.values() if isinstance(value, dict) else value))
    return 1


def test_no_value_of_the_results_is_lost():
    counts = Counter()
    for row in (row for path in RESULTS.rglob("*.jsonl") if "gpu" not in path.parts for row in read(path)):
        counts[row.suite] += size(row.value)
    assert {suite: counts[suite] for suite in CONVERTED if counts[suite] < CONVERTED[suite]} == {}


def test_what_is_written_is_read(tmp_path):
    measured = [
        found("ours", {"speed": Range(2.0, 1.0, 3.0), "stages": {"layers": 0.5, "heads": [1, 2]}}, load=0.3, kinds={"a": 1}),
        found("", {"seed": 7, "missing": None}),
    ]
    rows = rows_of("suite", "case", measured, {"rounds": 3}, HERE)
    assert [(row.system, row.metric, row.value, row.low, row.high) for row in rows] == [
        ("ours", "speed", 2.0, 1.0, 3.0),
        ("ours", "stages.layers", 0.5, None, None),
        ("ours", "stages.heads", [1, 2], None, None),
        ("", "seed", 7, None, None),
        ("", "missing", None, None, None),
    ]
    assert rows[0].config == {"declaration": {"rounds": 3}, "load": 0.3, "kinds": {"a": 1}}
    save(tmp_path / "a.jsonl", rows)
    save(tmp_path / "a.jsonl", rows_of("suite", "other", measured, {"rounds": 3}, THERE))
    again = read(tmp_path / "a.jsonl")
    assert again[:5] == rows
    assert [row.environment for row in again] == [HERE] * 5 + [THERE] * 5
    assert (tmp_path / "a.jsonl").read_text().count('"shared"') == 4  # what rows share stands once
    ours, facts = records(rows)
    assert (ours["load"], ours["speed"], ours["speed.high"], ours["stages.layers"]) == (0.3, 2.0, 3.0, 0.5)
    assert facts["seed"] == 7


def test_a_case_takes_the_place_of_its_rows_and_no_others(tmp_path):
    path = tmp_path / "a.jsonl"
    for case, value in (("a", 1), ("b", 2), ("a", 3)):
        save(path, rows_of("suite", case, [found("ours", {"value": value})], {}, HERE))
    assert {row.case: row.value for row in read(path)} == {"a": 3, "b": 2}
    assert len(read(path)) == 2
    assert read(tmp_path) == read(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["one.jsonl", "folder"])
def test_cells_run_once_and_one_that_fails_leaves_the_others_be(tmp_path, capsys, name):
    ran, output = [], tmp_path / name

    def cell(case: str, rounds: int = 1) -> Cell:
        def run(deadline: float) -> list:
            ran.append(case)
            if case == "broken":
                raise ValueError("wrong answers")
            if case == "late":
                raise OutOfTime
            return [found("ours", {"value": 1})]

        return Cell(case, {"rounds": rounds}, run)

    wanted = [cell("a"), cell("broken"), cell("b")]
    with pytest.raises(SystemExit, match="1 cells failed: broken"):
        run_missing("suite", wanted, output)
    assert "2/3 broken failed: ValueError: wrong answers" in capsys.readouterr().out
    assert {row.case for row in read(output)} == {"a", "b"}
    run_missing("suite", [cell("a"), cell("a", 2), cell("late"), cell("c")], output)
    assert ran == ["a", "broken", "b", "a", "late"]  # of another declaration it is missing; at the deadline the run ends
    assert "2 cells left" in capsys.readouterr().out
    run_missing("suite", [cell("d")], output, minutes=0)
    run_missing("suite", [cell("d")], output, show_only=True)
    assert ran[-1] == "late"
    assert records(read(output))[0]["declaration"] == {"rounds": 2} or name == "one.jsonl"


def test_a_declaration_is_all_that_was_said_but_for_where_to_write():
    arguments = argparse.Namespace(model="/some/where/runs/sst2", rounds=3, output="/tmp/a")
    assert declared(arguments) == {"model": "runs/sst2", "rounds": 3}

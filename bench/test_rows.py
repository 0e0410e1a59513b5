"""The row schema: written rows can be read, each cell replaces its own rows, and no value of the first results is lost."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import pytest

from bench.cells import Cell, OutOfTime, declared, run_missing
from bench.environment import RESULTS
from bench.rows import Range, Row, found, read, records, rows_of, save

# Values in the nested files that these results were converted from, a list's one by one. Of faults there is a newer campaign.
CONVERTED = {
    "depth": 590, "gpu": 4323, "kernels": 1430, "ops": 352, "pipeline": 17336,
    "policies": 810, "predictors": 758, "promises": 43127,
}  # fmt: skip
HERE, THERE = {"cpu": "a", "threads": 1}, {"cpu": "b", "threads": 2}


def size(value: Any) -> int:
    """How many values it holds."""
    if isinstance(value, (list, dict)):
        return sum(map(size, value.values() if isinstance(value, dict) else value))
    return 1


def test_no_value_of_the_results_is_lost():
    counts = Counter()
    for row in read(RESULTS):
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
    text = (tmp_path / "a.jsonl").read_text()
    assert len(text.splitlines()) == 6  # a line for each case and for each of its systems
    assert text.count('"cpu"') == 2  # what rows share stands once
    ours, facts = records(rows)
    assert (ours["load"], ours["speed"], ours["speed.high"], ours["stages.layers"]) == (0.3, 2.0, 3.0, 0.5)
    assert facts["seed"] == 7


def test_nothing_is_lost_where_rows_repeat_a_metric_or_hold_odd_values(tmp_path):
    config = {"declaration": {"rounds": 3}, "load": 0.3}
    rows = [
        Row("suite", "case", "ours", "a", float("inf"), config=config),
        Row("suite", "case", "ours", "a", "a line\u2028and\x85another\n", config=config),
        Row("suite", "case", "theirs", "a", [1, {"b": None}], config=config),
        Row("suite", "case", "ours", "b", None, low=1.0, config=config),
    ]
    save(tmp_path / "a.jsonl", rows)
    assert read(tmp_path / "a.jsonl") == rows


def test_a_case_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read(path) == []
    measured = [found("ours", {"value": 1}), found("theirs", {"value": Range(2.0, 1.0, 3.0)})]
    for case in ("a", "b"):
        save(path, rows_of("suite", case, measured, {}, HERE))
    whole, expected = path.read_bytes(), read(path)
    half = len(whole) // 2
    for end in range(half, len(whole)):
        path.write_bytes(whole[:end])
        assert read(path) == expected[:2]
    save(path, expected[2:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"not json\n", b"{}\n", b"[1]\n", b"\xff\xfe\n"])
def test_what_is_no_file_of_results_is_named(tmp_path, content):
    (tmp_path / "odd.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.jsonl is not a file of results"):
        read(tmp_path)


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


def test_a_cell_with_an_error_is_run_again(tmp_path):
    results = [[found("", {"error": "no memory"})], [found("", {"value": 1})], [found("", {"value": 2})]]
    wanted = [Cell("a", {}, lambda deadline: results.pop(0))]
    run_missing("suite", wanted, tmp_path)
    assert read(tmp_path)[0].value == "no memory"
    for _ in range(2):
        run_missing("suite", wanted, tmp_path)
        assert [(row.metric, row.value) for row in read(tmp_path)][:-1] == [("value", 1)]
    run_missing("suite", wanted, tmp_path, again=True)
    assert read(tmp_path)[0].value == 2


def test_a_declaration_is_all_that_was_said_but_for_where_to_write():
    arguments = argparse.Namespace(model="/some/where/runs/sst2", rounds=3, output="/tmp/a")
    assert declared(arguments) == {"model": "runs/sst2", "rounds": 3}

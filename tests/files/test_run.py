"""Runs over files: what they write, what they refuse, and how they go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geep_triton.checks import OutputTaken
from geep_triton.files import group_work
from geep_triton.files import run as run_module
from geep_triton.files.answerer import BadRow
from geep_triton.files.crew import Here
from geep_triton.files.formats import parse_format
from geep_triton.files.json_lines import BadLine
from geep_triton.files.rows import read_rows
from geep_triton.files.run import answer_files
from geep_triton.files.run_folder import Record
from geep_triton.files.settings import Settings
from geep_triton.files.shards import list_shards
from geep_triton.files.targets import GROUP_BYTES, grouped, lay_out
from geep_triton.resumable import InputChanged, InputFile
from tests.files.lengths import Lengths, run
from tests.files.test_shards import names

ROOT = Path(__file__).parent.parent.parent


def shards(folder: Path, **sizes: int) -> Path:
    """A folder of parquet files with so many rows."""
    folder.mkdir(exist_ok=True)
    for name, size in sizes.items():
        texts = [f"{name} " + "é" * (number % 11) for number in range(size)]
        pq.write_table(pa.table({"id": pa.array(range(size), pa.int32()), "text": texts}), folder / f"{name}.parquet")
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


class Stopped(Exception):
    pass


class StopsAt(Lengths):
    """Lengths, until the process is stopped at a window."""

    def __init__(self, stop: int, window: int = 7) -> None:
        super().__init__(window)
        self.stop = stop

    def answer(self, rows):
        if len(self.windows) == self.stop:
            raise Stopped
        return super().answer(rows)


def test_a_folder_of_shards(tmp_path):
    source = shards(tmp_path / "in", a=20, b=0, c=3)
    told: list[str] = []
    report = run(source, tmp_path / "out", told=told)
    assert told == []
    assert (report.shards, report.rows, report.answered, report.bad, report.counts["good"]) == (3, 23, 23, 0, 23)
    assert names(tmp_path / "out") == ["a.parquet", "b.parquet", "c.parquet"]
    for name, size in (("a", 20), ("b", 0), ("c", 3)):
        found = pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        assert [row["id"] for row in found] == list(range(size))
        assert all(row["length"] == len(row["text"]) for row in found)
    assert {path.name for path in (tmp_path / "out" / "_geep").iterdir()} == {"manifest.json", "done", "answers"}


def test_a_restart_does_what_is_missing(tmp_path):
    source = shards(tmp_path / "in", a=20, c=3)
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    again, told = Lengths(), []
    report = run(source, tmp_path / "out", again, told)
    assert (again.windows, told, report.answered_before) == ([], ["already complete: 2 shards"], 2)
    assert report.counts["good"] == 23
    shards(source, b=4)
    (tmp_path / "out" / "c.parquet").unlink()
    report = run(source, tmp_path / "out", again, told)
    assert sum(map(len, again.windows)) == 7
    assert told[1:] == ["1 of 3 shards are done"]
    assert {name: content for name, content in contents(tmp_path / "out").items() if name[0] != "b"} == before
    assert report.rows == 27
    (source / "a.parquet").unlink()
    assert run(source, tmp_path / "out").gone == ["a.parquet"]


def test_counts_are_of_each_shard(tmp_path):
    source = shards(tmp_path / "in", a=5, b=3, c=4)  # which are answered together
    assert run(source, tmp_path / "out").counts["good"] == 12
    for name in ("b", "a"):
        (tmp_path / "out" / f"{name}.parquet").unlink()
        assert run(source, tmp_path / "out").counts["good"] == 12
    (source / "a.parquet").unlink()
    assert run(source, tmp_path / "out").counts["good"] == 7


def test_folders_of_shards_may_be_called_as_files(tmp_path):
    (tmp_path / "in").mkdir()
    shards(tmp_path / "in" / "x.json", a=2)
    run(tmp_path / "in", tmp_path / "out")
    told: list[str] = []
    run(tmp_path / "in", tmp_path / "out", told=told)
    assert told == ["already complete: 1 shards"]


@pytest.mark.parametrize("stop", range(7))
def test_it_goes_on_inside_a_shard(tmp_path, stop):
    source = shards(tmp_path / "in", a=30, b=19)
    run(source, tmp_path / "whole")
    first, told = StopsAt(stop), []
    with pytest.raises(Stopped):
        run(source, tmp_path / "out", first)
    if not stop:
        assert not (tmp_path / "out").exists()
    second = Lengths()
    run(source, tmp_path / "out", second, told)
    assert first.windows + second.windows == windows_of(source)
    assert told == ([] if not stop else [f"continuing after row {7 * stop} of a.parquet, b.parquet"])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert list((tmp_path / "out" / "_geep" / "answers").iterdir()) == []


def windows_of(source: Path) -> list:
    texts = [text for path in sorted(source.iterdir()) for text in pq.read_table(path)["text"].to_pylist()]
    return [[(text, None) for text in texts[start : start + 7]] for start in range(0, len(texts), 7)]


def test_small_shards_share_windows(tmp_path):
    source = shards(tmp_path / "in", **{f"s{number:03}": 2 for number in range(30)})
    answerer = Lengths(window=40)
    run(source, tmp_path / "out", answerer)
    assert list(map(len, answerer.windows)) == [40, 20]
    assert len(names(tmp_path / "out")) == 30


def test_new_shards_do_not_undo_what_was_begun(tmp_path):
    source = shards(tmp_path / "in", m=30)
    with pytest.raises(Stopped):
        run(source, tmp_path / "out", StopsAt(3))
    shards(source, a=5, z=5)
    second = Lengths()
    run(source, tmp_path / "out", second)
    assert sum(map(len, second.windows)) == 9 + 10
    assert len(names(tmp_path / "out")) == 3


def test_a_shard_that_left_takes_its_begun_answers_along(tmp_path):
    source = shards(tmp_path / "in", a=30, b=3)
    with pytest.raises(Stopped):
        run(source, tmp_path / "out", StopsAt(3))
    (source / "a.parquet").unlink()
    run(source, tmp_path / "out")
    assert names(tmp_path / "out") == ["b.parquet"]
    assert list((tmp_path / "out" / "_geep" / "answers").iterdir()) == []


def test_another_run_is_refused_and_says_what_differs(tmp_path):
    source = shards(tmp_path / "in", a=3)
    run(source, tmp_path / "out")
    for name, settings in {
        "model": {"manifest": {"model": "other"}}, "prefix": {"prefix": "x_"}, "columns": {"columns": ("id",)},
        "bad_rows": {"bad_rows": "empty"}, "window": {"window": 3}, "format": {"form": parse_format("csv")},
    }.items():  # fmt: skip
        with pytest.raises(OutputTaken, match=f"is of a run with another {name} .*choose another output"):
            run(source, tmp_path / "out", **settings)
    run(source, tmp_path / "out", bad_rows="skip")  # what was whole is the same
    with pytest.raises(OutputTaken, match="bad_rows was 'skip', now 'stop'"):
        run(source, tmp_path / "out")


def test_outputs_of_something_else_are_left_alone(tmp_path):
    source = shards(tmp_path / "in", a=3)
    (tmp_path / "out").mkdir()
    write(tmp_path / "out" / "mine.txt", ["mine"])
    with pytest.raises(OutputTaken, match="holds files of something else .mine.txt."):
        run(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    run(source, tmp_path / "out")
    shards(source, b=3)
    shutil.copy(source / "b.parquet", tmp_path / "out" / "b.parquet")
    with pytest.raises(OutputTaken, match="b.parquet is there and was not written by this run"):
        run(source, tmp_path / "out")
    (tmp_path / "out" / "b.parquet").unlink()
    shutil.copy(source / "b.parquet", tmp_path / "out" / "a.parquet")
    with pytest.raises(OutputTaken, match="a.parquet was changed since it was written"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.parquet.unfinished", "out/_geep"])
def test_a_folder_that_is_called_as_a_runs_is_left_alone(tmp_path, name):
    source = shards(tmp_path / "in", a=3)
    (tmp_path / name).mkdir(parents=True)
    write(tmp_path / name / "mine.txt", ["mine"])
    given = (source, tmp_path / "out") if name[:3] == "out" else (source / "a.parquet", tmp_path / "a.parquet")
    with pytest.raises(OutputTaken, match="holds files of something else .mine.txt."):
        run(*given)
    assert (tmp_path / name / "mine.txt").read_text() == "mine\n"


def test_an_output_that_came_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    source = shards(tmp_path / "in", a=3) / "a.parquet"
    check = run_module.check_columns_of

    def slow(*arguments):  # while this process looks at columns, another one does all
        check(*arguments)
        monkeypatch.undo()
        run(source, tmp_path / "out.parquet", prefix="first_")

    monkeypatch.setattr(run_module, "check_columns_of", slow)
    with pytest.raises(OutputTaken, match="is there already"):
        run(source, tmp_path / "out.parquet")
    assert "first_length" in pq.read_schema(tmp_path / "out.parquet").names
    assert names(tmp_path) == ["in/a.parquet", "out.parquet"]


def test_a_refused_shard_leaves_no_folder(tmp_path):
    (tmp_path / "in" / "b").mkdir(parents=True)
    source = write(tmp_path / "in" / "b" / "a.jsonl", [{"text": "good"}, {"text": "good", "length": 4}])
    with pytest.raises(ValueError, match="has a column 'length'"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write(source, [{"text": "good"}])
    assert run(tmp_path / "in", tmp_path / "out").rows == 1


def test_a_shard_that_changed_since(tmp_path):
    source = shards(tmp_path / "in", a=3, b=3)
    run(source, tmp_path / "out")
    os.utime(source / "a.parquet")
    run(source, tmp_path / "out")  # its contents are the same
    shards(source, a=4)
    with pytest.raises(ValueError, match=r"in/a.parquet changed since it was answered: remove its output .*out/a.parquet"):
        run(source, tmp_path / "out")
    (tmp_path / "out" / "a.parquet").unlink()
    assert run(source, tmp_path / "out").rows == 7


class Changes(Lengths):
    """Changes an input while it is read."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def answer(self, rows):
        if len(self.windows) == 1:
            self.change()
        return super().answer(rows)


def test_a_shard_that_changes_while_it_is_read(tmp_path):
    source = shards(tmp_path / "in", a=30)
    for change in (
        lambda: shards(source, a=31),
        (source / "a.parquet").unlink,
        lambda: (source / "a.parquet").write_bytes(b""),
    ):
        shards(source, a=30)
        with pytest.raises(InputChanged, match="a.parquet changed while it was read: nothing of this run is kept"):
            run(source, tmp_path / "out", Changes(change))
        assert not (tmp_path / "out").exists()


def test_shards_that_come_meanwhile_are_told(tmp_path):
    source, told = shards(tmp_path / "in", a=30), []
    report = run(source, tmp_path / "out", Changes(lambda: shards(source, b=1)), told)
    assert report.came == ["b.parquet"]
    assert told == ["shards came meanwhile, start again to answer them: b.parquet"]
    assert names(tmp_path / "out") == ["a.parquet"]


def test_inputs_that_are_gone_at_the_end_undo_nothing(tmp_path, monkeypatch):
    source, told, listed = shards(tmp_path / "in", a=30), [], run_module._came

    def gone(*given):
        shutil.rmtree(source)
        return listed(*given)

    monkeypatch.setattr(run_module, "_came", gone)
    report = run(source, tmp_path / "out", told=told)
    assert (report.came, report.rows) == ([], 30)
    assert told[0].startswith("whether shards came meanwhile is not known: no such file")


def test_an_output_in_the_runs_own_folder_is_refused(tmp_path):
    (tmp_path / "in" / "_geep").mkdir(parents=True)
    shards(tmp_path / "in" / "_geep", a=1)
    with pytest.raises(ValueError, match="which is the run's own"):
        run(tmp_path / "in" / "*" / "*.parquet", tmp_path / "out")


def test_temporary_files_are_told(tmp_path):
    source, told = shards(tmp_path / "in", a=3), []
    write(source / "b.parquet.tmp", [])
    assert run(source, tmp_path / "out", told=told).left_out == ["b.parquet.tmp"]
    assert told == ["left out: b.parquet.tmp"]


# A single file


def test_a_single_file(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "one", "id": 1}, {"text": "three", "text_pair": "x"}])
    run(source, tmp_path / "b.jsonl")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.jsonl", "b.jsonl"]
    assert lines(tmp_path / "b.jsonl")[1] == {
        "text": "three",
        "text_pair": "x",
        "length": 5,
        "third": 1.6666666269302368,
        "both": [5, 1],
    }
    with pytest.raises(OutputTaken, match=r"b.jsonl is there already: .*--overwrite"):
        run(source, tmp_path / "b.jsonl")
    write(source, [{"text": "1"}])
    run(source, tmp_path / "b.jsonl", overwrite=True)
    assert len(lines(tmp_path / "b.jsonl")) == 1
    with pytest.raises(ValueError, match="overwrite is for the output of a single file"):
        run(tmp_path, tmp_path.parent / "elsewhere", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_single_file_goes_on(tmp_path, overwrite):
    source = write(tmp_path / "a.csv", ["text", *(f"text {number}" for number in range(30))])
    if overwrite:
        write(tmp_path / "b.csv", ["old"])
    with pytest.raises(Stopped):
        run(source, tmp_path / "b.csv", StopsAt(3), overwrite=overwrite)
    assert (tmp_path / "b.csv").exists() == overwrite
    assert (tmp_path / "b.csv.unfinished").is_dir()
    with pytest.raises(OutputTaken, match="another model"):
        run(source, tmp_path / "b.csv", manifest={"model": "other"})
    again = Lengths()
    run(source, tmp_path / "b.csv", again)
    assert sum(map(len, again.windows)) == 9
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 31
    assert not (tmp_path / "b.csv.unfinished").exists()


def test_a_single_output_in_another_format(tmp_path):
    source = write(tmp_path / "a.csv", ["text,n", "one,007"])
    run(source, tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "b.parquet").to_pylist()[0]["n"] == "007"
    run(source, tmp_path / "noname", form=parse_format("jsonl"))
    assert lines(tmp_path / "noname")[0]["n"] == "007"
    for output, settings, message in (
        ("c.txt", {}, "c.txt: unknown file type '.txt'"),
        ("c.csv", {"form": parse_format("parquet")}, "c.csv is named as another format than parquet"),
    ):
        with pytest.raises(ValueError, match=message):
            run(source, tmp_path / output, **settings)


def test_outputs_where_none_may_be(tmp_path):
    source = shards(tmp_path / "in", a=3)
    one = write(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "link.jsonl").symlink_to(one)
    os.link(one, tmp_path / "hard.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for given, output, message in (
        (one, one, "would be overwritten, but it is an input"),
        (one, tmp_path / "hard.jsonl", "would be overwritten, but it is an input"),
        (one, tmp_path / "link.jsonl", "is a link, which would be replaced"),
        (one, tmp_path / "pipe.jsonl", "is a pipe, which would be replaced"),
        (one, Path("/dev/null"), "null is a device, which would be replaced"),
        (one, tmp_path / "in", "in is a folder; of one input file the output is a file"),
        (one, tmp_path / "none" / "b.jsonl", "none is not a folder"),
        (source, one, "a.jsonl is a file, expected a folder"),
        (source, source, "lies in the input"),
        (source, source / "out", "lies in the input"),
        (source, tmp_path, "holds the input"),
    ):
        with pytest.raises(ValueError, match=message):
            run(given, output, overwrite=not given.is_dir())
    assert lines(one) == [{"text": "a"}]
    assert names(source) == ["a.parquet"]


@pytest.mark.parametrize("pattern", ["**/*.parquet", "[io]*/**/a.parquet"])
def test_outputs_that_a_pattern_would_find(tmp_path, pattern):
    shards(tmp_path / "in", a=3)
    with pytest.raises(ValueError, match="would become an input"):
        run(tmp_path / pattern, tmp_path / "out")
    assert names(tmp_path) == ["in/a.parquet"]
    elsewhere = tmp_path.parent / f"{tmp_path.name}_out"
    for _ in range(2):
        assert run(tmp_path / pattern, elsewhere).shards == 1


def test_two_names_that_would_become_one(tmp_path):
    source = shards(tmp_path / "in", a=3)
    write(source / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="would have one output, a.csv: run them apart"):
        run(source, tmp_path / "out", form=parse_format("csv"))
    (source / "a.jsonl").unlink()
    run(source, tmp_path / "out", form=parse_format("csv.gz"))
    assert names(tmp_path / "out") == ["a.csv.gz"]


# Columns


def test_columns_and_prefixes(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "a", "length": 3, "id": 7}, {"text": "b", "id": 8}])
    with pytest.raises(ValueError, match=r"has a column 'length', and so would the answers: .*--prefix predicted_.*--columns"):
        run(source, tmp_path / "b.jsonl")
    run(source, tmp_path / "b.jsonl", prefix="predicted_")
    assert list(lines(tmp_path / "b.jsonl")[0]) == [
        "text",
        "length",
        "id",
        "predicted_length",
        "predicted_third",
        "predicted_both",
    ]
    run(source, tmp_path / "c.jsonl", columns=("id",))
    assert [list(row) for row in lines(tmp_path / "c.jsonl")] == [["id", "length", "third", "both"]] * 2
    run(source, tmp_path / "d.csv", columns=())
    assert (tmp_path / "d.csv").read_text().splitlines()[0] == "length,third,both"
    for settings, message in (
        ({"columns": ("id", "url")}, "a.jsonl: missing column 'url'"),
        ({"columns": ("id", "id")}, "column 'id' appears more than once"),
        ({"bad_rows": "ignore"}, "unknown bad_rows 'ignore'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(source, tmp_path / "e.jsonl", **settings)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "jsonl"])
def test_no_column_is_carried_and_a_row_is_skipped(tmp_path, kind):
    pq.write_table(pa.table({"text": ["a", "", "ccc"], "id": [1, 2, 3]}), tmp_path / "a.parquet")
    form = parse_format(kind)
    run(tmp_path / "a.parquet", tmp_path / f"b.{kind}", columns=(), bad_rows="skip", form=form)
    found = [(sorted(row), int(row["length"])) for row in read_rows(tmp_path / f"b.{kind}", required=())]
    assert found == [(["both", "length", "third"], size) for size in (1, 3)]


def test_a_later_row_with_the_name_of_an_answer(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b", "length": 3}])
    with pytest.raises(ValueError, match="a.jsonl: line 2 has a column 'length', and so have the answers"):
        run(source, tmp_path / "b.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_shards_that_do_not_fit(tmp_path):
    source = shards(tmp_path / "in", a=3)
    pq.write_table(pa.table({"body": ["x"]}), source / "b.parquet")
    with pytest.raises(ValueError, match="in/b.parquet: missing column 'text'; columns: 'body'"):
        run(source, tmp_path / "out")
    pq.write_table(pa.table({"text": ["x"], "text_pair": ["y"]}), source / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet has a column 'text_pair' and .*a.parquet has none"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write(source / "b.csv", ["text,n", "x,1"])
    (source / "b.parquet").unlink()
    run(source, tmp_path / "out")  # of several formats, each with the column
    assert names(tmp_path / "out") == ["a.parquet", "b.csv"]


# Bad rows

BAD = [{"text": "good"}, {"text": ""}, "{broken", {"body": "x"}, {"text": None}, "", {"text": 3, "id": 5}, {"text": "fine"}]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (2, "an empty text"),
        (3, "Expecting"),
        (4, "missing column 'text'"),
        (5, "not a string"),
        (6, "blank line"),
        (7, "not a string"),
    ],
)
@pytest.mark.parametrize("window", [1, 3, 100])
def test_it_stops_at_a_bad_row(tmp_path, number, reason, window):
    rows = [row for row in BAD[: number - 1] if row == {"text": "good"}]
    rows += [{"text": "good"}] * (number - 1 - len(rows))
    source = write(tmp_path / "a.jsonl", [*rows, BAD[number - 1], {"text": "fine"}])
    with pytest.raises((BadRow, BadLine), match=f"a.jsonl, line {number}.*{reason}"):
        run(source, tmp_path / "b.jsonl", Lengths(window))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("window", [1, 3, 100])
def test_bad_rows_are_skipped_with_their_reasons(tmp_path, window):
    source = write(tmp_path / "a.jsonl", BAD)
    report = run(source, tmp_path / "b.jsonl", Lengths(window), bad_rows="skip")
    assert (report.rows, report.answered, report.bad) == (8, 2, 6)
    assert [row["text"] for row in lines(tmp_path / "b.jsonl")] == ["good", "fine"]
    skipped = lines(tmp_path / "b.jsonl.skipped.jsonl")
    assert [row["line"] for row in skipped] == [2, 3, 4, 5, 6, 7]
    assert "Expecting" in skipped[1]["reason"]
    assert [row["values"] for row in skipped] == [{"text": ""}, {}, {"body": "x"}, {"text": None}, {}, {"text": 3, "id": 5}]
    write(source, BAD[:1])
    run(source, tmp_path / "b.jsonl", bad_rows="skip", overwrite=True)
    assert not (tmp_path / "b.jsonl.skipped.jsonl").exists()


def test_bad_rows_of_a_folder(tmp_path):
    source = shards(tmp_path / "in", a=3)
    pq.write_table(pa.table({"text": ["x", None, ""], "raw": [b"\xff", b"1", b"2"], "id": [1, 2, 3]}), source / "b.parquet")
    with pytest.raises(BadRow, match=r"in/b.parquet, row 2 has a text that is not a string: None"):
        run(source, tmp_path / "out", Lengths(2))
    run(source, tmp_path / "out", bad_rows="skip")
    assert pq.read_table(tmp_path / "out" / "b.parquet")["id"].to_pylist() == [1]
    assert [row["row"] for row in lines(tmp_path / "out" / "_geep" / "skipped" / "b.parquet.jsonl")] == [2, 3]
    assert not (tmp_path / "out" / "_geep" / "skipped" / "a.parquet.jsonl").exists()
    run(source, tmp_path / "empty", bad_rows="empty")
    found = pq.read_table(tmp_path / "empty" / "b.parquet")
    assert found["length"].to_pylist() == [1, None, None]
    assert found["error"].to_pylist() == [None, "has a text that is not a string: None", "has an empty text"]
    assert found["id"].to_pylist() == [1, 2, 3]
    assert pq.read_table(tmp_path / "empty" / "a.parquet")["error"].null_count == 3


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_bad_rows_stay_with_empty_answers(tmp_path, form):
    source = write(tmp_path / "a.jsonl", [row for row in BAD if row != {"text": 3, "id": 5}])
    run(source, tmp_path / f"b.{form}", bad_rows="empty", prefix="p_")
    rows = read_rows(tmp_path / f"b.{form}", required=())
    nothing = "" if form == "csv" else None
    assert [row["p_length"] == nothing for row in rows] == [False, True, True, True, True, True, False]
    assert [bool(row["p_error"]) for row in rows] == [False, True, True, True, True, True, False]


def test_a_run_of_nothing_but_bad_rows(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": ""}] * 3)
    report = run(source, tmp_path / "b.jsonl", bad_rows="skip")
    assert (report.answered, report.bad) == (0, 3)
    assert (tmp_path / "b.jsonl").read_text() == ""


def test_a_bad_line_of_csv_always_stops(tmp_path):
    source = write(tmp_path / "a.csv", ["text,n", "x,1", "y", "z,1"])
    with pytest.raises(BadLine, match="a.csv, line 3: expected 2 fields"):
        run(source, tmp_path / "b.csv", bad_rows="skip")


# A disk that is full, damaged records, two processes

CHILD = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
from tests.files.lengths import Lengths, run
try:
    run(sys.argv[1], Path(sys.argv[2]), Lengths(50, float(sys.argv[4])))
except OSError as error:
    sys.exit(f"OSError {error}")
except ValueError as error:
    sys.exit(f"{type(error).__name__} {error}")
"""


def child(source: Path, output: Path, most_bytes: int = -1, seconds: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(source), str(output), str(most_bytes), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


@pytest.mark.parametrize("most", [200, 12_000])
def test_no_space_left(tmp_path, most):
    """Files that may not grow are as a full disk: what is there stays, and another run goes on."""
    source = shards(tmp_path / "in", a=10, b=900)
    run(source, tmp_path / "whole", Lengths(50))
    process = child(source, tmp_path / "out", most)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert said.startswith("OSError"), said
    assert not list((tmp_path / "out").rglob(".*.partial"))
    run(source, tmp_path / "out", Lengths(50))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_processes_of_one_output(tmp_path):
    source = shards(tmp_path / "in", a=5000)
    process = child(source, tmp_path / "out", seconds=0.05)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "_geep" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(OutputTaken, match="another process is at work"):
        run(source, tmp_path / "out", Lengths(50))
    assert process.poll() is None, "the first ended too early to be met"
    process.kill()
    process.communicate()
    assert run(source, tmp_path / "out", Lengths(50)).rows == 5000


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"shard": "a.parquet"}'])
def test_damaged_records_are_named(tmp_path, damage):
    source = shards(tmp_path / "in", a=3)
    run(source, tmp_path / "out")
    (tmp_path / "out" / "_geep" / "done" / "a.parquet.json").write_bytes(damage)
    with pytest.raises(ValueError, match="a.parquet.json is damaged, remove it"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_a_damaged_manifest_is_no_manifest(tmp_path, damage):
    source = shards(tmp_path / "in", a=3)
    run(source, tmp_path / "out")
    (tmp_path / "out" / "_geep" / "manifest.json").write_bytes(damage)
    with pytest.raises(OutputTaken, match=r"manifest.json is (damaged|no manifest)"):
        run(source, tmp_path / "out")


def test_a_damaged_log_starts_over(tmp_path):
    source = shards(tmp_path / "in", a=30)
    with pytest.raises(Stopped):
        run(source, tmp_path / "out", StopsAt(3))
    log = next((tmp_path / "out" / "_geep" / "answers").glob("*.partial"))
    log.write_bytes(log.read_bytes()[:-3])
    again, told = Lengths(), []
    run(source, tmp_path / "out", again, told)
    assert sum(map(len, again.windows)) == 30
    assert "starting over" in told[0]


def test_who_still_holds_a_log_is_waited_for(tmp_path, monkeypatch):
    """As an actor does whose driver was killed, until its window ends."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(group_work, "SOON", 0.0)
    source, told = shards(tmp_path / "in", a=30), []
    run(source, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(source, tmp_path / "out", StopsAt(3))
    with next((tmp_path / "out" / "_geep" / "answers").glob("*.partial")).open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def tell(message: str) -> None:
            told.append(message)
            held.close()

        answer_files(Here(Lengths()), [source], tmp_path / "out", Settings(), {"model": "lengths"}, tell=tell)
    assert told == [
        "waiting until whoever is at a.parquet for a process that was killed ends its window",
        "continuing after row 21 of a.parquet",
    ]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_kill_between_the_output_and_its_record(tmp_path):
    source = shards(tmp_path / "in", a=3)
    run(source, tmp_path / "out")
    path = tmp_path / "out" / "_geep" / "done" / "a.parquet.json"
    record = Record(**json.loads(path.read_text()))
    path.write_text(json.dumps({**vars(record), "written": False}))
    before = contents(tmp_path / "out")
    again = Lengths()
    run(source, tmp_path / "out", again)
    assert sum(map(len, again.windows)) == 3
    assert contents(tmp_path / "out") == before


def test_groups_are_of_bounded_size(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for number, size in enumerate((10, GROUP_BYTES - 10, 1, GROUP_BYTES * 2, 5, 5)):
        (source / f"{number}.jsonl").write_bytes(b"\n" * size)
    targets = lay_out(list_shards([source]), [source], tmp_path / "out", None).targets
    found = [[target.shard.name[0] for target in group] for group in grouped(targets)]
    assert found == [["0", "1"], ["2"], ["3"], ["4", "5"]]


@pytest.mark.parametrize("named", [True, False])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, named):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl is a pipe, expected a regular file"):
        run(tmp_path / "in" / "a.jsonl" if named else tmp_path / "in", tmp_path / "out")


def test_a_record_is_of_the_contents_that_were_read(tmp_path, monkeypatch):
    """What changes after the last check is noticed by the next run, also if the size stays."""
    source = write(tmp_path / "a.jsonl", [{"text": "old"}])
    folder = tmp_path / "in"
    folder.mkdir()
    source = source.rename(folder / "a.jsonl")
    check = InputFile.check

    def check_then_change(self: InputFile) -> None:
        check(self)
        if (tmp_path / "out" / ".a.jsonl.partial").exists():
            os.utime(write(source, [{"text": "new"}]), ns=(1, 1))

    monkeypatch.setattr(InputFile, "check", check_then_change)
    with pytest.raises(InputChanged):  # by the check at the very end
        run(folder, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="changed since it was answered"):
        run(folder, tmp_path / "out")

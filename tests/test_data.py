"""Reading rows from files."""

from __future__ import annotations

import re

import pytest

from geep_triton.checks import BadSample
from geep_triton.data import BadLine, read_csv, read_json_lines, read_rows
from geep_triton.tokens.encoder import Encoder


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "héllo", "label": "x"}\n{"text": "b", "label": "y"}\n\n')
    assert read_rows(path) == [{"text": "héllo", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "b"', "Expecting"),
        ('["b"]', "expected a JSON object"),
        ('{"body": "b"}', "missing column 'text'; columns: 'body'"),
        ("", "blank line"),
    ],
)
def test_bad_json_line_is_named(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{line}\n{{"text": "c"}}\n')
    with pytest.raises(BadLine, match=f"a.jsonl, line 2: {reason}"):
        read_rows(path)
    rows = list(read_json_lines(path, ("text",), on_bad_line=lambda error: {"error": error.number}))
    assert rows == [{"text": "a"}, {"error": 2}, {"text": "c"}]


def test_not_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(BadLine, match="line 2.*utf-8"):
        read_rows(path)


def test_csv(tmp_path):
    path = write(tmp_path / "a.csv", 'text,text_pair,label\n"a, b",c,x\n"line\nbreak",d,y\n')
    assert [row["text"] for row in read_rows(path)] == ["a, b", "line\nbreak"]


@pytest.mark.parametrize("line", ["only one", "a,b,c,d"])
def test_bad_csv_line_is_named(tmp_path, line):
    path = write(tmp_path / "a.csv", f"text,label\na,x\n{line}\n")
    with pytest.raises(BadLine, match="line 3: expected 2 fields"):
        list(read_csv(path))


def test_csv_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\na,x\n\xff,y\n")
    with pytest.raises(BadLine, match="a.csv, line .*utf-8"):
        list(read_csv(path))


def bad_line(path, required=("text",)):
    with pytest.raises(BadLine) as caught:
        read_rows(path, required=required)
    return caught.value.number, caught.value.reason


def test_csv_fields_of_any_length(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nok,0\n" + "x " * 700_000 + ",1\n")
    assert [len(row["text"]) for row in read_rows(path, required=("text", "label"))] == [2, 1_400_000]


def test_csv_lines_are_counted_as_they_are_read(tmp_path):
    path = tmp_path / "a.csv"
    for before in (1, 900, 5000):  # beyond what is read ahead, and within
        path.write_bytes(b"text,label\n" + b'"two\r\nlines",0\n' * before + b"caf\xe9,1\n" + b"plain,1\n" * 900)
        number, reason = bad_line(path)
        assert number == 2 * before + 2
        assert "utf-8" in reason
        path.write_bytes(b"text,label\n\n" + b'"two\nlines",0\n' * before + b"\nonly one\n")
        assert bad_line(path) == (2 * before + 4, "expected 2 fields as in the header, got 1")


@pytest.mark.parametrize(
    ("content", "number", "reason"),
    [
        ('text,label\n"fine,1\nbad,0\nmore,1\n', 2, "unexpected end of data .*continues to line 4: is a quote not closed"),
        ('text,label\nok,1\nfine,"1\nbad,0\n', 3, "unexpected end of data .*continues to line 4: is a quote not closed"),
        ('text,label\n"fine,1\nbad",0,5\n', 2, "expected 2 fields as in the header, got 3 .*continues to line 3"),
        ('text,label\nok,1\n"he said "hi" to me",1\n', 3, "',' expected after '\"'"),
        ("text,label,text\nthe real text,1,a note\n", 1, "column 'text' appears more than once; columns: "),
        ("text,,\na,b,c\n", 1, "column '' appears more than once"),
        ("\ntext,label\na,x\n", 1, "expected names of columns with commas between them, got a blank line"),
        ("text;label\na;x\n", 1, "missing column 'text'; columns: 'text;label'; expected names of columns with commas"),
        ('{"text": "a", "label": 1}\n', 1, "expected names of columns with commas between them, got what looks like JSON"),
        ('[{"text": "a"}]\n', 1, "expected names of columns with commas between them, got what looks like JSON"),
    ],
)
def test_csv_that_would_be_misread(tmp_path, content, number, reason):
    found, why = bad_line(write(tmp_path / "a.csv", content))
    assert found == number
    assert re.search(reason, why)


@pytest.mark.parametrize(
    ("content", "number", "reason"),
    [
        ('[{"text": "a"}, {"text": "b"}]\n', 1, r"expected a JSON object in each line \(JSON lines\), got \[\{'text'"),
        ('[\n{"text": "a"},\n{"text": "b"}\n]\n', 1, r"Expecting .*expected a JSON object in each line .*got '\['"),
        ('{\n  "text": "a"\n}\n', 1, "Expecting .*expected a JSON object in each line"),
        ("text,label\na,x\n", 1, "Expecting value.*expected a JSON object in each line .*got 'text,label'"),
        ('{"text": "a"}\n"b"\n', 2, "expected a JSON object in each line .*got 'b'"),
        ('{"text": "a"} {"text": "b"}\n', 1, "Extra data.*expected a JSON object in each line"),
        ('{"text": "a"}\n{"text": "b", "text": "c"}\n', 2, "column 'text' appears more than once"),
        ('{"text": "a"}\n{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", 2, "nested too deeply; expected a JSON object"),
        ("[" * 900 + "]" * 900 + "\n", 1, "expected a JSON object in each line|nested too deeply"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_is_no_json_lines(tmp_path, name, content, number, reason):
    path = write(tmp_path / name, content)
    found, why = bad_line(path)
    assert found == number
    assert re.search(reason, why)
    assert len(why) < 300
    rows = list(read_json_lines(path, ("text",), on_bad_line=lambda error: {"error": error.number}))
    assert {"error": number} in rows
    assert len(rows) == len(content.splitlines())


def test_a_deeply_nested_text_is_a_bad_sample(tokenizer):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(
        BadSample, match="sample 0 has a text that is not a string: a list that is nested too deeply to be shown"
    ):
        Encoder(tokenizer, 8)([(deep, None)])


def test_byte_order_marks_and_capital_suffixes(tmp_path):
    for name, content in (("a.JSONL", '{"text": "a"}\n'), ("a.CSV", "text\na\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_rows(tmp_path / name) == [{"text": "a"}]


def test_unknown_file_type(tmp_path):
    with pytest.raises(ValueError, match="unknown file type '.tsv'; known: .jsonl, .json, .csv"):
        read_rows(write(tmp_path / "a.tsv", "a"))


def test_csv_without_the_column(tmp_path):
    with pytest.raises(BadLine, match="missing column 'text'; columns: 'body', 'label'"):
        read_rows(write(tmp_path / "a.csv", "body,label\na,x\n"))


def test_no_file_and_no_rows(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="has no rows"):
        read_rows(write(tmp_path / "a.jsonl", ""))


def test_folder_through_datasets(tmp_path):
    pytest.importorskip("datasets", reason="the package datasets (extra 'dev') is not installed")
    write(tmp_path / "train.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    assert read_rows(tmp_path, "train") == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    with pytest.raises(ValueError, match="missing column 'label2'"):
        read_rows(tmp_path, "train", ("text", "label2"))


@pytest.mark.parametrize("line", ['{"text": "a", "label": 1}', '{"text":"a","label":"b"}', '[{"text":"a"}]', "", "   "])
def test_a_csv_file_that_begins_with_something_else(tmp_path, line):
    path = tmp_path / "a.csv"
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match=r"a.csv, line 1: expected names of columns with commas between them, got"):
        read_rows(path)

"""Reading rows from files."""

from __future__ import annotations

import re

import pytest

from geep_triton.checks import BadSample
from geep_triton.files.csv_lines import read_csv
from geep_triton.files.json_lines import BadLine, read_json_lines
from geep_triton.files.rows import read_rows
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
        ("review,label\na,x\n", 1, r"missing column 'text'; columns: 'review', 'label'$"),
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
    with pytest.raises(ValueError, match="unknown file type '.txt'; known: .parquet, .arrow"):
        read_rows(write(tmp_path / "a.txt", "a"))


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


def test_columns_of_other_names(tmp_path):
    path = write(tmp_path / "a.csv", "body,stars,text,id\ngreat,5,an old note,1\n")
    rows = read_rows(path, required=("text", "label"), columns={"text": "body", "label": "stars", "text_pair": "text_pair"})
    assert rows == [{"id": "1", "text": "great", "label": "5"}]
    with pytest.raises(ValueError, match="missing column 'score'; columns: 'body', 'stars', 'text', 'id'"):
        read_rows(path, required=("text", "label"), columns={"text": "body", "label": "score"})
    with pytest.raises(ValueError, match="unknown name in columns 'id'"):
        read_rows(path, columns={"id": "id"})


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["a.jsonl", "b.jsonl"], "train", ["a", "b"]),
        (["train.jsonl", "test.jsonl", "dev.jsonl"], "train", ["train"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-0.jsonl"], "train", ["train"] * 2),
        (["train.jsonl", "dev.jsonl"], "validation", ["dev"]),
        (["train/0.jsonl", "valid/0.jsonl"], "validation", ["0"]),
        (["contest.jsonl", "trained.jsonl"], "test", ["contest", "trained"]),
        (["train.jsonl", "german.jsonl"], "german", ["german"]),
    ],
)
def test_a_folder_is_the_files_of_its_split(tmp_path, names, split, found):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, f'{{"text": "{name.rpartition("/")[2].split(".")[0].split("-")[0]}"}}\n')
    assert [row["text"] for row in read_rows(tmp_path, split)] == found


def test_a_folder_without_the_split(tmp_path):
    write(tmp_path / "train.jsonl", '{"text": "a"}\n')
    with pytest.raises(ValueError, match="has files of the splits train, and none of 'validation'"):
        read_rows(tmp_path, "validation")


def test_labels_of_datasets_have_their_names(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets (extra 'dev') is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    made.to_parquet(tmp_path / "a.parquet")
    assert [row["label"] for row in read_rows(tmp_path / "a.parquet")] == ["yes", "no", -1]
    made.save_to_disk(tmp_path / "saved")
    assert [row["label"] for row in read_rows(tmp_path / "saved")] == ["yes", "no", -1]


def test_what_a_run_writes_datasets_reads(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets (extra 'dev') is not installed")
    from tests.files.lengths import run

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "bb"], "label": [1, 0]}, features=features)
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "a.parquet")
    run(tmp_path / "saved", tmp_path / "out")
    stream = next((tmp_path / "out").glob("*.arrow"))
    run(tmp_path / "a.parquet", tmp_path / "b.parquet")
    for again in (
        datasets.Dataset.from_file(str(stream)),
        datasets.Dataset.from_parquet(str(tmp_path / "b.parquet"), cache_dir=str(tmp_path / "cache")),
    ):
        assert again["length"][:] == [1, 2]
        assert again.features["label"] == features["label"]

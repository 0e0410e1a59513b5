"""Every format in and out: types, null, Unicode, odd names, compression, streams, empty and damaged files."""

from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geep_triton.files.formats import format_of, parse_format
from geep_triton.files.json_lines import BadLine
from geep_triton.files.readers import open_reader
from geep_triton.files.rows import read_rows
from tests.files.lengths import Lengths, run

TYPED = pa.table(
    {
        "id": pa.array([1, None, 3], pa.int16()),
        "text": pa.array(["één", 'two\nlines, and "quotes"', "三\U0001f642"]),
        "größe (a.b)": pa.array([0.5, float("nan"), None], pa.float32()),
        "day": pa.array([date(2026, 1, 2), None, date(1, 1, 1)]),
        "at": pa.array([datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc), None, None], pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.10"), None, Decimal("-3.00")], pa.decimal128(9, 2)),
        "tags": pa.array([["a", None], [], None], pa.list_(pa.string())),
        "meta": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}], pa.struct([("a", pa.int8()), ("b", pa.string())])),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "raw": pa.array([b"\x00\xff", None, b""]),
        "": pa.array([True, False, None]),
    }
).replace_schema_metadata({"huggingface": json.dumps({"info": {}}), "mine": "kept"})
ANSWERS = ["length", "third", "both"]


def write_arrow(path: Path, table: pa.Table, stream: bool = False) -> Path:
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, 2)
    return path


def read_arrow(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return (pa.ipc.open_file if path.read_bytes()[:6] == b"ARROW1" else pa.ipc.open_stream)(file).read_all()


def write_parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=2)
    return path


def read_parquet(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("a.parquet", write_parquet, read_parquet),
        ("a.arrow", write_arrow, read_arrow),
        ("a.feather", write_arrow, read_arrow),
        ("a.ipc", lambda path, table: write_arrow(path, table, stream=True), read_arrow),
    ],
)
def test_arrow_data_keeps_its_types(tmp_path, name, write, read):
    source = write(tmp_path / name, TYPED)
    run(source, tmp_path / f"out_{name}")
    found = read(tmp_path / f"out_{name}")
    assert found.column_names == [*TYPED.column_names, *ANSWERS]
    assert found.schema.metadata[b"mine"] == b"kept"
    for column in TYPED.column_names:
        assert found.schema.field(column).type == TYPED.schema.field(column).type, column
    same = found.select(TYPED.column_names)
    assert str(same.to_pydict()) == str(TYPED.to_pydict())  # NaN is NaN
    assert found.schema.field("third").type == pa.float32()
    assert found["length"].to_pylist() == [3, 23, 2]
    if name != "a.parquet":  # a stream is one again
        assert (tmp_path / f"out_{name}").read_bytes()[:4] == source.read_bytes()[:4]


def lines_of(path: Path) -> list[dict]:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if path.suffix == ".zst":
        raw = pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read()
    return [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]


def compressed(raw: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(raw)
    if suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(raw)
        return sink.getvalue().to_pybytes()
    return raw


ROWS = [
    {"text": "één", "n": 1, "deep": {"a": [1, {"b": None}]}, "big": 2**80},
    {"text": "\u2028 a line separator", "n": 1.5, "x y": "\ud800"},
    {"text": "c", "n": None, "n.a": True},
]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json"])
def test_json_lines_stay_as_they_are(tmp_path, kind, suffix):
    source, out = tmp_path / f"a.{kind}{suffix}", tmp_path / f"b.{kind}{suffix}"
    source.write_bytes(compressed("".join(json.dumps(row) + "\n" for row in ROWS).encode(), suffix))
    run(source, out)
    raw = lines_of(out)
    assert [{name: value for name, value in row.items() if name not in ANSWERS} for row in raw] == ROWS
    assert [list(row)[-3:] for row in raw] == [ANSWERS] * 3
    assert [row["length"] for row in raw] == [3, 18, 1]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_csv_values_stay_texts(tmp_path, kind, delimiter, suffix):
    names = ["text", "zip", "a b", "größe", ""]
    rows = [
        ["één", "007", "1.10", "", "x"],
        ["two\nlines", "1e5", 'say "hi"', "\t,", ""],
        ["\r\n.", "NULL", "nan", "true", " "],
        ["a\rb", "\r", "\x0c", "\x00", "c\r"],
    ]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([names, *rows])
    source, out = tmp_path / f"a.{kind}{suffix}", tmp_path / f"b.{kind}{suffix}"
    source.write_bytes(compressed(text.getvalue().encode(), suffix))
    run(source, out)
    raw = {"": out.read_bytes, ".gz": lambda: gzip.decompress(out.read_bytes())}.get(
        suffix, lambda: pa.CompressedInputStream(pa.OSFile(str(out)), "zstd").read()
    )()
    found = list(csv.reader(io.StringIO(raw.decode(), newline=""), delimiter=delimiter))
    assert found[0] == [*names, *ANSWERS]
    assert [row[: len(names)] for row in found[1:]] == rows
    assert [row[5:] for row in found[1:]] == [[size, f"{int(size) / 3}", f"[{size}, 0]"] for size in ("3", "9", "3", "3")]


def test_numbers_that_json_does_not_have_are_null_there(tmp_path):
    values = [1.5, float("nan"), float("inf"), None]
    table = pa.table({"text": ["a"] * 4, "value": values, "list": [[value] for value in values]})
    pq.write_table(table, tmp_path / "in.parquet")
    for suffix in ("jsonl", "csv"):
        run(tmp_path / "in.parquet", tmp_path / f"out.{suffix}")

    def refuse(name: str) -> None:
        raise ValueError(name)

    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [(row["value"], row["list"]) for row in rows] == [(1.5, [1.5]), (None, [None]), (None, [None]), (None, [None])]
    assert [(row["value"], row["list"]) for row in read_rows(tmp_path / "out.csv")] == [
        ("1.5", "[1.5]"), ("NaN", "[null]"), ("Infinity", "[null]"), ("", "[null]")
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_line_ends_in_values_end_no_row(tmp_path, kind):
    texts = ["a\rb", "a\nb", "a\r\nb", "\r", "a\r", "plain"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run(tmp_path / "in.jsonl", tmp_path / f"out.{kind}")
    assert [row["text"] for row in read_rows(tmp_path / f"out.{kind}")] == texts
    assert b"\r\n" not in (tmp_path / f"out.{kind}").read_bytes().replace(b"a\r\nb", b"")


def test_the_same_content_gives_the_same_bytes(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(50)))
    for form in ("parquet", "arrow", "csv.gz", "jsonl.gz", "jsonl.zst"):
        for name in ("one", "two"):
            run(source, tmp_path / f"{name}.{form}")
        assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"two.{form}").read_bytes()


def test_json_lines_become_a_table_of_one_schema(tmp_path):
    rows = [
        {"text": "a", "n": 1},
        {"n": 2.5, "text": "b", "of": [{"x": None}]},
        {"text": "c", "of": [{"x": 3, "y": "z"}], "no": None},
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(source, tmp_path / "a.parquet")
    found = read_parquet(tmp_path / "a.parquet")
    assert found.column_names == ["text", "n", "of", "no", *ANSWERS]
    assert found["n"].to_pylist() == [1.0, 2.5, None]
    assert found["of"].to_pylist() == [None, [{"x": None, "y": None}], [{"x": 3, "y": "z"}]]


@pytest.mark.parametrize(
    ("values", "line"),
    [([1, 2, "x", 3], 3), ([[1], {"a": 1}], 2), ([1, 2**70], 2), ([True, 1], 2), ([{"a": 1}, {"a": "x"}], 2)],
)
def test_what_fits_no_schema_is_named(tmp_path, values, line):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": "a", "odd one": value}) + "\n" for value in values))
    with pytest.raises(ValueError, match=rf"a.jsonl, line {line}: column 'odd one' holds"):
        run(source, tmp_path / "a.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "csv.gz"])
def test_arrow_data_becomes_lines(tmp_path, form):
    source = write_parquet(tmp_path / "a.parquet", TYPED.drop(["raw"]))
    run(source, tmp_path / f"a.{form}")
    if form == "jsonl":
        (first, _, last) = lines_of(tmp_path / "a.jsonl")
        assert first["at"] == "2026-01-02T03:04:05.000006+00:00"
        assert (first["day"], first["price"], first["tags"], first["meta"]) == (
            "2026-01-02",
            "1.10",
            ["a", None],
            {"a": 1, "b": "x"},
        )
        assert last["größe (a.b)"] is None
        return
    first, second, _ = read_rows(tmp_path / f"a.{form}")
    assert (first["day"], first["price"], first["tags"], first["id"]) == ("2026-01-02", "1.10", '["a", null]', "1")
    assert (first["meta"], first[""], second["id"]) == ('{"a": 1, "b": "x"}', "true", "")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_bytes_are_no_text(tmp_path, form):
    source = write_parquet(tmp_path / "a.parquet", TYPED)
    with pytest.raises(ValueError, match=r"a.parquet: column 'raw' cannot be written as text .*--columns"):
        run(source, tmp_path / f"a.{form}")
    assert not (tmp_path / f"a.{form}").exists()
    (tmp_path / "b").mkdir()
    run(source, tmp_path / "b" / f"a.{form}", columns=("id", "text"))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_half_a_surrogate_pair_is_no_text_there(tmp_path, form):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "a", "odd": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl"):
        run(source, tmp_path / f"a.{form}")


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "jsonl", "jsonl.gz"])
def test_empty_shards_stay_empty(tmp_path, form):
    source = write_parquet(tmp_path / "a.parquet", TYPED.slice(0, 0).drop(["raw"]))
    report = run(source, tmp_path / f"b.{form}")
    assert (report.rows, report.shards) == (0, 1)
    reader = open_reader(tmp_path / f"b.{form}")
    assert list(reader.rows()) == []
    if not form.startswith("jsonl"):
        assert reader.columns() == [*TYPED.drop(["raw"]).column_names, *ANSWERS]
    if form == "parquet":
        assert reader.schema().field("price").type == pa.decimal128(9, 2)


def test_json_lines_without_a_line_have_an_answer_for_none(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    run(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_text() == ""
    run(tmp_path / "a.jsonl", tmp_path / "b.parquet")
    assert read_parquet(tmp_path / "b.parquet").column_names == ANSWERS


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv", "a.tsv", "a.csv.gz", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_without_bytes_may_still_be_being_written(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} has no (bytes|lines).*it may still be being written"):
        run(tmp_path / name, tmp_path / f"out_{name}")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.jsonl.gz", "a.csv.zst"])
def test_files_that_were_cut(tmp_path, name):
    table = pa.table({"text": [f"the text of number {number}" for number in range(3000)]})
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, table)
    elif name.endswith("arrow"):
        write_arrow(path, table, stream=name.startswith("stream"))
    else:
        run(write_parquet(tmp_path / "whole.parquet", table), path)
    whole = path.read_bytes()
    lost = 0
    for share in (0.02, 0.3, 0.7, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"no whole|no IPC stream with its end"):
            run(path, tmp_path / f"out_{name}", prefix="again_")
        lost += 1
        assert not (tmp_path / f"out_{name}").exists()
        assert not list(tmp_path.glob("*.unfinished"))
    assert lost == 4


def test_a_stream_that_was_cut_between_two_batches(tmp_path):
    """Arrow itself would read it as a shorter one."""
    path = write_arrow(tmp_path / "a.arrow", pa.table({"text": ["a", "b", "c", "d"]}), stream=True)
    whole = path.read_bytes()
    with pa.ipc.open_stream(io.BytesIO(whole[:-8])) as stream:
        assert stream.read_all().num_rows == 4
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="no IPC stream with its end"):
        read_rows(path)


def test_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(ValueError, match="column 'text' appears more than once"):
        run(write_arrow(tmp_path / "a.arrow", table), tmp_path / "b.arrow")


def test_kinds_of_text_columns(tmp_path):
    for number, column in enumerate(
        (
            pa.array(["a", "b"], pa.large_string()),
            pa.array(["a", "b"]).dictionary_encode(),
            pa.array(["a", "b"], pa.string_view()),
        )
    ):
        source = write_arrow(tmp_path / f"{number}.arrow", pa.table({"text": column}))
        run(source, tmp_path / f"out_{number}.arrow")
        found = read_arrow(tmp_path / f"out_{number}.arrow")
        assert found["length"].to_pylist() == [1, 1]
        assert found.schema.field("text").type == column.type


def test_many_small_batches_become_large_ones(tmp_path):
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 9000}), source, row_group_size=10)
    run(source, tmp_path / "b.parquet", Lengths(window=4096))
    assert pq.ParquetFile(tmp_path / "b.parquet").num_row_groups == 1


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.parquet", ("parquet", None, ".parquet")), ("a.b.JSONL.GZ", ("jsonl", "gzip", ".JSONL.GZ")),
        ("x.csv.zst", ("csv", "zstd", ".csv.zst")), (".csv", None), ("a.parquet.gz", None), ("a.gz", None), ("csv", None),
        ("a.txt", None), ("a.csv.bz2", None), ("a.gz.csv", ("csv", None, ".csv")),
    ],
)  # fmt: skip
def test_names_tell_formats(name, found):
    form = format_of(Path("some") / name)
    assert (form and (form.kind, form.compression, form.suffix)) == found


def test_formats_by_their_names():
    assert parse_format("csv.gz").compression == "gzip"
    with pytest.raises(ValueError, match="unknown format 'xls'; known: .parquet"):
        parse_format("xls")


def test_concatenated_gz(tmp_path):
    """As `cat a.gz b.gz` makes it."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'))
    assert [row["text"] for row in read_rows(path)] == ["a", "b"]


def test_a_bad_line_in_a_compressed_file_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": \n'))
    with pytest.raises(BadLine, match="a.jsonl.gz, line 2: Expecting"):
        read_rows(path)


def nested(depth: int) -> str:
    return f'{{"text": "a", "x": {"[" * depth}1{"]" * depth}}}\n'


@pytest.mark.parametrize("content", [nested(120), '{"text": "a", "x": {}}\n'], ids=["deep", "empty object"])
def test_what_parquet_cannot_have_is_told_before_a_row_is_answered(tmp_path, content):
    """The first was written, called done, and could not be read."""
    (tmp_path / "a.jsonl").write_text(content)
    answerer = Lengths()
    with pytest.raises(ValueError, match=r"a\.jsonl: columns that parquet cannot have: "):
        run(tmp_path / "a.jsonl", tmp_path / "b.parquet", answerer)
    assert answerer.windows == []
    assert not (tmp_path / "b.parquet").exists()
    run(tmp_path / "a.jsonl", tmp_path / "b.parquet", columns=("text",))

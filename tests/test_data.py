"""Reading rows, normalising inputs, encoding text."""

from __future__ import annotations

import pytest

from geep_triton.data import BadLine, BadSample, Encoder, iter_samples, read_csv, read_json_lines, read_rows


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


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("a b", [("a b", None)]),
        (["a", "b"], [("a", None), ("b", None)]),
        ([("a", "b")], [("a", "b")]),
        ({"text": ["a", "b"]}, [("a", None), ("b", None)]),
        ({"text": ["a"], "text_pair": ["b"]}, [("a", "b")]),
        ({"text": "a", "text_pair": "b"}, [("a", "b")]),
        (iter([{"text": "a", "label": 3}]), [("a", None)]),
        ([{"input_ids": [2, 3]}], [{"input_ids": [2, 3]}]),
        ([], []),
    ],
)
def test_iter_samples(inputs, expected):
    assert list(iter_samples(inputs)) == expected


def test_iter_samples_other_columns():
    rows = [{"premise": "a", "hypothesis": "b"}]
    assert list(iter_samples(rows, "premise", "hypothesis")) == [("a", "b")]


def test_iter_samples_refuses():
    with pytest.raises(ValueError, match="sample 1: missing column 'text'; columns: 'body'"):
        list(iter_samples([{"text": "a"}, {"body": "b"}]))
    with pytest.raises(TypeError, match="sample 0 must be a text"):
        list(iter_samples([3]))
    with pytest.raises(ValueError, match="of one length"):
        list(iter_samples({"text": ["a"], "text_pair": []}))


def test_encoder_equals_the_tokenizer(tokenizer, texts):
    tokens = Encoder(tokenizer, 64)([(text, None) for text in texts])
    expected = tokenizer(texts)["input_ids"]
    rows = [tokens.ids[b:e].tolist() for b, e in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
    assert rows == expected
    assert tokens.type_ids is None
    pairs = Encoder(tokenizer, 64)([(a, b) for a, b in zip(texts, texts[::-1], strict=True)])
    expected = tokenizer(texts, texts[::-1])
    assert pairs.ids.tolist() == [i for row in expected["input_ids"] for i in row]
    assert pairs.type_ids.tolist() == [i for row in expected["token_type_ids"] for i in row]


def test_texts_and_pairs_may_be_mixed(tokenizer):
    samples = [("good film", None), ("bad", "awful soup"), ("very good", None)]
    tokens = Encoder(tokenizer, 64)(samples)
    expected = [tokenizer(text, pair) for text, pair in samples]
    assert tokens.ids.tolist() == [i for row in expected for i in row["input_ids"]]
    assert tokens.type_ids.tolist() == [i for row in expected for i in row["token_type_ids"]]


def test_all_bad_samples_of_a_window_are_told(tokenizer):
    with pytest.raises(BadSample) as caught:
        Encoder(tokenizer, 64)([("", None), ("good", None), ("bad", ""), (3, None)], first=10)
    assert [caught.value.index, *(error.index for error in caught.value.others)] == [10, 12, 13]


def test_padded_batches_equal_the_tokenizers(tokenizer, texts):
    import torch

    tokens = Encoder(tokenizer, 64)([(a, b) for a, b in zip(texts, texts[::-1], strict=True)])
    rows = [3, 0, 5]
    input_ids, mask, type_ids = tokens.padded(torch.tensor(rows), tokenizer.pad_token_id)
    expected = tokenizer([texts[r] for r in rows], [texts[::-1][r] for r in rows], padding=True, return_tensors="pt")
    assert torch.equal(input_ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])
    assert torch.equal(type_ids, expected["token_type_ids"])


def test_truncation_only_when_asked_and_counted(tokenizer):
    samples = [("good", None), ("good " * 30, None), ("bad " * 30, None)]
    with pytest.raises(BadSample, match="sample 11 has 32 tokens, more than the 10 allowed; truncation=True") as caught:
        Encoder(tokenizer, 10)(samples, first=10)
    assert caught.value.index == 11
    tokens = Encoder(tokenizer, 10, truncation=True)(samples)
    assert tokens.lengths.tolist() == [3, 10, 10]
    assert tokens.cut.tolist() == [False, True, True]
    assert tokens.truncated == 2
    assert tokens.ids[-1] == tokenizer.sep_token_id
    pair = Encoder(tokenizer, 10, truncation=True)([("good " * 30, "bad")])
    assert pair.lengths.tolist() == [10]
    assert pair.type_ids.tolist() == [0] * 8 + [1, 1]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("good", None), ("", None)], "sample 1 has an empty text"),
        ([("good", None), (" \n", None)], "sample 1 has an empty text"),
        ([("good", "")], "sample 0 has an empty text_pair"),
        ([("good", None), (None, None)], "sample 1 has a text that is no string: None"),
        ([("good", None), ("\u200b", None)], "sample 1 has a text without any token"),
        ([("good", None), ("bad \ud800", None)], "sample 1 has a text that is no valid Unicode"),
        (
            [{"input_ids": [2, 3]}, {"input_ids": [2, 99, 3]}],
            "sample 1 has token id 99, outside the model's vocabulary of 41",
        ),
        ([{"input_ids": [2, -4]}], "sample 0 has token id -4"),
        ([{"input_ids": [2, 3]}, {"input_ids": []}], "sample 1 has no tokens"),
        ([{"input_ids": [5] * 65}], "sample 0 has 65 tokens, more than the 64 allowed"),
        ([{"input_ids": [2]}, ("good", None)], "mix texts and rows of input_ids"),
        ([{"input_ids": [2, 3], "token_type_ids": [0]}], "sample 0 has 1 token_type_ids for 2 input_ids"),
        ([{"input_ids": [2, 3], "token_type_ids": [0, 7]}], "sample 0 has token_type_ids outside 0..1"),
        ([{"input_ids": [2.5, 3]}], "sample 0 has input_ids that are no integers"),
        ([{"input_ids": [2, 3], "attention_mask": [0, 0]}], "sample 0 has no tokens"),
    ],
)
def test_bad_samples(tokenizer, samples, message):
    with pytest.raises(ValueError, match=message):
        Encoder(tokenizer, 64, vocab_size=41)(samples)


def test_encoder_gives_what_the_tokenizer_gives(minilm):
    """Also after somebody used the tokenizer with padding and truncation, which it remembers."""
    _, tokenizer = minilm
    singles = ["A film about rain.", "[MASK] no [SEP] 42", "naïve  Ünïcode 電影", "x" * 300]
    pairs = [(text, f"and {text}") for text in singles]
    tokenizer(singles, padding="max_length", truncation=True, max_length=4)
    for samples in (singles, pairs):
        tokens = Encoder(tokenizer, 512)(list(iter_samples(samples, "text", "text_pair")))
        expected = tokenizer(singles, [pair for _, pair in pairs] if samples is pairs else None)
        assert [row.tolist() for row in tokens.ids.split(tokens.lengths.tolist())] == expected["input_ids"]
        if samples is pairs:
            assert [row.tolist() for row in tokens.type_ids.split(tokens.lengths.tolist())] == expected["token_type_ids"]

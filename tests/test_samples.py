"""Normalising inputs, encoding text."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.checks import BadSample, LongSample
from geep_triton.engine.checks import as_list
from geep_triton.engine.groups import BadGroup
from geep_triton.files.json_lines import BadLine
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.samples import iter_samples
from geep_triton.training.dataset import TextDataset


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
        ({"text": "a", "label": 3}, [("a", None)]),
        ({"text": "ab", "text_pair": None, "label": ["x", "y"]}, [("ab", None)]),
        (("a", "b", "c"), [("a", None), ("b", None), ("c", None)]),
        ({"input_ids": [2, 3], "label": 1}, [{"input_ids": [2, 3], "label": 1}]),
        (np.array(["a", "b"]), [("a", None), ("b", None)]),
    ],
)
def test_iter_samples(inputs, expected):
    assert list(iter_samples(inputs)) == expected


def test_iter_samples_other_columns():
    rows = [{"premise": "a", "hypothesis": "b"}]
    assert list(iter_samples(rows, ("premise", "hypothesis"))) == [("a", "b")]


def test_iter_samples_refuses():
    with pytest.raises(ValueError, match="sample 1: missing column 'text'; columns: 'body'"):
        list(iter_samples([{"text": "a"}, {"body": "b"}]))
    with pytest.raises(TypeError, match="sample 0 must be a text"):
        list(iter_samples([3]))
    with pytest.raises(ValueError, match="of one length"):
        list(iter_samples({"text": ["a"], "text_pair": []}))


@pytest.mark.parametrize("inputs", [("a", "b"), ("a", None)])
def test_a_bare_pair_is_asked_which_it_is(inputs):
    for read in (lambda: list(iter_samples(inputs)), lambda: as_list(inputs)):
        with pytest.raises(
            TypeError, match=r"one pair or two texts, got \('a', .*pass \[\(text, pair\)\] for a pair, \[text, text\]"
        ):
            read()


@pytest.mark.parametrize("inputs", [5, None, b"ab", {"a", "b"}, frozenset("a"), np.array("a"), torch.tensor(3)])
def test_what_holds_no_texts_in_order(inputs):
    with pytest.raises(TypeError, match="inputs must be a text, a list or another ordered iterable of texts"):
        list(iter_samples(inputs))


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"text": ["a", "b"], "text_pair": "xy"}, "text_pair"),
        ({"text": ["a"], "label": 3}, "label"),
        ({"text": None}, "text"),
        ({"body": "a"}, "body"),
        ({"text": {"a", "b"}}, "text"),
        ({"text": {0: "a"}}, "text"),
        ({"text": b"ab"}, "text"),
        ({"text": ["a"], "label": np.array(3)}, "label"),
        ({"input_ids": [[2, 3]], "label": 1}, "label"),
    ],
)
def test_a_value_is_no_column(columns, name):
    with pytest.raises(TypeError, match=rf"column '{name}' must be a list or an array .* pass a single row as \[row\]"):
        list(iter_samples(columns))


def test_one_row_with_columns_of_other_names():
    assert list(iter_samples({"body": "ab", "more": "cd", "label": 1}, ("body", "more"))) == [("ab", "cd")]


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
        ([("good", None), (None, None)], "sample 1 has a text that is not a string: None"),
        ([("good", None), ("\u200b", None)], "sample 1 has a text without any token"),
        ([("good", None), ("bad \ud800", None)], "sample 1 has a text that is not valid Unicode"),
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
        ([{"input_ids": [2.5, 3]}], "sample 0 has input_ids that are not integers"),
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
        tokens = Encoder(tokenizer, 512)(list(iter_samples(samples)))
        expected = tokenizer(singles, [pair for _, pair in pairs] if samples is pairs else None)
        assert [row.tolist() for row in tokens.ids.split(tokens.lengths.tolist())] == expected["input_ids"]
        if samples is pairs:
            assert [row.tolist() for row in tokens.type_ids.split(tokens.lengths.tolist())] == expected["token_type_ids"]


PADDED = {
    "at the end": [[2, 13, 3], [2, 13, 3, 0, 0]],
    "at the start": [[2, 13, 3], [0, 2, 13, 3]],
    "a row of nothing else": [[2, 13, 3], [0]],
}


@pytest.mark.parametrize("ids", PADDED.values(), ids=PADDED)
@pytest.mark.parametrize("prefetch", [False, True])
def test_padding_without_a_mask_is_told_once_a_call(model, tokenizer, ids, prefetch):
    engine = Engine(model, tokenizer, "full", window=2, prefetch=prefetch)
    calls = {
        "columns": lambda: engine.predict({"input_ids": ids * 3}),
        "rows": lambda: engine.predict([{"input_ids": row} for row in ids * 3]),
        "every exit": lambda: engine.every_exit([{"input_ids": torch.tensor(row)} for row in ids * 3]),
        "some masks": lambda: engine.predict([{"input_ids": ids[0], "attention_mask": [1, 1, 1]}, {"input_ids": ids[1]}]),
        "table": lambda: build_exit_table(model, tokenizer, {"input_ids": ids * 3}, 0.5, progress=False),
        "training": lambda: TextDataset([{"input_ids": row} for row in ids * 3], Encoder(tokenizer, 64), None, window=2),
    }
    for name, call in calls.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        told = [str(warning.message) for warning in caught]
        assert len(told) == 1, name
        assert caught[0].filename == __file__, name
        assert told[0].startswith("sample 1 has input_ids that begin or end with the padding token (0), and no attention_mask")


def test_what_is_no_padding_is_not_told(model, tokenizer):
    inputs = [
        {"input_ids": [[2, 13, 3, 0], [2, 13, 13, 3]], "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]]},
        {"input_ids": [[2, 0, 3], [2, 13, 3]]},
        ["good [PAD]"],
    ]
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.sep_token
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for rows in inputs:
            Engine(model, tokenizer, "full").predict(rows)
        Engine(model, other, "full").predict([{"input_ids": [2, 13, 3]}])
    assert [str(warning.message) for warning in caught] == []


def test_padding_without_a_mask_given_to_the_model(make_model, monkeypatch):
    said = []  # transformers says it once a process
    monkeypatch.setattr("transformers.modeling_utils.logger.warning_once", said.append)
    ids = torch.tensor([[2, 13, 3, 0, 0], [2, 13, 13, 13, 3]])
    make_model(pad_token_id=0)(ids, attention_mask=(ids != 0).long())
    assert not said
    make_model(pad_token_id=0)(ids)
    assert "strongly recommend passing in an `attention_mask`" in said[0]


def test_one_sample_as_a_tuple_of_ids(model, tokenizer):
    engine = Engine(model, tokenizer)
    torch.testing.assert_close(
        engine.predict({"input_ids": (2, 13, 3)}).logits, engine.predict({"input_ids": [2, 13, 3]}).logits
    )


@pytest.mark.parametrize(
    "error",
    [
        BadSample(3, "is empty", [BadSample(4, "is empty")]),
        LongSample(3, "is long"),
        BadGroup(3, 4, "is empty"),
        BadLine("in.csv", 3, "has 2 values"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_reach_other_processes(error):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert [str(value) for value in vars(found).values()] == [str(value) for value in vars(error).values()]

"""Rows of token ids: every container gives the same tokens and the same errors."""

from __future__ import annotations

from collections import deque

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.ops import encode
from geep_triton.checks import BadSample
from geep_triton.tokens import rows as token_rows
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.samples import iter_samples

NAMES = ("input_ids", "token_type_ids", "attention_mask")
NUMPY_TYPES = (np.int64, np.int32, np.int16, np.uint8, np.uint64, np.dtype(">i4"))
TORCH_TYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint64)


def rows_of(columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def each(make, columns):
    """Columns with every row made into something else."""
    return {name: [make(row) for row in column] for name, column in columns.items()}


def object_array(rows):
    made = np.empty(len(rows), object)
    made[:] = rows
    return made


def containers(columns):
    """Columns of lists of numbers, in all that may hold them."""
    table = pa.table(columns)
    dataset = datasets.Dataset.from_dict(columns)
    arrow = {name: table.column(name).combine_chunks() for name in columns}
    held = {
        "lists": columns,
        "rows": rows_of(columns),
        "generator": iter(rows_of(columns)),
        "tuples": each(tuple, columns),
        "deque": {name: deque(column) for name, column in columns.items()},
        "arrays": each(np.array, columns),
        "tensors": each(torch.tensor, columns),
        "rows of arrays": rows_of(each(np.array, columns)),
        "rows of tensors": rows_of(each(torch.tensor, columns)),
        "lists of numpy's numbers": each(lambda row: list(np.array(row)), columns),
        "object arrays": {name: object_array(list(map(np.array, column))) for name, column in columns.items()},
        "one kind for each row": each(lambda row: np.array(row) if len(row) % 2 else row, columns),
        "table": table,
        "sliced table": pa.concat_tables([table, table]).slice(table.num_rows),
        "batch": table.to_batches()[0],
        "large lists": {name: column.cast(pa.large_list(column.type.value_type)) for name, column in arrow.items()},
        "chunked": {name: pa.chunked_array([column[:2], column[2:]]) for name, column in arrow.items()},
        **{f"dataset, {kind}": dataset.with_format(kind) for kind in (None, "numpy", "torch", "arrow")},
        "selected dataset": datasets.concatenate_datasets([dataset, dataset]).select(range(len(dataset), 2 * len(dataset))),
        "transformed dataset": dataset.with_transform(lambda batch: batch),
    }  # fmt: skip
    if len({len(row) for column in columns.values() for row in column}) == 1:
        held["2-D array"] = {name: np.array(column) for name, column in columns.items()}
        held["2-D tensor"] = {name: torch.tensor(column) for name, column in columns.items()}
        held["transposed"] = {name: torch.tensor(column).T.contiguous().T for name, column in columns.items()}
        size = len(columns["input_ids"][0])
        held["fixed size lists"] = {
            name: column.cast(pa.list_(column.type.value_type, size)) for name, column in arrow.items()
        }  # fmt: skip
    return held


def encode_windows(inputs, window=3, **options):
    """(ids, segment ids) of every sample, and the error if there is one, read in windows as the engine reads."""
    encoder, samples, found = Encoder(None, **{"max_length": 8, "vocab_size": 1000} | options), list(iter_samples(inputs)), []
    for first in range(0, len(samples), window):
        tokens = encoder(samples[first : first + window], first)
        assert tokens.ids.dtype == tokens.offsets.dtype == torch.int64
        types = torch.zeros_like(tokens.ids) if tokens.type_ids is None else tokens.type_ids
        assert tokens.type_ids is None or tokens.type_ids.any()
        lengths = tokens.lengths.tolist()
        found += [(i.tolist(), t.tolist()) for i, t in zip(tokens.ids.split(lengths), types.split(lengths), strict=True)]
    return found


@st.composite
def samples(draw):
    """Columns, with segment ids and masks or without, of one length or several, each sample with a token that is not masked."""
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=7))
    if draw(st.booleans()):
        lengths = [lengths[0]] * len(lengths)
    ids = draw(st.sampled_from([200, 999]))
    columns = {"input_ids": [draw(st.lists(st.integers(0, ids), min_size=n, max_size=n)) for n in lengths]}
    for name in NAMES[1:]:
        if draw(st.booleans()):
            columns[name] = [draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for n in lengths]
    for row in columns.get("attention_mask", ()):
        row[draw(st.integers(0, len(row) - 1))] = 1
    return columns


def expected(columns):
    """By a loop, one value at a time."""
    zeros = [[0] * len(row) for row in columns["input_ids"]]
    masks = columns.get("attention_mask", [[1] * len(row) for row in zeros])
    rows = zip(columns["input_ids"], columns.get("token_type_ids", zeros), masks, strict=True)
    return [([i for i, r in zip(ids, mask) if r], [t for t, r in zip(types, mask) if r]) for ids, types, mask in rows]  # noqa: B905


@settings(max_examples=40, deadline=None)
@given(samples())
def test_every_container_gives_the_same_tokens(columns):
    for name, inputs in containers(columns).items():
        assert encode_windows(inputs) == expected(columns), name


@pytest.mark.parametrize("dtype", [*NUMPY_TYPES, *TORCH_TYPES], ids=str)
def test_every_integer_dtype(dtype):
    columns = {
        "input_ids": [[2, 99, 3], [2, 3, 0]],
        "token_type_ids": [[0, 0, 1], [0, 0, 1]],
        "attention_mask": [[1, 1, 1], [0, 1, 0]],
    }
    make, truth = (torch.tensor, torch.bool) if isinstance(dtype, torch.dtype) else (np.array, bool)
    for mask in (dtype, truth):
        made = {name: make(of, dtype=mask if name == "attention_mask" else dtype) for name, of in columns.items()}
        assert encode_windows(made) == encode_windows(rows_of(made)) == expected(columns)


BAD = {
    "float": ({"input_ids": [[2, 3], [2.5, 3.0], [2, 3]]}, {1: "has input_ids that are not integers: [2.5, 3.0]"}),
    "NaN": ({"input_ids": [[2, 3], [float("nan"), 3.0]]}, {1: "has input_ids that are not integers: [nan, 3.0]"}),
    "no tokens": ({"input_ids": [[2, 3], [], [2], []]}, {1: "has no tokens", 3: "has no tokens"}),
    "too long": (
        {"input_ids": [[2] * 9, [2, 3]]},
        {0: "has 9 tokens, more than the 8 allowed; truncation=True cuts such samples"},
    ),
    "masked away": (
        {"input_ids": [[2, 3], [2, 3]], "attention_mask": [[1, 0], [0, 0]]},
        {1: "has no tokens"},
    ),
    "fewer segment ids": (
        {"input_ids": [[2, 3], [2, 3]], "token_type_ids": [[0, 0], [0]]},
        {1: "has 1 token_type_ids for 2 input_ids"},
    ),
    "longer mask": (
        {"input_ids": [[2, 3], [2, 3]], "attention_mask": [[1, 1], [1, 1, 1]]},
        {1: "has 3 attention_mask for 2 input_ids"},
    ),
    "segment": (
        {"input_ids": [[2, 3], [2, 3]], "token_type_ids": [[0, 7], [0, -1]]},
        {0: "has token_type_ids outside 0..1: [0, 7]", 1: "has token_type_ids outside 0..1: [0, -1]"},
    ),
    "vocabulary": (
        {"input_ids": [[2, 3], [2, 1000], [-4, 3]]},
        {
            1: "has token id 1000, outside the model's vocabulary of 1000: is this the model's own tokenizer?",
            2: "has token id -4, outside the model's vocabulary of 1000: is this the model's own tokenizer?",
        },
    ),
}


def refusal(inputs, **options):
    with pytest.raises(BadSample) as caught:
        encode_windows(inputs, window=100, **options)
    return {error.index: error.reason for error in (caught.value, *caught.value.others)}


@pytest.mark.parametrize("name", BAD)
def test_every_container_gives_the_same_errors(name):
    columns, reasons = BAD[name]
    for kind, inputs in containers(columns).items():
        found = refusal(inputs)
        if kind == "lists of numpy's numbers" and name in ("float", "NaN"):  # numpy writes them in its own way
            assert found.keys() == reasons.keys()
        elif name in ("float", "NaN"):  # what is of one dtype has floats in every row
            assert reasons.items() <= found.items(), kind
        else:
            assert found == reasons, kind


@pytest.mark.parametrize(
    "values",
    [["a", "b"], [None, 2], [2, None], [1j, 2], [2.0, 3.0], [300, 2.0], [float("inf"), 2], [[2], [3]], [b"a", 2], [{}, 2]],
    ids=str,
)
def test_values_that_are_no_integers(values):
    row = {1: f"has input_ids that are not integers: {values}"}
    assert refusal({"input_ids": [[2, 3], values]}) == refusal([{"input_ids": [2, 3]}, {"input_ids": values}]) == row
    assert refusal([{"input_ids": [2, 3]}, {"input_ids": np.array(values, object)}]) == row
    mask = refusal({"input_ids": [[2, 3]], "attention_mask": [values]})
    assert mask == {0: f"has attention_mask that are not integers: {values}"}


@pytest.mark.parametrize(
    "column",
    [
        torch.tensor([[2.0, 3.0]]), torch.tensor([[2j, 3.0]]), torch.tensor([[2.0, 3.0]], dtype=torch.bfloat16),
        np.array([[2.0, 3.0]]), np.array([["a", "b"]]), np.array([[2, 3]], "datetime64[s]"), np.array([[[2], [3]]]),
        np.ma.masked_array([[2, 3]], [[False, True]]), pa.array([[2.0, 3.0]]), pa.array([["a", "b"]]), pa.array([[2, None]]),
        pa.array([[[2], [3]]]),
    ],
    ids=str,
)  # fmt: skip
def test_dtypes_that_are_no_integers(column):
    assert refusal({"input_ids": column})[0].startswith("has input_ids that are not integers: [")
    wrong = refusal({"input_ids": [[2, 3]], "attention_mask": column})
    assert wrong[0].startswith("has attention_mask that are not integers: [")


@pytest.mark.parametrize("column", [[None, [2]], pa.array([None, [2]]), [5, [2]], np.array([5, None], object)], ids=str)
def test_rows_that_are_no_lists(column):
    assert refusal({"input_ids": column, "label": [0, 1]} if column[0] != 5 else rows_of({"input_ids": column}))[0].startswith(
        "has input_ids that are not a list of integers: "
    )


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, -(2**63) - 1, 2**70])
def test_ids_beyond_64_bits(value):
    reason = {1: f"has input_ids beyond 64 bits: [{value}, 3]"}
    assert refusal({"input_ids": [[2, 3], [value, 3]]}) == reason
    if 0 < value < 2**64:
        assert refusal({"input_ids": np.array([[2, 3], [value, 3]], np.uint64)}) == reason


def test_rows_with_and_without_masks_and_texts_of_arrow():
    rows = [
        {"input_ids": [2, 3]},
        {"input_ids": torch.tensor([2, 9, 3]), "attention_mask": [0, 1, 1]},
        {"input_ids": np.array([4])},
    ]
    assert [ids for ids, _ in encode_windows(rows)] == [[2, 3], [9, 3], [4]]
    assert list(iter_samples(pa.table({"text": ["a", "b"], "text_pair": ["c", None]}))) == [("a", "c"), ("b", None)]


@pytest.mark.parametrize("ids", [[2, 5, 3], np.array([2, 5, 3]), torch.tensor([2, 5, 3])], ids=repr)
def test_one_sample(ids):
    assert encode_windows({"input_ids": ids}) == [([2, 5, 3], [0, 0, 0])]


def test_what_a_tokenizer_returns(tokenizer, texts):
    lists = tokenizer(texts, texts[::-1])
    for options in ({}, {"padding": True, "return_tensors": "pt"}, {"padding": True, "return_tensors": "np"}):
        found = encode_windows(tokenizer(texts, texts[::-1], **options), max_length=64)
        assert found == list(zip(lists["input_ids"], lists["token_type_ids"], strict=True))


def test_a_table_of_a_million_rows_is_read_a_window_at_a_time(monkeypatch):
    """No slice is longer than a window, and nothing is made a list."""
    asked = []

    class Watched:
        def __len__(self):
            return 1_000_000

        def __getitem__(self, rows):
            asked.append(rows)
            return torch.full((len(range(*rows.indices(len(self)))), 4), 7)

    monkeypatch.setattr(token_rows, "_one_by_one", None)
    samples = iter_samples({"input_ids": Watched()})
    window = [next(samples) for _ in range(5)]
    assert [ids for ids, _ in encode_windows(window, window=5)] == [[7] * 4] * 5
    assert asked == [slice(None, 0), slice(0, 5)]
    assert window[3]["input_ids"].tolist() == [7] * 4
    assert dict(window[3]).keys() == {"input_ids"}


def test_tokens_are_no_view_of_the_users_tensor():
    ids = torch.tensor([[2, 5, 3]])
    tokens = Encoder(None, 8)(list(iter_samples({"input_ids": ids})))
    ids.zero_()
    assert tokens.ids.tolist() == [2, 5, 3]


def test_a_devices_tensor_is_copied_once_for_a_window(monkeypatch):
    """A device is stood in for by counting `cpu`."""
    copies, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (copies.append(tensor.shape), cpu(tensor))[1])
    ids = torch.arange(24).view(6, 4)
    encode_windows({"input_ids": ids}, window=6)
    encode_windows([{"input_ids": row} for row in ids], window=6)
    assert copies == [(6, 4), (24,)]


def test_the_benchmark_runs():
    found = encode.measure(rounds=1, samples=8, length=16)
    assert next(iter(found)).startswith("NumPy")
    assert len(found) == 1 + len(encode.containers(8, 16))
    assert all(taken > 0 for taken in found.values())

"""The exit table's file: whatever is wrong with it is one ValueError, never an answer."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.files import TABLE_FILE
from geep_triton.table.records import ExitRecords, TableSettings
from geep_triton.tokens.ragged import Tokens

DATA = Path(__file__).parent / "data"
SEED = 0  # of the places and bits that are flipped
FLIPS = (250, 60)  # in the header, in the tensors


@pytest.fixture(scope="module")
def table() -> ExitTable:
    """With everything that a table can have."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 40, (60, 7), generator=generator).tolist()
    records = ExitRecords(
        Tokens.from_lists(ids, [[0] * 4 + [1] * 3] * 60),
        torch.rand(60, 3, generator=generator),
        torch.rand(60, 3, generator=generator) > 0.5,
        torch.rand(60, 4, generator=generator) > 0.5,
    )
    made = ExitTable.from_records(records, (1, 2, 4), TableSettings(0.3), 40, "f", (0, 2, 3))
    learned = made.learn("agreement", epochs=1).learn("exits", epochs=1).learn("skips", epochs=1)
    return replace(learned, save_records=True)


def rewrite(path, change, with_digest=False):
    """Apply `change(header, tensors)` to a table's file; without a digest, as in a file of an earlier version."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["table"])
    change(header, tensors)
    metadata["table"] = json.dumps(header)
    if not with_digest:
        del metadata["digest"]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def put(name, index, value):
    return lambda header, tensors: tensors[name].__setitem__(index, value)


NAN = float("nan")
DAMAGE = {
    **{f"no {name}": (lambda h, t, name=name: h.pop(name)) for name in ("exit_layers", "criterion", "vocab_size", "settings")},
    **{f"no {name}": (lambda h, t, name=name: h.pop(name)) for name in ("fingerprint", "special_ids")},
    **{
        f"{name} none": (lambda h, t, name=name: h.update({name: None}))
        for name in ("exit_layers", "criterion", "vocab_size", "settings", "fingerprint", "special_ids", "weights")
    },
    "another field": lambda h, t: h.update(more=1),
    "another setting": lambda h, t: h["settings"].update(more=1),
    "a setting less": lambda h, t: h["settings"].pop("ngram"),
    **{
        f"ngram {n}": (lambda h, t, n=n: h["settings"].update(ngram=n)) for n in (0, -1, 17, 50, 10**7, 10**12, 2.0, "2", None)
    },
    **{f"smoothing {n}": (lambda h, t, n=n: h["settings"].update(smoothing=n)) for n in (-1, NAN, float("inf"), "1")},
    **{f"threshold {n}": (lambda h, t, n=n: h["settings"].update(threshold=n)) for n in (-1, NAN, 2, None)},
    "reduction": lambda h, t: h["settings"].update(reduction="sum"),
    **{f"special_ids {n}": (lambda h, t, n=n: h.update(special_ids=n)) for n in ([40], [-1], [2.5], ["x"], [2**63], 3, [[1]])},
    **{
        f"exit_layers {n}": (lambda h, t, n=n: h.update(exit_layers=n))
        for n in ([], [1, 2], [1, 4, 2], [1, 1, 4], [0, 1, 4], [1, 2, 2**40], [1, 2, "4"], "124", {"1": 2})
    },
    **{f"vocab_size {n}": (lambda h, t, n=n: h.update(vocab_size=n)) for n in (0, 10, 2**40, 40.0, True)},
    "criterion": lambda h, t: h.update(criterion="luck"),
    "criterion list": lambda h, t: h.update(criterion=["entropy"]),
    "fingerprint": lambda h, t: h.update(fingerprint=7),
    **{
        f"{name} missing": (lambda h, t, name=name: t.pop(name))
        for name in (
            "keys", "counts", "exit_counts", "records.ids", "records.offsets", "records.uncertainty", "paths",
            "agreement.weights", "agreement.length_bias", "exit_values.held_out", "skip_values.held_out_targets",
            "skip_values.weights",
        )
    },
    **{
        f"{name} of another dtype": (lambda h, t, name=name: t.update({name: t[name].to(torch.float16)}))
        for name in (
            "keys", "counts", "exit_counts", "records.ids", "records.offsets", "records.uncertainty", "records.agrees", "paths",
            "records.skipped", "records.type_ids", "agreement.weights", "agreement.held_out_targets", "exit_values.length_bias",
            "text_hashes",
        )
    },
    **{
        f"{name} a row short": (lambda h, t, name=name: t.update({name: t[name][1:]}))
        for name in (
            "keys", "counts", "exit_counts", "records.ids", "records.offsets", "records.uncertainty", "records.agrees",
            "records.skipped", "records.type_ids", "agreement.weights", "agreement.length_bias", "agreement.held_out",
            "text_hashes",
        )
    },
    **{
        f"{name} a scalar": (lambda h, t, name=name: t.update({name: t[name].flatten()[0]}))
        for name in ("keys", "counts", "records.offsets", "agreement.held_out", "paths")
    },
    **{
        f"{name} {value}": put(name, 0, value)
        for name in ("agreement.weights", "agreement.length_bias", "exit_values.held_out", "skip_values.weights")
        for value in (NAN, float("inf"), 3e38)
    },
    "one NaN": put("exit_values.weights", (-1, -1), NAN),
    "uncertainty NaN": put("records.uncertainty", 0, NAN),
    **{f"counts {n}": put("counts", 3, n) for n in (-1, 0, 2**63 - 1)},
    **{f"exit_counts {n}": put("exit_counts", slice(None), n) for n in (-1, 0, 1, 2**63 - 1)},
    "an empty key": put("keys", 0, -(2**63)),
    "a key beyond the vocabulary": put("keys", -1, 40),
    "keys not ascending": put("keys", 0, 5),
    "hashes not ascending": put("text_hashes", 0, 2**63 - 1),
    "ids beyond the vocabulary": put("records.ids", 0, 40),
    "ids below 0": put("records.ids", 0, -1),
    "segments below 0": put("records.type_ids", 0, -1),
    "offsets that fall": put("records.offsets", 2, 2**40),
    "offsets that fall out of int64": put("records.offsets", slice(1, 4), torch.tensor([2**63 - 1, -(2**63), -1])),
    "offsets beyond": put("records.offsets", -1, 2**40),
    "no paths": lambda h, t: t.update(paths=t["paths"][:0]),
    "an unknown tensor": lambda h, t: t.update(more=torch.zeros(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_every_damage_is_refused(table, tmp_path, name):
    table.save_pretrained(tmp_path)
    rewrite(tmp_path / TABLE_FILE, DAMAGE[name])
    with pytest.raises(ValueError, match="damaged exit table"):
        ExitTable.load(tmp_path)


def test_a_file_of_an_earlier_version_loads(table, tmp_path):
    table.save_pretrained(tmp_path)
    rewrite(tmp_path / TABLE_FILE, lambda h, t: None)
    assert ExitTable.load(tmp_path).digest() == table.digest()


def test_a_file_of_version_0_1_loads_and_is_the_same_table(tmp_path):
    """With the digest that models saved beside it hold, whatever its parts are called now."""
    table = ExitTable.load(DATA / "exit_table_0_1.safetensors")
    assert table.digest() == "bfb627d475eddfc8"
    assert replace(table, learned={}).digest() == "11a0a26f766edb48"
    assert set(table.learned) == {"agreement", "exits", "skips"}
    assert [values.weights[0, 0].item() for values in table.learned.values()] == [0.0, 1.0, 2.0]
    assert table.learned["skips"].weights.shape == (3, 4)
    assert table.learned["skips"].paths.tolist() == [[False, True, False, False], [False] * 4]
    assert table.learned["agreement"].paths is None
    assert table.records.tokens.ids.tolist() == [2, 5, 6, 3, 2, 6, 3]
    table.save_pretrained(tmp_path)
    assert ExitTable.load(tmp_path).digest() == table.digest()


@pytest.mark.parametrize(
    "change",
    [
        put("counts", (0, 0), 99),
        put("agreement.weights", (0, 0), 0.25),
        put("records.uncertainty", (0, 0), 0.125),
        put("text_hashes", 0, -(2**63)),
        lambda h, t: t.pop("text_hashes"),
        lambda h, t: h["settings"].update(smoothing=1e308),
        lambda h, t: h["settings"].update(ngram=3),
        lambda h, t: h.update(fingerprint="g"),
        lambda h, t: h.update(special_ids=[0, 2]),
        lambda h, t: h.update(weights="0"),
        lambda h, t: [t.pop(name) for name in list(t) if name.startswith("records.")],
    ],
)
def test_changes_that_could_be_right_are_refused_by_the_digest(table, tmp_path, change):
    table.save_pretrained(tmp_path)
    rewrite(tmp_path / TABLE_FILE, change, with_digest=True)
    with pytest.raises(ValueError, match="not the saved ones: their digest differs"):
        ExitTable.load(tmp_path)


@pytest.mark.parametrize("metadata", [None, "", "{", "[]", "7", "null", "[" * 100_000, '{"exit_layers": NaN}'])
def test_headers_that_are_none(table, tmp_path, metadata):
    header = {"format": "geep_triton.exit_table.1"} | ({} if metadata is None else {"table": metadata})
    save_file({"keys": torch.zeros(1)}, tmp_path / TABLE_FILE, metadata=header)
    with pytest.raises(ValueError, match="damaged exit table"):
        ExitTable.load(tmp_path)


def test_flipped_and_missing_bytes_anywhere(table, tmp_path):
    """Of header and tensors: refused, or, where JSON has room for it, of no effect."""
    table.save_pretrained(tmp_path)
    path = tmp_path / TABLE_FILE
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(SEED)
    in_header, in_tensors = FLIPS
    places = [*generator.sample(range(8, header), in_header), *generator.sample(range(header, len(whole)), in_tensors)]
    places = [*range(8), *places]
    refused = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            found = ExitTable.load(tmp_path)
        except ValueError:
            refused += 1
        else:
            assert found.digest() == table.digest()
    assert refused > len(places) - 5
    for length in (0, 1, 8, 100, header - 1, header, header + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=TABLE_FILE):
            ExitTable.load(tmp_path)


def test_a_git_lfs_pointer(tmp_path):
    (tmp_path / TABLE_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="a git LFS pointer.*run 'git lfs pull'"):
        ExitTable.load(tmp_path)


@pytest.mark.parametrize("policy", ["predicted", "predicted:mean", "predicted:0.9,values=learned", "allocated:0.02"])
def test_nan_in_a_table_in_memory_sends_no_text_out(model, tokenizer, many, tmp_path, policy):
    table = build_exit_table(model, tokenizer, many, 0.8, learn=("agreement", "exits"), progress=False)
    nan = table.learned["agreement"].weights.clone()
    nan[3] = NAN
    counts = table.exit_counts.double() * NAN
    learned = {name: replace(values, weights=nan) for name, values in table.learned.items()}
    broken = replace(table, exit_counts=counts, learned=learned)
    model.exit_table = broken
    with pytest.raises(ValueError, match="exit_table: its scores .* are NaN or infinite"):
        Engine(model, tokenizer, policy).predict(many[:5])
    with pytest.raises(ValueError, match="must be int64"):
        broken.save_pretrained(tmp_path)


def test_orders_of_ngrams_that_would_take_all_memory():
    with pytest.raises(ValueError, match="ngram must be between 1 and 16, got 1000000000000"):
        TableSettings(0.3, ngram=10**12)
    with pytest.raises(ValueError, match="ngram must be between 1 and 16, got 17"):
        ngram_keys(torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([False]), 17)


def test_a_resized_vocabulary_drops_table_and_calibration(calibrated, tokenizer, texts, tmp_path, caplog):
    engine, _ = calibrated
    model = engine.model
    model.resize_token_embeddings()  # asks only
    assert model.exit_table is not None
    model.resize_token_embeddings(50)
    assert model.exit_table is model.exit_config.calibration is model.exit_config.policy is None
    assert "exit table is dropped: it was built for a vocabulary of 42, but the model now has 50" in caplog.text
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert MultiExitBert.from_pretrained(tmp_path).config.vocab_size == 50
    assert len(Engine.from_pretrained(tmp_path).predict(texts)) == len(texts)


def test_embeddings_resized_below_the_model(model, tokenizer, many, tmp_path, caplog):
    model.exit_table = build_exit_table(model, tokenizer, many, 0.8, progress=False)
    model.bert.resize_token_embeddings(50)
    model.save_pretrained(tmp_path)
    assert "exit table is dropped" in caplog.text
    assert MultiExitBert.from_pretrained(tmp_path).exit_table is None
    model.config.vocab_size = 49
    with pytest.raises(ValueError, match=r"config.vocab_size must be 50, as the weights have it, got 49"):
        model.save_pretrained(tmp_path)


def test_ids_that_a_table_cannot_have():
    records = ExitRecords(Tokens.from_lists([[1, 40]]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"records.tokens must be ids between 0 and 39, got 1\.\.40"):
        ExitTable.from_records(records, (1, 2, 4), TableSettings(0.3), 40, "f", ())
    with pytest.raises(ValueError, match="special_ids must be ids between 0 and 40"):
        ExitTable.from_records(records, (1, 2, 4), TableSettings(0.3), 41, "f", (41,))

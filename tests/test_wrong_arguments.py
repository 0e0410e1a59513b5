"""Arguments that are wrong are refused by name before torch or Python stumbles over them; `bench.faults` tries many more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geep_triton import Engine, MultiExitBertConfig, audit, build_exit_table
from geep_triton.exit_config import ExitConfig
from geep_triton.files.rows import read_rows
from geep_triton.ops.hash_table import HashTable, insert_add
from geep_triton.ops.predict_exits import predict_exits
from geep_triton.policies.leave import Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import FirstExit
from geep_triton.promises.temperatures import expected_calibration_error, fit_temperatures
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.difficulty import difficulty_column
from geep_triton.training.recipes import get_recipe

IDS = torch.tensor([[2, 5, 3], [2, 6, 3]])
KEYS = torch.tensor([0, 1])
LOGITS, LABELS, EXITS = torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), torch.randn(4, 2, 2)
LAYERS = torch.tensor([1, 2, 1, 2])
ROWS = [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": [[2, 5]]}, TypeError, "input_ids must be a Tensor, got"),
        ({"input_ids": IDS.float()}, TypeError, r"input_ids must be int64 or int32, got torch\.float32"),
        (
            {"attention_mask": torch.ones(2, 4)},
            ValueError,
            r"attention_mask must have shape \(2, 3\), as input_ids, got \(2, 4\)",
        ),
        ({"attention_mask": "x"}, TypeError, "attention_mask must be a Tensor"),
        ({"token_type_ids": torch.full((2, 3), 2)}, ValueError, r"token_type_ids must be between 0 and 1, got 2\.\.2"),
        ({"token_type_ids": torch.zeros(2, 3)}, TypeError, "token_type_ids must be int64 or int32"),
        ({"labels": torch.tensor([0])}, ValueError, r"labels must be one per sample \(2\), got shape \(1,\)"),
        ({"labels": "x"}, TypeError, "labels must be a Tensor"),
    ],
)
def test_forward(model, change, error, message):
    with pytest.raises(error, match=message):
        model(**({"input_ids": IDS} | change))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, t: Engine(m, None), TypeError, "tokenizer must be a PreTrainedTokenizerBase, got None"),
        (lambda m, t: Engine(m, t, dtype=[]), ValueError, r"unknown dtype \[\]"),
        (lambda m, t: Engine(m, t).predict(np.array(3)), TypeError, "inputs must be a text, a list"),
        (lambda m, t: audit(Engine(m, t), seed="x"), TypeError, "seed must be an int"),
        (lambda m, t: fit_temperatures(Engine(m, t), ["good"], [[0]]), ValueError, "labels must all be names of classes"),
        (
            lambda m, t: Engine(m, t, Policy(FirstExit(), Sure(0.5, layers="12"))),
            TypeError,
            "layers must be a list of ints, got '12'",
        ),
        (lambda m, t: build_exit_table(3, t, ["good"], 0.5), TypeError, "model must be a MultiExitBert, got 3"),
        (lambda m, t: build_exit_table(m, t, ["good"], 0.5, save_records=0), TypeError, "save_records must be True or False"),
        (lambda m, t: build_exit_table(m, t, ["good"], 0.5, learn=0), TypeError, "learn must be a list of some of agreement,"),
        (lambda m, t: build_exit_table(m, t, ["good"], 0.5, learn="exits"), TypeError, "a list of some .*, got 'exits'"),
        (lambda m, t: build_exit_table(m, t, ["good"], 0.5, learn=["exit"]), ValueError, "unknown learn 'exit'; known: agree"),
        (lambda m, t: setattr(m, "exit_table", 3), TypeError, "exit_table must be a ExitTable, got 3"),
        (lambda m, t: TextDataset(ROWS, None, None), TypeError, "encoder must be a Encoder, got None"),
        (lambda m, t: TextDataset(ROWS, Encoder(t, 9), 3), TypeError, "label2id must be a Mapping, got 3"),
        (lambda m, t: TextDataset(ROWS, Encoder(t, 9), None, window=0), ValueError, "window must be at least 1"),
        (
            lambda m, t: TextDataset(None, Encoder(t, 9), None),
            TypeError,
            "rows must be a list of rows .*, got None",
        ),
    ],
)
def test_engines_and_data(model, tokenizer, call, error, message):
    with pytest.raises(error, match=message):
        call(model, tokenizer)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": "3"}, TypeError, "epochs must be an int"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"learning_rate": None}, TypeError, "learning_rate must be a number"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be between"),
        ({"seed": 1.5}, TypeError, "seed must be an int"),
    ],
)
def test_tables(model, tokenizer, many, change, error, message):
    table = build_exit_table(model, tokenizer, many[:40], 0.8, learn=("agreement",), progress=False)
    with pytest.raises(error, match=message):
        table.learn("exits", **change)
    with pytest.raises(TypeError, match="mean_depth must be a number, got 'x'"):
        table.price_for("x")
    with pytest.raises(ValueError, match=r"agreement must be between 0\.0 and 1\.0"):
        table.price_for(agreement=1.5)
    with pytest.raises(TypeError, match="other must be a ExitTable"):
        table.merge(None)
    with pytest.raises(TypeError, match="tokens must be a Tokens"):
        table.predict("x")
    scores = table.score_table()
    with pytest.raises(ValueError, match=r"offsets must not decrease, got \[0, 2, 1, 3\]"):
        predict_exits(scores, torch.tensor([5, 6, 7]), torch.tensor([0, 2, 1, 3]))
    with pytest.raises(TypeError, match="table must be a ScoreTable"):
        predict_exits(None, torch.tensor([5]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MultiExitBertConfig(hidden_size=0), ValueError, "hidden_size must be between 1 and"),
        (lambda: MultiExitBertConfig(last_head=""), ValueError, "unknown last_head ''"),
        (
            lambda: MultiExitBertConfig(exit_policy="full"),
            TypeError,
            "no field exit_policy: .*model.exit_config.policy, or",
        ),
        (lambda: ExitConfig(policy=3), TypeError, "policy must be a str or None, got 3"),
        (lambda: MultiExitBertConfig(pad_token_id=-1), ValueError, "pad_token_id must be between 0 and"),
        (lambda: insert_add(None, KEYS, KEYS), TypeError, "table must be a HashTable"),
        (lambda: insert_add(HashTable.empty(2), KEYS, KEYS, max_capacity=1.5), TypeError, "max_capacity must be an int"),
        (lambda: insert_add(HashTable.empty(2), KEYS, KEYS, max_capacity=-1), ValueError, "max_capacity must be at least 4"),
        (lambda: get_recipe([]), ValueError, r"unknown recipe \[\]; known: berxit"),
        (lambda: label_names("ab"), TypeError, "rows must be a list of rows .mappings with text and label., got 'ab'"),
        (lambda: label_names([3]), TypeError, "row 0 must be a Mapping, got 3"),
        (lambda: difficulty_column([]), ValueError, "rows: expected at least one, got none"),
        (lambda: difficulty_column([None]), TypeError, "row 0 must be a Mapping"),
        (lambda: read_rows(""), ValueError, "source must be a file or the id of a data set, got ''"),
        (lambda: expected_calibration_error(LOGITS, LABELS[:2]), ValueError, r"labels must be one per sample \(4"),
    ],
)
def test_functions(call, error, message):
    with pytest.raises(error, match=message):
        call()

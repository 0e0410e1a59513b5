"""Records are those of the engine, and keep training, table and judge apart."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bench.answers.data import training_rows
from bench.plans.record import JUDGE, TABLE, content, parts_of, recorded
from bench.plans.tasks import TASKS
from geep_triton import Engine
from geep_triton.tokens.encoder import Encoder

SST2 = replace(TASKS[0], train=30)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Rows of sst2, of which some come again in other splits."""
    (tmp_path / "sst2").mkdir()
    sizes = {"train": range(90), "dev": range(80, 110), "test": range(105, 130)}
    for name, numbers in sizes.items():
        rows = [{"text": f"{'long ' * 9 if number % 3 else ''}text {number}", "label": "a"} for number in numbers]
        (tmp_path / "sst2" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("GEEP_DATA", str(tmp_path))


def test_parts_have_no_text_in_common(data):
    parts = {name: set(map(content, rows)) for name, rows in parts_of(SST2).items()}
    trained = set(map(content, training_rows(SST2)))
    assert not parts[TABLE] & parts[JUDGE]
    assert not trained & (parts[TABLE] | parts[JUDGE])
    every = {(f"{'long ' * 9 if number % 3 else ''}text {number}", None) for number in range(80, 130)}
    assert parts[JUDGE] == every - trained
    assert {len(text.split()) for text, _ in parts[TABLE]} == {11}  # of sst2 only the longer rows


def test_texts_that_are_not_recorded_are_left_for_the_table(data):
    few = replace(SST2, name="sst2", recorded=10)
    parts = parts_of(few)
    assert len(parts[JUDGE]) <= 10
    beyond = {row["text"] for row in parts[TABLE] if int(row["text"].split()[-1]) >= 90}
    assert beyond
    assert not beyond & {row["text"] for row in parts[JUDGE]}
    assert [len(rows) for rows in parts_of(few, limit=3).values()] == [3, 3]


def test_the_record_is_that_of_the_engine(model, tokenizer, texts):
    rows = [{"text": text} for text in texts] + [{"text": texts[0], "text_pair": texts[1]}]
    part = recorded(model, Encoder(tokenizer, 16, truncation=True), rows)
    engine = Engine(model, tokenizer, "full", max_length=16, truncation=True)
    expected = engine.every_exit([(texts[0], texts[1]) if "text_pair" in row else row["text"] for row in rows])
    assert torch.equal(part.ids, expected.tokens.ids)
    assert torch.allclose(part.logits, expected.logits, atol=1e-4)
    assert part.means.shape == (len(rows), model.config.num_hidden_layers + 1, model.config.hidden_size)
    alone = recorded(model, Encoder(tokenizer, 16, truncation=True), rows[-1:])
    assert torch.allclose(alone.means[0].float(), part.means[-1].float(), atol=2e-3)  # padding has no part in means

"""The rows of the tasks, and a cell that trains and records a tiny model."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from bench.answers import data, training
from bench.answers.tasks import GO_EMOTIONS, MINILM, SST2, TASKS, WIKIQA, YELP, Trained, trainings
from geep_triton import MultiExitBert

WORDS = ("film", "soup", "hotel", "book")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A few rows of every task under GEEP_DATA."""
    rows = {
        SST2: [{"text": f"the {WORDS[n % 4]} was {'bad' if n % 3 else 'good'}", "label": "01"[n % 3 > 0]} for n in range(40)],
        YELP: [{"text": f"a {WORDS[n % 4]} again", "label": str(1 + n % 5)} for n in range(40)],
        GO_EMOTIONS: [{"text": f"we liked {WORDS[n % 4]}", "label": ["joy", "love"][: n % 3]} for n in range(40)],
        WIKIQA: [
            {
                "text": f"was the {WORDS[n // 10]} good ?",
                "text_pair": f"the {WORDS[n // 10]} was {n} warm",
                "label": str(int(n % 10 == 0)),
            }
            for n in range(40)
        ],
    }  # fmt: skip
    for task, of_task in rows.items():
        (tmp_path / task.name).mkdir()
        for split in ("train", "dev", "test"):
            different = [row | {"text": f"{row['text']} {'' if task is WIKIQA else split}".strip()} for row in of_task]
            lines = "".join(json.dumps(row) + "\n" for row in different)
            (tmp_path / task.name / f"{split}.jsonl").write_text(lines)
    monkeypatch.setenv("GEEP_DATA", str(tmp_path))
    return tmp_path


def test_the_first_seed_comes_first():
    cells = list(trainings())
    assert len(cells) == len({cell.name for cell in cells}) == 24
    assert [cell.seed for cell in cells[:8]] == [0] * 8
    assert {cell.backbone for cell in cells[:4]} == {MINILM}


def test_right_answers_are_trained_with_wrong_ones(folder):
    rows = data.training_rows(WIKIQA)
    assert rows == data.training_rows(WIKIQA)
    by_question = Counter((row["text"], row["label"]) for row in rows)
    assert {count for (_, label), count in by_question.items() if label == "1"} == {1}
    wrong = [count for (_, label), count in by_question.items() if label == "0"]
    assert set(wrong) <= {data.NEGATIVES, data.NEGATIVES + 1}


def test_groups_are_filled_with_answers_of_other_questions(folder):
    own = data.split(WIKIQA, "dev", "test")
    groups = data.groups(WIKIQA, questions=3, candidates=25)
    assert len(groups) == 3
    for group in groups:
        assert len(group) == 25
        assert len({row["text"] for row in group}) == 1
        known = [row["text_pair"] for row in own if row["text"] == group[0]["text"]]
        filled = [row for row in group if row["text_pair"] not in known]
        assert filled
        assert all(row["label"] == "0" for row in filled)
    assert data.groups(WIKIQA, questions=3, candidates=25) == groups


def test_recorded_rows_are_not_trained_on(folder):
    for task in (SST2, YELP, GO_EMOTIONS):
        trained = {row["text"] for row in data.training_rows(task)}
        recorded = data.recorded_rows(replace(task, recorded=30))
        assert len(recorded) == 30
        assert not trained & {row["text"] for row in recorded}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_cell_trains_and_records(folder, task, tokenizer, tmp_path, monkeypatch):
    source = tmp_path / "source"
    plain = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
    )
    BertModel(plain).save_pretrained(source)
    tokenizer.save_pretrained(source)
    monkeypatch.setattr(training, "source_of", lambda cell, e5: source)
    cell = Trained(replace(task, epochs=1, max_length=16), MINILM, 0)
    found = training.run_cell(cell, tmp_path / "work", tmp_path, math.inf, limit=30)
    record = training.load_record(training.folder_of(cell, tmp_path / "work", 30) / training.RECORD)
    model = MultiExitBert.from_pretrained(training.folder_of(cell, tmp_path / "work", 30) / "model")
    labels = {SST2.name: 2, YELP.name: 1, GO_EMOTIONS.name: 2, WIKIQA.name: 1}[task.name]
    assert model.config.num_labels == labels
    assert model.config.problem_type == task.problem_type
    assert record.logits.shape == (found["samples"]["recorded"], 4, labels)
    assert len(record.tokens) == len(record.logits)
    assert len(found["by_exit"]) == 4
    tokens = record.tokens.select(torch.tensor([0]))
    types = None if tokens.type_ids is None else tokens.type_ids[None]
    with torch.no_grad():
        again = model(input_ids=tokens.ids[None], token_type_ids=types).logits
    torch.testing.assert_close(again, record.logits[:1, -1], rtol=1e-4, atol=1e-4)

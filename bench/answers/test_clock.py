"""What is measured of a calibrated engine, on the tiny model."""

from __future__ import annotations

import pytest
import torch

from bench.answers.clock import measured, shares_kept, speed_up
from bench.answers.promised import Promised
from geep_triton import Engine
from geep_triton.promises.terms import Term


def test_a_calibrated_score_is_measured_on_texts_that_had_no_part(make_model, tokenizer, many):
    model = make_model(num_labels=1, problem_type="regression", pooling="mean")
    rows = [{"text": text} for text in many]
    promised = Promised("same side", {"agreement": 0.8}, {"decision": 0.0})
    facts, row = measured(Engine(model, tokenizer, "full"), rows, (promised,), timed=40)
    assert facts.metrics == {"calibration": 200, "held_out": 200, "timed": 40, "num_layers": 4}
    assert row.config == {"promise": "same side"}
    assert row.metrics["promised"] == 0.8
    assert 0.7 < row.metrics["kept"] <= 1
    assert 1 <= row.metrics["mean_layers"] <= 4
    assert row.metrics["speed_up"] > 0
    assert model.exit_config.decision == 0.0


def test_shares_kept(make_model):
    model = make_model(num_labels=2)
    full = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    terms = (Term("agreement", 0.9), Term("class_recall", 0.9, 0, "LABEL_0"), Term("class_recall", 0.9, 1, "LABEL_1"))
    assert shares_kept(model, terms, given, full) == [pytest.approx(1 / 2), pytest.approx(2 / 3), 0.0]


def test_fewer_layers_are_faster(make_model, tokenizer, many):
    model = make_model(num_labels=2)
    engine = Engine(model, tokenizer, "full")
    found = speed_up(engine, engine.with_policy("constant:1"), many, rounds=3)
    assert found["speed_up"] > 1
    assert found["full_per_second"] > 0

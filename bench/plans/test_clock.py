"""What is timed of recorded promises, on the tiny model."""

from __future__ import annotations

import torch

from bench.answers.tasks import SEEDS, Trained
from bench.plans.clock import measured
from bench.plans.library import table_of
from bench.plans.record import FILE, JUDGE, TABLE, load_parts, recorded, save_parts
from bench.plans.tasks import BACKBONES, TASKS
from geep_triton import build_exit_table
from geep_triton.tokens.encoder import Encoder


def saved(folder, make_model, tokenizer, many):
    """A model of two classes, whose exits agree often, and its record."""
    model = make_model(num_labels=2, pooling="mean")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    encoder = Encoder(tokenizer, 64, truncation=True)
    rows = [{"text": text} for text in many]
    parts = {TABLE: recorded(model, encoder, rows[:150]), JUDGE: recorded(model, encoder, rows[150:])}
    save_parts(parts, folder / FILE)
    return model, rows


def test_every_family_is_judged_and_timed(tmp_path, make_model, tokenizer, many):
    saved(tmp_path, make_model, tokenizer, many)
    found = list(measured(tmp_path, Trained(TASKS[0], BACKBONES[0], SEEDS[0]), (40, 80), rounds=1))
    judged = [one for one in found if "agreement" in one.metrics]
    assert {one.config["promise"] for one in judged} == {0.99, 0.98, 0.95}
    full = [one.metrics for one in judged if one.system == "full"]
    assert full == 3 * [{"agreement": 1.0, "mean_layers": 4.0}]
    timed = [one for one in found if one.system == "policy"]
    forms = {one.config["policy"] for one in judged}
    assert {(one.config["policy"], one.config["token_budget"]) for one in timed} == {(f, b) for f in forms for b in (40, 80)}
    assert all(one.metrics["speed_up"] == 1 for one in timed if one.config["policy"] == "full")


def test_the_table_is_that_of_the_library(tmp_path, make_model, tokenizer, many):
    model, rows = saved(tmp_path, make_model, tokenizer, many)
    made = table_of(model, tokenizer, load_parts(tmp_path / FILE)[TABLE])
    built = build_exit_table(
        model, tokenizer, rows[:150], 0.3, learn=("agreement", "exits", "forecasts"), progress=False, max_length=64
    )
    assert torch.equal(made.counts, built.counts)
    assert made.weights == built.weights
    torch.testing.assert_close(made.forecasts.held_out, built.forecasts.held_out, atol=1e-4, rtol=0)
    assert set(made.learned) == set(built.learned)

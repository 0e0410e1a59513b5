"""The promises benchmark: families at equal depth, and token budgets added to a result."""

from __future__ import annotations

import pytest
import torch

from bench.curves import EQUAL_DEPTHS, equal_depth
from bench.environment import environment
from bench.promises import HeldOut, add_budgets, speed_of
from geep_triton import Engine


def curve(*points):
    return [{"mean_layers": depth, "accuracy": accuracy} for depth, accuracy in points]


def test_families_at_equal_depth():
    ours, theirs = curve((1, 0.5), (4, 0.8), (6, 0.9)), curve((6, 0.9), (2, 0.7))
    found = equal_depth([(ours, theirs)])
    assert (found["from"], found["to"]) == (2, 6)
    assert found["worst"] == pytest.approx(0.6 - 0.7)  # at two layers
    shallower = equal_depth([(ours, theirs), (theirs, ours)])
    assert shallower["worst"] == pytest.approx(0)  # the seeds' differences cancel
    one_depth = curve((3, 0.6))
    assert equal_depth([(one_depth, curve((3, 0.5)))])["mean"] == pytest.approx(0.1)
    assert EQUAL_DEPTHS > 2


@pytest.fixture
def held_out(model, tokenizer, texts):
    return HeldOut(model, *Engine(model, tokenizer, "full").exit_logits(texts), torch.zeros(len(texts), dtype=torch.int64))


def result_of(held_out, forms):
    """A result file's part that adding budgets needs."""
    rows = []
    for form in forms:
        policy = Engine(held_out.model, held_out.tokenizer, form).policy
        rows.append({"promise": 0.9, "policy": form, **held_out.judge(policy), "speed": {"7": {"speed_up": 1.0}}})
    settings = {"speed_samples": {"7": 3}, "rounds": 3}
    return {"environment": environment(), "policies": rows, "drift_of_full_depth": [], "settings": settings}


def test_token_budgets_are_added(held_out, tokenizer, texts):
    held_out.tokenizer = tokenizer
    result = result_of(held_out, ["full", "constant:2", "threshold:0.8"])
    rows, timed = [{"text": text} for text in texts], {40: list(range(len(texts)))}
    budgets = {40: Engine(held_out.model, tokenizer, "full", token_budget=40)}
    add_budgets(result, budgets, held_out, rows, timed, rounds=1)
    for row in result["policies"]:
        assert set(row["speed"]) == {"7", "40"}
        assert row["speed"]["40"]["samples_per_second"] > 0
    by_form = {row["policy"]: row["speed"]["40"] for row in result["policies"]}
    assert by_form["full"]["speed_up"] == 1
    assert by_form["constant:2"]["share_of_bound"] == pytest.approx(by_form["constant:2"]["speed_up"] * 2 / 4)
    assert result["settings"]["speed_samples"] == {"7": 3, "40": len(texts)}
    assert result["added"][0]["token_budgets"] == [40]
    assert [one["token_budget"] for one in result["drift_of_full_depth"]] == [40]
    with pytest.raises(ValueError, match="has all of these token budgets"):
        add_budgets(result, {}, held_out, rows, {}, rounds=1)


def test_other_machines_and_models_are_refused(held_out, make_model, tokenizer, texts):
    held_out.tokenizer = tokenizer
    budgets = {40: Engine(held_out.model, tokenizer, "full", token_budget=40)}
    result = result_of(held_out, ["threshold:0.8"])
    result["environment"]["threads"] += 1
    with pytest.raises(ValueError, match="the result file was measured on"):
        add_budgets(result, budgets, held_out, [], {40: []}, rounds=1)
    result = result_of(held_out, ["threshold:0.8"])
    result["policies"][0]["mean_layers"] += 0.5
    with pytest.raises(ValueError, match="threshold:0.8: .* in the result file"):
        add_budgets(result, budgets, held_out, [], {40: []}, rounds=1)


def test_speed_is_set_against_the_timed_texts(held_out):
    measured = {40: {"constant:2": 30.0, "full": 20.0}}
    found = speed_of("constant:2", measured, held_out, {40: [0, 1]})["40"]
    assert found["speed_up"] == 1.5
    assert found["mean_layers"] == 2
    assert found["share_of_token_bound"] == pytest.approx(1.5 * 2 / 4)

"""The promises benchmark: families at equal depth, and token budgets added to a result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.claims.curves import EQUAL_DEPTHS, equal_depth
from bench.claims.promises import HeldOut, add_budgets, speed_of
from bench.environment import environment
from bench.rows import found, records, rows_of
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
    return HeldOut(model, Engine(model, tokenizer, "full").every_exit(texts), torch.zeros(len(texts), dtype=torch.int64))


def result_of(held_out, forms, **changes):
    """A result's rows, as adding budgets needs them."""
    measured = [found("", {"speed_samples": 3}, token_budget=7)]
    for form in forms:
        policy = Engine(held_out.model, held_out.tokenizer, form).policy
        config = {"promise": 0.9, "policy": form, "chosen": form == "full"}
        measured.append(found(form.partition(":")[0], held_out.judge(policy) | changes, **config))
        measured.append(found(form.partition(":")[0], {"speed_up": 1.0}, **config, token_budget=7))
    return rows_of("promises", "tiny_s1", measured, {"name": "tiny"}, environment())


def test_token_budgets_are_added(held_out, tokenizer, texts):
    held_out.tokenizer = tokenizer
    known = result_of(held_out, ["full", "constant:2", "threshold:0.8"])
    rows, timed = [{"text": text} for text in texts], {40: list(range(len(texts)))}
    budgets = {40: Engine(held_out.model, tokenizer, "full", token_budget=40)}
    added = records(add_budgets(known, budgets, held_out, rows, timed, rounds=1))
    by_form = {one["policy"]: one for one in added if "policy" in one}
    assert set(by_form) == {"full", "constant:2", "threshold:0.8"}
    assert {one["case"] for one in added} == {"tiny_s1"}
    for one in by_form.values():
        assert one["token_budget"] == 40
        assert one["samples_per_second"] > 0
    assert by_form["full"]["speed_up"] == 1
    assert by_form["full"]["chosen"]
    assert by_form["constant:2"]["share_of_bound"] == pytest.approx(by_form["constant:2"]["speed_up"] * 2 / 4)
    assert [one["speed_samples"] for one in added if "speed_samples" in one] == [len(texts)]
    assert [one["token_budgets"] for one in added if one["system"] == "added"] == [[40]]
    assert [one["token_budget"] for one in added if "drift" in one] == [40]
    with pytest.raises(ValueError, match="has all of these token budgets"):
        add_budgets(known, {}, held_out, rows, {}, rounds=1)


def test_other_machines_and_models_are_refused(held_out, make_model, tokenizer, texts):
    held_out.tokenizer = tokenizer
    budgets = {40: Engine(held_out.model, tokenizer, "full", token_budget=40)}
    known = result_of(held_out, ["threshold:0.8"])
    other = [replace(row, environment=row.environment | {"threads": row.environment["threads"] + 1}) for row in known]
    with pytest.raises(ValueError, match="the result was measured on"):
        add_budgets(other, budgets, held_out, [], {40: []}, rounds=1)
    known = result_of(held_out, ["threshold:0.8"], mean_layers=0.5)
    with pytest.raises(ValueError, match=r"threshold:0.8: .* in the result"):
        add_budgets(known, budgets, held_out, [], {40: []}, rounds=1)


def test_speed_is_set_against_the_timed_texts(held_out):
    speed = speed_of("constant:2", {"constant:2": 30.0, "full": 20.0}, held_out, [0, 1])
    assert speed["speed_up"] == 1.5
    assert speed["mean_layers"] == 2
    assert speed["share_of_token_bound"] == pytest.approx(1.5 * 2 / 4)

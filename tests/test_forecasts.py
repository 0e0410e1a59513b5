"""Forecasts of agreement: what nets learn, where they are kept, and what may use them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from geep_triton import Engine, ExitTable, MultiExitBert, build_exit_table, calibrate, explain
from geep_triton.policies.text import parse_policy
from geep_triton.promises.families import families_of
from geep_triton.promises.frontier import CAUTIOUS, Candidate, frontier, planned_policies, risk_policies
from geep_triton.promises.simulate import simulate
from geep_triton.table import forecasts
from geep_triton.table.forecasts import HELD_OUT, Forecasts, learn_forecasts
from tests.conftest import tiny_config

POLICIES = ("risk:0.4", "planned:1,price=0.1")


def answers(texts=2000, exits=4, seed=0):
    """Two classes; an exit agrees the more often the surer its answer is, and deeper exits see the same evidence better."""
    made = torch.Generator().manual_seed(seed)
    evidence = torch.randn(texts, 1, generator=made) + 0.4 * torch.randn(texts, exits, generator=made) * torch.arange(
        exits - 1, -1, -1
    )
    logits = torch.stack([evidence, -evidence], 2)
    answer = logits.argmax(2)
    return logits, answer == answer[:, -1:]


@pytest.fixture(scope="module")
def learned() -> Forecasts:
    return learn_forecasts(*answers())


def test_forecasts_are_calibrated_on_other_texts():
    """Of texts with a forecast of about p, a share of about p agrees; at its own exit and at deeper ones."""
    learned = learn_forecasts(*answers(8000))
    logits, agrees = answers(seed=1)
    for exit_ in range(3):
        found = learned.agreement(exit_, logits[:, exit_])
        assert found.shape == (len(logits), 4 - exit_)
        assert (found[:, -1] == 1).all()
        for column in range(3 - exit_):
            order = found[:, column].argsort()
            for part in order.chunk(4):
                share = agrees[part, exit_ + column].float().mean()
                assert abs(float(share - found[part, column].mean())) < 4 * (0.25 / len(part)) ** 0.5  # standard deviations


def test_forecasts_tell_texts_apart(learned):
    logits, agrees = answers(seed=1)
    risk = 1 - learned.agreement(0, logits[:, 0])[:, 0]
    surest = risk.argsort()[:500]
    assert agrees[surest, 0].float().mean() > agrees[:, 0].float().mean() + 0.1


def test_held_out_texts_are_no_training_texts(learned):
    logits, agrees = answers()
    kept = {tuple(row.flatten().tolist()) for row in learned.held_out}
    assert len(kept) == round(HELD_OUT * len(logits))
    flipped = torch.tensor([tuple(row.flatten().tolist()) in kept for row in logits])
    others = torch.where(flipped[:, None], ~agrees, agrees)
    others[:, -1] = True
    again = learn_forecasts(logits, others, epochs=1)
    once = learn_forecasts(logits, agrees, epochs=1)
    torch.testing.assert_close(again.weight, once.weight, rtol=0, atol=0)


def test_what_was_held_out_is_forecast_by_each_net(learned):
    found = learned.held_out_agreement
    assert found.shape == (3, 500, 4)
    for exit_ in range(3):
        assert found[exit_, :, :exit_].isneginf().all()
        torch.testing.assert_close(found[exit_, :, exit_:], learned.agreement(exit_, learned.held_out[:, exit_]))


def test_who_skipped_an_exit_has_no_answer_there():
    logits, agrees = answers(200)
    skipped = torch.zeros_like(agrees)
    skipped[::2, 1] = True
    found = learn_forecasts(logits, agrees, skipped, epochs=2)
    unanswered = (found.held_out == 0).all(2)
    assert unanswered[:, 1].any()
    assert torch.equal(unanswered, found.held_out_skipped)
    assert torch.equal(found.held_out_agreement[1, :, 1].isneginf(), unanswered[:, 1])
    assert not found.held_out_agreement[0, :, 1].isneginf().any()  # of deeper exits it is still forecast
    assert (logits[::2, 1] != 0).all()  # the caller's tensors are as they were


def test_no_more_texts_are_held_out_than_needed():
    assert len(learn_forecasts(*answers(9000), epochs=1).held_out) == 2000


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"logits": torch.zeros(19, 3, 2), "agrees": torch.ones(19, 3) > 0},
            ValueError,
            "at least 20 texts to learn from, got 19",
        ),
        ({"logits": torch.zeros(30, 1, 2), "agrees": torch.ones(30, 1) > 0}, ValueError, "at least 2 exits, got 1"),
        ({"agrees": torch.ones(30, 2) > 0}, ValueError, r"agrees must have shape \(30, 3\)"),
        ({"agrees": torch.ones(30, 3)}, TypeError, "agrees must be of dtype torch.bool"),
        ({"skipped": torch.ones(3, 3) > 0}, ValueError, r"skipped must have shape \(30, 3\)"),
        ({"logits": torch.full((30, 3, 2), torch.nan)}, ValueError, "logits of recorded answers must be finite"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be between 0"),
        ({"learning_rate": 1e30}, ValueError, r"learning_rate 1e\+30 is too high"),
    ],
)
def test_learning_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        learn_forecasts(**{"logits": torch.randn(30, 3, 2), "agrees": torch.rand(30, 3) > 0.5} | changes)


def test_learning_is_repeatable():
    first, again, other = (learn_forecasts(*answers(100), epochs=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


# Where they are kept.


def built(model, tokenizer, many, **settings):
    return build_exit_table(model, tokenizer, many, 0.8, progress=False, **settings)


def test_a_table_learns_forecasts_by_default(model, tokenizer, many):
    table = built(model, tokenizer, many)
    assert table.forecasts is not None
    assert table.forecasts.held_out.shape[1:] == (4, 3)
    assert built(model, tokenizer, many[:10]).forecasts is None  # too few
    assert built(model, tokenizer, many, learn=("agreement",)).forecasts is None


def test_forecasts_are_saved_and_loaded(model, tokenizer, many, texts, tmp_path):
    model.exit_table = built(model, tokenizer, many)
    model.save_pretrained(tmp_path)
    loaded = MultiExitBert.from_pretrained(tmp_path)
    assert loaded.exit_table.digest() == model.exit_table.digest()
    assert loaded.exit_table.records is None
    for policy in POLICIES:
        expected = Engine(model, tokenizer, policy).predict(texts)
        got = Engine(loaded, tokenizer, policy).predict(texts)
        assert torch.equal(got.exit_layers, expected.exit_layers)
        assert torch.equal(got.logits, expected.logits)


def test_forecasts_are_part_of_the_digest(model, tokenizer, many):
    table = built(model, tokenizer, many)
    assert table.digest() != dataclasses.replace(table, forecasts=None).digest()
    changed = dataclasses.replace(table.forecasts, bias=table.forecasts.bias + 1)
    assert table.digest() != dataclasses.replace(table, forecasts=changed).digest()


def test_forecasts_are_learned_from_saved_records(model, tokenizer, many, tmp_path):
    table = built(model, tokenizer, many, learn=("forecasts",), save_records=True)
    dataclasses.replace(table, forecasts=None).save_pretrained(tmp_path)
    loaded = ExitTable.load(tmp_path)
    assert loaded.forecasts is None
    again = loaded.learn("forecasts").forecasts
    for part in ("hidden_weight", "hidden_bias", "weight", "bias", "held_out", "held_out_agrees", "held_out_skipped"):
        assert torch.equal(getattr(again, part), getattr(table.forecasts, part))
    assert loaded.learn("forecasts").rebuild(threshold=0.3).forecasts is not None
    assert loaded.learn("forecasts").merge(loaded).forecasts is None


def test_records_without_answers_cannot_be_learned_from(model, tokenizer, many):
    table = built(model, tokenizer, many)
    old = dataclasses.replace(table, records=dataclasses.replace(table.records, logits=None))
    with pytest.raises(ValueError, match=r"records\.logits: this table's records have no answers of the exits: build it again"):
        old.learn("forecasts")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("weight", lambda v: v[:, :, :-1], "forecasts.weight must be float32 of shape"),
        ("hidden_weight", lambda v: v[:, :-1], "forecasts.hidden_weight must be float32 of shape"),
        ("bias", lambda v: v * torch.nan, "forecasts.bias must be between"),
        ("held_out", lambda v: v[:-1], "forecasts.held_out_agrees must be bool of shape"),
        ("held_out_skipped", lambda v: v[:, 1:], "forecasts.held_out_skipped must be bool of shape"),
        ("bias", lambda v: v - 1, "forecasts must say of the last exit that it agrees with itself"),
        ("weight", lambda v: v + 1, "forecasts must say of the last exit that it agrees with itself"),
        ("held_out_agrees", lambda v: ~v, "forecasts must say of the last exit that it agrees with itself"),
        ("hidden_bias", lambda v: v.double(), "forecasts.hidden_bias must be float32"),
    ],
)
def test_damaged_forecasts_are_refused(model, tokenizer, many, tmp_path, part, value, message):
    table = built(model, tokenizer, many)
    bad = dataclasses.replace(table.forecasts, **{part: value(getattr(table.forecasts, part))})
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(table, forecasts=bad).save_pretrained(tmp_path)


def test_no_held_out_texts_are_refused(model, tokenizer, many, tmp_path):
    table = built(model, tokenizer, many)
    none = {name: getattr(table.forecasts, name)[:0] for name in ("held_out", "held_out_agrees", "held_out_skipped")}
    with pytest.raises(ValueError, match="forecasts must have at least 10 held-out texts, got 0"):
        dataclasses.replace(table, forecasts=dataclasses.replace(table.forecasts, **none)).save_pretrained(tmp_path)


def test_large_scores_are_saved(make_model, tokenizer, many, tmp_path):
    """A score may be of any unit."""
    model = make_model(num_labels=1)
    model.exit_config.decision = 0.0
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(5e7)
    model.exit_table = build_exit_table(model, tokenizer, many, progress=False, save_records=True)
    assert model.exit_table.forecasts.held_out.abs().max() > 1e6
    model.save_pretrained(tmp_path)
    assert MultiExitBert.from_pretrained(tmp_path).exit_table.forecasts is not None


def test_answers_of_two_models_are_not_merged(model, make_model, tokenizer, many):
    other = make_model(num_labels=2)
    with torch.no_grad():
        other.heads["1"].classifier.weight.mul_(2)
    tables = built(model, tokenizer, many[:100]), built(other, tokenizer, many[100:200])
    with pytest.raises(ValueError, match=r"records\.logits: this table's records have no answers"):
        tables[0].merge(tables[1]).learn("forecasts")
    assert tables[0].merge(built(model, tokenizer, many[200:300])).learn("forecasts").forecasts is not None


def test_a_model_of_one_exit_has_no_forecasts(make_model, tokenizer, many):
    model = make_model(exit_layers=[4])
    assert built(model, tokenizer, many).forecasts is None
    with pytest.raises(ValueError, match="forecasts need several exits, the model has one"):
        built(model, tokenizer, many, learn=("forecasts",))


def test_an_old_table_says_how_to_learn_forecasts(model, tokenizer, many):
    table = built(model, tokenizer, many)
    old = dataclasses.replace(table, forecasts=None, records=dataclasses.replace(table.records, logits=None))
    assert old.how_to_learn("forecasts").startswith("model.exit_table = build_exit_table(")
    assert dataclasses.replace(table, forecasts=None).how_to_learn("forecasts").endswith(".learn('forecasts')")


# What may use them.


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_need_forecasts(model, tokenizer, many, policy):
    name = policy.split(":")[0]
    with pytest.raises(ValueError, match=f"policy '{name}' needs an exit table with forecasts"):
        Engine(model, tokenizer, policy)
    model.exit_table = built(model, tokenizer, many, learn=("agreement",))
    with pytest.raises(ValueError, match=rf"policy '{name}' needs forecasts: .*\.learn\('forecasts'\)"):
        Engine(model, tokenizer, policy)
    model.exit_table = model.exit_table.learn("forecasts")
    Engine(model, tokenizer, policy)
    model.exit_table = dataclasses.replace(model.exit_table, forecasts=None).without_records()
    with pytest.raises(
        ValueError, match=r"build_exit_table\(model, tokenizer, texts, \.\.\., learn=\('agreement', 'forecasts'\)\)"
    ):
        Engine(model, tokenizer, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_forecasts_of_other_weights_are_refused(model, tokenizer, many, policy, tmp_path):
    """Also after saving and loading. A policy that reads tokens only still runs."""
    torch.manual_seed(9)
    other = MultiExitBert(tiny_config(pooling="mean")).eval()
    other.exit_table = built(model, tokenizer, many)
    other.save_pretrained(tmp_path)
    for one in (other, MultiExitBert.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="exit_table: The exit table was built with other weights than the model's"):
            Engine(one, tokenizer, policy)
        Engine(one, tokenizer, "predicted:mean").predict(many[:3])
        one.exit_table = dataclasses.replace(one.exit_table)  # the same table again
        with pytest.raises(ValueError, match="built with other weights"):
            Engine(one, tokenizer, policy)
    other.exit_table = built(other, tokenizer, many)
    Engine(other, tokenizer, policy).predict(many[:3])


def test_forecasts_of_other_labels_are_refused(model, make_model, tokenizer, many):
    other = make_model(num_labels=2)
    other.exit_table = dataclasses.replace(built(model, tokenizer, many), weights=None)
    with pytest.raises(ValueError, match="exit_table has forecasts of 3 labels, the model has 2"):
        Engine(other, tokenizer, "risk:0.1")


def test_forecasts_stay_those_of_the_weights_in_another_dtype(model, tokenizer, many, texts, tmp_path):
    model.exit_table = built(model, tokenizer, many)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = Engine(model, tokenizer, "planned:1,price=0.1").predict(texts).exit_layers
    for dtype in ("float32", "bfloat16"):
        engine = Engine.from_pretrained(tmp_path, "planned:1,price=0.1", dtype=dtype)
        moved = engine.predict(texts).exit_layers != expected
        assert int(moved.sum()) <= (0 if dtype == "float32" else 2)
    half = MultiExitBert.from_pretrained(tmp_path, dtype=torch.bfloat16)
    Engine(half, tokenizer, "risk:0.4").predict(texts)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("planned:4,price=0.1", r"layer must be one of this model's early exits \[1, 2, 3\], got 4"),
        ("planned:0,price=0.1", "layer must be at least 1"),
        ("planned:1", "planned needs exactly one of price, mean_depth and agreement, got none"),
        ("planned:1,price=0.1,agreement=0.9", "planned needs exactly one of"),
        ("planned:1,price=2", "price must be between 0.0 and 1.0"),
        ("planned:1,price=0.1,regroup=now", "unknown regroup 'now'"),
        ("planned:1,price=0.1,answer_head=shared", "plans are learned from the exits' own heads"),
        ("planned:3,price=0.1+threshold:0.5", "leave scores nobody after the plan, which is made after layer 3"),
        ("planned:2,price=0.1+threshold:0.5,layers=1/3", "leave must score only after layer 2, where exits are planned"),
        ("planned:2,price=0.1+threshold:0.1/0.2/0.3", "leave must score only after layer 2, where exits are planned"),
        ("planned:2,mean_depth=1.5", "mean_depth must be at least 2, the first layer at which texts may leave, got 1.5"),
        ("risk:1.5", "risk must be between 0.0 and 1.0"),
        ("risk", "risk is missing its risk, as in risk:0.05"),
        ("planned", "planned is missing its layer, as in planned:2,price=0.02"),
        ("risk:0.1,risk=0.9", "risk is told its risk twice"),
        ("planned:2,price=0.1,price=0.9", "planned is told its price twice"),
        ("planned:1,price=0.1,", "planned has a comma without a setting behind it"),
        ("risk:0.1/0.2", r"risk must be one number, or one per scored exit \[1, 2, 3\], got 2"),
        ("risk:0.1,layers=4", "layers must be some of this model's early exits"),
    ],
)
def test_bad_policies_are_refused(model, tokenizer, many, policy, message):
    model.exit_table = built(model, tokenizer, many)
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_that_are_no_numbers_are_told(model, tokenizer, many, texts, policy):
    """Weights are finite, but logits of the first exit are not. Without a word those samples would run to the end."""
    model.exit_table = dataclasses.replace(built(model, tokenizer, many), weights=None)  # it is not asked for other weights
    with torch.no_grad():
        model.heads["1"].classifier.weight.fill_(3e38)
    engine = Engine(model, tokenizer, policy)
    with pytest.raises(
        ValueError, match=r"\d of the samples 0 to 7 got logits that are NaN or infinite at the exit of layer 1"
    ):
        engine.predict(texts)


def test_scores_and_label_sets_have_forecasts_too(make_model, tokenizer, many):
    for settings in ({"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}):
        model = make_model(**settings)
        if settings["num_labels"] == 1:
            model.exit_config.decision = 0.0
        model.exit_table = build_exit_table(model, tokenizer, many, progress=False)
        for policy in POLICIES:
            engine = Engine(model, tokenizer, policy)
            result, record = engine.predict(many), engine.every_exit(many)
            exits = simulate(model, engine.policy, record.tokens, record.logits)
            assert (exits + 1).tolist() == result.exit_layers.tolist()


def test_expected_layers_before_a_plan(model, tokenizer, many):
    model.exit_table = built(model, tokenizer, many)
    engine = Engine(model, tokenizer, "planned:2,price=0.1")
    assert (engine.expected_layers(engine.encode(many)) >= 2).all()


# Which of them pay.


def test_the_frontier_holds_what_nothing_beats():
    points = [(0.7, 1.0), (0.9, 2.0), (0.85, 2.5), (0.95, 3.0), (0.95, 3.5), (0.99, 3.0)]
    candidates = [Candidate(lambda value: parse_policy("full"), index, *point) for index, point in enumerate(points)]
    assert [candidate.value for candidate in frontier(candidates)] == [5, 1, 0]
    many = [Candidate(lambda value: parse_policy("full"), 0, index / 1000, index) for index in range(1000)]
    assert len(frontier(many)) == 60


def held_out_outcome(learned, policy):
    """(agreement, cost without stops, stops) of a policy on the held-out texts, text by text."""
    agreed, layers, stops = 0, 0, 0
    for row in range(len(learned.held_out)):
        if policy.leave is None:
            exit_, price = policy.start.layer - 1, policy.start.price
            seen = learned.agreement(exit_, learned.held_out[row : row + 1, exit_])[0]
            answered = exit_ + int((seen - price * torch.arange(exit_ + 1, 5)).argmax())
            stops += 1
        else:
            answered = 3
            for layer in policy.leave.layers:
                stops += 1
                if (
                    1 - float(learned.agreement(layer - 1, learned.held_out[row : row + 1, layer - 1])[0, 0])
                    <= policy.leave.risk
                ):
                    answered = layer - 1
                    break
        agreed += bool(learned.held_out_agrees[row, answered])
        layers += answered + 1
    return agreed / len(learned.held_out), layers / len(learned.held_out), stops / len(learned.held_out)


@pytest.mark.parametrize("make", [risk_policies, planned_policies])
def test_policies_are_ordered_from_cautious_to_bold(learned, make):
    few = {name: getattr(learned, name)[:80] for name in ("held_out", "held_out_agrees", "held_out_skipped")}
    learned = dataclasses.replace(learned, **few)
    policies = make(learned, (1, 2, 3, 4), 0.3)
    outcomes = [held_out_outcome(learned, policy) for policy in policies]
    agreements, costs = [o[0] for o in outcomes], [o[1] + 0.3 * o[2] for o in outcomes]
    assert len(policies) > 3 + len(CAUTIOUS)
    assert agreements == sorted(agreements, reverse=True)
    assert costs == sorted(costs, reverse=True)


def test_dear_stops_mean_fewer_of_them(learned):
    cheap, dear = (risk_policies(learned, (1, 2, 3, 4), cost) for cost in (0.0, 3.0))
    assert max(len(policy.leave.layers) for policy in cheap) == 3
    assert max(len(policy.leave.layers) for policy in dear) == 1


def test_a_calibration_goes_without_forecasts_of_other_weights(model, tokenizer, many):
    torch.manual_seed(9)
    other = MultiExitBert(tiny_config(pooling="mean")).eval()
    other.exit_table = built(model, tokenizer, many[:200])
    assert not {"risk", "planned"} & {family.name for family in families_of(other)}
    found = calibrate(Engine(other, tokenizer, "full"), many[200:], agreement=0.8, rounds=1, speed_samples=8)
    assert found.chosen is not None
    other.exit_table = built(other, tokenizer, many[:200])
    assert {"risk", "planned"} <= {family.name for family in families_of(other)}


def test_a_price_is_searched_once(model, tokenizer, many, monkeypatch):
    model.exit_table = built(model, tokenizer, many)
    searched = []
    monkeypatch.setattr(forecasts, "price_for", lambda *arguments: searched.append(arguments) or 0.1)
    Engine(model, tokenizer, "planned:1,agreement=0.9", window=10).predict(many[:50])
    assert len(searched) == 1


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("planned:1,price=0.13", "It is planned after layer 1, by a forecast, to be answered after layer"),
        ("planned:1,price=0.13+threshold:0.9", "It is planned after layer 1, by a forecast, to be"),
        ("risk:0.4", "risk"),
    ],
)
def test_policies_by_forecasts_are_explained(model, tokenizer, many, policy, sentence):
    model.exit_table = built(model, tokenizer, many)
    engine = Engine(model, tokenizer, policy)
    expected = engine.predict(many[:20]).exit_layers.tolist()
    explained = explain(engine, many[:20])
    assert [one.exit_layer for one in explained] == expected
    assert all(sentence in one.why for one in explained)
    assert not any("scored after layer 4" in one.why for one in explained)

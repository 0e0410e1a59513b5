"""Promises and files of models that skip layers."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from geep_triton import Engine, MultiExitBert, audit, build_exit_table, calibrate
from geep_triton.policies.policy import Policy
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import LastLayer
from geep_triton.policies.text import format_policy
from geep_triton.promises.families import families_of
from geep_triton.promises.frontier import _by_price, _by_risk
from geep_triton.promises.simulate import simulate
from geep_triton.table.exit_table import ExitTable
from geep_triton.tokens.ragged import Tokens
from tests.conftest import WORDS
from tests.skipping.models import with_costs


@pytest.mark.filterwarnings("ignore::geep_triton.policies.policy.OneExitWarning")  # of candidates
def test_audit_and_calibration_of_a_gated_model(skipper, tokenizer, texts):
    many = [" ".join([*text.split(), word]) for text in texts for word in WORDS[5:25]]
    engine = with_costs(Engine(skipper, tokenizer, "threshold:0.9"))
    running = audit(engine, rate=1.0)
    result = engine.predict(many)
    record = engine.every_exit(many)
    agreement = float((result.logits.argmax(1) == record.logits[:, -1].argmax(1)).double().mean())
    assert running.report().agreement == pytest.approx(agreement)
    calibration = calibrate(engine, many, mean_depth=2.5, rounds=1, speed_samples=8)
    assert calibration.chosen.mean_layers <= 2.5
    fitted = {family.name for family in families_of(skipper) if family.fitted}  # judged by half of the texts
    unfitted = [candidate for candidate in calibration.candidates if candidate.family not in fitted]
    assert len({candidate.family for candidate in unfitted}) > 2
    for candidate in unfitted:
        measured = engine.with_policy(candidate.policy).predict(many).mean_layers
        assert measured == pytest.approx(candidate.mean_layers)


def test_what_was_calibrated_is_forgotten_whole(skipper, tokenizer, texts):
    many = [" ".join([*text.split(), word]) for text in texts for word in WORDS[5:25]]
    calibrate(Engine(skipper, tokenizer, "full+skip:never"), many, mean_depth=2.5, rounds=1, speed_samples=8)
    assert skipper.exit_config.policy.endswith("+skip:never")
    assert Engine(skipper, tokenizer).policy.skip == Skip("never")
    assert Engine(skipper, tokenizer).predict(texts).skipped is None
    skipper.forget_calibration()
    assert Engine(skipper, tokenizer).policy == Policy(LastLayer())
    assert Engine(skipper, tokenizer).predict(texts).skipped is not None


def test_a_promise_is_of_the_way_of_skipping_that_it_was_made_with(skipper, tokenizer, texts):
    many = [" ".join([*text.split(), word]) for text in texts for word in WORDS[5:25]]
    calibrate(Engine(skipper, tokenizer), many, agreement=0.6, rounds=1, speed_samples=8)
    assert audit(Engine(skipper, tokenizer)).promised == 0.6
    named = f"{skipper.exit_config.policy}+skip:never"
    assert audit(Engine(skipper, tokenizer, named)).promised is None
    skipper.exit_config.policy = named
    with pytest.warns(
        UserWarning, match=r"calibrated with exit_policy .*, now .*\+skip:never: its policy is used, but its promise"
    ):
        assert audit(Engine(skipper, tokenizer)).promised is None


def test_planned_paths_promise_nothing(skipper, tokenizer, texts):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 4, 0.8, learn=("skips",), progress=False)
    engine = Engine(skipper, tokenizer, "full+skip:planned")
    with pytest.raises(ValueError, match="agreement is promised against the model at full depth"):
        calibrate(engine, [f"{text} again" for text in texts * 5], agreement=0.6)


def test_planned_paths_are_saved_and_loaded(skipper, tokenizer, texts, tmp_path):
    skipper.exit_table = build_exit_table(
        skipper, tokenizer, texts * 3, 0.8, progress=False, learn=("skips",), save_records=True
    )
    skipper.exit_config.policy = "threshold:0.8+skip:planned:0.1"
    skipper.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, device="cpu")
    assert engine.policy.skip == Skip("planned", 0.1)
    expected = Engine(skipper, tokenizer, "threshold:0.8+skip:planned:0.1").predict(texts)
    result = engine.predict(texts)
    assert torch.equal(result.skipped, expected.skipped)
    torch.testing.assert_close(result.logits, expected.logits)
    table = ExitTable.load(tmp_path)
    assert torch.equal(table.records.skipped, skipper.exit_table.records.skipped)
    assert set(table.rebuild(threshold=0.5).learned) == {"skips"}
    assert table.merge(table).records.skipped.shape[0] == 2 * len(texts) * 3
    assert table.merge(table).learned == {}
    assert table.without_records().learned["skips"].paths is table.learned["skips"].paths


def test_a_way_of_skipping_that_version_0_1_saved_is_kept(skipper, tokenizer, texts, tmp_path):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 3, 0.8, progress=False, learn=("skips",))
    skipper.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "exit_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text()) | {"exit_policy": "verified:0.8", "skipping": "planned:0.1"}
    del config["digests"]["exit_config"], config["digests"]["config"]  # of a file and of a form that 0.1 did not have
    calibration = {"promise": ["agreement", 0.9], "chosen": {"policy": "verified:0.8"}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"calibration": calibration}))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the promise is of this policy
            engine = Engine.from_pretrained(tmp_path, device="cpu")
        assert format_policy(engine.policy) == "predicted:0.05+threshold:0.8+skip:planned:0.1"
        assert engine.promise.agreement == 0.9
        expected = Engine(skipper, tokenizer, engine.policy).predict(texts)
        assert torch.equal(engine.predict(texts).skipped, expected.skipped)
        engine.save_pretrained(tmp_path)  # as this version saves it


def test_another_way_of_skipping_ends_an_audit(skipper, tokenizer, texts):
    engine = Engine(skipper, tokenizer)
    audit(engine, rate=1.0)
    with pytest.warns(UserWarning, match="the audit that was running ends here"):
        engine.policy = "full+skip:never"
    expected = Engine(skipper, tokenizer, "full+skip:never").predict(texts)
    torch.testing.assert_close(engine.predict(texts).logits, expected.logits)


def test_a_plan_is_not_audited_against_itself(skipper, tokenizer, texts):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 4, 0.8, learn=("skips",), progress=False)
    engine = Engine(skipper, tokenizer, "full+skip:planned:1000")  # the shortest path for all
    running = audit(engine, rate=1.0)
    planned, gated = engine.predict(texts), Engine(skipper, tokenizer).predict(texts)
    assert not torch.equal(planned.skipped, gated.skipped)
    agreement = float((planned.label_ids == gated.label_ids).double().mean())
    assert running.report().agreement == pytest.approx(agreement)
    assert agreement < 1


def test_a_table_of_other_gates_is_left_out(skipper, tokenizer, texts, tmp_path, caplog):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 4, 0.8, learn=("skips",), progress=False)
    skipper.save_pretrained(tmp_path)
    for changes in ({"skip_threshold": 1.0}, {"skip_layers": [4]}):
        caplog.clear()
        assert MultiExitBert.from_pretrained(tmp_path, **changes).exit_table is None
        assert f"The exit table is left out: it was built with {next(iter(changes))}=" in caplog.text
    assert MultiExitBert.from_pretrained(tmp_path).exit_table is not None
    skipper.config.skip_layers = [4]
    with pytest.raises(ValueError, match=r"paths that skip layers beside skip_layers=\[4\]: build it again"):
        Engine(skipper, tokenizer, "full+skip:planned")


def test_a_plan_keeps_its_budget_where_texts_skip_its_layer(skipper, tokenizer, many):
    """Who skipped the layer of the plan cannot leave there, which its price must know."""
    skipper.exit_table = build_exit_table(skipper, tokenizer, many, 0.8, progress=False, learn=("forecasts",))
    assert skipper.exit_table.forecasts.held_out_skipped[:, 0].any()
    for depth in (2.5, 3.0):
        found = Engine(skipper, tokenizer, f"planned:1,mean_depth={depth}").predict(many)
        assert found.exit_layers.double().mean() <= depth + 0.3


def test_a_frontier_knows_who_skipped(skipper, tokenizer, many):
    """What it expects of each policy on the held-out texts is what a simulation of them gives."""
    skipper.exit_table = table = build_exit_table(skipper, tokenizer, many, 0.8, progress=False, learn=("forecasts",))
    forecasts, layers = table.forecasts, skipper.config.exit_layers
    skipped = torch.zeros(len(forecasts.held_out), skipper.config.num_hidden_layers, dtype=torch.bool)
    skipped[:, torch.tensor(layers) - 1] = forecasts.held_out_skipped
    tokens = Tokens.from_lists([[5]] * len(skipped))
    for candidate in [*_by_risk(forecasts, layers, 0.5), *_by_price(forecasts, layers, 0.5)]:
        exits = simulate(skipper, candidate.policy, tokens, forecasts.held_out, skipped)
        agrees = forecasts.held_out_agrees[torch.arange(len(exits)), exits]
        assert candidate.agreement == pytest.approx(float(agrees.double().mean()))
        if candidate.policy.leave is None:
            assert candidate.cost == pytest.approx(float(torch.tensor(layers)[exits].double().mean()) + 0.5)

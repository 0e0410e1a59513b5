"""What becomes of a calibration's promise, and of an audit, when what it was made with changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from geep_triton import Engine, MultiExitBert, audit, build_exit_table, calibrate
from geep_triton.promises.temperatures import fit_temperatures
from geep_triton.table.exit_table import ExitTable


def test_a_promise_goes_with_what_it_was_made_with(calibrated, tokenizer):
    """The table, the temperatures, the length at which texts are cut, and how layers are skipped."""
    engine, _ = calibrated
    model = engine.model
    assert audit(engine).promised == 0.8
    with pytest.warns(UserWarning, match="calibrated with max_length .*, now 5: its policy is used"):
        assert audit(Engine(model, tokenizer, max_length=5, truncation=True)).promised is None
    assert audit(Engine(model, tokenizer)).promised == 0.8
    model.exit_table = model.exit_table.rebuild(smoothing=50.0)
    with pytest.warns(UserWarning, match="have changed since the calibration: its promise is gone"):
        running = audit(engine)
    assert running.promised is None
    assert running.report().holds is None
    assert audit(Engine(model, tokenizer)).promised is None


def test_dropping_a_tables_records_keeps_the_calibration(calibrated):
    engine, result = calibrated
    engine.model.exit_table = engine.model.exit_table.without_records()
    assert engine.model.exit_config.policy == result.chosen.policy
    engine.model.exit_table = engine.model.exit_table.rebuild(smoothing=2.0)
    assert engine.model.exit_config.policy is None


@pytest.fixture
def saved(calibrated, tmp_path):
    """Folder of a calibrated model and its tokenizer."""
    calibrated[0].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_promise_is_kept_by_what_was_saved_with_it(saved):
    engine = Engine.from_pretrained(saved)
    assert audit(engine).promised == 0.8
    engine.model.exit_table.without_records().save_pretrained(saved)
    assert audit(Engine.from_pretrained(saved)).promised == 0.8


def test_a_saved_promise_does_not_hold_with_another_table(saved, model, tokenizer, many):
    build_exit_table(model, tokenizer, many[:50], 0.5, learn=("agreement",), progress=False).save_pretrained(saved)
    with pytest.warns(UserWarning, match="calibrated with exit_table .*: its policy is used, but its promise does not hold"):
        assert audit(Engine.from_pretrained(saved)).promised is None


def test_a_saved_promise_does_not_hold_with_other_temperatures(saved, tokenizer):
    other = MultiExitBert.from_pretrained(saved, exit_temperatures=[20.0] * 4)
    with pytest.warns(UserWarning, match="calibrated with exit_temperatures None, now"):
        assert audit(Engine(other, tokenizer)).promised is None


def test_a_promised_accuracy_also_goes_with_the_length(model, tokenizer, many):
    engine = Engine(model, tokenizer)
    labels = engine.with_policy("full").predict(many).labels
    calibrate(engine, many, labels, max_accuracy_drop=0.3, rounds=1, speed_samples=20)
    with pytest.warns(UserWarning, match="calibrated with max_length .*, now 5"):
        Engine(model, tokenizer, max_length=5, truncation=True)


def test_the_digest_of_a_table(calibrated, tmp_path):
    table = calibrated[0].model.exit_table
    table.save_pretrained(tmp_path)
    assert ExitTable.load(tmp_path / "exit_table.safetensors").digest() == table.digest() == table.without_records().digest()
    values = table.learned["agreement"]
    others = [
        table.rebuild(smoothing=50.0),
        replace(table, learned={}),
        replace(table, learned={"agreement": replace(values, length_bias=values.length_bias + 1)}),
    ]
    assert len({other.digest() for other in [table, *others]}) == 4


def test_a_table_without_hashes_cannot_show_which_texts_it_knows(calibrated, tokenizer, many):
    model = calibrated[0].model
    model.exit_table = replace(model.exit_table, text_hashes=None)
    with pytest.warns(UserWarning, match="nothing shows whether it was built from these"):
        calibrate(Engine(model, tokenizer, "full"), many, agreement=0.8, rounds=1, speed_samples=20)


def test_what_ends_an_audit_says_so(calibrated, many):
    engine, _ = calibrated
    audit(engine, rate=1.0)
    with pytest.warns(UserWarning, match="the audit that was running ends here"):
        calibrate(engine, many, agreement=0.8, rounds=1, speed_samples=20)
    running = audit(engine, rate=1.0)
    with pytest.warns(UserWarning, match="the audit that was running ends here"):
        fit_temperatures(engine, many, [0, 1, 2] * 133 + [0])
    engine.predict(many)
    assert running.report().samples == 0


def test_an_audit_no_longer_judges_by_a_promise_that_is_gone(calibrated, many):
    engine, _ = calibrated
    running = audit(engine, rate=1.0)
    engine.model.exit_table = engine.model.exit_table.rebuild(smoothing=50.0)
    with pytest.warns(UserWarning, match="have changed since the calibration: its promise is gone"):
        engine.predict(many[:20])
    assert running.report().holds is None
    assert running.report().samples == 20


def test_scores_are_audited_by_a_decision_or_a_tolerance(make_model, tokenizer):
    model = make_model(num_labels=1, problem_type="regression")
    with pytest.raises(ValueError, match="compared by a decision .* or a tolerance"):
        audit(Engine(model, tokenizer, "constant:1"), 1.0)
    model.exit_config.decision = 0.0
    engine = Engine(model, tokenizer, "constant:1")
    running = audit(engine, 1.0)
    texts = ["good", "bad film", "the hotel was cold"]
    full = Engine(model, tokenizer, "full").predict(texts)
    same = engine.predict(texts).decisions == full.decisions
    assert running.report().agreement == pytest.approx(float(same.double().mean()))


def test_the_recall_of_a_class_is_audited(model, tokenizer, many):
    engine, full = Engine(model, tokenizer, "constant:1"), Engine(model, tokenizer, "full").predict(many).label_ids
    running = audit(engine, 1.0, promised=0.9, recall_of="LABEL_2")
    given = engine.predict(many).label_ids
    having = full == 2
    assert running.report().samples == int(having.sum())
    assert running.report().agreement == pytest.approx(float((given[having] == 2).double().mean()))
    with pytest.raises(ValueError, match="unknown recall_of 'toxic'; known: LABEL_0"):
        audit(engine, recall_of="toxic")


def test_a_policy_may_be_set(calibrated, many):
    engine, _ = calibrated
    engine.policy = "threshold:0.5"
    expected = engine.with_policy("threshold:0.5").predict(many[:20])
    assert engine.predict(many[:20]).exit_layers.tolist() == expected.exit_layers.tolist()
    assert audit(engine).promised is None
    with pytest.warns(UserWarning, match="the audit that was running ends here"):
        engine.policy = "threshold:0.3"
    for wrong, message in (("nonsense", "unknown"), ("constant:9", "layer")):
        with pytest.raises(ValueError, match=message):
            engine.policy = wrong
        assert str(engine.policy) == str(engine.with_policy("threshold:0.3").policy)


def test_a_saved_promise_does_not_hold_for_another_policy(saved, tokenizer):
    model = MultiExitBert.from_pretrained(saved)
    model.exit_config.policy = "constant:1"
    with pytest.warns(UserWarning, match="calibrated with exit_policy .*, now constant:1"):
        assert audit(Engine(model, tokenizer)).promised is None

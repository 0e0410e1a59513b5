"""What a calibration counts of its texts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from geep_triton import Engine, calibrate
from geep_triton.calibrated import Breakdown, Calibrated
from geep_triton.exit_config import ExitConfig
from geep_triton.policies.text import parse_policy
from geep_triton.promises.breakdown import MOST_ANSWERS, MOST_LENGTHS, breakdown

MULTI = "multi_label_classification"


@pytest.fixture
def engine(model, tokenizer):
    return Engine(model, tokenizer, "threshold:0.5")


def test_it_counts_what_predict_does(engine, many):
    """Written out again, text by text."""
    found = breakdown(engine.model, engine.policy, engine.every_exit(many))
    answers, full = engine.predict(many), engine.with_policy("full").predict(many)
    same = answers.label_ids == full.label_ids
    lengths = engine.every_exit(many).tokens.lengths
    assert found.texts == len(many)
    assert {each.layer: each.leaving for each in found.exits} == answers.histogram
    for each in found.exits:
        assert each.leaving_same == int(same[answers.exit_layers == each.layer].sum())
        at_exit = engine.with_policy(f"constant:{each.layer}").predict(many).label_ids
        assert each.same == int((at_exit == full.label_ids).sum())
    for group in found.by_length:
        low, high = map(int, group.name.split("-"))
        members = (lengths >= low) & (lengths <= high)
        assert group.texts == int(members.sum()) > 0
        assert group.layers == int(answers.layers_run[members].sum())
        assert group.same == int(same[members].sum())
    for group in found.by_answer:
        members = full.label_ids == engine.model.config.label2id[group.name]
        assert (group.texts, group.layers, group.same) == (
            int(members.sum()), int(answers.layers_run[members].sum()), int(same[members].sum())
        )  # fmt: skip
    assert sum(group.texts for group in found.by_length) == sum(group.texts for group in found.by_answer) == len(many)


def test_it_has_the_figures_of_the_chosen_policy(calibrated):
    _, found = calibrated
    counted = found.breakdown
    assert sum(each.leaving_same for each in counted.exits) / counted.texts == pytest.approx(found.chosen.agreement)
    assert sum(group.layers for group in counted.by_length) / counted.texts == pytest.approx(found.chosen.mean_layers)


@pytest.mark.parametrize("method", ["learn-then-test", "conformal"])
@pytest.mark.parametrize("families", ["threshold per layer", "threshold"])
def test_texts_that_fitted_a_policy_do_not_count(model, tokenizer, many, monkeypatch, method, families):
    monkeypatch.setattr("geep_triton.promises.families.TRIED", (families,))
    with torch.no_grad():  # so that leaving early is never wrong, and some policy is chosen for sure
        for head in list(model.heads.values())[:-1]:
            head.load_state_dict(model.heads["4"].state_dict())
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", lambda runs, *_: dict.fromkeys(runs, 1.0))
    found = calibrate(Engine(model, tokenizer, "full"), many, agreement=0.6, method=method)
    counted = found.breakdown
    fitted = found.chosen.family == "threshold per layer"
    assert counted.texts == (len(many) - len(many) // 2 if fitted else len(many))
    assert sum(each.leaving_same for each in counted.exits) / counted.texts == pytest.approx(found.chosen.agreement)


def test_it_comes_back_from_the_file(calibrated, tmp_path):
    engine, found = calibrated
    engine.save_pretrained(tmp_path)
    size = (tmp_path / "exit_config.json").stat().st_size
    values = json.loads((tmp_path / "exit_config.json").read_text())["calibration"]
    assert Calibrated.of(values).breakdown == found.breakdown
    del values["breakdown"]
    engine.model.exit_config.calibration = values
    engine.save_pretrained(tmp_path)
    assert 0 < size - (tmp_path / "exit_config.json").stat().st_size < 10_000


def test_many_classes_are_summed_up(make_model, tokenizer, many):
    engine = Engine(make_model(num_labels=100), tokenizer, "threshold:0.9")
    record = engine.every_exit(many)
    record = replace(record, logits=torch.randn(record.logits.shape))  # answers of nearly all classes
    found = breakdown(engine.model, engine.policy, record)
    distinct = len(set(record.logits[:, -1].argmax(-1).tolist()))
    assert distinct > MOST_ANSWERS
    assert len(found.by_answer) == MOST_ANSWERS + 1
    assert found.by_answer[-1].name == f"{distinct - MOST_ANSWERS} others"
    assert sum(group.texts for group in found.by_answer) == len(many)
    assert len(json.dumps(found.by_answer, default=vars)) < 10_000


def test_label_sets_count_under_each_label(make_model, tokenizer, many):
    engine = Engine(make_model(problem_type=MULTI), tokenizer, "distance:0.5")
    found = breakdown(engine.model, engine.policy, engine.every_exit(many))
    full = engine.with_policy("full").predict(many)
    assert found.by == "labels"
    counts = {group.name: group.texts for group in found.by_answer}
    expected = {name: sum(name in names for names in full.label_sets) for name in full.id2label.values()}
    expected["no label"] = sum(not names for names in full.label_sets)
    assert counts == {name: count for name, count in expected.items() if count}


def test_scores_are_binned_with_the_decision_as_a_bound(make_model, tokenizer, many):
    model = make_model(num_labels=1)
    model.exit_config.decision = 0.125
    engine = Engine(model, tokenizer, "distance:0.5")
    found = breakdown(model, engine.policy, engine.every_exit(many))
    scores = engine.with_policy("full").predict(many).scores
    assert found.by == "scores"
    assert sum(group.texts for group in found.by_answer) == len(many)
    below = 0
    for group in found.by_answer:
        if group.name in ("from 0.125",) or group.name.startswith("0.125 to"):
            break
        below += group.texts
    assert below == int((scores < 0.125).sum())
    assert not any(f"{float(scores.min()):g}" in group.name for group in found.by_answer)


def test_a_score_that_nothing_compares_is_refused(make_model, tokenizer, many):
    engine = Engine(make_model(num_labels=1), tokenizer, "full")
    with pytest.raises(ValueError, match="compared by a decision"):
        breakdown(engine.model, engine.policy, engine.every_exit(many))


def test_lengths_are_a_handful_of_bins(model, tokenizer, texts):
    engine = Engine(model, tokenizer, "threshold:0.5", max_length=64)
    long = [" ".join(["good"] * count) for count in range(1, 60)]
    found = breakdown(model, engine.policy, engine.every_exit(long))
    assert 1 < len(found.by_length) <= MOST_LENGTHS
    assert sum(group.texts for group in found.by_length) == len(long)


def test_an_old_file_names_what_it_lacks():
    found = Calibrated.of(ExitConfig(calibration={"promise": ["agreement", 0.9], "samples": 300}).calibration)
    assert (found.promises, found.samples, found.breakdown, found.chosen) == ({"agreement": 0.9}, 300, None, None)
    assert {"breakdown", "chosen", "candidates"} <= set(found.missing)
    assert "samples" not in found.missing


@pytest.mark.parametrize(
    "wrong", [3, {}, {"texts": -1}, {"texts": 3, "by": "classes", "exits": [3], "by_length": [], "by_answer": []}, None, "text"]
)
def test_a_damaged_part_is_missing(wrong):
    assert "breakdown" in Calibrated.of({"promise": ["agreement", 0.9], "breakdown": wrong}).missing


def test_a_group_of_nobody_is_damaged():
    group = {"name": "a", "texts": 0, "layers": 0, "same": 0}
    values = {"texts": 1, "by": "classes", "exits": [], "by_length": [group], "by_answer": []}
    with pytest.raises(ValueError):  # noqa: PT011  # a mean of nothing; whoever reads it says which part it is
        Breakdown.from_dict(values)


def test_a_full_depth_policy_is_counted_too(model, tokenizer, many):
    engine = Engine(model, tokenizer, "full")
    found = breakdown(model, parse_policy("full"), engine.every_exit(many))
    assert [each.leaving for each in found.exits] == [0, 0, 0, len(many)]
    assert all(group.agreement == 1 and group.mean_layers == 4 for group in (*found.by_length, *found.by_answer))

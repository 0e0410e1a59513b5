"""One call gives a fine-tuned BERT exits that keep a promise, and leaves its own answers as they are."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from geep_triton import Engine, MultiExitBert, from_fine_tuned, give_exits
from geep_triton.policies.policy import OneExitWarning
from geep_triton.policies.text import parse_policy
from geep_triton.runners.make import multiplied_here
from geep_triton.unfinished import unfinished
from tests.conftest import WORDS

SETTINGS = {"agreement": 0.8, "epochs": 1.0, "learning_rate": 1e-2, "progress": False, "pooling": "mean", "head_size": 16}


@pytest.fixture(scope="module")
def many():
    chosen = random.Random(0)
    words = [word for word in WORDS if word.isalpha()]
    return [" ".join(chosen.choices(words, k=chosen.randint(1, 12))) for _ in range(300)]


@pytest.fixture(scope="module")
def given(fine_tuned, many, tmp_path_factory):
    output = tmp_path_factory.mktemp("given") / "out"
    return give_exits(fine_tuned, many, output=output, **SETTINGS), output


def test_answers_of_all_layers_stay_to_the_bit(given, fine_tuned, many, tokenizer):
    engine, output = given
    before = BertForSequenceClassification.from_pretrained(fine_tuned).eval()
    after = Engine.from_pretrained(output, "full", runner="torch")
    batch = tokenizer(many[:5], return_tensors="pt", padding=True)
    with torch.inference_mode():
        assert torch.equal(before(**batch).logits, after.model(**batch).logits)
    assert engine.predict(many[:5]).labels[0] in ("no", "yes")


def test_the_policy_is_calibrated_on_texts_that_were_held_out(given, many):
    engine, output = given
    saved = Engine.from_pretrained(output)
    assert saved.policy == engine.policy
    calibration = saved.model.exit_config.calibration
    assert calibration["promise"] == ["agreement", 0.8]
    assert calibration["samples"] == pytest.approx(100, abs=10)
    assert saved.model.exit_table is not None
    assert saved.promise is not None
    assert not (output / from_fine_tuned.UNFINISHED).exists()


def test_the_exits_have_learned(given, many):
    """They give the last one's answer more often than exits that were not trained, on texts they did not see."""
    engine, _ = given
    answers = engine.with_policy("full").every_exit(many).logits.argmax(-1)
    agrees = (answers == answers[:, -1:]).float().mean(0)
    assert agrees[1] > 0.75, agrees


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_call_that_was_killed_continues(given, fine_tuned, many, tmp_path, monkeypatch):
    """In its training, and then after it; the result is that of a call that nobody killed."""
    real, steps = from_fine_tuned.MultiExitTrainer.training_step, []

    def step(*args, **kwargs):
        steps.append(len(steps))
        return killed() if len(steps) == 5 else real(*args, **kwargs)

    monkeypatch.setattr(from_fine_tuned.MultiExitTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        give_exits(fine_tuned, many, output=tmp_path, **SETTINGS)
    for changed in ({"batch_size": 16}, {"head": "linear"}):
        with pytest.raises(ValueError, match="an unfinished call with another (batch_size|model|config)"):
            give_exits(fine_tuned, many, output=tmp_path, **SETTINGS | changed)
    with monkeypatch.context() as patch:
        patch.setattr(from_fine_tuned, "calibrate", killed)
        with pytest.raises(KeyboardInterrupt):
            give_exits(fine_tuned, many, output=tmp_path, **SETTINGS)
    assert Engine.from_pretrained(tmp_path).policy == parse_policy("full")
    assert len(steps) == 8  # the fifth of seven was begun twice
    engine = give_exits(fine_tuned, many, output=tmp_path, **SETTINGS)
    assert len(steps) == 8
    assert engine.model.weights_digest() == given[0].model.weights_digest()
    assert engine.model.exit_config.calibration is not None


def test_it_is_calibrated_in_the_dtype_it_is_served_in(fine_tuned, many, tmp_path, capsys):
    engine = give_exits(
        fine_tuned, many, output=tmp_path, dtype="bfloat16", **SETTINGS | {"progress": True}, max_length=8, truncation=True
    )
    assert engine.dtype == "bfloat16"
    printed = capsys.readouterr().out.splitlines()[-1]
    assert "of 3 layers" in printed
    assert "at least 80.0% are promised" in printed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Engine.from_pretrained(tmp_path, dtype="bfloat16")
    assert (again.max_length, again.truncation, again.promise.agreement) == (8, True, 0.8)
    assert MultiExitBert.from_pretrained(tmp_path).dtype == torch.float32


def test_the_fastest_dtype_is_found_and_served(fine_tuned, many, tmp_path):
    output = tmp_path / "out"
    engine = give_exits(fine_tuned, many, output=output, dtype="auto", **SETTINGS)
    found = engine.model.exit_config.calibration
    assert [each["dtype"] for each in found["full_depths"]] == ["float32", *multiplied_here()]
    assert engine.dtype == found["dtype"] == Engine.from_pretrained(output).dtype
    assert found["breakdown"]["texts"] >= found["samples"] // 2
    assert engine.model.converted is not None  # its weights are held once
    torch.testing.assert_close(engine.predict(many[:9]).logits, Engine.from_pretrained(output).predict(many[:9]).logits)


def test_equal_texts_are_not_parted(fine_tuned, many, tmp_path):
    """Else those held out would be known to the exit table, and prove nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "only .* texts are distinct")
        warnings.filterwarnings("ignore", category=OneExitWarning)
        engine = give_exits(fine_tuned, many * 3, output=tmp_path / "out", **SETTINGS)
    assert engine.model.exit_config.calibration["samples"] == pytest.approx(300, abs=30)


def test_it_gives_the_same_twice(given, fine_tuned, many, tmp_path):
    again = give_exits(fine_tuned, many, output=tmp_path / "again", **SETTINGS)
    assert again.model.weights_digest() == given[0].model.weights_digest()


def test_refusals(fine_tuned, many, tmp_path):
    BertModel(BertConfig.from_pretrained(fine_tuned)).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="is not fine-tuned"):
        give_exits(tmp_path / "plain", many, output=tmp_path / "out")
    with pytest.raises(ValueError, match=r"\d+ texts are too few to promise agreement=0.99, 33% of all, .* at least 477"):
        give_exits(fine_tuned, many, output=tmp_path / "out", agreement=0.99)
    with pytest.raises(ValueError, match="output must be another folder than the model's"):
        give_exits(fine_tuned, many, output=fine_tuned)
    with pytest.raises(ValueError, match="sample 7 has an empty text"):
        give_exits(fine_tuned, [*many[:7], "", *many[8:]], output=tmp_path / "out", **SETTINGS)
    with pytest.raises(TypeError, match="must be a list"):
        give_exits(fine_tuned, iter(many), output=tmp_path / "out")
    for wrong in (
        {"agreement": 98}, {"epochs": 0}, {"epochs": "3"}, {"learning_rate": float("nan")}, {"batch_size": 0}, {"seed": 1.5},
        {"truncation": "no"}, {"progress": "x"}, {"max_length": 1000},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=f"{min(wrong)} must be"):
            give_exits(fine_tuned, many, output=tmp_path / "out", **SETTINGS | wrong)
    with pytest.raises(ValueError, match="unknown dtype 'int4'"):
        give_exits(fine_tuned, many, output=tmp_path / "out", dtype="int4", **SETTINGS)
    with pytest.raises(ValueError, match="output must be a folder"):
        give_exits(fine_tuned, many, output=fine_tuned / "config.json", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_files_of_others_stay(fine_tuned, many, tmp_path):
    theirs = tmp_path / from_fine_tuned.UNFINISHED / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("precious")
    with pytest.raises(ValueError, match="holds files of something else"):
        give_exits(fine_tuned, many, output=tmp_path, **SETTINGS)
    assert theirs.read_text() == "precious"


def test_a_second_call_at_the_same_time_is_refused(tmp_path):
    with unfinished(tmp_path / "folder", {"seed": 1}):
        with pytest.raises(ValueError, match="another process is at work"), unfinished(tmp_path / "folder", {"seed": 1}):
            pass
        (tmp_path / "folder" / "more").write_text("of this call")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("settings", "judged_by"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, {"decision": "median"}),
        ({"num_labels": 1}, {"tolerance": 3.0}),
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, {}),
    ],
    ids=["score with a cut", "score with a tolerance", "label sets"],
)
def test_exits_for_scores_and_label_sets(settings, judged_by, fine_tuned, many, tokenizer, tmp_path):
    """They learn the model's own answers without labels, which stay as they are, and are held to a promise in their unit."""
    config = BertConfig.from_pretrained(fine_tuned)
    for name in ("id2label", "label2id", "num_labels"):
        config.__dict__.pop(name, None)
    config = BertConfig(**{**config.to_dict(), "id2label": None, "label2id": None, **settings})
    before = BertForSequenceClassification(config).eval()
    before.save_pretrained(tmp_path / "before")
    tokenizer.save_pretrained(tmp_path / "before")
    with torch.inference_mode():
        answers = before(**tokenizer(many, return_tensors="pt", padding=True)).logits
    judged_by = {name: float(answers.median()) if value == "median" else value for name, value in judged_by.items()}
    engine = give_exits(tmp_path / "before", many, output=tmp_path / "after", **SETTINGS | {"epochs": 3.0} | judged_by)
    found = Engine.from_pretrained(tmp_path / "after", "full", runner="torch")
    torch.testing.assert_close(found.predict(many).logits, answers, rtol=0, atol=1e-5)
    record = found.every_exit(many)
    agrees = found.model.answers.agree(record.logits, record.logits[:, -1:]).double().mean(0)
    assert agrees[0] > 0.3
    assert engine.model.exit_config.calibration["promise"] == ["agreement", 0.8]
    assert engine.model.exit_table.criterion == "agreement"
    with pytest.raises(ValueError, match=r"texts are too few to promise agreement=0\.9999"):
        give_exits(tmp_path / "before", many, output=tmp_path / "other", **SETTINGS | {"agreement": 0.9999} | judged_by)


def test_a_score_needs_a_decision_or_a_tolerance(fine_tuned, many, tokenizer, tmp_path):
    config = BertConfig.from_pretrained(fine_tuned, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "before")
    tokenizer.save_pretrained(tmp_path / "before")
    with pytest.raises(ValueError, match="compared by a decision .* or a tolerance"):
        give_exits(tmp_path / "before", many, output=tmp_path / "after", **SETTINGS)
    with pytest.raises(ValueError, match="decision is for scores and label sets"):
        give_exits(fine_tuned, many, output=tmp_path / "after", decision=0.5, **SETTINGS)

"""exit_config.json: how a model is served, apart from its shape; what is checked, saved, loaded and still holds."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from geep_triton import Engine, MultiExitBert, MultiExitBertConfig, build_exit_table
from geep_triton.exit_config import EXIT_CONFIG_FILE, OLD_FIELDS, ExitConfig, read_exit_config, write_exit_config
from geep_triton.runners.make import make_runner
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.checkpoints import damage_of
from geep_triton.training.dataset import TextDataset

CALIBRATION = {"promise": ["agreement", 0.9], "chosen": {"policy": "threshold:0.3+skip:never"}}
SERVED = {
    "policy": "threshold:0.3+skip:never",
    "thresholds": [0.1, 0.2, 0.3],
    "temperatures": [0.5, 1.0, 1.5, 2.0],
    "calibration": CALIBRATION,
}
# The same in a config.json of version 0.1.
OLD_SERVED = {
    "exit_policy": "threshold:0.3",
    "skipping": "never",
    "exit_thresholds": SERVED["thresholds"],
    "exit_temperatures": SERVED["temperatures"],
    "calibration": {"promise": ["agreement", 0.9], "chosen": {"policy": "threshold:0.3"}},
}


@pytest.fixture
def folder(model, tmp_path):
    """Of a model that has all of it."""
    model.exit_config = ExitConfig(**SERVED)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def old_folder(folder):
    """As version 0.1 saved the model: all of it in config.json, and no digest of another file."""
    values = json.loads((folder / "config.json").read_text())
    del values["digests"]["exit_config"]
    del values["digests"]["config"]  # which was of all that the file said
    values |= OLD_SERVED
    (folder / "config.json").write_text(json.dumps(values))
    (folder / EXIT_CONFIG_FILE).unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("policy", 3, TypeError, "policy must be a str or None, got 3"),
        ("skipping", "gates", AttributeError, "an ExitConfig has no field 'skipping'"),
        ("thresholds", 2.0, ValueError, "each of thresholds must be between 0.0 and 1.0, got 2.0"),
        ("thresholds", [0.1, "x"], TypeError, "each of thresholds must be a number, got 'x'"),
        ("thresholds", {0.5}, TypeError, "each of thresholds must be a number"),
        ("temperatures", 1.0, TypeError, "temperatures must be a list of numbers, got 1.0"),
        ("temperatures", [1.0, 0.0], ValueError, "each of temperatures must be between 1e-06"),
        ("calibration", {}, ValueError, "calibration must be what `calibrate` found"),
        ("calibration", {"promise": ["luck", 0.5]}, ValueError, "unknown promise of calibration 'luck'; known: agreement"),
        ("calibration", CALIBRATION | {"truncation": 1e-12}, TypeError, "truncation of calibration must be True or False"),
        ("calibration", CALIBRATION | {"max_length": "64"}, TypeError, "max_length of calibration must be an int"),
        ("calibration", {"promise": ["agreement", 2]}, ValueError, "agreement that calibration promises must be between"),
        ("max_length", 2, ValueError, "max_length must be at least 3, got 2"),
        ("max_length", 128.0, TypeError, "max_length must be an int, got 128.0"),
        ("truncation", 1, TypeError, "truncation must be a bool or None, got 1"),
        ("threshold", 0.3, AttributeError, "an ExitConfig has no field 'threshold'; it has policy, thresholds"),
    ],
)
def test_values_are_checked_when_they_are_set(name, value, error, message):
    exit_config = ExitConfig(thresholds=0.5)
    with pytest.raises(error, match=message):
        setattr(exit_config, name, value)
    assert exit_config == ExitConfig(thresholds=0.5)
    if error is not AttributeError:
        with pytest.raises(error, match=message):
            ExitConfig(**{name: value})


def test_lists_become_tuples_which_nobody_can_change():
    given = [0.1, 0.2]
    exit_config = ExitConfig(thresholds=given, temperatures=[1, 2.0])
    given.append(7.0)
    assert (exit_config.thresholds, exit_config.temperatures) == ((0.1, 0.2), (1, 2.0))


def test_a_model_takes_values_over(model):
    mine, other = model.exit_config, ExitConfig(thresholds=0.5)
    model.exit_config = other
    assert model.exit_config is mine
    assert mine == other
    other.thresholds = 0.7
    assert mine.thresholds == 0.5
    model.exit_config = ExitConfig(calibration=CALIBRATION)
    assert mine.calibration == CALIBRATION
    assert mine.calibration is not CALIBRATION
    model.exit_config = ExitConfig(thresholds=0.5)
    for values, message in (
        ({"thresholds": [0.1]}, r"thresholds must be one number, or one per exit but the last \(3\), got 1"),
        ({"temperatures": [1.0] * 3}, r"temperatures must be one per exit \(4\), got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            model.exit_config = ExitConfig(**values)
        assert mine == ExitConfig(thresholds=0.5)
        for name, value in values.items():
            setattr(mine, name, value)
        with pytest.raises(ValueError, match=message):
            model.check_config()
        model.exit_config = ExitConfig(thresholds=0.5)
    with pytest.raises(TypeError, match="exit_config must be a ExitConfig, got 0.5"):
        model.exit_config = 0.5


def test_runners_share_it_and_copies_have_their_own(model):
    shared, own = make_runner(model, dtype="bfloat16"), copy.deepcopy(model)
    model.exit_config.temperatures = [2.0] * 4
    assert torch.equal(shared.model.at_temperature(1, torch.tensor([4.0])), torch.tensor([2.0]))
    assert own.exit_config == ExitConfig()


def test_what_does_not_fit_is_not_saved(model, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model.exit_config.thresholds = [0.1]
    with pytest.raises(ValueError, match="thresholds must be one number"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_configuration_has_the_shape_only(model):
    for name in OLD_FIELDS:
        assert not hasattr(model.config, name)
        passed = r"exit_policy='\.\.\.\+skip:MODE'" if name == "skipping" else name
        with pytest.raises(
            TypeError, match=f"no field {name}: .*Set model.exit_config.{OLD_FIELDS[name]}, or pass {passed} to"
        ):
            MultiExitBertConfig(**{name: None})
        with pytest.raises(AttributeError, match=f"no field {name}: it holds the model's shape only"):
            setattr(model.config, name, None)


def test_files(folder, model):
    values = json.loads((folder / EXIT_CONFIG_FILE).read_text())
    config = json.loads((folder / "config.json").read_text())
    assert values == SERVED | {"weights": config["digests"]["weights"]}
    assert not OLD_FIELDS.keys() & config.keys()
    assert read_exit_config(folder / EXIT_CONFIG_FILE) == (model.exit_config, values["weights"])
    assert config["digests"]["exit_config"] == model.exit_config.digest()
    loaded = MultiExitBert.from_pretrained(folder)
    assert loaded.exit_config == ExitConfig(**SERVED)
    assert AutoModelForSequenceClassification.from_pretrained(folder).exit_config == loaded.exit_config
    model.save_pretrained(folder.parent / "other", is_main_process=False)
    assert not (folder.parent / "other" / EXIT_CONFIG_FILE).exists()


@pytest.mark.parametrize("values", [{}, SERVED, {"thresholds": 1}, {"policy": "é\u200b", "temperatures": [1, 1e-6, 1e6, 0.1]}])
def test_round_trip(tmp_path, values):
    written = ExitConfig(**values)
    write_exit_config(written, tmp_path, None)
    assert read_exit_config(tmp_path / EXIT_CONFIG_FILE) == (written, None)
    assert read_exit_config(tmp_path / EXIT_CONFIG_FILE)[0].digest() == written.digest()


def test_no_file_means_defaults(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["digests"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / EXIT_CONFIG_FILE).unlink()
    assert MultiExitBert.from_pretrained(folder).exit_config == ExitConfig()
    (folder / EXIT_CONFIG_FILE).write_text('{"policy": "constant:2"}')  # as somebody may write it
    assert MultiExitBert.from_pretrained(folder).exit_config == ExitConfig(policy="constant:2")


def test_a_save_over_another_leaves_nothing_of_it(folder, make_model):
    make_model().save_pretrained(folder)
    assert MultiExitBert.from_pretrained(folder).exit_config == ExitConfig()


def test_a_checkpoint_of_version_0_1(old_folder, model, tokenizer, texts, caplog):
    loaded = MultiExitBert.from_pretrained(old_folder)
    assert loaded.exit_config == ExitConfig(**SERVED)
    assert "exit_config" not in caplog.text
    for policy in ("threshold", "threshold:0.3"):
        expected = Engine(model, tokenizer, policy).predict(texts)
        found = Engine(loaded, tokenizer, policy).predict(texts)
        torch.testing.assert_close(found.logits, expected.logits, atol=0, rtol=0)
        assert found.exit_layers.tolist() == expected.exit_layers.tolist()
    assert AutoModelForSequenceClassification.from_pretrained(old_folder).exit_config == loaded.exit_config
    assert not hasattr(AutoConfig.from_pretrained(old_folder), "exit_thresholds")
    loaded.save_pretrained(old_folder)
    assert not OLD_FIELDS.keys() & json.loads((old_folder / "config.json").read_text()).keys()
    assert MultiExitBert.from_pretrained(old_folder).exit_config == ExitConfig(**SERVED)


def test_the_file_counts_where_an_old_configuration_lies_beside_it(old_folder):
    write_exit_config(ExitConfig(policy="constant:1"), old_folder, None)
    assert MultiExitBert.from_pretrained(old_folder).exit_config == ExitConfig(policy="constant:1")


@pytest.mark.parametrize("saved", ["folder", "old_folder"])
def test_what_the_caller_chooses(saved, request):
    path = request.getfixturevalue(saved)
    chosen = {"exit_thresholds": 0.9, "exit_temperatures": None, "exit_policy": "full"}
    loaded = MultiExitBert.from_pretrained(path, **chosen)
    expected = SERVED | {"thresholds": 0.9, "temperatures": None, "policy": "full"}
    assert loaded.exit_config == ExitConfig(**expected)
    with pytest.raises(ValueError, match=r"one per exit but the last \(3\), got 1"):
        MultiExitBert.from_pretrained(path, exit_thresholds=[0.5])
    with pytest.raises(TypeError, match="policy must be a str or None, got 3"):
        MultiExitBert.from_pretrained(path, exit_policy=3)


@pytest.mark.parametrize("saved", ["folder", "old_folder"])
@pytest.mark.parametrize("load", [MultiExitBert.from_pretrained, AutoModelForSequenceClassification.from_pretrained])
def test_other_exits(saved, load, request, caplog):
    path = request.getfixturevalue(saved)
    assert load(path, exit_layers=[2, 4]).exit_config == ExitConfig()
    for words in ("thresholds are left out", "temperatures are left out", "calibration is left out, because exits, gates or"):
        assert words in caplog.text
    kept = load(path, exit_layers=[2, 4], exit_thresholds=[0.5], exit_temperatures=[2.0, 1.0], exit_policy="constant:2")
    assert kept.exit_config == ExitConfig("constant:2", thresholds=[0.5], temperatures=[2.0, 1.0])
    assert load(path, exit_layers=[1, 2, 3, 4]).exit_config == ExitConfig(**SERVED)


def test_as_many_other_exits(folder):
    model = MultiExitBert.from_pretrained(folder, exit_layers=[1, 4])
    model.exit_config.thresholds = [0.3]
    model.save_pretrained(folder)
    assert MultiExitBert.from_pretrained(folder, exit_layers=[3, 4]).exit_config.thresholds is None
    assert MultiExitBert.from_pretrained(folder).exit_config.thresholds == (0.3,)


@pytest.mark.parametrize("saved", ["folder", "old_folder"])
def test_another_way_to_skip_is_another_policy_of_which_nothing_is_promised(saved, request, tokenizer):
    path = request.getfixturevalue(saved)
    with pytest.raises(TypeError, match=r"pass exit_policy='\.\.\.\+skip:MODE', got 'gates'"):
        MultiExitBert.from_pretrained(path, skipping="gates")
    assert Engine(MultiExitBert.from_pretrained(path), tokenizer).promise.agreement == 0.9
    loaded = MultiExitBert.from_pretrained(path, exit_policy="threshold:0.3")
    assert loaded.exit_config.thresholds == (0.1, 0.2, 0.3)
    with pytest.warns(
        UserWarning, match="exit_policy threshold:0.3.skip:never, now threshold:0.3: its policy is used, but its"
    ):
        assert Engine(loaded, tokenizer).promise is None


@pytest.mark.parametrize(
    ("old", "policy"),
    [
        ({}, None),
        ({"skipping": None}, None),
        ({"skipping": "gates"}, "full+skip:gates"),
        ({"exit_policy": "verified:0.2", "skipping": "planned:0.5"}, "verified:0.2+skip:planned:0.5"),
    ],
)
def test_what_version_0_1_saved_of_skipping_is_a_part_of_the_policy(old, policy):
    assert ExitConfig.from_old_config(old | {"num_labels": 3}) == ExitConfig(policy)
    with pytest.raises(TypeError, match=r"skipping must be a str or None, got \['gates'\]"):
        ExitConfig.from_old_config(old | {"skipping": ["gates"]})


def test_a_field_of_that_name_in_the_configuration_of_a_bert(folder, make_model, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "bert", "calibration": "x", "skipping": 3}
    del config["digests"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / EXIT_CONFIG_FILE).unlink()
    assert MultiExitBert.from_pretrained(folder, pooling="mean", head_size=16).exit_config == ExitConfig()


def test_variants_share_the_file(folder, model, caplog):
    model.save_pretrained(folder, variant="fp16")
    for variant in (None, "fp16"):
        assert MultiExitBert.from_pretrained(folder, variant=variant).exit_config == model.exit_config
    assert "exit_config" not in caplog.text
    model.exit_config.thresholds = 0.9
    model.save_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match="config.json was saved with other weights"):
        MultiExitBert.from_pretrained(folder)  # of another save than the thresholds


def test_a_trainers_checkpoint_has_it(model, tokenizer, tmp_path):
    rows = [{"text": "good film", "label": "LABEL_0"}, {"text": "bad film", "label": "LABEL_1"}]
    model.exit_config.thresholds = [0.1, 0.2, 0.3]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, report_to=[], disable_tqdm=True, use_cpu=True),
        train_dataset=TextDataset(rows, Encoder(tokenizer, 64), model.config.label2id),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-1"
    assert MultiExitBert.from_pretrained(checkpoint).exit_config.thresholds == (0.1, 0.2, 0.3)
    assert damage_of(checkpoint) is None
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert model.exit_config.thresholds == (0.1, 0.2, 0.3)
    (checkpoint / EXIT_CONFIG_FILE).write_text("{")
    assert "exit_config.json: damaged file, expected JSON" in damage_of(checkpoint)


def test_another_vocabulary_ends_a_calibration_only(model):
    model.exit_config = ExitConfig(**SERVED)
    model.resize_token_embeddings(50)
    expected = SERVED | {"policy": None, "calibration": None}
    assert model.exit_config == ExitConfig(**expected)


def test_an_engine_serves_as_it_says(model, tokenizer, texts, tmp_path):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.exit_config = ExitConfig(policy="threshold", thresholds=[0.9, 0.7, 0.8])
    Engine(model, tokenizer).save_pretrained(tmp_path)
    loaded = Engine.from_pretrained(tmp_path)
    expected = Engine(model, tokenizer, "threshold").predict(texts)
    assert loaded.policy == Engine(model, tokenizer, "threshold").policy
    assert loaded.predict(texts).exit_layers.tolist() == expected.exit_layers.tolist()

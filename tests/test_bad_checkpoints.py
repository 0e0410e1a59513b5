"""Checkpoints that cannot be loaded say why, and code in them is never run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, BertTokenizer

from geep_triton import Engine, MultiExitBert, MultiExitBertConfig
from geep_triton.exit_config import OLD_FIELDS, ExitConfig
from tests.conftest import tiny_config

NAN = float("nan")
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "type_vocab_size", "initializer_range",
)  # fmt: skip
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    Engine(model, tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(model, tmp_path):
    """A folder with shards, and a function that changes their index."""
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    path = tmp_path / "sharded" / "model.safetensors.index.json"

    def change(action):
        index = json.loads(path.read_text())
        action(index["weight_map"])
        path.write_text(json.dumps(index))
        return path.parent

    return change


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("_orig_mod.", "saved with torch.compile around the BERT"),
        ("module.", "saved with DataParallel or DistributedDataParallel around"),
        ("module._orig_mod.", "saved with torch.compile and DataParallel"),
        ("_orig_mod.module.", "saved with torch.compile and DataParallel"),
        ("model.", "saved with another model around"),
    ],
)
def test_names_of_a_wrapped_model(folder, prefix, message):
    path = folder / "model.safetensors"
    save_file({f"{prefix}{name}": value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"start with '{prefix}': they were {message}"):
        MultiExitBert.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "exit_table.safetensors", "config.json", "exit_config.json"])
def test_git_lfs_pointers(folder, name):
    (folder / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a git LFS pointer, not the file itself: run 'git lfs pull'"):
        MultiExitBert.from_pretrained(folder)


def test_git_lfs_pointers_in_place_of_shards(sharded):
    folder = sharded(lambda shards: None)
    for name in ("model-00002-of-", "model.safetensors.index"):
        path = next(folder.glob(f"{name}*"))
        path.write_text(POINTER)
        with pytest.raises(ValueError, match=f"{path.name} is a git LFS pointer"):
            MultiExitBert.from_pretrained(folder)


@pytest.mark.parametrize("name", ["none", "./none", "/nowhere/none", "no/such/model"])
def test_folders_that_are_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"{name}: no such folder"):
        MultiExitBert.from_pretrained(name)
    with pytest.raises(ValueError, match="none: no such folder"):
        MultiExitBert.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="no such folder"):
        Engine.from_pretrained(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"model_type": "bert", "dtype": "nothing"}', '{"model_type": []}'])
def test_damaged_configurations(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=str(folder)):
        MultiExitBert.from_pretrained(folder)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", float("inf")), ("dtype", 3), ("hidden_act", "nothing"), ("hidden_size", "x"), ("hidden_size", None),
        ("hidden_dropout_prob", None), ("num_attention_heads", 0), ("layer_norm_eps", {}), ("head_attention_heads", []),
        ("skip_gate_bias", [[]]), ("pad_token_id", 10**9), ("pad_token_id", -1), ("digests", 3), ("digests", ["x"]),
        ("calibration", 3), ("calibration", {"x": 1}), ("calibration", {"promise": ["agreement"]}), ("exit_policy", 3),
        ("exit_thresholds", [0.1]), ("exit_temperatures", 3), ("skipping", -1), ("add_cross_attention", "x"),
        ("num_hidden_layers", 10**9), ("exit_layers", {}),
    ],
)  # fmt: skip
def test_values_of_which_no_model_can_be_made(folder, name, value):
    change(folder / "config.json", **{name: value})
    if name in OLD_FIELDS:  # which are read where a checkpoint of version 0.1 has no exit_config.json
        (folder / "exit_config.json").unlink()
    with pytest.raises(ValueError, match=rf"{name}|{OLD_FIELDS.get(name, name)}|promise|damaged configuration|exit_layers"):
        Engine.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", "[" * 100_000, '{"policy": "full"', POINTER, "\0" * 20, '{"policy": "full"} {}']
)
def test_a_damaged_exit_config(folder, text):
    (folder / "exit_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"exit_config\.json( is a git LFS pointer|: damaged file, expected)"):
        MultiExitBert.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", 3), ("policy", []), ("policy", True), ("skipping", -1), ("skipping", {}), ("thresholds", "x"),
        ("thresholds", 1.5), ("thresholds", True), ("thresholds", NAN), ("thresholds", {}), ("thresholds", [0.1]),
        ("thresholds", []), ("thresholds", [0.1, 0.2, "x"]), ("thresholds", [0.1, [0.2], 0.3]), ("temperatures", 1.5),
        ("temperatures", [1.0]), ("temperatures", [1.0, 1.0, 1.0, 0.0]), ("temperatures", [1.0, 1.0, 1.0, NAN]),
        ("temperatures", "1111"), ("temperatures", {"1": 1.0}), ("calibration", 3), ("calibration", []),
        ("calibration", {}), ("calibration", {"promise": ["agreement"]}), ("calibration", {"promise": ["luck", 0.5]}),
        ("calibration", {"promise": ["agreement", 7]}), ("calibration", {"promise": ["agreement", NAN]}),
        ("calibration", {"promise": ["agreement", 0.5], "chosen": 3}), ("weights", 3), ("weights", []),
        ("threshold", 0.3), ("", None),
    ],
)  # fmt: skip
def test_values_that_no_exit_config_has(folder, name, value):
    change(folder / "exit_config.json", **{name: value})
    with pytest.raises(ValueError, match=rf"exit_config\.json: .*{name or 'unknown field'}"):
        MultiExitBert.from_pretrained(folder)


@pytest.mark.parametrize(("name", "value"), [("policy", "nothing"), ("skipping", "at times"), ("policy", "threshold:nan")])
def test_a_policy_that_there_is_not(folder, name, value):
    if name == "skipping":  # which version 0.1 had in config.json
        (folder / "exit_config.json").unlink()
        change(folder / "config.json", skipping=value)
    else:
        change(folder / "exit_config.json", **{name: value})
    with pytest.raises(ValueError, match=value.partition(":")[0]):
        Engine.from_pretrained(folder)


def test_an_exit_config_of_another_model(folder, make_model, tmp_path):
    other = make_model(pooling="mean", exit_layers=[1, 4])
    other.exit_config.thresholds = [0.3]
    with torch.no_grad():
        other.heads["1"].classifier.bias += 1
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "exit_config.json", folder)
    with pytest.raises(ValueError, match="exit_config.json was saved with other weights than the model's: files of two models"):
        MultiExitBert.from_pretrained(folder)
    (folder / "exit_config.json").unlink()  # as the error says
    assert MultiExitBert.from_pretrained(folder).exit_config == ExitConfig()


def test_an_exit_config_that_was_changed_by_hand_is_taken_aloud(folder, caplog):
    change(folder / "exit_config.json", weights=json.loads((folder / "exit_config.json").read_text())["weights"])
    MultiExitBert.from_pretrained(folder)
    assert "exit_config" not in caplog.text
    change(folder / "exit_config.json", policy="constant:2")
    assert Engine.from_pretrained(folder).policy.start.layer == 2
    assert "exit_config.json was changed since it was saved with these weights; it is taken as it is now" in caplog.text
    caplog.clear()
    (folder / "exit_config.json").unlink()
    assert Engine.from_pretrained(folder).policy == Engine.from_pretrained(folder, "full").policy
    assert "the exit_config.json that the model was saved with is not there: defaults are used" in caplog.text


@pytest.mark.parametrize(
    "name", ["hidden_size", "vocab_size", "max_position_embeddings", "intermediate_size", "type_vocab_size"]
)
def test_sizes_are_refused_before_memory_is_taken(folder, name):
    for value, message in ((1 << 14, "tensors of another shape than the configuration says: .*"), (1 << 40, "")):
        change(folder / "config.json", **{name: value})
        with pytest.raises(ValueError, match=f"{message}{name}"):
            MultiExitBert.from_pretrained(folder)


def test_weights_with_gates_beside_a_configuration_without(folder, make_model, tmp_path):
    make_model(skip_gate="mean").save_pretrained(tmp_path / "gated")
    shutil.copy(tmp_path / "gated" / "model.safetensors", folder)
    with pytest.raises(ValueError, match="config.json was saved with other weights"):
        MultiExitBert.from_pretrained(folder)


def test_settings_that_were_changed_by_hand_are_taken_aloud(folder, texts, caplog):
    expected = Engine.from_pretrained(folder).predict(texts)
    assert "was changed since it was saved" not in caplog.text
    change(folder / "config.json", transformers_version="0")
    Engine.from_pretrained(folder)
    MultiExitBert.from_pretrained(folder, exit_layers=[2, 4], id2label={0: "a", 1: "b", 2: "c"}, label2id=None)
    assert "was changed since it was saved" not in caplog.text
    change(folder / "config.json", pooling="cls", last_pooling="cls")
    found = Engine.from_pretrained(folder).predict(texts)
    assert not torch.allclose(found.logits, expected.logits)
    assert "config.json was changed since it was saved with these weights; it is taken as it is now" in caplog.text


def test_another_tokenizer_than_the_model_was_saved_with(folder, model, tokenizer, texts, tmp_path):
    words = list(tokenizer.get_vocab())
    words[10], words[11] = words[11], words[10]
    other = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="the model was saved with another tokenizer than the one that is there"):
        Engine.from_pretrained(folder)
    Engine(MultiExitBert.from_pretrained(folder), other).predict(texts)  # as the error says
    Engine(model, other).save_pretrained(folder)
    Engine.from_pretrained(folder).predict(texts)
    model.save_pretrained(tmp_path / "apart")
    other.save_pretrained(tmp_path / "apart")
    Engine.from_pretrained(tmp_path / "apart").predict(texts)  # nothing tells which tokenizer it should be


def damaged_tokenizer(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer.json", lambda t: t.update(truncation={})),
        ("tokenizer.json", lambda t: t["pre_tokenizer"].pop("type")),
        ("tokenizer.json", lambda t: t["decoder"].update(cleanup={})),
        ("tokenizer.json", lambda t: t["model"]["vocab"].update(good=[1])),
        ("tokenizer.json", lambda t: t["model"]["vocab"].update(good=999)),
        ("tokenizer.json", lambda t: t["model"]["vocab"].pop("good")),
        ("tokenizer_config.json", lambda t: t.update(do_lower_case=None)),
        ("tokenizer_config.json", lambda t: t.update(cls_token=[])),
        ("tokenizer_config.json", lambda t: t.update(unk_token="0")),
        ("tokenizer_config.json", lambda t: t.update(model_max_length="../x")),
        ("tokenizer_config.json", lambda t: t.update(model_max_length=-1)),
    ],
)
def test_damaged_tokenizers(folder, name, damage):
    damaged_tokenizer(folder / name, damage)
    with pytest.raises(ValueError, match="no tokenizer that loads|was saved with another tokenizer"):
        Engine.from_pretrained(folder)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/tmp/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "x.bin", 7]
)
def test_an_index_that_names_files_elsewhere_or_pickles(sharded, tmp_path, shard):
    folder = sharded(lambda shards: shards.update({next(iter(shards)): shard}))
    shutil.copy(next(folder.glob("model-00001*")), tmp_path / "x.safetensors")
    (folder / "x.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"each shard must be a \.safetensors file beside the index|damaged index"):
        MultiExitBert.from_pretrained(folder)


def test_an_index_that_does_not_fit_its_shards(sharded):
    def swap(shards):
        first, *_, last = shards
        shards[first], shards[last] = shards[last], shards[first]

    with pytest.raises(ValueError, match="lacks tensors that model.safetensors.index.json says it holds"):
        MultiExitBert.from_pretrained(sharded(swap))


def test_a_shard_that_is_not_there(sharded):
    folder = sharded(lambda shards: None)
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="names the shard model-00002-of-.* which is not there"):
        MultiExitBert.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {"a": null}}', '{"metadata": 3}', "[" * 100_000]
)
def test_a_damaged_index(sharded, text):
    folder = sharded(lambda shards: None)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="model.safetensors.index.json"):
        MultiExitBert.from_pretrained(folder)


def test_code_of_a_checkpoint_is_never_run(folder, tmp_path, texts, caplog):
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise SystemExit('ran')\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", "evil.T"]}),
    ):
        values = json.loads((folder / name).read_text()) | {"auto_map": classes}
        (folder / name).write_text(json.dumps(values))
    engine = Engine.from_pretrained(folder)
    assert len(engine.predict(texts)) == len(texts)
    assert "custom code (auto_map), which is not run" in caplog.text
    assert not hasattr(engine.model.config, "auto_map")
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(folder), MultiExitBert)
    with pytest.raises(ValueError, match="runs no code from a checkpoint: leave trust_remote_code out"):
        MultiExitBert.from_pretrained(folder, trust_remote_code=True)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model type bert or multi_exit_bert, got 'evil'"):
        MultiExitBert.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "EvilTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config["model_type"] = "multi_exit_bert"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no tokenizer that loads"):
        Engine.from_pretrained(folder)
    assert not ran.exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_weights_in_the_file_that_are_no_floating_point_numbers(folder, dtype):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.1.output.dense.weight"] = tensors["bert.encoder.layer.1.output.dense.weight"].to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weights bert.encoder.layer.1.output.dense.weight are .*, expected floating point"):
        MultiExitBert.from_pretrained(folder)


def test_position_ids_of_older_checkpoints_are_no_weights(folder):
    path = folder / "model.safetensors"
    save_file({**load_file(path), "bert.embeddings.position_ids": torch.arange(64)[None]}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="config.json was saved with other weights"):
        MultiExitBert.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("digests")
    (folder / "config.json").write_text(json.dumps(config))
    MultiExitBert.from_pretrained(folder)


def test_the_configuration_of_another_folder(folder, tokenizer, texts, tmp_path):
    """What is said of digests is said of what lies there, not of a configuration that the caller gives."""
    bare = BertModel(BertConfig(**{name: getattr(tiny_config(), name) for name in SIZES}))
    bare.save_pretrained(tmp_path / "bert")
    given = MultiExitBertConfig.from_pretrained(folder)
    assert given.digests
    loaded = MultiExitBert.from_pretrained(tmp_path / "bert", config=given)
    assert torch.equal(loaded.bert.embeddings.word_embeddings.weight, bare.embeddings.word_embeddings.weight)
    tensors = load_file(folder / "model.safetensors")
    tensors["heads.2.classifier.bias"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="config.json was saved with other weights"):
        MultiExitBert.from_pretrained(folder, config=tiny_config(pooling="mean"))


def test_a_folder_without_a_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="model has no config.json"):
        MultiExitBert.from_pretrained(folder)


WRONG = {
    **{name: ("x", 0, -1, 1.5, 10**12, [], True) for name in SIZES if name != "initializer_range"},
    "num_attention_heads": (0, -4, 3, "4"),
    **{name: ("x", -1, 2, [], NAN) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps")},
    "initializer_range": ("x", -1, NAN, []),
    "hidden_act": ("nothing", 3, []),
    "pad_token_id": (-1, 42, "x", 1.5),
    "problem_type": ("foo", 3, []),
    "dtype": (3, True, 1.5, "nothing"),
    "calibration": (3, [], {}, {"promise": 1}, {"promise": ["agreement", 7]}, {"promise": ["agreement", NAN]},
                    {"promise": ["luck", 0.5]}, {"promise": ["agreement", "x"]}, {"promise": [[], 0.5]},
                    {"promise": ["agreement", 0.5], "chosen": 3}),
    **{name: (3, [], {}) for name in ("exit_policy", "skipping")},
    "exit_thresholds": ("x", 2, [0.1], {}, NAN, [NAN] * 3),
    "exit_temperatures": ("x", 2, [1.0], {}, [NAN] * 4, [0.0] * 4),
    "id2label": ({"0": "a", "00": "b"}, {"0": "a", "1": "a"}, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_values_that_no_configuration_has(folder, name):
    config = json.loads((folder / "config.json").read_text())
    if name in OLD_FIELDS:
        (folder / "exit_config.json").unlink()
    for value in WRONG[name]:
        (folder / "config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises((ValueError, TypeError)):
            MultiExitBert.from_pretrained(folder)


def test_a_regression_with_several_scores(make_model, tokenizer):
    with pytest.raises(ValueError, match="problem_type regression needs num_labels=1, got 3"):
        Engine(make_model(problem_type="regression"), tokenizer)

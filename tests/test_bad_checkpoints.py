"""Checkpoints that cannot be loaded say why, and code in them is never run."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from geep_triton import Engine, MultiExitBert

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


@pytest.mark.parametrize("name", ["model.safetensors", "exit_table.safetensors", "config.json"])
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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {"a": null}}', "[" * 100_000])
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
    assert "code of its own (auto_map), which is not run" in caplog.text
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

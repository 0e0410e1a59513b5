"""Saving is all or nothing, and parts of two saves never load together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from geep_triton import Engine, MultiExitBert
from geep_triton.saving import MANIFEST, WHOLE, reading, replacing
from geep_triton.table.exit_table import ExitTable
from tests.saved_pair import FILES, make_engines, which


@pytest.fixture
def engines(tokenizer, texts):
    return make_engines(tokenizer, texts)


@pytest.fixture
def folder(engines, tmp_path):
    """A folder with the first of them."""
    engines[0].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def inodes(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_killed_save_leaves_one_model_whole(tmp_path):
    command = [sys.executable, "-m", "tests.killed_saves", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("broken", ["safetensors.torch.save_file", "pathlib.Path.write_text", "os.fsync", "os.rename"])
def test_a_save_that_fails_leaves_the_old_model(engines, folder, monkeypatch, broken):
    def full(*arguments, **kwargs):
        raise OSError(28, "No space left on device")

    before = inodes(folder)
    with monkeypatch.context() as patch:
        patch.setattr(broken, full)
        if broken.startswith("safetensors"):
            patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(OSError, match="No space left"):
            engines[1].save_pretrained(folder)
    assert inodes(folder) == before
    assert which(folder, engines) == "AAA"


def test_a_table_that_cannot_be_written_leaves_the_old_model(engines, folder, monkeypatch):
    def full(*arguments, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("geep_triton.table.files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        engines[1].model.save_pretrained(folder)
    assert which(folder, engines) == "AAA"
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.parametrize("part", ["config.json", "exit_config.json", "model.safetensors", "exit_table.safetensors"])
def test_parts_of_two_models_do_not_load_together(engines, folder, tmp_path, part):
    engines[1].save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / part, folder / part)
    with pytest.raises(ValueError, match=r"other weights"):
        MultiExitBert.from_pretrained(folder)


def test_weights_changed_behind_the_configuration(engines, folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["heads.2.classifier.bias"] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="config.json was saved with other weights.*remove 'digests' from"):
        MultiExitBert.from_pretrained(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="config.json was saved with other weights"):
        MultiExitBert.from_pretrained(folder, use_safetensors=False)
    config = json.loads((folder / "config.json").read_text())
    del config["digests"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = MultiExitBert.from_pretrained(folder)  # as a folder that an earlier version saved
    assert torch.equal(loaded.heads["2"].classifier.bias, tensors["heads.2.classifier.bias"])
    assert loaded.exit_table is not None
    assert loaded.config.digests is None


def test_a_table_saved_by_hand(engines, folder, tokenizer, texts):
    table = engines[0].model.exit_table.rebuild(threshold=0.5)
    table.save_pretrained(folder)
    assert MultiExitBert.from_pretrained(folder).exit_table.settings.threshold == 0.5
    with pytest.raises(ValueError, match="has a model with other weights than this exit table"):
        engines[1].model.exit_table.save_pretrained(folder)
    assert MultiExitBert.from_pretrained(folder).exit_table.settings.threshold == 0.5
    (folder / "exit_table.safetensors").unlink()
    assert MultiExitBert.from_pretrained(folder).exit_table is None


def test_calibrate_on_disk_writes_the_configuration_only(calibrated, tokenizer, tmp_path):
    engine, _ = calibrated
    engine.save_pretrained(tmp_path)
    loaded = Engine.from_pretrained(tmp_path, "full")
    loaded.save_pretrained(tmp_path)  # transformers may say other things of a tokenizer that was loaded
    before = inodes(tmp_path)
    loaded.model.exit_config.policy = "constant:2"
    loaded.save_pretrained(tmp_path)
    after = inodes(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {"config.json", "exit_config.json"}
    assert Engine.from_pretrained(tmp_path).policy.start.layer == 2


def test_weights_that_are_there_but_damaged_are_written_again(engines, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\1")
    engines[0].save_pretrained(folder)
    assert which(folder, engines) == "AAA"


@pytest.mark.parametrize("sizes", [("20KB", "5GB"), ("5GB", "20KB"), ("20KB", "40KB")])
def test_shards_of_an_older_save_are_taken_away(engines, tmp_path, sizes):
    for engine, size in zip(engines, sizes, strict=True):
        engine.model.save_pretrained(tmp_path, max_shard_size=size)
    assert which(tmp_path, engines) == "BBB"
    assert (tmp_path / "model.safetensors.index.json").exists() == (sizes[1] != "5GB")
    assert (tmp_path / "model.safetensors").exists() == (sizes[1] == "5GB")
    engines[0].model.save_pretrained(tmp_path)
    assert which(tmp_path, engines) == "AAA"
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"tokenizer.json", "tokenizer_config.json"}


def test_two_variants_of_one_model(engines, folder):
    engines[0].model.save_pretrained(folder, variant="again")
    assert which(folder, engines) == "AAA"
    assert torch.equal(
        MultiExitBert.from_pretrained(folder, variant="again").heads["1"].classifier.weight,
        engines[0].model.heads["1"].classifier.weight,
    )
    engines[1].model.save_pretrained(folder, variant="again")
    with pytest.raises(ValueError, match="config.json was saved with other weights"):
        MultiExitBert.from_pretrained(folder)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_get_the_usual_mode(engines, tmp_path, mask):
    before = os.umask(mask)
    try:
        engines[0].save_pretrained(tmp_path / "model")
        engines[0].model.exit_table.save_pretrained(tmp_path / "table")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask}


def test_a_save_over_a_file_is_refused(engines, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        engines[0].save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_replacing_does_and_does_not_touch(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "old.txt").write_text("old")
    with replacing(tmp_path) as new:
        (new.path / "sub").mkdir()
        (new.path / "sub" / "new.txt").write_text("new")
        new.remove |= {"old.txt", "../outside.txt"}
        (tmp_path.parent / "outside.txt").write_text("outside")
        assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "old.txt", new.path.name}
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "sub"}
    assert (tmp_path / "sub" / "new.txt").read_text() == "new"
    assert (tmp_path.parent / "outside.txt").read_text() == "outside"
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path) as new:  # noqa: PT012 - what is raised comes after a change
        (new.path / "mine.txt").write_text("other")
        raise KeyboardInterrupt
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "sub"}


def test_a_killed_save_in_a_folder_that_cannot_be_written_to(engines, folder, monkeypatch):
    left_whole(folder, '{"remove": ["tokenizer.json", "nothing.json"]}')

    def denied(*arguments, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", denied)
        with pytest.raises(ValueError, match="a save was killed before its files were in place"):
            MultiExitBert.from_pretrained(folder)
    with reading(folder):
        assert (folder / "config.json").read_text() == "{}"
    assert {path.name for path in folder.iterdir()} == FILES - {"tokenizer.json"}


def left_whole(folder, manifest):
    """A save that was killed once all was written."""
    (folder / WHOLE).mkdir()
    (folder / WHOLE / "config.json").write_text("{}")
    (folder / WHOLE / MANIFEST).write_text(manifest)


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"remove": 7}', '{"remove": [7]}', None])
def test_a_damaged_manifest_is_named(engines, folder, manifest):
    left_whole(folder, manifest or "")
    if manifest is None:
        (folder / WHOLE / MANIFEST).unlink()
    for attempt in (
        lambda: MultiExitBert.from_pretrained(folder),
        lambda: ExitTable.load(folder),
        lambda: engines[1].save_pretrained(folder),
    ):
        with pytest.raises(ValueError, match=f"cannot be moved there from {WHOLE}"):
            attempt()


def test_folders_of_the_users_own_are_left_alone(engines, folder):
    for name in (".saved", ".saving.backup"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    assert which(folder, engines) == "AAA"
    engines[1].save_pretrained(folder)
    assert which(folder, engines) == "BBB"
    assert [(folder / name / "config.json").read_text() for name in (".saved", ".saving.backup")] == ["{}", "{}"]


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors.index.json"])
def test_a_folder_in_the_place_of_a_file(engines, folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder, but a file of that name has to be"):
        engines[1].save_pretrained(folder)
    assert which(folder, engines) == "AAA"
    assert not (folder / WHOLE).exists()


def test_a_disk_that_is_full_is_an_os_error(engines, folder, monkeypatch):
    def full(*arguments, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("geep_triton.table.files.save_file", full)
    with pytest.raises(OSError, match="cannot save into .*: I/O error: No space left"):
        engines[1].save_pretrained(folder)
    assert which(folder, engines) == "AAA"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_forked_during_a_save_keeps_nobody_waiting(engines, folder):
    with replacing(folder):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        start = time.monotonic()
        engines[1].save_pretrained(folder)
        assert time.monotonic() - start < 30
        assert which(folder, engines) == "BBB"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_is_loaded_during_saves_is_one_model(engines, folder):
    """25 loads beside a process that saves one over the other all the time."""
    command = [sys.executable, "-m", "tests.killed_saves", str(folder), "--on-and-on"]
    saver = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE)
    try:
        saver.stdout.readline()  # it has begun
        seen = {which(folder, engines) for _ in range(25)}
        assert saver.poll() is None
    finally:
        saver.kill()
        saver.communicate()
    assert seen <= {"AAA", "BBB"}
    assert len(seen) == 2


def test_tables_of_earlier_versions_have_no_digests(engines, folder):
    config = json.loads((folder / "config.json").read_text())
    del config["digests"]
    (folder / "config.json").write_text(json.dumps(config))
    engines[1].model.exit_table.save_pretrained(folder)  # no one can tell
    assert MultiExitBert.from_pretrained(folder).exit_table.digest() == engines[1].model.exit_table.digest()
    assert ExitTable.load(folder).weights == engines[1].model.exit_table.weights


def test_a_table_of_other_weights_is_told_of_whenever_it_comes_up(engines, folder, tmp_path, caplog):
    mine, other = (engine.model for engine in engines)
    said = "exit table was built with other weights than the model's"
    other.exit_table = mine.exit_table
    assert said in caplog.text
    for step in (
        lambda: other.save_pretrained(tmp_path / "other"),
        lambda: MultiExitBert.from_pretrained(tmp_path / "other"),
        lambda: MultiExitBert.from_pretrained(tmp_path / "other").save_pretrained(tmp_path / "again"),
        lambda: MultiExitBert.from_pretrained(tmp_path / "again"),
    ):
        caplog.clear()
        step()
        assert said in caplog.text
    caplog.clear()
    loaded = MultiExitBert.from_pretrained(folder)
    loaded.exit_table = loaded.exit_table.rebuild(smoothing=3.0)
    loaded.save_pretrained(tmp_path / "same")
    half = MultiExitBert.from_pretrained(tmp_path / "same", dtype=torch.bfloat16)  # the same weights, in another dtype
    half.save_pretrained(tmp_path / "half")
    MultiExitBert.from_pretrained(tmp_path / "half")
    assert said not in caplog.text


def test_a_variant_does_not_outlive_what_it_is_a_variant_of(engines, tmp_path):
    first, second = (engine.model for engine in engines)
    first.save_pretrained(tmp_path, variant="fp16")
    first.save_pretrained(tmp_path)
    second.exit_table, second.exit_config.thresholds = None, first.exit_config.thresholds
    first.exit_table = None
    first.save_pretrained(tmp_path, variant="fp16")
    second.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json was saved with other weights"):
        MultiExitBert.from_pretrained(tmp_path, variant="fp16")


def test_a_tokenizer_of_another_save(engines, folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"good"', '"goods"'))
    with pytest.raises(ValueError, match="saved with another tokenizer than the one that is there"):
        Engine.from_pretrained(folder)

"""What MultiExitTrainer refuses before it trains: labels that are no classes, and checkpoints that are not whole."""

from __future__ import annotations

import json
import math
import shutil

import datasets
import pytest
import torch
from torch.utils.data import Dataset

from geep_triton.tokens.encoder import Encoder
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.requirements import check_labels
from tests.conftest import tiny_config
from tests.trainers import ROWS, build


def rows_of(tokenizer, labels, name="label"):
    """A datasets.Dataset with these labels."""
    encoded = tokenizer([row["text"] for row in ROWS][: len(labels)])
    return datasets.Dataset.from_dict({**encoded, name: labels})


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 1, 2], r"row 1 has the label 2, expected one of the classes 0\.\.1"),
        ([-1, 1], "row 0 has the label -1"),
        ([0, 1, -100], r"row 2 has the label -100.*drop rows without a label"),
        ([0.0, 1.0], r"row 0 has the label 0\.0"),
        ([0, 1, None], "row 2 has the label None"),
        ([False, True], "row 0 has the label False"),
        (["neg", "pos"], "row 0 has the label 'neg'"),
        ([[0], [1]], r"row 0 has the label \[0\]"),
    ],
)
def test_labels_that_are_no_classes(make_model, tokenizer, tmp_path, labels, message, name):
    data = rows_of(tokenizer, labels, name)
    with pytest.raises(ValueError, match=f"train_dataset: {message}"):
        build(make_model(num_labels=2), tokenizer, tmp_path, "joint", data=data)
    for several in (data, {"a": rows_of(tokenizer, [0, 1]), "b": data}):
        with pytest.raises(ValueError, match=rf"eval_dataset(\['b'\])?: {message}"):
            build(make_model(num_labels=2), tokenizer, tmp_path, "joint", eval_dataset=several)


@pytest.mark.parametrize("wrong", [["a", "b"], [0, 2], [0], "ab", 1])
def test_labels_that_are_no_sets(wrong):
    config = tiny_config(num_labels=2, problem_type="multi_label_classification")
    right = [[0, 1], [True, False], torch.tensor([0.5, 1.0])]
    rows = [{"labels": label} for label in right]
    assert check_labels("train_dataset", rows, config)
    with pytest.raises(ValueError, match="train_dataset: row 3 has the label .*, expected a list of 2 numbers from 0 to 1"):
        check_labels("train_dataset", [*rows, {"labels": wrong}], config)


def test_no_rows(make_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        build(make_model(num_labels=2), tokenizer, tmp_path, "joint", data=datasets.Dataset.from_dict({"input_ids": []}))


def test_labels_of_another_map(make_model, tokenizer, tmp_path):
    data = TextDataset(ROWS, Encoder(tokenizer, 64), {"neg": 1, "pos": 2})
    with pytest.raises(ValueError, match="train_dataset: row .* has the label 2"):
        build(make_model(num_labels=2), tokenizer, tmp_path, "joint", data=data)


@pytest.mark.parametrize("labels", [[1, 2] * 4, [-1, 1] * 4, [-100] * 8, [0.0, 1.0] * 4])
def test_labels_that_are_first_seen_in_a_batch(make_model, tokenizer, tmp_path, labels):
    class Stream(torch.utils.data.Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            return {"input_ids": [2, 5 + index, 3], "labels": labels[index]}

    trainer = build(make_model(num_labels=2), tokenizer, tmp_path, "joint", data=Stream())
    with pytest.raises(ValueError, match="labels must be .*between 0 and 1"):
        trainer.train()


def test_a_recipe_that_reads_no_labels_takes_any(make_model, tokenizer, tmp_path):
    data = rows_of(tokenizer, [7, 8, -1, 3])
    trainer = build(make_model(num_labels=2), tokenizer, tmp_path, "frozen", data=data, max_steps=1)
    before = {name: value.clone() for name, value in trainer.model.heads.state_dict().items()}
    assert math.isfinite(trainer.train().training_loss)
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.heads.state_dict().items())


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 3], "between 0 and 2, got"), ([0.0, 1.0], "must be ints"), ([-1, 0], r"\[-1\]")]
)
def test_labels_given_to_the_model(make_model, labels, message):
    model, ids = make_model(), torch.tensor([[2, 5, 3], [2, 6, 3]])
    with pytest.raises(ValueError, match=message):
        model(ids, labels=torch.tensor(labels))
    assert model.config.problem_type is None
    assert model(ids, labels=torch.tensor([0, -100])).loss.isfinite()
    assert make_model(num_labels=1)(ids, labels=torch.tensor([0.5, 3.0])).loss.isfinite()


@pytest.fixture
def trained(make_model, tokenizer, tmp_path):
    """A folder with checkpoints 1 and 2, and a function that goes on."""

    def go(resume=None, folder=tmp_path):
        model = make_model(num_labels=2)
        trainer = build(model, tokenizer, folder, "joint", save_strategy="steps", save_steps=1, max_steps=3)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    go()
    shutil.rmtree(tmp_path / "checkpoint-3")
    return tmp_path, go


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "half a state": lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 2'),
    "a state that is none": lambda folder: (folder / "trainer_state.json").write_text("[]"),
    "weights cut": lambda folder: cut(folder / "model.safetensors"),
    "weights changed": lambda folder: flip(folder / "model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "optimizer cut": lambda folder: cut(folder / "optimizer.pt"),
    "optimizer changed": lambda folder: flip(folder / "optimizer.pt"),
    "scheduler empty": lambda folder: (folder / "scheduler.pt").write_bytes(b""),
    "random states cut": lambda folder: cut(folder / "rng_state.pth"),
    "empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_checkpoint_is_named(trained, name, caplog):
    folder, go = trained
    DAMAGE[name](folder / "checkpoint-2")
    for resume in (True, str(folder / "checkpoint-2")):
        with pytest.raises(ValueError, match=r"checkpoint-2 is not a complete checkpoint .*resume from .*checkpoint-1 with"):
            go(resume)
    caplog.clear()
    assert last_whole_checkpoint(folder) == folder / "checkpoint-1"
    assert "checkpoint-2 is skipped" in caplog.text
    assert go(str(folder / "checkpoint-1")).state.global_step == 3


def test_whole_checkpoints_are_gone_on_from(trained):
    folder, go = trained
    assert last_whole_checkpoint(folder) == folder / "checkpoint-2"
    assert go(True).state.global_step == 3
    with pytest.raises(ValueError, match="not a complete checkpoint .no such folder."):
        go(str(folder / "checkpoint-9"))
    with pytest.raises(ValueError, match="has no checkpoint to resume from"):
        go(True, folder / "elsewhere")


def test_a_checkpoint_saved_over_another_is_not_vouched_for_by_its_state(trained):
    class Killed(BaseException):
        pass

    folder, go = trained
    assert json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2

    def die(*arguments, **kwargs):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer.Trainer._save_optimizer_and_scheduler", die)
        with pytest.raises(Killed):
            go(str(folder / "checkpoint-1"))
    assert last_whole_checkpoint(folder) == folder / "checkpoint-1"


@pytest.mark.parametrize("labels", [[0, None], ["neg", "pos"], [[1, 0], [0, 1]], [0, -100]])
def test_labels_in_a_list_of_rows(make_model, tokenizer, tmp_path, labels):
    rows = [{**tokenizer(row["text"]), "labels": label} for row, label in zip(ROWS, labels, strict=False)]
    for name in ("data", "eval_dataset"):
        with pytest.raises(ValueError, match=r"(train|eval)_dataset: row . has the label"):
            build(make_model(num_labels=2), tokenizer, tmp_path, "joint", **{name: rows})


class Unseen(Dataset):
    """Samples that the trainer sees as they come."""

    def __init__(self, samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.mark.parametrize("labels", [[-100] * 4, [0, 1, -100, 1]])
def test_labels_that_evaluation_would_count_as_wrong(make_model, tokenizer, tmp_path, labels):
    rows = Unseen([{**tokenizer(row["text"]), "labels": label} for row, label in zip(ROWS, labels, strict=False)])
    trainer = build(make_model(num_labels=2), tokenizer, tmp_path, "joint", eval_dataset=rows)
    with pytest.raises(ValueError, match=r"labels must be between 0 and 1, got \[-100\]"):
        trainer.evaluate()


def test_data_sets_without_labels_are_refused_before_training(make_model, tokenizer, tmp_path):
    encoder = Encoder(tokenizer, 64)
    unlabelled = {
        "TextDataset.*makes them": TextDataset(ROWS, encoder, None),
        "columns are input_ids": datasets.Dataset.from_dict({"input_ids": [[2, 7, 3]] * 4}),
        "columns are input_ids, ": [dict(tokenizer(row["text"])) for row in ROWS],
    }
    for what, data in unlabelled.items():
        with pytest.raises(ValueError, match=f"recipe 'joint' needs labels, but train_dataset has none: .*{what}"):
            build(make_model(num_labels=2), tokenizer, tmp_path, "joint", data=data)
        with pytest.raises(ValueError, match=f"evaluation .*'epoch'.* needs labels, but eval_dataset has none: .*{what}"):
            build(make_model(num_labels=2), tokenizer, tmp_path, "joint", eval_dataset=data, eval_strategy="epoch")
        build(make_model(num_labels=2), tokenizer, tmp_path, "joint", eval_dataset=data)  # for predict


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_lacks_what_resuming_needs(trained, name):
    folder, _ = trained
    newest = last_whole_checkpoint(folder)
    (newest / name).unlink()
    assert last_whole_checkpoint(folder) != newest
    for other in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (newest / other).unlink(missing_ok=True)
    assert last_whole_checkpoint(folder) == newest  # weights alone, as save_only_model=True saves


def test_a_checkpoint_whose_configuration_is_cut_off(trained, caplog):
    folder, _ = trained
    newest = last_whole_checkpoint(folder)
    config = newest / "config.json"
    config.write_text(config.read_text()[:50])
    assert last_whole_checkpoint(folder) != newest
    assert "its config.json is damaged or cut off" in caplog.text


def test_copies_of_checkpoints_by_other_names(trained):
    folder, _ = trained
    newest = last_whole_checkpoint(folder)
    for name in ("checkpoint-999-backup", "checkpoint-old", "checkpoint-"):
        shutil.copytree(newest, folder / name)
    assert last_whole_checkpoint(folder) == newest


@pytest.mark.parametrize("label", ["a", 3, ["1", 1], [0, 1, 0], [0.5]])
def test_a_row_has_different_names(label):
    rows = [{"text": "a film", "label": ["0", 1]}, {"text": "a film", "label": label}]
    assert label_names([*rows[:1], {"text": "none", "label": []}], "multi_label_classification") == ["0", "1"]
    with pytest.raises(ValueError, match="row 1 has the label .*, expected a list of (different )?names"):
        label_names(rows, "multi_label_classification")

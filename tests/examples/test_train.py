"""examples/train.py: records, kills, recipes, classes, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from geep_triton import MultiExitBert
from tests.examples.scripts import ROOT, ROWS, run, write


def test_train_leaves_a_whole_model_and_its_record(trained):
    assert {"config.json", "model.safetensors", "exit_table.safetensors", "tokenizer.json", "training.json"} <= {
        path.name for path in trained.iterdir()
    }
    record = json.loads((trained / "training.json").read_text())
    assert record["arguments"]["recipe"] == "joint"
    assert record["metrics"]["eval_accuracy"] >= 0.9


def test_train_goes_on_after_a_kill(trained, tmp_path):
    """Killed while training and started again, it ends with the weights of a run that was left alone."""
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS] * 4)

    def command(output: Path) -> list[str]:
        return [
            "train.py", "--model", trained.parent / "bert", "--train", data, "--dev", data, "--output", output,
            "--epochs", 60, "--pooling", "mean", "--max-length", 32, "--save-steps", 10,
        ]  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*command(whole)).returncode == 0
    script, *arguments = map(str, command(killed))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (killed / "checkpoints" / "checkpoint-10").exists():
        assert process.poll() is None, "training ended before its first checkpoint"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "model.safetensors").exists()
    (killed / "checkpoints" / "checkpoint-1000").mkdir()  # as a kill in the middle of a save leaves it
    done = run(*command(killed))
    assert done.returncode == 0, done.stderr
    expected, resumed = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5, msg=name)
    changed = run(*command(killed)[:-1], 20)
    assert changed.returncode != 0
    assert "has a run with another save_steps (10, now 20)" in changed.stderr


def test_train_by_other_recipes(trained, tmp_path, train_here):
    """Settings, a difficulty column, class weights; then exits for the model that came out, which keeps its answers."""
    rows = [{"text": text, "label": label, "hard": len(text)} for text, label in ROWS] * 2
    data = write(tmp_path / "data.jsonl", rows)
    common = ["--train", data, "--dev", data, "--epochs", 4, "--max-length", 32]
    train_here(
        "--model", trained.parent / "bert", "--output", tmp_path / "kd", *common, "--recipe", "distillation",
        "--recipe-settings", "temperature=3", "pairing=last", "--curriculum", "staged", "--curriculum-settings", "buckets=2",
        "until=0.7", "--difficulty", "hard", "--class-weights", "balanced",
    )  # fmt: skip
    record = json.loads((tmp_path / "kd" / "training.json").read_text())
    assert record["arguments"]["recipe_settings"] == {"temperature": 3, "pairing": "last"}
    assert record["arguments"]["curriculum_settings"] == {"buckets": 2, "until": 0.7}
    train_here("--model", tmp_path / "kd", "--output", tmp_path / "frozen", *common, "--recipe", "frozen")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("kd", "frozen"))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("heads.1.", "heads.2.")) for name in moved)
    train_here(
        "--model", trained.parent / "bert", "--output", tmp_path / "curriculum", *common, "--curriculum", "competence",
        "--difficulty", "cross-review:2",
    )  # fmt: skip
    assert (tmp_path / "curriculum" / "model.safetensors").is_file()
    assert len(list((tmp_path / "curriculum" / "teachers").glob("answers_*.json"))) == 2  # a killed review goes on from these


@pytest.fixture
def fine_tuned(trained, tmp_path) -> Path:
    """A BertForSequenceClassification whose classes are not in alphabetical order."""
    config = BertConfig.from_pretrained(trained.parent / "bert", id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "fine")
    AutoTokenizer.from_pretrained(trained.parent / "bert").save_pretrained(tmp_path / "fine")
    return tmp_path / "fine"


@pytest.mark.parametrize("labelled", [True, False])
def test_classes_of_a_fine_tuned_model_keep_their_numbers(fine_tuned, tmp_path, train_here, labelled):
    data = write(tmp_path / "data.jsonl", [{"text": text} | ({"label": label} if labelled else {}) for text, label in ROWS])
    command = ["--train", data, "--dev", data, "--epochs", 1, "--max-length", 32, "--output", tmp_path / "out"]
    train_here("--model", fine_tuned, "--recipe", "joint" if labelled else "frozen", *command)
    assert MultiExitBert.from_pretrained(tmp_path / "out").config.id2label == {0: "pos", 1: "neg"}
    metrics = json.loads((tmp_path / "out" / "training.json").read_text())["metrics"]
    assert ("eval_accuracy_exit_1" in metrics) == labelled
    assert metrics.get("eval_agreement_exit_3", 1.0) == 1.0


def test_classes_without_names(fine_tuned, tmp_path, train_here):
    config = json.loads((fine_tuned / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (fine_tuned / "config.json").write_text(json.dumps(config))
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    command = ["--model", fine_tuned, "--train", data, "--dev", data, "--epochs", 1, "--max-length", 32]
    command += ["--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"has no names for its classes \(LABEL_0, LABEL_1\), .* give --labels"):
        train_here(*command)
    train_here(*command, "--labels", "pos", "neg")
    assert MultiExitBert.from_pretrained(tmp_path / "out").config.id2label == {0: "pos", 1: "neg"}


def test_train_refuses_what_the_recipe_has_no_use_for(trained, tmp_path, train_here):
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    command = ["--model", trained.parent / "bert", "--train", data, "--dev", data, "--output", tmp_path / "out"]
    command += ["--max-length", "64"]
    for arguments, error, message in (
        (["--difficulty", "hard"], SystemExit, "--difficulty would be ignored without --curriculum"),
        (["--curriculum-settings", "until=1"], SystemExit, "--curriculum-settings would be ignored without --curriculum"),
        (["--curriculum", "staged", "--curriculum-settings", "until=2"], ValueError, "until must be between"),
        (["--recipe-settings", "speed=1"], ValueError, "recipe 'joint' has no setting 'speed'; known: gradient_scale"),
        (["--curriculum", "competence", "--difficulty", "hard"], ValueError, "column 'hard' must have a number in every row"),
        (["--max-length", "65"], SystemExit, "--max-length must be at most .* 64"),
        (["--recipe", "frozen"], SystemExit, "recipe 'frozen' leaves the last exit as it is, but .* is not fine-tuned"),
    ):
        with pytest.raises(error, match=message):
            train_here(*command, *arguments)


def test_scores_and_label_sets_are_trained(trained, tmp_path, in_process, capsys):
    """With a cut between 1 and 5 stars, and with sets of names; what the model answers with is read from the options."""
    stars = [{"text": text, "label": 5.0 if label == "pos" else 1.0} for text, label in ROWS]
    sets = [{"text": text, "label": [label, "any"] if "film" in text else [label]} for text, label in ROWS]
    for rows, options, metric in (
        (stars, ("--problem-type", "regression", "--decision", "3"), "mse"),
        (sets, ("--problem-type", "multi_label_classification"), "f1"),
        (stars, ("--problem-type", "regression"), "mse"),
    ):
        output = tmp_path / f"{metric}{len(options)}"
        data = write(tmp_path / "data.jsonl", rows)
        in_process(
            "train.py", "--model", trained.parent / "bert", "--train", data, "--dev", data, "--output", output, *options,
            "--epochs", 2, "--pooling", "mean", "--max-length", 32,
        )  # fmt: skip
        printed = capsys.readouterr().out
        assert f"exit 1: {metric} " in printed
        tableless = len(options) == 2 and metric == "mse"
        assert ("no exit table, which rankings do without: --decision or --tolerance" in printed) == tableless
        assert ("model, tokenizer and exit table: " in printed) != tableless
        model = MultiExitBert.from_pretrained(output)
        assert model.config.num_labels == (1 if metric == "mse" else 3)
        in_process("predict.py", "--model", output, "--input", data, "--output", tmp_path / f"{output.name}.jsonl")
        answers = [json.loads(line) for line in (tmp_path / f"{output.name}.jsonl").read_text().splitlines()]
        cut = {"decision"} if "--decision" in options else set()
        keys = {"score", "exit_layer"} | cut if metric == "mse" else {"labels", "scores", "exit_layer"}
        assert all(answer.keys() == keys for answer in answers)
        assert all(answer["decision"] == (answer["score"] >= 3) for answer in answers if cut)

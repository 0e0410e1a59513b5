"""`geep train`: records, kills, recipes, classes, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from geep_triton import Engine, MultiExitBert
from tests.cli.commands import ROOT, ROWS, command, environment, write


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS])


def test_it_leaves_a_whole_model_and_its_record(trained):
    assert {"config.json", "model.safetensors", "exit_table.safetensors", "tokenizer.json", "training.json"} <= {
        path.name for path in trained.iterdir()
    }
    assert not (trained / "train.unfinished").exists()
    record = json.loads((trained / "training.json").read_text())
    assert record["arguments"]["recipe"] == "joint"
    assert record["metrics"]["eval_accuracy"] >= 0.9
    texts = [text for text, _ in ROWS]
    assert not any(text in json.dumps(record) for text in texts)


def test_the_result_alone_is_on_stdout(trained, tmp_path, data, geep):
    command = ["train", trained.parent / "bert", "--texts", data, "--dev", data, "--epochs", 1, "--max-length", 32, "-o"]
    done = geep(*command, tmp_path / "out", "--json", "--quiet")
    assert done.code == 0, done
    assert done.err == ""
    assert [exit_["layer"] for exit_ in done.values["exits"]] == [1, 2, 3]
    assert all(0 <= exit_["accuracy"] <= 1 for exit_ in done.values["exits"])
    again = geep(*command, tmp_path / "out")
    assert again.code == 0
    assert [line.partition(":")[0] for line in again.out.splitlines()] == ["exit 1", "exit 2", "exit 3"]
    assert "holds this training already" in again.err
    told = geep(*command, tmp_path / "told")
    assert [line.split()[:2] for line in told.out.splitlines()] == [["exit", "1:"], ["exit", "2:"], ["exit", "3:"]]
    assert "model and tokenizer and exit table: " in told.err


def test_columns_are_chosen_by_name(trained, tmp_path, geep, refusal):
    """In any format of files."""
    lines = ["review,stars,text", *(f"{text},{label},another" for text, label in ROWS)]
    data = tmp_path / "data.csv"
    data.write_text("\n".join(lines) + "\n")
    command = ["train", trained.parent / "bert", "--texts", data, "--dev", data, "--epochs", 1, "--max-length", 32]
    command += ["--text-column", "review", "--label-column", "stars", "-o", tmp_path / "out"]
    assert geep(*command).code == 0
    assert MultiExitBert.from_pretrained(tmp_path / "out").config.id2label == {0: "neg", 1: "pos"}
    assert "missing column 'other'" in refusal(3, *command, "--pair-column", "other")


def test_a_model_that_is_there_is_not_written_over(trained, tmp_path, data, geep, refusal):
    bert = trained.parent / "bert"
    command = ["train", bert, "--texts", data, "--dev", data, "--epochs", 1, "--max-length", 32, "-o"]
    assert "output must be another folder than the model's" in refusal(3, *command, bert)
    assert "output must be a folder, got the file" in refusal(3, *command, data)
    assert geep(*command, tmp_path / "out").code == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    said = refusal(5, *command, tmp_path / "out", "--seed", 1)
    assert "has a run with another seed (42, now 1)" in said
    other = write(tmp_path / "other.jsonl", [{"text": text, "label": label} for text, label in ROWS[1:]])
    assert "has a run with another texts" in refusal(5, *command, tmp_path / "out", "--texts", other)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    (tmp_path / "out" / "training.json").unlink()
    assert "holds a model already" in refusal(5, *command, tmp_path / "out")
    assert geep(*command, tmp_path / "out", "--seed", 1, "--overwrite").code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before


def test_it_goes_on_after_a_kill(trained, tmp_path, geep, refusal):
    """Killed while training and started again, it ends with the weights of a run that was left alone."""
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS] * 4)

    def arguments(output: Path, save_steps: int = 10) -> list[object]:
        return [
            "train", trained.parent / "bert", "--texts", data, "--dev", data, "--output", output, "--epochs", 60, "--pooling",
            "mean", "--max-length", 32, "--save-steps", save_steps,
        ]  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert geep(*arguments(whole)).code == 0
    process = subprocess.Popen(
        command(*arguments(killed)), env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (killed / "train.unfinished" / "checkpoint-20").exists():
        assert process.poll() is None, "training ended before its second checkpoint"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "model.safetensors").exists()
    (killed / "train.unfinished" / "checkpoint-1000").mkdir()  # as a kill in the middle of a save leaves it
    assert "an unfinished call with another save_steps (10, now 20)" in refusal(5, *arguments(killed, save_steps=20))
    done = geep(*arguments(killed))
    assert done.code == 0, done
    assert "resuming from" in done.err
    expected, resumed = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert not (killed / "train.unfinished").exists()


LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc-per-node 2",
    "accelerate launch": "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0",
}


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_several_processes_train_one_model(trained, tmp_path, data, launcher):
    """One of them writes and prints."""
    arguments = ["train", trained.parent / "bert", "--texts", data, "--dev", data, "--output", tmp_path / "out"]
    arguments += [
        "--epochs",
        2,
        "--max-length",
        32,
        "--batch-size",
        2,
        "--curriculum",
        "staged",
        "--difficulty",
        "cross-review:2",
    ]
    line = [sys.executable, "-m", *launcher.split(), "-m", "geep_triton", *map(str, arguments)]
    alone = {**environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, env=alone, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row.partition(":")[0] for row in done.stdout.splitlines() if row.startswith("exit")] == [
        "exit 1",
        "exit 2",
        "exit 3",
    ]
    assert done.stderr.count("model and tokenizer and exit table: ") == 1
    assert len(Engine.from_pretrained(tmp_path / "out", "full", device="cpu").predict(["good", "bad"])) == 2
    assert not (tmp_path / "out" / "train.unfinished").exists()


def test_other_recipes(trained, tmp_path, geep):
    """Settings, a difficulty column, class weights; then exits for the model that came out, which keeps its answers."""
    rows = [{"text": text, "label": label, "hard": len(text)} for text, label in ROWS] * 2
    data = write(tmp_path / "data.jsonl", rows)
    common = ["--texts", data, "--dev", data, "--epochs", 4, "--max-length", 32]
    done = geep(
        "train", trained.parent / "bert", "--output", tmp_path / "kd", *common, "--recipe", "distillation",
        "--recipe-setting", "temperature=3", "--recipe-setting", "pairing=last", "--curriculum", "staged",
        "--curriculum-setting", "buckets=2", "--curriculum-setting", "until=0.7", "--difficulty", "hard", "--class-weights",
        "balanced",
    )  # fmt: skip
    assert done.code == 0, done
    record = json.loads((tmp_path / "kd" / "training.json").read_text())
    assert record["arguments"]["recipe_settings"] == {"temperature": 3, "pairing": "last"}
    assert record["arguments"]["curriculum_settings"] == {"buckets": 2, "until": 0.7}
    assert geep("train", tmp_path / "kd", "--output", tmp_path / "frozen", *common, "--recipe", "frozen").code == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("kd", "frozen"))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("heads.1.", "heads.2.")) for name in moved)


def test_a_cross_review_that_was_interrupted_goes_on(trained, tmp_path, data, geep):
    """From the answers of the teachers that are done."""
    command = ["train", trained.parent / "bert", "--output", tmp_path / "out", "--texts", data, "--dev", data, "--epochs", 4]
    command += ["--max-length", 32, "--curriculum", "competence", "--difficulty", "cross-review:2"]
    unfinished = tmp_path / "out" / "train.unfinished"
    assert geep(*command, "--head-learning-rate", 2).code == 3  # of which the trainer tells after the review
    assert len(list((unfinished / "teachers").glob("answers_*.json"))) == 2
    call = json.loads((unfinished / "call.json").read_text())
    (unfinished / "call.json").write_text(json.dumps(call | {"head_learning_rate": 1e-3}))  # as a kill would have left it
    done = geep(*command)
    assert done.code == 0, done
    assert done.err.count("train_runtime") == 1  # no teacher is trained again
    assert not unfinished.exists()


def test_teachers_rank_within_classes(trained, tmp_path, data, refusal, monkeypatch):
    """A class that all teachers get wrong still has easy samples."""
    seen = {}

    def capture(**options):
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr("geep_triton.cli.train_run.cross_review", lambda labels, *_: 4.0 * labels)
    monkeypatch.setattr("geep_triton.cli.train_run.MultiExitTrainer", capture)
    command = ["train", trained.parent / "bert", "--output", tmp_path / "out", "--texts", data, "--dev", data]
    assert "seen" in refusal(3, *command, "--max-length", 32, "--curriculum", "competence")
    assert set(seen["train_dataset"].labels) == {0, 1}
    of_class = [seen["difficulty"][torch.tensor(seen["train_dataset"].labels) == label].sort().values for label in (0, 1)]
    assert torch.equal(*of_class)
    assert of_class[0].unique().numel() == len(of_class[0])


@pytest.fixture
def fine_tuned(trained, tmp_path) -> Path:
    """A BertForSequenceClassification whose classes are not in alphabetical order."""
    config = BertConfig.from_pretrained(trained.parent / "bert", id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "fine")
    AutoTokenizer.from_pretrained(trained.parent / "bert").save_pretrained(tmp_path / "fine")
    return tmp_path / "fine"


@pytest.mark.parametrize("labelled", [True, False])
def test_classes_of_a_fine_tuned_model_keep_their_numbers(fine_tuned, tmp_path, geep, labelled):
    data = write(tmp_path / "data.jsonl", [{"text": text} | ({"label": label} if labelled else {}) for text, label in ROWS])
    command = ["--texts", data, "--dev", data, "--epochs", 1, "--max-length", 32, "--output", tmp_path / "out"]
    done = geep("train", fine_tuned, "--recipe", "joint" if labelled else "frozen", *command, "--json")
    assert done.code == 0, done
    assert MultiExitBert.from_pretrained(tmp_path / "out").config.id2label == {0: "pos", 1: "neg"}
    metrics = json.loads((tmp_path / "out" / "training.json").read_text())["metrics"]
    assert ("eval_accuracy_exit_1" in metrics) == labelled
    assert metrics.get("eval_agreement_exit_3", 1.0) == 1.0
    assert [exit_.keys() for exit_ in done.values["exits"]] == [{"layer", "accuracy" if labelled else "agreement"}] * 3


def test_classes_without_names(fine_tuned, tmp_path, data, geep, refusal):
    config = json.loads((fine_tuned / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (fine_tuned / "config.json").write_text(json.dumps(config))
    command = ["train", fine_tuned, "--texts", data, "--dev", data, "--epochs", 1, "--max-length", 32]
    command += ["--output", tmp_path / "out"]
    said = refusal(3, *command)
    assert "has no names for its classes (LABEL_0, LABEL_1)" in said
    assert "give the names of the model's classes in their order (--label)" in said
    assert geep(*command, "--label", "pos", "--label", "neg").code == 0
    assert MultiExitBert.from_pretrained(tmp_path / "out").config.id2label == {0: "pos", 1: "neg"}


REFUSED = {
    "difficulty": (3, ["--difficulty", "hard"], "--difficulty would be ignored without --curriculum"),
    "curriculum settings": (3, ["--curriculum-setting", "until=1"], "--curriculum-setting would be ignored without --curric"),
    "a curriculum setting": (3, ["--curriculum", "staged", "--curriculum-setting", "until=2"], "until must be between"),
    "no curriculum setting": (
        3, ["--curriculum", "staged", "--curriculum-setting", "speed=2"], "a curriculum has no setting 'speed'; known: start"),
    "a recipe setting": (
        3, ["--recipe-setting", "speed=1"], "recipe 'joint' has no setting 'speed'; known: gradient_scale"),
    "a setting twice": (
        2, ["--recipe-setting", "gradient_scale=true", "--recipe-setting", "gradient_scale=false"], "names a setting twice"),
    "no setting": (2, ["--recipe-setting", "speed"], "expected NAME=VALUE, as in temperature=2, got 'speed'"),
    "folds": (2, ["--difficulty", "cross-review:1"], "expected cross-review:FOLDS with at least 2 folds"),
    "a column": (3, ["--curriculum", "competence", "--difficulty", "hard"], "column 'hard' must have a number in every row"),
    "length": (3, ["--max-length", "65"], "max_length must be between 3 and 64, got 65"),
    "texts too long": (3, ["--max-length", "4"], "tokens, more than the 4 allowed"),
    "the last exit": (3, ["--recipe", "frozen"], "recipe 'frozen' leaves the last exit as it is, but"),
    "a recipe": (3, ["--recipe", "best"], "unknown recipe 'best'; known: berxit"),
    "a file": (3, ["--texts", "none.jsonl"], "no such file: none.jsonl"),
    "patience": (3, ["--patience", "2"], "--patience would be ignored without --keep-best"),
    "a batch": (3, ["--batch-size", "0"], "batch_size must be at least 1, got 0"),
    "decision": (3, ["--decision", "3"], "decision is for scores and label sets"),
    "a score's label": (3, ["--problem-type", "regression"], "row 0 has the label 'pos', expected a finite number"),
    "an option": (2, ["--learning-rates", "3"], "No such option: --learning-rates"),
    "a number": (2, ["--epochs", "many"], "Invalid value for '--epochs'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_leave_nothing(trained, tmp_path, data, refusal, name):
    code, arguments, message = REFUSED[name]
    command = ["train", trained.parent / "bert", "--texts", data, "--dev", data, "--output", tmp_path / "out"]
    assert message in refusal(code, *command, "--max-length", "64", *arguments)
    assert not (tmp_path / "out" / "config.json").exists()


def test_scores_and_label_sets_are_trained(trained, tmp_path, geep, refusal):
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
        command = ["train", trained.parent / "bert", "--texts", data, "--dev", data, "--output", output, *options]
        command += ["--epochs", 2, "--pooling", "mean", "--max-length", 32]
        kind = "score" if metric == "mse" else "label sets"
        assert f"--threshold is for models of classes, and this one is of {kind}" in refusal(3, *command, "--threshold", 0.2)
        assert f"--curriculum ranks texts by their class, and this model is of {kind}" in refusal(
            3, *command, "--curriculum", "staged"
        )
        done = geep(*command)
        assert done.code == 0, done
        assert f"exit 1: {metric} " in done.out
        tableless = len(options) == 2 and metric == "mse"
        assert ("no exit table, which rankings do without: --decision or --tolerance" in done.err) == tableless
        assert ("model and tokenizer and exit table: " in done.err) != tableless
        model = MultiExitBert.from_pretrained(output)
        assert model.config.num_labels == (1 if metric == "mse" else 3)
        assert model.exit_config.decision == (3.0 if "--decision" in options else None)
        assert (model.exit_table is None) == tableless


def test_the_help_names_recipes_and_settings(geep):
    done = geep("train", "--help")
    assert done.code == 0
    words = done.out.split()
    for word in ("--recipe", "smartbert", "--difficulty", "--save-records", "--gradient-accumulation-steps", "MODEL"):
        assert any(word in found for found in words), word


@pytest.mark.parametrize("cuts", [False, True])
def test_the_length_of_the_training_is_that_of_the_engine(trained, tmp_path, data, geep, cuts):
    """Unless it is told another one."""
    command = ["train", trained.parent / "bert", "--texts", data, "--dev", data, "--epochs", 1, "--max-length", 16]
    assert geep(*command, "-o", tmp_path / "out", *(["--truncate"] if cuts else [])).code == 0
    long = "good " * 40
    for policy in (None, "full", "threshold:0.3"):
        engine = Engine.from_pretrained(tmp_path / "out", policy, device="cpu")
        assert (engine.max_length, engine.truncation) == (16, cuts)
        if cuts:
            assert engine.predict([long]).truncated == 1
        else:
            with pytest.raises(ValueError, match="has 42 tokens, more than the 16 allowed"):
                engine.predict([long])
    engine = Engine.from_pretrained(tmp_path / "out", device="cpu", max_length=64, truncation=False)
    assert engine.predict([long]).truncated == 0
    assert geep("train", tmp_path / "out", *command[2:], "--max-length", 32, "-o", tmp_path / "again").code == 0
    assert Engine.from_pretrained(tmp_path / "again", device="cpu").max_length == 32

"""Cells are trained, stopped, resumed and recorded."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from bench.cells import OutOfTime
from bench.claims import arms, runs
from bench.claims.arms import Arm, Step
from bench.claims.costs import main as costs
from bench.claims.design import A, B, Cell, D
from bench.claims.records import load_record
from bench.claims.rows import rows_of
from bench.claims.runs import Runner, separate_exits
from bench.claims.sets import SETS, DataSet
from bench.training import write_json
from geep_triton import MultiExitBert
from geep_triton.training.curriculum import Curriculum

TINY = DataSet("tiny", "English", 24, 16)
STARTED = DataSet("started", "English", 24, 16, start="tiny")
GATED = {"skip_gate": "mean", "skip_gate_bias": 0.0}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A GEEP_DATA of two data sets of different texts, the second without a dev split."""
    words = ("good", "great", "warm"), ("bad", "awful", "cold")
    for name, splits in (("tiny", ("train", "dev", "test")), ("started", ("train", "test"))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for split in splits:
            rows = [{"text": f"the film was {words[i % 2][i % 3]} {split} {i}", "label": "ab"[i % 2]} for i in range(30)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "data" / name / f"{split}.jsonl").write_text(lines)
    monkeypatch.setenv("GEEP_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(SETS, "tiny", TINY)
    return tmp_path


@pytest.fixture
def backbone(tmp_path, tokenizer):
    """A folder of a tiny BERT of twelve layers."""
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=12, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_rows(data):
    tiny, started = rows_of(TINY), rows_of(STARTED)
    assert [len(part) for part in vars(tiny).values()] == [24, 30, 30]
    assert [len(part) for part in vars(started).values()] == [22, 2, 30]
    for rows in (tiny, started):
        texts = [{row["text"] for row in part} for part in vars(rows).values()]
        assert sum(map(len, texts)) == len(set.union(*texts))  # no text is in two parts
    assert rows_of(TINY) == tiny
    assert [len(part) for part in vars(rows_of(TINY, 5)).values()] == [5, 5, 5]


@pytest.mark.parametrize(
    "arm",
    [
        replace(arms.FASTBERT, steps=tuple(replace(step, epochs=1.0) for step in arms.FASTBERT.steps)),
        Arm("gated", tuple(replace(step, epochs=2.0) for step in arms.smartbert(0.05, "mean").steps), model=GATED),
        Arm("curriculum", (Step("joint", epochs=1.0, curriculum=Curriculum()),), exit_layers=arms.EVERY_LAYER),
        replace(arms.SMALL[0], steps=(Step("fastbert", {"finetune": 1.0}, 1.0),)),
    ],
    ids=lambda arm: arm.name,
)
def test_a_cell(data, backbone, arm):
    """It is trained and recorded, and a second run only reads."""
    runner, cell = Runner(data / "work", backbone, float("inf")), Cell(STARTED if arm.name == "gated" else TINY, arm, 1)
    found = runner.run(cell)
    assert found["samples"]["test"] == 30
    assert found["exit_layers"] == list(arm.exit_layers)
    assert len(found["by_exit"]) == len(arm.exit_layers)
    assert len(found["early"]) == len(found["last"]) == 30
    assert len(found["training"]["steps"]) == len(arm.steps)
    assert (found["training"]["difficulty"]["cpu_seconds"] > 0) == (arm.name == "curriculum")
    record = load_record(runner.folder_of(cell) / "test.safetensors")
    assert record.logits.shape == (30, len(arm.exit_layers), 2)
    assert (record.skipped is not None) == (arm.name == "gated")
    right = (record.logits.argmax(-1) == record.labels[:, None]).float().mean(0)
    assert right.tolist() == pytest.approx(found["by_exit"])
    assert {path.name for path in runner.folder_of(cell).iterdir()} <= {
        "training.json",
        "tune.safetensors",
        "test.safetensors",
        "model",
    }


def test_a_cell_that_is_stopped_goes_on(data, backbone):
    cell = Cell(TINY, replace(arms.GEEP, steps=(Step("geep", epochs=3.0),)), 1)
    with pytest.raises(OutOfTime):
        Runner(data / "work", backbone, time.monotonic()).run(cell)
    assert (Runner(data / "work", backbone, 0.0).folder_of(cell) / "step1" / "checkpoints").is_dir()
    stopped = Runner(data / "work", backbone, float("inf")).run(cell)
    whole = Runner(data / "other", backbone, float("inf")).run(cell)
    assert stopped["by_exit"] == whole["by_exit"]
    assert stopped["early"] == whole["early"]


def test_the_best_epoch_is_none_that_was_stopped(data, backbone, monkeypatch):
    """Stopped after every step, as a budget of minutes would: only whole epochs are compared, and none is trained twice."""
    monkeypatch.setattr(runs, "BATCH_SIZE", 8)  # three steps an epoch
    cell = Cell(TINY, replace(arms.EXITS, steps=(Step("fastbert", {"finetune": 1.0}, 4.0, best=True),)), 1)
    whole = Runner(data / "whole", backbone, float("inf"))
    judged: list[float] = []
    stopped = Runner(data / "stopped", backbone, 0.0)
    for _ in range(20):
        try:
            found = stopped.run(cell)
            break
        except OutOfTime:
            states = (stopped.folder_of(cell) / "step1" / "checkpoints").glob("checkpoint-*/trainer_state.json")
            state = max(states, key=lambda path: path.stat().st_mtime)
            judged = [entry["epoch"] for entry in json.loads(state.read_text())["log_history"] if "eval_accuracy" in entry]
    assert judged == [1.0, 2.0, 3.0]
    expected = whole.run(cell)
    assert {**found, "training": None} == {**expected, "training": None}


def test_a_kill_at_the_end_loses_nothing(data, backbone, monkeypatch):
    """Between any two of the last lines: the model is moved, the training is noted, the records are saved, the model goes."""
    cell = Cell(TINY, replace(arms.JOINT, steps=(Step("joint", epochs=1.0),)), 1)
    whole = Runner(data / "whole", backbone, float("inf")).run(cell)
    for name in ("write_json", "save_record", "answers_of"):
        runner = Runner(data / name, backbone, float("inf"))
        with monkeypatch.context() as patched:
            patched.setattr(runs, name, noted if name == "write_json" else killed)
            with pytest.raises(KeyboardInterrupt):
                runner.run(cell)
        found = runner.run(cell)
        assert {**found, "training": None} == {**whole, "training": None}


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def noted(path: Path, value: object) -> None:
    """The steps are; the whole training is not."""
    if path.name == "training.json":
        raise KeyboardInterrupt
    write_json(path, value)


def test_no_gradient_passes_an_exit(make_model):
    model = make_model(exit_layers=[2, 4], num_hidden_layers=4)
    separate_exits(model)
    ids = torch.randint(5, 30, (2, 6))
    model(ids, torch.ones_like(ids)).logits.sum().backward()
    layers = [
        any(value.grad is not None and value.grad.any() for value in layer.parameters()) for layer in model.bert.encoder.layer
    ]
    assert layers == [False, False, True, True]


def test_costs_of_what_is_there(data, backbone, monkeypatch, tmp_path):
    """A data set of A: an arm and the words before it. Then what stands beside it when its records are gone."""
    monkeypatch.setattr("bench.claims.command.shape_of", lambda _: "e5")
    monkeypatch.setattr("bench.claims.costs.A", replace(A, data_sets=(TINY,)))
    monkeypatch.setattr("bench.claims.costs.B", replace(B, data_sets=(), seeds=1))
    monkeypatch.setattr("bench.claims.costs.D", replace(D, data_sets=()))
    monkeypatch.setattr("bench.claims.costs.SETS", {"tiny": TINY})
    runner = Runner(data / "work", backbone, float("inf"))
    monkeypatch.setattr(
        "sys.argv", ["costs", "--work", str(data / "work"), "--backbone", str(backbone), "--output", str(tmp_path / "costs")]
    )

    def reached(arm: Arm) -> dict:
        costs()
        lines = [json.loads(line) for line in (tmp_path / "costs" / f"tiny.{arm.name}.1.jsonl").read_text().splitlines()]
        assert lines[0]["declaration"]["full"]["arm"] == "fastbert"
        return {line["system"]: line["metrics"] for line in lines if "system" in line}

    full = Cell(TINY, arms.FASTBERT, 1)
    runner.run(full)
    systems = reached(arms.FASTBERT)
    assert set(systems) == {"full", "fastbert", "words, then full", ""}
    assert systems["fastbert"]["test.last"] == systems["full"]["score"]
    assert systems["words, then full"]["test.fastest_score"] > 0.9  # a word tells the class
    runner.run(Cell(TINY, arms.SMALL[0], 1))
    assert set(reached(arms.SMALL[0])) == {"small2, then full", ""}
    shutil.rmtree(runner.folder_of(full))
    for arm in (arms.GEEP, arms.SMALL[1]):
        runner.run(Cell(TINY, arm, 1))
    assert set(reached(arms.GEEP)) == {"geep", ""}
    assert not (tmp_path / "costs" / "tiny.small4.1.jsonl").exists()  # it starts anew with answers that are gone


def test_models_are_kept_for_timing_and_as_starts(data, backbone):
    assert runs.kept(Cell(TINY, arms.START, 3))
    assert runs.kept(Cell(TINY, arms.GEEP, 1))
    assert not runs.kept(Cell(TINY, arms.GEEP, 2))
    assert not runs.kept(Cell(TINY, arms.JOINT, 1))
    assert isinstance(Runner(data / "work", backbone, 0.0).fresh(Cell(TINY, arms.GEEP, 1), rows_of(TINY)), MultiExitBert)

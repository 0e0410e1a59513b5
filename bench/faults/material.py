"""Makes tiny models, their tokenizer and random texts from seeds."""

from __future__ import annotations

import random

import torch
from transformers import BertTokenizer

from geep_triton import Engine, MultiExitBert, MultiExitBertConfig, build_exit_table

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "a", "film", "soup", "hotel", "book", "was", "is", "good", "bad", "great", "awful", "not", "but", "very", "dull"),
    *("bright", "cold", "warm", "quick", "slow", "we", "i", "it", "they", "liked", "hated", "thought", "never", "always"),
    *("again", "##ly", "##ness", "##s", "e", "u", "好", "書", "я", "🙂", ".", ",", "?", "!", "'"),
]
ODD = (
    "naïve", "🙂🙂", "好書", "я я", "cafe\u0301", "a\u200bb", "\tgood", "x" * 300, "[SEP]", "[MASK] [UNK]", "…", "\ufb01lm",
    "GOOD",
)  # fmt: skip
LONGEST = 64  # tokens

# Every kind of head, pooling and gate, fewer exits, two classes, and temperatures (of `exit_config`).
VARIANTS: dict[str, dict] = {
    "plain": {},
    "two exits": {"exit_layers": [2, 4], "pooling": "cls"},
    "pooler": {"head": "pooler", "num_labels": 2},
    "linear": {"head": "linear", "temperatures": [0.5, 2.0, 1.5, 1.0]},
    "gates": {"skip_gate": "mean", "skip_gate_size": 8},
    "attention gates": {"skip_gate": "attention", "skip_gate_size": 8, "skip_layers": [1, 2, 4]},
}


def make_tokenizer(*more: str) -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate([*WORDS, *more])})


def make_text(random_: random.Random, longest: int = 20, odd: float = 0.1) -> str:
    """A text of words of the vocabulary, and now and then another word."""
    words = [word for word in WORDS[5:] if not word.startswith("#")]
    chosen = [
        random_.choice(ODD) if random_.random() < odd else random_.choice(words) for _ in range(random_.randint(1, longest))
    ]
    return " ".join([random_.choice(words), *chosen[1:]])


def make_texts(seed: int, count: int, odd: float = 0.1) -> list[str]:
    random_ = random.Random(seed)
    return [make_text(random_, odd=odd) for _ in range(count)]


def make_model(seed: int = 1, temperatures: list[float] | None = None, **changes) -> MultiExitBert:
    """A model of four layers of width 32. Its answers are sharp enough that thresholds send texts to different exits."""
    values = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.3,
        "num_labels": 3,
        "head_size": 16,
        "pooling": "mean",
    }
    torch.manual_seed(seed)
    model = MultiExitBert(MultiExitBertConfig(**(values | changes))).eval()
    model.exit_config.temperatures = temperatures
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
        for gate in model.gates.values():
            gate.output.weight.mul_(4)
    return model


def open_gates(model: MultiExitBert, tokenizer: BertTokenizer, texts: list[str]) -> None:
    """Move each gate so that about half of these texts skip its layer."""
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.no_grad():
        for index, gate in enumerate(model.gates.values()):
            gate.output.bias -= model(**inputs, output_gates=True).gates[index].logit().median() + 1e-3


def make_engine(variant: str = "plain", seed: int = 1, tokenizer: BertTokenizer | None = None, **changes) -> Engine:
    """An engine of a variant, whose exit table has learned all that it can."""
    tokenizer, texts = tokenizer or make_tokenizer(), make_texts(seed, 80)
    model = make_model(seed, **(VARIANTS[variant] | changes))
    gated = bool(len(model.gates))
    if gated:
        open_gates(model, tokenizer, texts)
    model.exit_table = build_exit_table(
        model,
        tokenizer,
        texts,
        0.8,
        learn=("agreement", "exits", "skips") if gated else ("agreement", "exits"),
        truncation=True,
        progress=False,
    )
    return Engine(model, tokenizer, "full")

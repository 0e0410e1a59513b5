"""Checks whether two tokenizers give the same ids."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedTokenizerBase

from geep_triton.tokens.tokenizing import text_tokenizer

FIXED_PROBES = (
    "Exits pay off, don't they?",
    "naïve CAFÉ über-cheap 1,234.5 %",
    "它的结尾很好。",
    "日本語 한국어 عربى 🙂",
    "a\tb\u200bc  d",
)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of the vocabulary, the special tokens and the ids of a few probe texts."""
    vocabulary = tokenizer.get_vocab()
    # Known words in capitals distinguish a tokenizer that keeps case from one that does not.
    capitals = " ".join(sorted(word for word in vocabulary if word.isalpha())[:200]).upper()
    content = {
        "vocabulary": sorted(vocabulary.items()),
        "special": sorted(tokenizer.all_special_ids),
        "probes": [row.ids for row in text_tokenizer(tokenizer)((*FIXED_PROBES, capitals), pair=False, max_length=None)],
    }
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def uncounted_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of special tokens that carry no information about a text: all except the unknown token."""
    return sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})

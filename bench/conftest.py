"""Fixtures: the tiny model, its tokenizer and the texts of the library's own tests."""

from tests.conftest import _seed, make_model, many, minilm_path, model, texts, tokenizer

__all__ = ["_seed", "make_model", "many", "minilm_path", "model", "texts", "tokenizer"]

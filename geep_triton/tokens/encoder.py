"""Converts samples to token ids, with checks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import BadSample as BadSample
from geep_triton.checks import LongSample, check_bool, refuse_samples, shorten
from geep_triton.tokens.columns import Row
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.rows import tokens_from_lists, tokens_of, too_long
from geep_triton.tokens.samples import Sample
from geep_triton.tokens.tokenizing import Encoded, FastTokenizer, SlowTokenizer, text_tokenizer


class Encoder:
    """Converts samples to `Tokens` with a tokenizer. It truncates only on request.

    It keeps no state and does not change the tokenizer, so any number of threads and encoders may share both. If a tokenizer's
    tokens or truncation side change, encoders that were made from it before raise an error.

    Args:
        tokenizer: a Hugging Face tokenizer. None: all samples are token ids.
        max_length: maximum number of tokens of a sample, including special tokens.
        truncation: whether to cut longer samples instead of raising an error. The longer text of a pair is cut first, on the
            tokenizer's truncation side. `Tokens.cut` says which samples were cut.
        vocab_size: ids must be below it. None: not checked.
        type_vocab_size: segment ids must be below it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        max_length: int,
        truncation: bool = False,
        vocab_size: int | None = None,
        type_vocab_size: int = 2,
    ) -> None:
        self.max_length = max_length
        self.truncation = truncation
        self.vocab_size = vocab_size
        self.type_vocab_size = type_vocab_size
        self._encode = None if tokenizer is None else text_tokenizer(tokenizer)
        self._pad_id = None if tokenizer is None else _padding_only(tokenizer)
        self._knows_words = tokenizer is not None and len(tokenizer) > len(set(tokenizer.all_special_ids))

    def __call__(self, samples: Sequence[Sample | Row], first: int = 0) -> Tokens:
        """Encode a window of samples. Texts and pairs may be mixed.

        Args:
            samples: texts with or without a pair, or rows of input_ids.
            first: index of samples[0] in the user's input, for errors.

        Raises:
            BadSample: a text is empty, no string or no valid Unicode; a sample is longer than max_length; ids or segment ids
                are not integers, are out of range, or differ in number.
            ValueError: texts and tokenized rows are mixed, or there are more special tokens than max_length.
        """
        rows = [sample for sample in samples if isinstance(sample, Mapping)]
        texts = [sample for sample in samples if not isinstance(sample, Mapping)]
        if rows and texts:
            raise ValueError(f"samples {first}..{first + len(samples) - 1} mix texts and rows of input_ids")
        tokens = tokens_of(rows, first, self.max_length, self.type_vocab_size) if rows else self._texts(texts, first)
        if self.vocab_size is not None:
            self._check_ids(tokens, self.vocab_size, first)
        return tokens

    def with_truncation(self, truncation: bool) -> Encoder:
        """The same encoder, which cuts longer samples or refuses them."""
        check_bool("truncation", truncation)
        other = copy.copy(self)
        other.truncation = truncation
        return other

    def check(self, tokens: Tokens, first: int = 0) -> None:
        """Raise BadSample for a sample of another encoder that this one refuses; `first` is the index of the first sample."""
        longer = (tokens.lengths > self.max_length).nonzero()[:, 0].tolist()
        lengths = {index: int(tokens.lengths[index]) for index in longer}
        refuse_samples({index: too_long(of, self.max_length) for index, of in lengths.items()}, first, LongSample)
        if self.vocab_size is not None:
            self._check_ids(tokens, self.vocab_size, first)
        self._check_segments(tokens, first)

    def padding_of(self, samples: Sequence[Sample | Row], tokens: Tokens, first: int = 0) -> str | None:
        """A warning for rows of input_ids that are padded but have no attention mask. None if there are none.

        Args:
            samples: a window of samples.
            tokens: the encoded samples.
            first: index of samples[0] in the user's input.
        """
        if self._pad_id is None or not isinstance(samples[0], Mapping):
            return None
        padded = (tokens.ids[tokens.offsets[1:] - 1] == self._pad_id) | (tokens.ids[tokens.offsets[:-1]] == self._pad_id)
        unmasked = [index for index in padded.nonzero()[:, 0].tolist() if "attention_mask" not in samples[index]]
        if not unmasked:
            return None
        return (
            f"sample {first + unmasked[0]} has input_ids that begin or end with the padding token ({self._pad_id}), and no "
            "attention_mask: its padding is read as text, which changes answers; pass the column attention_mask, or ids "
            "without padding"
        )

    def _texts(self, samples: Sequence[Sample], first: int) -> Tokens:
        # Without a vocabulary file transformers makes a tokenizer of special tokens.
        if self._encode is None or not self._knows_words:
            raise ValueError("the tokenizer knows no words, only special tokens: the file of its vocabulary is missing")
        refuse_samples({index: reason for index, sample in enumerate(samples) if (reason := _text_error(*sample))}, first)
        encoded = self._tokenize(self._encode, samples)
        special = self._encode.special
        empty = {
            index: "has a text without any token"
            for index, ((_, pair), row) in enumerate(zip(samples, encoded, strict=True))
            if row.length <= special[pair is not None]
        }
        refuse_samples(empty, first)
        longer = [index for index, row in enumerate(encoded) if row.length > self.max_length]
        if longer and not self.truncation:
            refuse_samples({index: too_long(encoded[index].length, self.max_length) for index in longer}, first, LongSample)
        tokens = tokens_from_lists([row.ids for row in encoded], [row.type_ids for row in encoded], longer)
        self._check_segments(tokens, first)
        return tokens

    def _tokenize(self, encode: FastTokenizer | SlowTokenizer, samples: Sequence[Sample]) -> list[Encoded]:
        """Each sample encoded. Single texts and pairs are encoded separately."""
        encoded: list[Encoded] = [Encoded([], [], 0)] * len(samples)
        for has_pair in (False, True):
            rows = [index for index, (_, pair) in enumerate(samples) if (pair is not None) == has_pair]
            if not rows:
                continue
            chosen = (samples[index] for index in rows)
            texts = [text if pair is None else (text, pair) for text, pair in chosen]
            found = encode(texts, has_pair, self.max_length if self.truncation else None)
            for index, row in zip(rows, found, strict=True):
                encoded[index] = row
        return encoded

    def _check_ids(self, tokens: Tokens, vocab_size: int, first: int) -> None:
        found = _first_wrong(tokens, tokens.ids, (tokens.ids < 0) | (tokens.ids >= vocab_size))
        known = f"outside the model's vocabulary of {vocab_size}: is this the model's own tokenizer?"
        refuse_samples({index: f"has token id {number}, {known}" for index, number in found.items()}, first)

    def _check_segments(self, tokens: Tokens, first: int) -> None:
        if tokens.type_ids is None:
            return
        found = _first_wrong(tokens, tokens.type_ids, tokens.type_ids >= self.type_vocab_size)
        known = f"outside the model's {self.type_vocab_size}: is this the model's own tokenizer?"
        refuse_samples({index: f"has segment id {number}, {known}" for index, number in found.items()}, first)


def _padding_only(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the padding token. None if there is no such token, or if texts also begin or end with it."""
    around = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id)
    return None if tokenizer.pad_token_id in around else tokenizer.pad_token_id


def _first_wrong(tokens: Tokens, values: torch.Tensor, wrong: torch.Tensor) -> dict[int, int]:
    """Map each sample that has wrong values to its first wrong value [T]."""
    if not wrong.any():
        return {}
    samples = torch.repeat_interleave(tokens.lengths)
    return {int(samples[position]): int(values[position]) for position in wrong.nonzero()[:, 0].flip(0)}


def _text_error(text: Any, pair: Any) -> str | None:
    for name, value in (("text", text), ("text_pair", pair)):
        if value is None and name == "text_pair":
            continue
        if not isinstance(value, str):
            return f"has a {name} that is not a string: {shorten(value)}"
        if not value.strip():
            return f"has an empty {name}"
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"has a {name} that is not valid Unicode: {shorten(value)}"
    return None

"""Tokenizes texts with a Hugging Face tokenizer without changing it. Threads and engines may share one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from tokenizers import Tokenizer


SETTINGS = "tokens, truncation_side, split_special_tokens"


class Encoded(NamedTuple):
    """A text or pair as token ids, including special tokens.

    Attributes:
        ids: token ids.
        type_ids: segment ids. Empty: all are 0.
        length: number of tokens before it was cut.
    """

    ids: list[int]
    type_ids: list[int]
    length: int


class FastTokenizer:
    """A tokenizer with a backend from the package tokenizers.

    The backend keeps truncation and padding as state that every call sets anew. So this class uses a copy that never cuts or
    pads, and cuts the ids itself. Later changes to `tokenizer` do not reach the copy: a call that notices one raises an error.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._owner, self._was = tokenizer, _settings(tokenizer)
        self.backend = _copy_of(tokenizer.backend_tokenizer)
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
        self.special = {pair: self.backend.num_special_tokens_to_add(pair) for pair in (False, True)}
        self.keeps_end = tokenizer.truncation_side == "left"
        # A post-processor gives every token of a single text the same segment, nearly always 0, so one probe text suffices.
        self.has_types = {False: any(self._encoded(["a"])[0].type_ids), True: True}

    def __call__(self, texts: Sequence[str | tuple[str, str]], pair: bool, max_length: int | None) -> Iterator[Encoded]:
        """Encode texts, or pairs, each cut to `max_length` tokens as Hugging Face's truncation "longest_first" cuts it.

        Raises:
            ValueError: the tokenizer lacks its own unknown token, there are more special tokens than `max_length`, a
                post-processor repeats a text that has to be cut, or the tokenizer's tokens or truncation side have changed.
        """
        if (now := _settings(self._owner)) != self._was:
            raise ValueError(
                f"the tokenizer has changed since this encoder or engine was made from it ({SETTINGS}: {self._was}, now {now})"
                ": make a new one"
            )
        # This is a third faster than the tokenizer's own call, which also makes offsets and copies its results.
        for encoding in self._encoded(texts):
            ids, types = encoding.ids, encoding.type_ids if self.has_types[pair] else []
            length = len(ids)
            if max_length is not None and length > max_length:
                kept = self._kept(encoding.sequence_ids, max_length - room_taken(self.special[pair], max_length), pair)
                ids, types = list(compress(ids, kept)), list(compress(types, kept))
            yield Encoded(ids, types, length)

    def _encoded(self, texts: Sequence[str | tuple[str, str]]) -> Any:
        try:
            return self.backend.encode_batch_fast(texts)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise ValueError(f"the tokenizer cannot encode texts, its files do not fit together: {error}") from error

    def _kept(self, sequence_ids: list[int | None], room: int, pair: bool) -> list[bool]:
        """Whether each token stays: all special tokens, and as many tokens of a text and its pair as there is room for."""
        lengths = sequence_ids.count(0), sequence_ids.count(1)
        if len(sequence_ids) - sum(lengths) != self.special[pair]:
            raise ValueError("the tokenizer's post-processor repeats a text, which truncation=True cannot cut")
        keep = longest_first(*lengths, room)
        starts = [length - kept if self.keeps_end else 0 for length, kept in zip(lengths, keep, strict=True)]
        kept, seen = [], [0, 0]
        for sequence in sequence_ids:
            if sequence is None:
                kept.append(True)
                continue
            kept.append(0 <= seen[sequence] - starts[sequence] < keep[sequence])
            seen[sequence] += 1
        return kept


class SlowTokenizer:
    """A tokenizer in pure Python. Its calls do not change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.special = {pair: tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)}

    def __call__(self, texts: Sequence[str | tuple[str, str]], pair: bool, max_length: int | None) -> Iterator[Encoded]:
        """Encode as `FastTokenizer` does. For texts of equal length, Python's "longest_first" cuts the other one more."""
        for text in texts:
            parts = [text] if isinstance(text, str) else text
            sides: list[Any] = [self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(side)) for side in parts]
            length = sum(map(len, sides)) + self.special[pair]
            limit = max_length if max_length is not None and length > max_length else None
            if limit is not None:
                room_taken(self.special[pair], limit)
            row = self.tokenizer.prepare_for_model(
                *sides,
                truncation=limit is not None,
                max_length=limit,
                return_token_type_ids=True,
                return_attention_mask=False,
                verbose=False,
            )
            yield Encoded(row["input_ids"], row["token_type_ids"], length)


def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> FastTokenizer | SlowTokenizer:
    """A function that encodes texts as `tokenizer` does, from any number of threads."""
    return (FastTokenizer if tokenizer.is_fast else SlowTokenizer)(tokenizer)


def _settings(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str, bool]:
    """Settings that the owner may change and that a copy would not follow. Reading them takes a microsecond."""
    return len(tokenizer), tokenizer.truncation_side, bool(tokenizer.split_special_tokens)


def room_taken(special: int, max_length: int) -> int:
    """Return `special`. ValueError if there are more special tokens than `max_length`."""
    if special > max_length:
        raise ValueError(f"max_length must leave room for {special} special tokens, got {max_length}")
    return special


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Number of tokens that stay of two texts that together have more than `room`, as in the package tokenizers.

    First the longer text is cut to the room that the shorter one leaves, but not below the length of the shorter one. If that
    is not enough, each text gets half. An odd token goes to the longer text, or to the second one if their lengths are equal.
    """
    shorter, longer = sorted((first, second))
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)


def _copy_of(backend: Tokenizer) -> Tokenizer:
    """A tokenizer of the same parts. The parts' settings never change and are shared, its own state is not.

    `copy.deepcopy` is used only if the ids of added tokens would change. It writes and reads the whole vocabulary, and it
    cannot copy parts that are written in Python.
    """
    copied = type(backend)(backend.model)
    copied.normalizer, copied.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    copied.post_processor = backend.post_processor
    added = backend.get_added_tokens_decoder()
    copied.add_tokens([added[number] for number in sorted(added)])
    return copied if copied.get_added_tokens_decoder() == added else copy.deepcopy(backend)

"""Texts to token ids by a Hugging Face tokenizer that stays as its owner left it, whatever threads and engines share it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from tokenizers import Tokenizer


SETTINGS = "tokens, truncation_side, split_special_tokens"


class Encoded(NamedTuple):
    """A text or pair as token ids, special tokens included.

    Attributes:
        ids: of its tokens.
        type_ids: of its segments; empty where all are 0.
        length: how many tokens it has uncut.
    """

    ids: list[int]
    type_ids: list[int]
    length: int


class FastTokenizer:
    """A tokenizer of the package tokenizers.

    Its backend keeps truncation and padding as state that every call sets anew, so this uses a copy that never cuts or pads,
    and cuts the ids itself. Changes made to `tokenizer` later do not reach it: it refuses where it sees one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._owner, self._was = tokenizer, _settings(tokenizer)
        self.backend = _copy_of(tokenizer.backend_tokenizer)
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
        self.special = {pair: self.backend.num_special_tokens_to_add(pair) for pair in (False, True)}
        self.keeps_end = tokenizer.truncation_side == "left"
        # A post-processor gives every token of a text the same segment: reading those of single texts is nearly always in vain.
        self.has_types = {False: any(self.backend.encode("a").type_ids), True: True}

    def __call__(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], pair: bool, max_length: int | None
    ) -> Iterator[Encoded]:
        """Encode texts, or pairs, each cut to `max_length` tokens as Hugging Face's truncation "longest_first" cuts it.

        Raises:
            ValueError: special tokens alone are more than `max_length`, a post-processor repeats a text that is to be cut, or
                the tokenizer has other tokens, or cuts another side, than when this was made.
        """
        if (now := _settings(self._owner)) != self._was:
            raise ValueError(
                f"the tokenizer has changed since this encoder or engine was made of it ({SETTINGS}: {self._was}, now {now}): "
                "make a new one"
            )
        # A third faster than the tokenizer's call, which also makes offsets and copies all it found.
        for encoding in self.backend.encode_batch_fast(texts):
            ids, types = encoding.ids, encoding.type_ids if self.has_types[pair] else []
            length = len(ids)
            if max_length is not None and length > max_length:
                kept = self._kept(encoding.sequence_ids, max_length - room_taken(self.special[pair], max_length), pair)
                ids, types = list(compress(ids, kept)), list(compress(types, kept))
            yield Encoded(ids, types, length)

    def _kept(self, sequence_ids: list[int | None], room: int, pair: bool) -> list[bool]:
        """Whether each token stays: all special ones, and of a text and its pair as many as there is room for."""
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
    """A tokenizer in Python, whose calls leave no trace in it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.special = {pair: tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)}

    def __call__(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], pair: bool, max_length: int | None
    ) -> Iterator[Encoded]:
        """As `FastTokenizer`; where both texts are as long, Python's "longest_first" cuts more of the other one."""
        for text in texts:
            sides = [self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(side)) for side in (text if pair else [text])]
            length = sum(map(len, sides)) + self.special[pair]
            cut = max_length is not None and length > max_length
            if cut:
                room_taken(self.special[pair], max_length)
            row = self.tokenizer.prepare_for_model(
                *sides,
                truncation=cut,
                max_length=max_length if cut else None,
                return_token_type_ids=True,
                return_attention_mask=False,
                verbose=False,
            )
            yield Encoded(row["input_ids"], row["token_type_ids"], length)


def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> FastTokenizer | SlowTokenizer:
    """What encodes texts as `tokenizer` does, from any number of threads."""
    return (FastTokenizer if tokenizer.is_fast else SlowTokenizer)(tokenizer)


def _settings(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str, bool]:
    """What its owner may change and a copy does not follow, read in a microsecond."""
    return len(tokenizer), tokenizer.truncation_side, bool(tokenizer.split_special_tokens)


def room_taken(special: int, max_length: int) -> int:
    """`special`. ValueError where so many special tokens are more than `max_length`."""
    if special > max_length:
        raise ValueError(f"max_length must leave room for {special} special tokens, got {max_length}")
    return special


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay where both have more than `room`, as the package tokenizers shares it out.

    The longer one is cut to the rest that the shorter one leaves, but not below it; then both are halves, the odd token going
    to the longer one, or, where they were as long, to the second.
    """
    shorter, longer = sorted((first, second))
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)


def _copy_of(backend: Tokenizer) -> Tokenizer:
    """A tokenizer of the same parts: their settings, which nobody changes, are shared, what it keeps itself is its own.

    Copied by `copy.deepcopy` only where ids of added tokens would move: that writes out and reads the whole vocabulary, and
    cannot copy parts that are written in Python.
    """
    copied = type(backend)(backend.model)
    copied.normalizer, copied.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    copied.post_processor = backend.post_processor
    added = backend.get_added_tokens_decoder()
    copied.add_tokens([added[number] for number in sorted(added)])
    return copied if copied.get_added_tokens_decoder() == added else copy.deepcopy(backend)

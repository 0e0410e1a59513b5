"""Texts to ids: as the tokenizer gives and cuts them, from any thread, and without touching it."""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from geep_triton import Engine, build_exit_table
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from tests.conftest import WORDS

SEED = 0  # of the random texts
PAIRS = 150  # random texts and pairs of each tokenizer, side and length
ROUNDS = 15  # of each of 8 threads

SPECIAL = [("[CLS]", 2), ("[SEP]", 3)]
POST_PROCESSORS = {
    "bert": processors.BertProcessing(SPECIAL[1], SPECIAL[0]),
    "roberta": processors.RobertaProcessing(SPECIAL[1], SPECIAL[0]),
    "bytes": processors.Sequence([processors.ByteLevel(), processors.BertProcessing(SPECIAL[1], SPECIAL[0])]),
    "pair first": processors.TemplateProcessing(
        single="$A:1 [SEP]:0 [CLS]:1", pair="[CLS] $B:1 [SEP]:1 [SEP] $A:0 [CLS]:1", special_tokens=SPECIAL
    ),
    "none": None,
}


class SpacesTokenizer(PreTrainedTokenizer):
    """Words between spaces, in Python."""

    def __init__(self, **kwargs) -> None:
        self.words = {word: index for index, word in enumerate(WORDS)}
        super().__init__(unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return self.words | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.get(token, 1)

    def _convert_id_to_token(self, index: int) -> str:
        return WORDS[index]

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        return [2, *token_ids_0, 3] if token_ids_1 is None else [2, *token_ids_0, 3, *token_ids_1, 3]

    def create_token_type_ids_from_sequences(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        return [0] * (len(token_ids_0) + 2) + [1] * (0 if token_ids_1 is None else len(token_ids_1) + 1)


def make(kind: str, side: str = "right", **kwargs) -> PreTrainedTokenizerBase:
    """A new tokenizer over the tiny vocabulary: the usual one, one in Python, or one with a post-processor of its own."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    if kind == "wordpiece":
        return BertTokenizer(vocab=vocabulary, truncation_side=side, **kwargs)
    if kind == "python":
        return SpacesTokenizer(truncation_side=side, **kwargs)
    backend = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if POST_PROCESSORS[kind] is not None:
        backend.post_processor = POST_PROCESSORS[kind]
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, truncation_side=side, **names, **kwargs)


def random_text(generator: random.Random, longest: int = 30) -> str:
    return " ".join(generator.choices([*WORDS[5:], "[SEP]", "unknown", "<new>"], k=generator.randint(1, longest)))


def samples_of(tokens: Tokens) -> list[tuple[list[int], list[int]]]:
    types = torch.zeros_like(tokens.ids) if tokens.type_ids is None else tokens.type_ids
    return [(tokens.ids[b:e].tolist(), types[b:e].tolist()) for b, e in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["wordpiece", "python", *POST_PROCESSORS])
@pytest.mark.parametrize("max_length", [5, 8, 13, 24])
def test_cut_as_hugging_face_cuts(kind, side, max_length):
    generator = random.Random(SEED + max_length)
    tokenizer = make(kind, side)
    tokenizer.add_tokens(["<new>"])
    samples = [(random_text(generator), random_text(generator) if index % 3 else None) for index in range(PAIRS)]
    samples += [("good " * length, "bad " * other) for length in (1, 2, 3, 4, 6, 7) for other in (1, 2, 3, 4, 6, 7)]
    tokens = Encoder(tokenizer, max_length, truncation=True)(samples)
    expected = [
        tokenizer(text, pair, truncation="longest_first", max_length=max_length, return_token_type_ids=True)
        for text, pair in samples
    ]
    assert samples_of(tokens) == [(row["input_ids"], row["token_type_ids"]) for row in expected]
    uncut = [len(tokenizer(text, pair)["input_ids"]) for text, pair in samples]
    assert tokens.cut.tolist() == [length > max_length for length in uncut]
    assert tokens.truncated == sum(length > max_length for length in uncut)
    longest = Encoder(tokenizer, 200)(samples)
    assert longest.lengths.tolist() == uncut
    assert longest.cut is None


def test_special_tokens_in_a_text_are_split_where_the_tokenizer_splits_them():
    tokenizer = make("bert", split_special_tokens=True)
    tokens = Encoder(tokenizer, 64)([("good[SEP]", None)])
    assert samples_of(tokens)[0][0] == tokenizer("good[SEP]")["input_ids"]
    assert samples_of(tokens) != samples_of(Encoder(make("bert"), 64)([("good[SEP]", None)]))


class InPython:
    """A part of a tokenizer that cannot be written out."""

    def pre_tokenize(self, pretok) -> None:
        pretok.split(lambda _, text: text.split(" ", "removed"))


def test_a_tokenizer_with_a_part_in_python():
    tokenizer = make("bert")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(InPython())
    assert samples_of(Encoder(tokenizer, 4, truncation=True)([("good bad film", None)]))[0][0] == [2, 13, 14, 3]


def test_what_cannot_be_cut_is_refused():
    tokenizer = make("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP] $A", special_tokens=SPECIAL)
    assert Encoder(tokenizer, 5, truncation=True)([("good bad", None)]).lengths.tolist() == [5]
    with pytest.raises(ValueError, match="post-processor repeats a text, which truncation=True cannot cut"):
        Encoder(tokenizer, 5, truncation=True)([("good bad film", None)])
    for kind in ("bert", "python"):
        with pytest.raises(ValueError, match="max_length must leave room for 3 special tokens, got 2"):
            Encoder(make(kind), 2, truncation=True)([("good", "bad")])


def test_segments_outside_the_model_are_refused(tokenizer):
    with pytest.raises(ValueError, match="sample 1 has segment id 1, outside the model's 1:"):
        Encoder(tokenizer, 8, type_vocab_size=1)([("good", None), ("good", "bad")])


def test_a_long_pair_is_cut_in_linear_time(tokenizer):
    """Half a megabyte each: all the windows of both that overflow, which Hugging Face's truncation makes, are 4e10 / 64."""
    tokens = Encoder(copy.deepcopy(tokenizer), 64, truncation=True)([("good " * 100_000, "bad " * 125_000)])
    assert samples_of(tokens) == [([2, *[13] * 30, 3, *[14] * 31, 3], [0] * 32 + [1] * 32)]


@pytest.mark.parametrize("kind", ["wordpiece", "python"])
def test_the_tokenizer_stays_as_its_owner_left_it(kind, model, many):
    tokenizer = make(kind)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.enable_truncation(7, direction="left")
        tokenizer.backend_tokenizer.enable_padding(length=9)
        before = tokenizer.backend_tokenizer.to_str()
    model.exit_table = build_exit_table(model, tokenizer, many[:50], 0.8, max_length=8, truncation=True, progress=False)
    Engine(model, tokenizer, "predicted", max_length=8, truncation=True).predict([(text, text) for text in many[:50]])
    if tokenizer.is_fast:
        assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(make(kind))


def test_a_fingerprint_is_what_the_tokenizer_gives(minilm):
    """So that tables saved before are still known."""
    assert tokenizer_fingerprint(minilm[1]) == "2ef5932f07c30ebe02d76bd09e109ecbe349aaa2bc66023f9956af0e0bce063f"


def run_threads(*works) -> Counter:
    """What each work returns, or the error it raises, over some rounds in a thread of its own."""
    seen = Counter()

    def repeat(work) -> None:
        for _ in range(ROUNDS):
            try:
                seen[work()] += 1
            except Exception as error:
                seen[repr(error)] += 1

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return seen


@pytest.mark.parametrize("kind", ["wordpiece", "python"])
def test_threads_share_engines_and_a_tokenizer(kind, model, many):
    """Two engines that cut, one that does not, and the tokenizer's owner, who pads and cuts: each gets what it gets alone."""
    tokenizer = make(kind)
    texts = [*[text * 4 for text in many[:20]], "good " * 60, *zip(many[:10], many[10:20], strict=True)]
    engines = {
        length: Engine(model, tokenizer, "constant:1", truncation=length < 64, max_length=length) for length in (16, 24, 64)
    }
    encoded = {length: samples_of(engine._encoder(texts_of(texts))) for length, engine in engines.items()}
    answers = {length: engine.predict(texts) for length, engine in engines.items()}

    def predict(length: int):
        def work() -> tuple:
            found = engines[length].predict(texts)
            same = torch.allclose(found.logits, answers[length].logits, atol=1e-5)
            return length, same, found.truncated == answers[length].truncated, found.labels == answers[length].labels

        return work

    def encode(length: int):
        return lambda: (length, samples_of(engines[length]._encoder(texts_of(texts))) == encoded[length])

    def own():
        found = tokenizer(many[:8], padding="max_length", truncation=True, max_length=5, return_tensors="pt")["input_ids"]
        return "own", tuple(found.shape)

    seen = run_threads(predict(16), predict(24), predict(64), encode(16), encode(16), encode(24), encode(64), own)
    assert seen == {
        (16, True, True, True): ROUNDS, (24, True, True, True): ROUNDS, (64, True, True, True): ROUNDS,
        (16, True): 2 * ROUNDS, (24, True): ROUNDS, (64, True): ROUNDS, ("own", (8, 5)): ROUNDS,
    }  # fmt: skip


def texts_of(inputs) -> list[tuple[str, str | None]]:
    return [item if isinstance(item, tuple) else (item, None) for item in inputs]


@pytest.mark.parametrize("change", ["tokens", "side", "special"])
def test_what_was_made_of_a_tokenizer_refuses_once_that_is_another(model, change):
    tokenizer = make("wordpiece")
    engine = Engine(model, tokenizer)
    engine.predict(["good <new>"])
    tokenizer(["good"] * 3, padding="max_length", truncation=True, max_length=4)  # changes nothing
    engine.predict(["good <new>"])
    if change == "tokens":
        tokenizer.add_tokens(["<new>"])
    elif change == "side":
        tokenizer.truncation_side = "left"
    else:
        tokenizer.split_special_tokens = True
    with pytest.raises(ValueError, match="the tokenizer has changed since this encoder or engine was made"):
        engine.predict(["good <new>"])


def test_a_tokenizer_whose_vocabulary_is_missing(model, tokenizer, texts, tmp_path):
    """transformers makes one of special tokens alone, for which every text would be unknown words."""
    model.save_pretrained(tmp_path)
    BertTokenizer().save_pretrained(tmp_path)
    for engine in (Engine(model, BertTokenizer()), Engine.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="the tokenizer knows no words, only special tokens"):
            engine.predict(texts)
    engine.predict([{"input_ids": [2, 7, 3]}])


@pytest.mark.parametrize("words", [("good",), ("good", "a")])
def test_a_tokenizer_that_lacks_its_unknown_token(words):
    """As one whose files were changed by hand."""
    vocabulary = {word: index for index, word in enumerate(("[CLS]", "[SEP]", *words))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNJ]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]")
    with pytest.raises(ValueError, match="the tokenizer cannot encode texts, its files do not fit together: .*Missing"):
        Encoder(tokenizer, max_length=16)([("unknown", None)])

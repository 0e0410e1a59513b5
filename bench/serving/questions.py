"""What clients send, and what must come back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.serving.wire import request

Sample = tuple[str, str | None]
PAYLOAD_LIMIT = 100_000  # of the server that is sent bodies that are too big
LONG = 300 * "many words "  # too long for any BERT


@dataclass(frozen=True)
class Question:
    """A request.

    Attributes:
        kind: what it is: "single", "pair", "batch", or what is wrong with it.
        payload: all of its bytes.
        status: of its answer.
        samples: numbers of the texts or pairs that it asks about.
    """

    kind: str
    payload: bytes
    status: int = 200
    samples: range = range(0)


def single(text: str, number: int) -> Question:
    return Question("single", _predict(text), samples=range(number, number + 1))


def pair(texts: Sequence[str], number: int) -> Question:
    return Question("pair", _predict(list(texts)), samples=range(number, number + 1))


def batch(texts: Sequence[str], first: int) -> Question:
    return Question("batch", _predict([[text] for text in texts]), samples=range(first, first + len(texts)))


def bad() -> list[Question]:
    """One of each kind of request that must be refused."""
    return [
        Question("no JSON", request("/predict", b'{"inputs": "a text"'), 422),
        Question("no Unicode", request("/predict", b'{"inputs": "\xff"}'), 422),
        Question("no text", _predict("  "), 400),
        Question("too long", _json({"inputs": LONG, "truncate": False}), 413),
        Question("an unknown field", _json({"inputs": "a text", "top_p": 1}), 422),
        Question("a number for a text", _predict(7), 422),
        Question("three texts for a pair", _predict(["a", "b", "c"]), 422),
        Question("too many texts", _predict([["a text"]] * 257), 413),
        Question("too many bytes", _predict("a" * PAYLOAD_LIMIT), 413),
        Question("no such route", request("/embed", b"{}"), 404),
        Question("no such method", request("/predict"), 405),
    ]


@dataclass(frozen=True)
class Mix:
    """Requests of all kinds in random order.

    Attributes:
        questions: in the order in which they are sent.
        samples: the texts and pairs that they ask about.
    """

    questions: Sequence[Question]
    samples: Sequence[Sample]


def singles(texts: Sequence[str]) -> list[Question]:
    return [single(text, number) for number, text in enumerate(texts)]


def mix(texts: Sequence[str], requests: int, seed: int = 0) -> Mix:
    """A tenth pairs, a twentieth batches of four, a twentieth bad requests, and texts one by one.

    No text or pair is asked about twice; the two texts of a pair are in other requests, too.

    Raises:
        ValueError: there are too few texts.
    """
    pairs, batches, wrong = requests // 10, requests // 20, requests // 20
    alone = requests - pairs - batches - wrong
    if len(texts) < alone + 4 * batches or len(texts) < 2 * pairs:
        raise ValueError(f"expected {alone + 4 * batches} texts for {requests} requests, got {len(texts)}")
    samples: list[Sample] = [(text, None) for text in texts[: alone + 4 * batches]]
    made = singles(texts[:alone])
    made += [batch(texts[first : first + 4], first) for first in range(alone, alone + 4 * batches, 4)]
    for number in range(pairs):
        both = texts[2 * number], texts[2 * number + 1]
        made.append(pair(both, len(samples)))
        samples.append(both)
    made += [question for question, _ in zip(_again_and_again(bad()), range(wrong), strict=False)]
    random.Random(seed).shuffle(made)
    return Mix(made, samples)


def _again_and_again(questions: list[Question]) -> Iterator[Question]:
    while True:
        yield from questions


def _predict(inputs: Any) -> bytes:
    return request("/predict", json.dumps({"inputs": inputs, "raw_scores": True}).encode())


def _json(body: dict[str, Any]) -> bytes:
    return request("/predict", json.dumps(body).encode())

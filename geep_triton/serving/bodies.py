"""What clients send: the bodies of text-embeddings-inference's routes, checked strictly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, WithJsonSchema

A_PAIR = 2
EXPECTED = 'expected "a text", ["a text", "its pair"], or a batch [["a text"], ["a text", "its pair"], ...]'
TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": A_PAIR}


@dataclass(frozen=True)
class PredictInputs:
    """The inputs of a request.

    Attributes:
        samples: each a text and the other text of a pair, or None.
        is_batch: whether the client sent a list of inputs, and wants a list of answers.
    """

    samples: list[tuple[str, str | None]]
    is_batch: bool


def read_inputs(value: Any) -> PredictInputs:
    """Read `inputs`. A flat list of two texts is one pair, not a batch, and one of a single text is that text.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str):
        return PredictInputs([(value, None)], is_batch=False)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{EXPECTED}, got {_kind(value)}")
    if isinstance(value[0], str):
        return PredictInputs([_sample(value)], is_batch=False)
    return PredictInputs([_sample(texts) for texts in value], is_batch=True)


def _sample(texts: Any) -> tuple[str, str | None]:
    if not isinstance(texts, list) or not 1 <= len(texts) <= A_PAIR or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{EXPECTED}, got {_kind(texts)} for one input")
    return texts[0], texts[1] if len(texts) == A_PAIR else None


def _kind(value: Any) -> str:
    """What a value is, without the client's texts, which errors may carry into logs."""
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__


Inputs = Annotated[
    PredictInputs,
    BeforeValidator(read_inputs),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, TEXTS, {"type": "array", "items": TEXTS, "minItems": 1}],
            "examples": ["What is Deep Learning?"],
        }
    ),
]


class Body(BaseModel):
    """What all bodies have. A field that nobody reads is refused, not ignored.

    Attributes:
        truncate: cut texts that are too long, instead of an error. None: as the server was started.
        truncation_direction: the side that is cut, "right" or "left". It must be the tokenizer's own.
        raw_scores: logits instead of probabilities.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    truncate: StrictBool | None = None
    truncation_direction: StrictStr | None = None
    raw_scores: StrictBool = False


class PredictBody(Body):
    """The body of `POST /predict`."""

    inputs: Inputs


class RerankBody(Body):
    """The body of `POST /rerank`.

    Attributes:
        query: what the texts are compared with.
        texts: the candidates.
        return_text: send the texts back with their scores.
        top_k: how many of the best are wanted; None: all. text-embeddings-inference does not have it. A model whose ranking was
            calibrated lets candidates leave early only where at most so many are wanted as it was calibrated for.
    """

    query: StrictStr
    texts: list[StrictStr]
    return_text: StrictBool = False
    top_k: Annotated[int, Field(strict=True, ge=1)] | None = None


class Prediction(BaseModel):
    """How likely one label is."""

    score: float
    label: str


class Rank(BaseModel):
    """One text in the order of a query's texts.

    Attributes:
        index: its number in the request.
        score: how well it fits.
        text: the text, where it was asked for.
    """

    index: int
    score: float
    text: str | None = None


class ErrorBody(BaseModel):
    """Why a request was not answered.

    Attributes:
        error: in words.
        error_type: a key of `geep_triton.serving.errors.STATUS`.
    """

    error: str
    error_type: str

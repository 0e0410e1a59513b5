"""A backend that answers when it is let, for tests that need requests to wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geep_triton.serving.backend import Answered, Body
from geep_triton.serving.bodies import PredictBody
from geep_triton.serving.errors import RequestError


@dataclass(frozen=True)
class Texts:
    """A job that asks for its own text."""

    text: str
    kind: str = "texts"
    texts: int = 1
    work: float = 1.0


class Panic(BaseException):
    """As libraries in Rust raise it."""


class FailingBackend:
    """Fails at some texts, and answers the others.

    Attributes:
        read: text -> what is raised when it is read.
        ran: text -> what is raised when it runs.
    """

    max_batch_tokens = 10
    num_layers = 4

    def __init__(self, read: dict[str, BaseException], ran: dict[str, BaseException]) -> None:
        self.read, self.ran = read, ran

    def prepare(self, bodies: Sequence[Body]) -> list[Texts | RequestError]:
        texts = [body.inputs.samples[0][0] for body in bodies if isinstance(body, PredictBody)]
        for text in texts:
            if text in self.read:
                raise self.read[text]
        return [Texts(text) for text in texts]

    def run(self, jobs: Sequence[Texts]) -> list[Answered]:
        for job in jobs:
            if job.text in self.ran:
                raise self.ran[job.text]
        return [Answered([{"label": job.text, "score": 1.0}], [2]) for job in jobs]

    def information(self) -> dict[str, Any]:
        return {}


class SlowBackend:
    """Answers each text by itself.

    Attributes:
        let: batches run when this is set.
        started: set when a batch begins.
        batches: the texts of those that began.
    """

    max_batch_tokens = 1
    num_layers = 4

    def __init__(self) -> None:
        self.let, self.started = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def prepare(self, bodies: Sequence[Body]) -> list[Texts | RequestError]:
        return [Texts(body.inputs.samples[0][0]) for body in bodies if isinstance(body, PredictBody)]

    def run(self, jobs: Sequence[Texts]) -> list[Answered]:
        self.batches.append([job.text for job in jobs])
        self.started.set()
        assert self.let.wait(60)
        return [Answered([{"label": job.text, "score": 1.0}], [2]) for job in jobs]

    def information(self) -> dict[str, Any]:
        return {}

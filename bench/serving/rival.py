"""Hugging Face's pipeline behind the same server.

    python -m bench.serving.rival MODEL

It prints its address, and answers until SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from transformers import pipeline

from geep_triton.serving.application import application_of
from geep_triton.serving.backend import Answered, Body
from geep_triton.serving.bodies import PredictBody
from geep_triton.serving.errors import RequestError
from geep_triton.serving.settings import ServerSettings

MOST_TOKENS = 4_096  # of a batch, as the engine's backend has it on a CPU
PIECES = 1.3  # tokens of a word of English


@dataclass(frozen=True, eq=False)
class TextsJob:
    """A request for labels; see `geep_triton.serving.batcher.Job`. Its work is guessed: the pipeline tokenizes when it runs."""

    body: PredictBody
    inputs: Sequence[Any]
    work: float

    @property
    def kind(self) -> Hashable:
        """All run together."""
        return self.body.raw_scores

    @property
    def texts(self) -> int:
        """How many texts or pairs it has."""
        return len(self.inputs)


class PipelineBackend:
    """Answers by `transformers.pipeline("text-classification")`; see `geep_triton.serving.backend.Backend`.

    Args:
        model: folder of a `BertForSequenceClassification`.
        batch_size: of the pipeline.
        by_length: give it the texts of a batch sorted by length, which spares it padding.
        max_batch_tokens: the most tokens, about, that it is given together.
    """

    def __init__(self, model: str, batch_size: int, by_length: bool, max_batch_tokens: int = MOST_TOKENS) -> None:
        self._pipeline = pipeline("text-classification", model, device="cpu")
        self._batch_size, self._by_length = batch_size, by_length
        self.max_batch_tokens = max_batch_tokens
        self.num_layers: int = self._pipeline.model.config.num_hidden_layers

    def prepare(self, bodies: Sequence[Body]) -> list[TextsJob | RequestError]:
        """Read requests."""
        return [self._job(body) for body in bodies]

    def _job(self, body: Body) -> TextsJob | RequestError:
        if not isinstance(body, PredictBody):
            return RequestError("Backend", "the model is not a reranker: POST /predict instead")
        inputs = [text if other is None else {"text": text, "text_pair": other} for text, other in body.inputs.samples]
        words = sum(len(text.split()) for sample in body.inputs.samples for text in sample if text is not None)
        return TextsJob(body, inputs, PIECES * words + 2)

    def run(self, jobs: Sequence[TextsJob]) -> list[Answered]:
        """Answer jobs by one call of the pipeline."""
        inputs = [one for job in jobs for one in job.inputs]
        order = sorted(range(len(inputs)), key=lambda row: len(str(inputs[row]))) if self._by_length else range(len(inputs))
        function = "none" if jobs[0].body.raw_scores else None
        answers: list[Any] = [None] * len(inputs)
        found = self._pipeline(
            [inputs[row] for row in order], batch_size=self._batch_size, top_k=None, function_to_apply=function, truncation=True
        )
        for row, answer in zip(order, found, strict=True):
            answers[row] = answer
        answered, left = [], iter(answers)
        for job in jobs:
            own = [next(left) for _ in job.inputs]
            answered.append(Answered(own if job.body.inputs.is_batch else own[0], [self.num_layers] * len(own)))
        return answered

    def information(self) -> dict[str, Any]:
        """What runs here."""
        return {"model_id": self._pipeline.model.name_or_path, "runner": "transformers.pipeline"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--by-length", action="store_true")
    parser.add_argument("--max-batch-tokens", type=int, default=MOST_TOKENS, help="1: no request runs with another")
    arguments = parser.parse_args()
    backend = PipelineBackend(arguments.model, arguments.batch_size, arguments.by_length, arguments.max_batch_tokens)
    application = application_of(backend, ServerSettings())
    config = uvicorn.Config(application, port=0, log_level="warning", access_log=False)
    listening = config.bind_socket()
    print(f"http://127.0.0.1:{listening.getsockname()[1]} answers by transformers' pipeline", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()

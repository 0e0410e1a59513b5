"""One thread that runs an engine, request by request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from geep_triton.checks import BadSample, shorten
from geep_triton.engine.engine import Engine
from geep_triton.engine.predictions import Predictions
from geep_triton.engine.ranking import Ranking
from geep_triton.policies.text import describe
from geep_triton.serving.bodies import Body, PredictBody, RerankBody
from geep_triton.serving.errors import RequestError, of_sample

Found = TypeVar("Found")


class Worker:
    """Answers one request after another, in the order in which they came.

    Args:
        engine: it is run by this worker's thread alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._engines = {engine.truncation: engine, not engine.truncation: engine.with_truncation(not engine.truncation)}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def predict(self, body: PredictBody) -> Predictions:
        """Answer the inputs of a request.

        Raises:
            RequestError: they cannot be answered.
        """
        engine = self._engine_for(body)
        for index, sample in enumerate(body.inputs.samples):
            if not all(text is None or text.strip() for text in sample):
                raise RequestError("Empty", f"input {index} has an empty text")
        return await self._run(lambda: engine.predict(body.inputs.samples))

    async def rank(self, body: RerankBody) -> Ranking:
        """Order the texts of a request.

        Raises:
            RequestError: they cannot be ordered.
        """
        engine = self._engine_for(body)
        if self.engine.model.config.num_labels != 1:
            raise RequestError("Backend", "the model is not a reranker, which has one label: POST /predict instead")
        if not body.texts:
            raise RequestError("Empty", "texts must not be empty")
        for name, text in (("query", body.query), *((f"text {index}", text) for index, text in enumerate(body.texts))):
            if not text.strip():
                raise RequestError("Empty", f"{name} is empty")
        return await self._run(lambda: engine.rank(body.query, body.texts, body.top_k, return_documents=body.return_text))

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._thread.shutdown()

    def _engine_for(self, body: Body) -> Engine:
        side, wanted = self.engine.tokenizer.truncation_side, body.truncation_direction
        if wanted is not None and wanted.lower() != side:
            told = shorten(wanted)  # the client's own words may be no valid Unicode, or long
            raise RequestError("Tokenizer", f'this tokenizer cuts texts on the {side}, not "truncation_direction": {told}')
        return self._engines[self.engine.truncation if body.truncate is None else body.truncate]

    async def _run(self, call: Callable[[], Found]) -> Found:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except BadSample as error:
            # A query's error names the query. Its cause names the text, and there is one query.
            raise of_sample(error.__cause__ if isinstance(error.__cause__, BadSample) else error) from error
        except ValueError as error:
            raise RequestError("Backend", str(error)) from error
        except RuntimeError as error:  # torch's, as where a device has no memory left
            raise RequestError("Backend", f"the model failed: {error}") from error


def engine_information(engine: Engine, version: str) -> dict[str, Any]:
    """What runs here, as `GET /info` tells it: fields of text-embeddings-inference, and after them our own.

    Args:
        engine: what runs.
        version: of this package.
    """
    config, promise = engine.model.config, engine.promise
    labels = {"id2label": {str(index): name for index, name in config.id2label.items()}, "label2id": dict(config.label2id)}
    return {
        "model_id": config.name_or_path,
        "model_dtype": engine.dtype,
        "model_type": {"reranker" if config.num_labels == 1 else "classifier": labels},
        "max_input_length": engine.max_length,
        "auto_truncate": engine.truncation,
        "version": version,
        "policy": describe(engine.policy),
        "ranking": None if engine.ranking is None else str(engine.ranking),
        "promise": None if promise is None else {"agreement": promise.agreement, "class_recall": dict(promise.class_recall)},
        "device": str(engine.model.device),
        "runner": engine.runner.name,
    }

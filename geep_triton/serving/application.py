"""The routes of the server, which are those of text-embeddings-inference."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from geep_triton.engine.engine import Engine
from geep_triton.serving.answers import predictions_of, ranks_of
from geep_triton.serving.bodies import PredictBody, Prediction, Rank, RerankBody
from geep_triton.serving.errors import RequestError
from geep_triton.serving.worker import Worker, engine_information
from geep_triton.version import __version__


def make_application(engine: Engine) -> FastAPI:
    """An ASGI application that answers by an engine. Its worker ends when the application shuts down.

    Args:
        engine: nobody else should run it meanwhile.
    """
    worker = Worker(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    application = FastAPI(title="geep_triton", version=__version__, lifespan=lifespan)
    application.add_exception_handler(RequestError, _answer_error)
    application.add_exception_handler(RequestValidationError, _answer_validation)

    @application.post("/predict")
    async def predict(body: PredictBody) -> list[Prediction] | list[list[Prediction]]:
        """The labels of a text, a pair or a batch of these, the likeliest first."""
        found = predictions_of(await worker.predict(body), body.raw_scores)
        return found if body.inputs.is_batch else found[0]

    @application.post("/rerank", response_model_exclude_none=True)
    async def rerank(body: RerankBody) -> list[Rank]:
        """The texts by how well they fit the query, the best first."""
        return ranks_of(await worker.rank(body), body.raw_scores)

    @application.get("/health")
    async def health() -> Response:
        """Whether the server answers: 200."""
        return Response()

    @application.get("/info")
    async def info() -> dict[str, Any]:
        """What is served, and how."""
        return engine_information(engine, __version__)

    return application


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestError):
        raise error
    return JSONResponse(error.body(), status_code=error.status)


async def _answer_validation(_: Request, error: Exception) -> JSONResponse:
    """A body that is no such JSON: 422, with what is wrong but not with the client's text."""
    if not isinstance(error, RequestValidationError):
        raise error
    reasons = "; ".join(f"{_place(of['loc'])}: {of['msg'].removeprefix('Value error, ')}" for of in error.errors())
    return JSONResponse({"error": reasons, "error_type": "Validation"}, status_code=422)


def _place(parts: Sequence[str | int]) -> str:
    """Where in a body an error is, such as "texts.0"."""
    return ".".join(map(str, parts[1:])) or "body"

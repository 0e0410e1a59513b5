"""The routes of the server, which are those of text-embeddings-inference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from geep_triton.engine.engine import Engine
from geep_triton.promises.audit import Audit, audit
from geep_triton.serving.backend import Backend, JobT
from geep_triton.serving.bodies import ErrorBody, PredictBody, Prediction, Rank, RerankBody
from geep_triton.serving.engine_backend import EngineBackend
from geep_triton.serving.errors import STATUS, RequestError
from geep_triton.serving.jobs import PredictJob, RankJob
from geep_triton.serving.limits import Limits
from geep_triton.serving.measuring import Measured
from geep_triton.serving.metrics import Metrics
from geep_triton.serving.service import Service
from geep_triton.serving.settings import ServerSettings
from geep_triton.version import __version__

ASKING = ("/predict", "/rerank")
ROUTES = (*ASKING, "/health", "/info", "/metrics")
MOST_REASONS = 5  # of one answer
LONGEST_PLACE = 40  # characters
UNREADABLE = 422  # the status of a body that is no such JSON
REFUSALS = {status: kind for kind, status in STATUS.items()} | {
    UNREADABLE: "Tokenizer; Validation where the body is no such JSON"
}


def _responses(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI tells of refusals of these kinds."""
    return {
        status: {"model": ErrorBody, "description": REFUSALS[status]} for status in sorted({STATUS[kind] for kind in kinds})
    }


UNHEALTHY = _responses("Unhealthy")
ERRORS = _responses(*(kind for kind in STATUS if kind != "Unhealthy"))


def make_application(engine: Engine, settings: ServerSettings | None = None) -> ASGIApp:
    """An ASGI application that answers by an engine. Its threads end when it shuts down.

    Args:
        engine: nobody else should run it meanwhile. It gets an audit where the settings say so.
        settings: limits and waiting times; None: the defaults.

    Raises:
        ValueError: answers cannot be audited; see `geep_triton.promises.audit.audit`.
    """
    settings = settings or ServerSettings()
    running = audit(engine, settings.audit) if settings.audit else None
    backend: Backend[PredictJob | RankJob] = EngineBackend(engine)
    return application_of(backend, settings, running)


def application_of(backend: Backend[JobT], settings: ServerSettings, running: Audit | None = None) -> ASGIApp:
    """An ASGI application that answers by a backend.

    Args:
        backend: it is used by the application alone.
        settings: limits and waiting times.
        running: the audit of the backend's answers, which `/metrics` tells of.
    """
    metrics = Metrics(backend.num_layers, running)
    service = Service(backend, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)  # meanwhile what was cancelled leaves the queues

    def refusal(path: str) -> RequestError | None:
        return service.overloaded if path in ASKING else None

    routes = FastAPI(title="geep_triton", version=__version__, lifespan=lifespan)
    routes.add_exception_handler(RequestError, _answer_error)
    routes.add_exception_handler(RequestValidationError, _answer_validation)
    routes.add_exception_handler(HTTPException, _answer_http)

    @routes.post("/predict", response_model=list[Prediction] | list[list[Prediction]], responses=ERRORS)
    async def predict(body: PredictBody) -> JSONResponse:
        """The labels of a text, a pair or a batch of these, the likeliest first."""
        return JSONResponse(await service.answer(body))

    @routes.post("/rerank", response_model=list[Rank], responses=ERRORS)
    async def rerank(body: RerankBody) -> JSONResponse:
        """The texts by how well they fit the query, the best first."""
        return JSONResponse(await service.answer(body))

    @routes.get("/health", response_class=Response, responses=UNHEALTHY)
    @routes.head("/health", response_class=Response, include_in_schema=False)
    async def health() -> Response:
        """Whether the model answers: 200. It is asked only where it failed at its latest request."""
        if not await service.healthy():
            raise RequestError("Unhealthy", "the model fails; the server's log says why")
        return Response()

    @routes.get("/info")
    async def info() -> dict[str, Any]:
        """What is served, and how."""
        return backend.information()

    @routes.get("/metrics", response_class=Response)
    async def tell_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type=metrics.content_type)

    limited = Limits(routes, settings.payload_limit, settings.receive_timeout, refusal)
    return Measured(limited, metrics, ROUTES)


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestError):
        raise error
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _answer_validation(_: Request, error: Exception) -> JSONResponse:
    """A body that is no such JSON: 422, with what is wrong but not with the client's text."""
    if not isinstance(error, RequestValidationError):
        raise error
    found = error.errors()
    reasons = [f"{_place(of)}: {of['msg'].removeprefix('Value error, ')}" for of in found[:MOST_REASONS]]
    if len(found) > MOST_REASONS:
        reasons.append(f"and {len(found) - MOST_REASONS} more")
    return _invalid("; ".join(reasons), UNREADABLE)


async def _answer_http(_: Request, error: Exception) -> JSONResponse:
    """What the framework refuses: no such route or method, and a body that Python cannot read as JSON, which is 422 here."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 400:
        reason = "body: no JSON that can be read: not in UTF-8, nested too deeply, or a number of too many digits"
        return _invalid(reason, UNREADABLE)
    return _invalid(error.detail, error.status_code, error.headers)


def _invalid(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message, "error_type": "Validation"}, status_code=status, headers=headers)


def _place(error: Mapping[str, Any]) -> str:
    """Where in a body an error is, such as "texts.0". Fields that there are not are named shortly: the client named them."""
    if error["type"] == "json_invalid":
        return f"body, character {error['loc'][-1]}"
    place = ".".join(map(str, error["loc"][1:])) or "body"
    return place if len(place) <= LONGEST_PLACE else place[:LONGEST_PLACE] + "..."

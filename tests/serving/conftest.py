"""A server in a thread of this process, at a free port, and a client."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from starlette.types import ASGIApp

from geep_triton import Engine
from geep_triton.promises.audit import Audit
from geep_triton.serving.application import make_application
from geep_triton.serving.server import Server
from geep_triton.serving.settings import ServerSettings

Ask = Callable[..., tuple[int, Any]]


def ask_at(url: str, route: str, body: Any = None) -> tuple[int, Any]:
    """Status and answer. A body is sent by POST: as JSON, or as it is where it is bytes."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + route, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, found = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, found = error.code, error.read()
    return status, json.loads(found) if found else None


@contextmanager
def serving(engine: Engine, settings: ServerSettings | None = None) -> Iterator[Ask]:
    """Ask a server that answers by this engine."""
    with running(make_application(engine, settings)) as url:
        yield lambda route, body=None: ask_at(url, route, body)


@contextmanager
def running(application: ASGIApp, drain_timeout: int = 120) -> Iterator[str]:
    """The address of a server that runs an application."""
    server = Server(application, port=0, drain_timeout=drain_timeout)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(server.url)
        yield server.url
    finally:
        server.stop()
        thread.join(60)
    assert not thread.is_alive()


def wait_for(url: str) -> None:
    """Until a server answers. Its port is open before it does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert ask_at(url, "/health") == (200, None)
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    """Of three classes, which leaves early."""
    return Engine(model, tokenizer, "threshold:0.8")


@pytest.fixture
def ask(engine) -> Iterator[Ask]:
    with serving(engine) as found:
        yield found


@pytest.fixture
def reranker(make_model, tokenizer) -> Engine:
    """Of one score, whose candidates leave early where at most two are wanted."""
    model = make_model(num_labels=1, problem_type="regression", pooling="mean")
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    engine = Engine(model, tokenizer)
    engine.ranking = "top:2,margins=0.02/0.02,layers=1/2"
    return engine


@pytest.fixture
def audited() -> Audit:
    """An audit that has seen something."""
    made = Audit(1.0, promised=0.9)
    made.record(torch.ones(3, dtype=torch.bool))
    return made

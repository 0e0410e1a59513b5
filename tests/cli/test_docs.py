"""What the documentation says of the command line is so."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from geep_triton.cli import app, failures
from tests.cli.commands import ROOT, understood

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = [
    (page.name, line) for page in PAGES for line in re.findall(r"^(?:\.venv/bin/)?geep .*$", page.read_text("utf-8"), re.M)
]
INLINE = [
    (page.name, line)
    for page in PAGES
    for line in re.findall(r"`((?:\.venv/bin/)?geep [a-z]+ [^`]*)`", page.read_text("utf-8"))
]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_of_the_documentation_is_understood(page, line):
    words = shlex.split(line, comments=True)[1:]
    given = understood(words)
    assert bool(given) == any(not word.startswith("--") for word in words)  # a command has options; `geep --version` is none


@pytest.mark.parametrize(("page", "line"), INLINE)
def test_options_that_are_named_exist(page, line):
    name, *words = shlex.split(line.replace(".venv/bin/", ""))[1:]
    command = typer.main.get_command(app.app).commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known | {"--help"}


def test_the_pages_name_every_command():
    text = (ROOT / "docs" / "command_line.md").read_text("utf-8")
    for command in app.app.registered_commands:
        assert f"geep {command.name or command.callback.__name__} " in f"{text} ".replace("\n", " ")


def test_the_exit_codes_are_those_of_the_program():
    text = (ROOT / "docs" / "command_line.md").read_text("utf-8")
    told = dict(re.findall(r"^\| (\d+) \| (.+) \|$", text, re.M))
    assert told == {str(code): meaning for code, meaning in failures.MEANINGS.items()}

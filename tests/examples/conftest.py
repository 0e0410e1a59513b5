"""A tiny trained model; scripts in this process."""

from __future__ import annotations

import runpy

import pytest

from tests.cli.conftest import trained as trained
from tests.examples.scripts import ROOT


@pytest.fixture
def in_process(monkeypatch):
    """A script in this process, which saves the imports."""

    def run_here(script: str, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")

    return run_here


@pytest.fixture
def refusal(in_process, capsys):
    """What a script says when it stops in this process; an error of another kind than SystemExit is raised."""

    def refused(script: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            in_process(script, *arguments)
        assert stopped.value.code not in (0, None)
        return f"{stopped.value.code}\n{capsys.readouterr().err}"

    return refused

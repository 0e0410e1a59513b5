"""Runs example scripts as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.commands import ROOT as ROOT
from tests.cli.commands import ROWS as ROWS
from tests.cli.commands import environment
from tests.cli.commands import write as write


def run(script: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment())

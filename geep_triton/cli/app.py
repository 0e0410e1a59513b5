"""The command `geep`."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import torch.distributed as dist
import typer

from geep_triton.cli.calibrate import calibrate
from geep_triton.cli.console import close_bars, plain_messages, say
from geep_triton.cli.env import env
from geep_triton.cli.exits import exits
from geep_triton.cli.failures import INTERRUPTED, REFUSED, SYSTEM, TERMINATED, Failure, failure_of
from geep_triton.cli.predict import predict
from geep_triton.cli.rank import rank
from geep_triton.cli.report import report
from geep_triton.cli.serve import serve
from geep_triton.cli.train import train
from geep_triton.version import __version__

TRACEBACK = "GEEP_TRACEBACK"  # environment variable with the same meaning as the option

app = typer.Typer(name="geep", no_args_is_help=True, pretty_exceptions_enable=False)
for command in (exits, train, calibrate, predict, rank, serve, report, env):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"geep_triton {__version__}")
        raise typer.Exit


@app.callback()
def geep(
    show_traceback: Annotated[
        bool, typer.Option("--traceback", envvar=TRACEBACK, help="Show where an error arose, for a bug report.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Early exits for BERT classifiers and rerankers: every text runs only the layers that it needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line, after its name. None: those of this process.

    Returns:
        The exit code; see `geep_triton.cli.failures`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with plain_messages():
            code = command.main(arguments, prog_name="geep", standalone_mode=False)
            if code == INTERRUPTED:  # which typer makes of Ctrl-C
                raise KeyboardInterrupt
            return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        failure = failure_of(error)
        if "--traceback" in arguments or os.environ.get(TRACEBACK):
            traceback.print_exc()
        close_bars()
        say(f"{_name(arguments)}: {failure.message}{_hint(arguments, failure)}")
        return failure.code
    finally:
        signal.signal(signal.SIGTERM, before)


def run() -> NoReturn:
    """Run the command of this process, and end the process with its exit code.

    Where several processes trained together, the threads of their group may still want Python's lock for a moment. If Python
    ends meanwhile, such a thread aborts its process. If the group is destroyed meanwhile, both wait for each other forever,
    because the group's end waits for the thread and keeps the lock. So such a process ends without an end of Python.
    """
    code = main()
    if dist.is_available() and dist.is_initialized():
        with suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)  # so that files are closed and locks end as after an error


def _hint(arguments: Sequence[str], failure: Failure) -> str:
    """What else helps whoever typed these arguments."""
    if failure.code == REFUSED and "missing column '" in failure.message:
        ranks = _name(arguments) == "geep rank"
        return f" (name yours: {'--query-column, --candidates-column' if ranks else '--text-column, --pair-column, ...'})"
    named = next((argument for argument in arguments[1:] if not argument.startswith("-")), None)
    if failure.code == SYSTEM and "huggingface.co" in failure.message and named and not Path(named).exists():
        return f" (there is no folder {named} here, so it was taken for a hub id)"
    return ""


def _name(arguments: Sequence[str]) -> str:
    """The command that an error belongs to, such as "geep predict"."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return " ".join(["geep", *(argument for argument in arguments[:2] if argument in names)][:2])

"""What a command prints: its result on stdout, and everything else on stderr, one line each."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging


def say(message: str, quiet: bool = False) -> None:
    """Tell the user something that is not the result."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


def show(text: str, values: Mapping[str, Any], as_json: bool) -> None:
    """Print the result: as text, or as one JSON object. What stdout cannot encode, such as a name in it, is escaped."""
    told = json.dumps(values, ensure_ascii=False, default=str) if as_json else text
    encoding = sys.stdout.encoding or "utf-8"
    try:
        told.encode(encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError:
        escaped = text.encode(encoding, "backslashreplace").decode(encoding)
        told = json.dumps(values, default=str) if as_json else escaped
    print(told, flush=True)


def close_bars() -> None:
    """End the line of each progress bar that an error has left open, so that what follows begins a line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


@contextmanager
def results_alone(quiet: bool = False) -> Iterator[None]:
    """Send to stderr what libraries print while a command works, so that stdout holds the result alone; `quiet`: nowhere."""
    with Path(os.devnull).open("w", encoding="utf-8") if quiet else nullcontext(sys.stderr) as there, redirect_stdout(there):
        yield


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show each warning once as one line, and hold back what transformers tells of loading."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print a warning as users read it. Those of other libraries about their future are for programmers."""
    if not issubclass(category, (DeprecationWarning, FutureWarning, PendingDeprecationWarning)):
        say(f"geep: warning: {' '.join(str(message).split())}")

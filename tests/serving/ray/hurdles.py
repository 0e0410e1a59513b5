"""Actors that die or wait where a test wants it; it is imported by actors."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geep_triton import Engine
from geep_triton.files.answerer import Answered
from geep_triton.files.readers import Values
from geep_triton.over_files.predicting import Predicting, Predictor

PATIENCE = 60.0


def until(there: Callable[[], bool]) -> None:
    """Wait for other processes, which tell by files."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass(frozen=True)
class Hurdles:
    """Asks what `Predicting` asks, of actors that meet hurdles; each is met once.

    Attributes:
        folder: of files that say which hurdle was met.
        dies_at: the actor whose window holds this text kills itself.
        waits_on: an actor of this node (its id) waits at its second window until it is killed, and its file says so. Actors of
            other nodes wait at theirs for that.
    """

    folder: Path
    dies_at: str
    waits_on: str

    def by(self, engine: Engine) -> Met:
        return Met(Predicting().by(engine), self)

    def manifest(self, engine: Engine) -> dict[str, Any]:
        return Predicting().manifest(engine)

    def first(self, name: str) -> bool:
        """Whether this hurdle was not met before."""
        try:
            os.close(os.open(self.folder / name, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class Met:
    """A predictor that meets hurdles."""

    def __init__(self, predictor: Predictor, hurdles: Hurdles) -> None:
        self.predictor, self.hurdles, self.windows = predictor, hurdles, 0
        self.wanted, self.optional = predictor.wanted, predictor.optional
        self.types, self.window = predictor.types, predictor.window

    def answer(self, rows: Sequence[Values]) -> Answered:
        import ray

        self.windows += 1
        if any(row[0] == self.hurdles.dies_at for row in rows) and self.hurdles.first("died"):
            os.kill(os.getpid(), signal.SIGKILL)
        here = ray.get_runtime_context().get_node_id() == self.hurdles.waits_on
        if here and self.windows > 1 and self.hurdles.first("waits"):
            threading.Event().wait()
        if not here and self.windows > 1:
            until((self.hurdles.folder / "waits").exists)
        return self.predictor.answer(rows)

"""What runs in an actor: an engine that answers groups of shards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from geep_triton.engine.engine import Engine
from geep_triton.engine.source import EngineSource
from geep_triton.files.answerer import Answerer
from geep_triton.files.group_work import GroupWork, Progress
from geep_triton.files.run_folder import OtherHolder
from geep_triton.files.targets import Target


class Asking(Protocol):
    """What is asked of an engine over files; see `geep_triton.over_files.predicting.Predicting`."""

    def by(self, engine: Engine) -> Answerer:
        """Whoever answers by this engine."""

    def manifest(self, engine: Engine) -> dict[str, Any]:
        """Everything that the answers of this engine depend on, in JSON values."""


@dataclass(frozen=True)
class Introduction:
    """What an actor says of itself.

    Attributes:
        manifest: everything that its answers depend on, in JSON values.
        wanted, optional, types, window: see `geep_triton.files.answerer.Answering`.
        told: what was warned of while it loaded its engine.
    """

    manifest: Mapping[str, Any]
    wanted: tuple[str, ...]
    optional: tuple[str, ...]
    types: Mapping[str, pa.DataType]
    window: int
    told: tuple[str, ...]


class GroupActor:
    """Answers groups of shards by an engine of its own. Its constructor does nothing, so that errors reach who asks.

    Args:
        source: of the engine.
        asking: what is asked of it.
    """

    def __init__(self, source: EngineSource, asking: Asking) -> None:
        self.source, self.asking = source, asking
        self.answerer: Answerer | None = None

    def introduce(self) -> Introduction:
        """Load the engine."""
        with _told() as told:
            engine = self.source.load()
            self.answerer = answerer = self.asking.by(engine)
            manifest = self.asking.manifest(engine)
        return Introduction(
            manifest, tuple(answerer.wanted), tuple(answerer.optional), dict(answerer.types), answerer.window, tuple(told())
        )

    def answer(self, work: GroupWork, group: Sequence[Target]) -> Generator[Progress, None, None]:
        """See `GroupWork.answer`. What is warned of meanwhile is told, too."""
        if self.answerer is None:
            raise RuntimeError("an actor is asked to introduce itself first")
        with _told() as told:
            try:
                for step in work.answer(self.answerer, group):
                    yield from told()
                    yield step
            except OtherHolder as error:  # but whoever sent this group holds the folder
                raise ValueError(
                    f"{work.layout.run} is not the run's folder here: all machines need one file system"
                ) from error
        yield from told()


@contextmanager
def _told() -> Iterator[Callable[[], list[str]]]:
    """What was warned of since it was last asked for: users of a driver do not see what its actors print."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")

        def new() -> list[str]:
            kinds = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)  # those are for programmers
            found = [str(one.message) for one in caught if not issubclass(one.category, kinds)]
            caught.clear()
            return list(dict.fromkeys(found))

        yield new

"""Whoever has the groups of shards of a run answered: this process, or others."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from geep_triton.files.answerer import Answerer, Answering
from geep_triton.files.group_work import GroupWork, Progress
from geep_triton.files.targets import Target


class Crew(Answering, Protocol):
    """Has groups of shards answered. All of it answer the same rows alike."""

    def answer_groups(self, work: GroupWork, groups: Sequence[Sequence[Target]]) -> Generator[Progress, None, None]:
        """Have all groups answered, in whatever order, and tell of it. Nobody is at work after the end, nor after an error."""


class Here:
    """A crew of one: this process answers group by group.

    Args:
        answerer: it answers rows.
    """

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.wanted, self.optional = answerer.wanted, answerer.optional
        self.types, self.window = answerer.types, answerer.window

    def answer_groups(self, work: GroupWork, groups: Sequence[Sequence[Target]]) -> Generator[Progress, None, None]:
        """See `Crew`."""
        for group in groups:
            yield from work.answer(self.answerer, group)

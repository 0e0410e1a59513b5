"""Requests that were read; see `geep_triton.serving.batcher.Job`."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from geep_triton.engine.groups import Groups
from geep_triton.serving.bodies import PredictBody, RerankBody
from geep_triton.tokens.ragged import Tokens


@dataclass(frozen=True, eq=False)
class PredictJob:
    """A request for labels or scores."""

    body: PredictBody
    tokens: Tokens
    work: float

    @property
    def kind(self) -> Hashable:
        """All run together."""
        return "predict"

    @property
    def texts(self) -> int:
        """How many texts or pairs it has."""
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class RankJob:
    """A request for an order."""

    body: RerankBody
    group: Groups

    @property
    def kind(self) -> Hashable:
        """Candidates leave early only where few enough are wanted."""
        return "rank", self.body.top_k

    @property
    def texts(self) -> int:
        """How many pairs it has."""
        return self.group.bounds[-1]

    @property
    def work(self) -> float:
        """Its tokens: the table knows nothing of how candidates compare."""
        return 0.0 if self.group.tokens is None else float(self.group.tokens.ids.numel())

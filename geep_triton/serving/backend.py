"""What the server asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from geep_triton.serving.batcher import Job
from geep_triton.serving.bodies import PredictBody, RerankBody
from geep_triton.serving.errors import RequestError

Body: TypeAlias = PredictBody | RerankBody
JobT = TypeVar("JobT", bound=Job)


@dataclass(frozen=True)
class Answered:
    """The answer to one request.

    Attributes:
        content: what is sent, in JSON values.
        exits: the exit layer of each text or pair.
    """

    content: Any
    exits: Sequence[int]


class Backend(Protocol[JobT]):
    """Whoever answers requests: `geep_triton.serving.engine_backend.EngineBackend`, or another.

    Attributes:
        max_batch_tokens: the most tokens that are run together, unless the settings say so.
        num_layers: of the model.
    """

    max_batch_tokens: int
    num_layers: int

    def prepare(self, bodies: Sequence[Body]) -> Sequence[JobT | RequestError]:
        """Read requests, each by itself: a job, or why it cannot be answered.

        This is called by one thread, and `run` by another at the same time.
        """

    def run(self, jobs: Sequence[JobT]) -> Sequence[Answered]:
        """Answer jobs of one kind, in their order."""

    def information(self) -> dict[str, Any]:
        """What `GET /info` tells."""

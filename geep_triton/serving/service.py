"""Takes requests in hand: reads them, lets them wait for their batch, and measures."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic

from geep_triton.serving.backend import Answered, Backend, Body, JobT
from geep_triton.serving.batcher import Batcher
from geep_triton.serving.bodies import PredictBody
from geep_triton.serving.errors import Crash, RequestError
from geep_triton.serving.metrics import Metrics
from geep_triton.serving.settings import ServerSettings

LOG = logging.getLogger(__name__)
PROBE = PredictBody.model_validate({"inputs": "health"})


@dataclass(frozen=True)
class _Unread:
    """A request that waits to be read; see `geep_triton.serving.batcher.Job`."""

    body: Body
    kind: str = "unread"
    texts: int = 1
    work: float = 0.0


class Service(Generic[JobT]):
    """Answers requests by a backend. Its methods are called in one event loop.

    Two threads work for it: one reads the requests that have come while it read others, one runs batches.

    Args:
        backend: it is used by this service alone.
        settings: limits and waiting times.
        metrics: it is shown what happens.
    """

    def __init__(self, backend: Backend[JobT], settings: ServerSettings, metrics: Metrics) -> None:
        self.settings = settings
        self._backend, self._metrics = backend, metrics
        self._in_hand = 0
        self._failed = False  # whether the model failed at the latest request that it ran
        self._reader: Batcher[_Unread, JobT | RequestError] = Batcher(self._read, 0.0, math.inf, lambda ran: None, "reader")
        self._batcher: Batcher[JobT, Answered] = Batcher(
            backend.run,
            settings.max_wait_ms / 1000,
            settings.max_batch_tokens or backend.max_batch_tokens,
            metrics.see_batch,
            "engine",
        )
        metrics.watch_queue(lambda: self._in_hand)

    async def answer(self, body: Body) -> Any:
        """The answer to a request, in JSON values. If this is cancelled before its batch starts, the request does not run.

        Raises:
            RequestError: it cannot be answered, or too many are in hand.
        """
        overloaded = self.overloaded
        if overloaded is not None:
            raise overloaded
        self._check_size(body)
        self._in_hand += 1
        try:
            job = await asyncio.wrap_future(self._reader.submit(_Unread(body)))
            if isinstance(job, RequestError):
                raise job
            found = await asyncio.wrap_future(self._batcher.submit(job))
        except RequestError:
            raise
        except (ValueError, RuntimeError) as error:  # torch's too, as where a device has no memory left
            self._failed = True
            LOG.warning("a request failed: %s", error)
            raise RequestError("Backend", str(error)) from error
        except Exception as error:  # a bug, or no memory: the log has all of it, and the client not what may be another's text
            self._failed = True
            LOG.exception("a request failed")
            raised = error.__cause__ if isinstance(error, Crash) else error
            raise RequestError("Backend", f"the model failed: {type(raised).__name__}") from error
        finally:
            self._in_hand -= 1
        self._failed = False
        self._metrics.see_answer(found.exits)
        return found.content

    async def healthy(self) -> bool:
        """Whether the model answers. Where it failed at its latest request, which may have been at fault, it is asked anew."""
        if not self._failed or self.overloaded is not None:  # whoever is in hand now will show it
            return True
        with suppress(RequestError):
            await self.answer(PROBE)
        return not self._failed

    @property
    def overloaded(self) -> RequestError | None:
        """Why a further request is refused. It names the time after which those in hand now will have been answered."""
        if self._in_hand < self.settings.max_concurrent_requests:
            return None
        seconds = max(1, math.ceil(self._batcher.seconds_left))
        message = f"the server is overloaded: {self._in_hand} requests are in hand"
        return RequestError("Overloaded", message, {"Retry-After": str(seconds)})

    def close(self) -> None:
        """Answer what is in hand, and end the threads."""
        self._reader.close()
        self._batcher.close()

    def _read(self, unread: Sequence[_Unread]) -> Sequence[JobT | RequestError]:
        return self._backend.prepare([one.body for one in unread])

    def _check_size(self, body: Body) -> None:
        texts, most = (
            len(body.inputs.samples if isinstance(body, PredictBody) else body.texts),
            self.settings.max_client_batch_size,
        )
        if texts > most:
            raise RequestError("Validation", f"batch size {texts} > maximum allowed batch size {most}")

"""Counts requests by route and status."""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geep_triton.serving.limits import ClientGone
from geep_triton.serving.metrics import Metrics

CLIENT_GONE = 499  # as nginx counts it; nobody is there to be sent it


class Measured:
    """An ASGI application around another, which shows every request to metrics.

    Args:
        application: answers requests.
        metrics: it is shown route, status and seconds of each.
        routes: the paths that are told apart; all others are "other".
    """

    def __init__(self, application: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        self._application, self._metrics, self._routes = application, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. That its client went away is counted, and no error."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._application(scope, receive, sending)
        except ClientGone:
            status = CLIENT_GONE
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.see_request(route, status, time.perf_counter() - start)

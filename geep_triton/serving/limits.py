"""Holds clients to limits: how much they send, how long they take, and that they stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geep_triton.serving.errors import RequestError

LINGER = 1.0  # seconds for which the rest of a refused body is still read


class ClientGone(Exception):
    """The client closed the connection before it was answered."""


class Limits:
    """An ASGI application around another. It reads bodies whole, before the other sees them.

    A body that is too long or too slow is refused, and its connection closed. If the client goes away, the other application is
    cancelled. What the other application would refuse unseen is refused here, where it costs least.

    Args:
        application: answers requests.
        payload_limit: the most bytes of a body.
        receive_timeout: the longest that a body may take, in seconds.
        refusal: why a request of a path is refused now, whatever it asks; None: it is not.
    """

    def __init__(
        self,
        application: ASGIApp,
        payload_limit: int,
        receive_timeout: float,
        refusal: Callable[[str], RequestError | None],
    ) -> None:
        self._application, self._refusal = application, refusal
        self._payload_limit, self._receive_timeout = payload_limit, receive_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            ClientGone: the client went away.
        """
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._receive_timeout)
        except asyncio.TimeoutError:
            error = RequestError("Timeout", f"the body took longer than {self._receive_timeout:g} s")
            await _refuse_unread(error, scope, receive, send)
        except RequestError as error:
            await _refuse_unread(error, scope, receive, send)
        else:
            refusal = self._refusal(scope["path"])
            if refusal is not None:
                await _refuse(refusal, scope, receive, send)
            else:
                await self._answer(body, scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        too_long = RequestError("Validation", f"the body is longer than {self._payload_limit} bytes")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._payload_limit:
            raise too_long
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self._payload_limit:
                raise too_long
        return b"".join(parts)

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await asyncio.shield(gone)

        gone = asyncio.ensure_future(receive())  # what comes after a whole body is that the client went away, or has its answer
        answering = asyncio.ensure_future(self._application(scope, replay, send))
        try:
            await asyncio.wait({gone, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientGone
            await answering
        finally:
            for task in (gone, answering):
                task.cancel()


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body(), status_code=error.status, headers=error.headers)(scope, receive, send)


async def _refuse_unread(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer by an error, and close the connection, on which the rest of the body may still come.

    The rest is read and dropped for a while: many clients read an answer only after they have sent all, and closing on what is
    not read yet would take the answer from them.
    """
    answer = JSONResponse(error.body(), status_code=error.status, headers={"Connection": "close"})

    async def keep_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await answer(scope, receive, keep_open)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_drop(receive), LINGER)
    await send({"type": "http.response.body", "body": b""})


async def _drop(receive: Receive) -> None:
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)

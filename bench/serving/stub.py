"""A server for tests that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bench.serving.wire import Address

Handler = Callable[[bytes], Awaitable[bytes]]


def answer(body: bytes, status: int = 200, close: bool = False) -> bytes:
    """A whole answer."""
    more = "Connection: close\r\n" if close else ""
    return f"HTTP/1.1 {status} OK\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[Address]:
    """A server that sends what `handle` makes of each body. An empty answer hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                sent = await handle(await reader.readexactly(length))
                writer.write(sent)
                if not sent or b"Connection: close" in sent:
                    break
        except asyncio.IncompleteReadError:
            pass  # the client hung up
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()

"""A client's side of HTTP/1.1: bytes over a socket that stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

Address = tuple[str, int]
END_OF_HEAD = b"\r\n\r\n"


class Lost(ConnectionError):
    """The server closed the connection without a whole answer."""


class Reply(NamedTuple):
    """An answer.

    Attributes:
        status: its code.
        headers: their names in lower case.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def request(path: str, body: bytes | None = None) -> bytes:
    """A whole request: GET, or POST where there is a body, which is said to be JSON."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Line:
    """A connection that one request after another goes over. It is opened when it is needed.

    Args:
        address: host and port.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, payload: bytes) -> Reply:
        """Send a whole request, and read its answer.

        Raises:
            Lost: there is none.
        """
        try:
            reader, writer = await self._opened()
            writer.write(payload)
            reply = await _read(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error
        if reply.headers.get("connection") == "close":
            self.close()
        return reply

    async def send(self, part: bytes) -> None:
        """Send a part of a request. Raises OSError: the server hung up."""
        _, writer = await self._opened()
        writer.write(part)
        await writer.drain()

    async def reply(self) -> Reply:
        """The answer to what was sent in parts. Raises Lost."""
        reader, _ = await self._opened()
        try:
            return await _read(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Lost(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Hang up."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def vanish(self) -> None:
        """Break the connection off."""
        if self._open is not None:
            self._open[1].transport.abort()
            self._open = None

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._open is not None and self._open[0].at_eof():  # the server hung up while nobody spoke
            self.close()
        if self._open is None:
            self._open = await asyncio.open_connection(*self._address)
        return self._open


async def _read(reader: asyncio.StreamReader) -> Reply:
    head = await reader.readuntil(END_OF_HEAD)
    first, *rest = head[: -len(END_OF_HEAD)].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Reply(int(first.split(" ", 2)[1]), headers, body)


async def fetch(address: Address, path: str) -> bytes:
    """The body that a path answers. Raises Lost, or ValueError for another status than 200."""
    line = Line(address)
    try:
        reply = await line.ask(request(path))
    finally:
        line.close()
    if reply.status != 200:
        raise ValueError(f"GET {path}: expected status 200, got {reply.status}")
    return reply.body

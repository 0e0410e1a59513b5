"""The server around the application."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geep_triton.checks import check_int

BACKLOG = 2048  # connections that wait to be accepted
HIGHEST_PORT = 65535
KEEP_ALIVE = 75  # seconds; longer than load balancers keep a connection, so that they, not we, close it


class Server:
    """An HTTP server that has its port, and can be run.

    SIGTERM or Ctrl-C end it: it accepts nothing more, finishes what runs and waits, and stops. A second Ctrl-C cuts that.

    Args:
        application: answers all requests; see `geep_triton.serving.application.make_application`.
        host: address to listen at. "0.0.0.0" is open to other machines, which are not asked who they are.
        port: 0: any free one.
        drain_timeout: whole seconds after which nobody is answered any more, since some clients never take their answers; then
            it ends with the batch that runs.

    Raises:
        OSError: the address is not this machine's, or the port is taken.
        ValueError: the port or `drain_timeout` is out of range.
    """

    def __init__(self, application: ASGIApp, host: str = "127.0.0.1", port: int = 8080, drain_timeout: int = 120) -> None:
        check_int("port", port, 0, HIGHEST_PORT)
        check_int("drain_timeout", drain_timeout, 1)
        self._socket = _bound(host, port)
        config = uvicorn.Config(
            self._telling_of_the_end(application),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=drain_timeout,
        )
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """Where it can be reached."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Answer requests until `stop`, or a signal where this is the main thread."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `run`, which another thread is in."""
        self._server.should_exit = True

    def _telling_of_the_end(self, application: ASGIApp) -> ASGIApp:
        """The same application. Once the server ends, its answers tell clients to send nothing more on their connections."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start" and self._server.should_exit:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
                await send(message)

            await application(scope, receive, sending)

        return wrapped


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. It is made before the server runs, so that a port that is taken is told at once."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}") from error
    return found

"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from geep_triton.serving.ray.needed import check_ray

LOCAL, AUTO = "local", "auto"
SECONDS_TO_ANSWER = 10.0  # of a cluster's head: Ray itself would try for minutes, and heed no SIGTERM meanwhile
STORE_BYTES = 100 << 20  # of the object store of a cluster that is started here: only counts of rows pass through it
# Ray reads it when it is imported. 0: nodes of this machine talk over the loopback interface, where nobody else hears them.
OVER_THE_NETWORK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
LOOPBACK = ("127.0.0.1", "localhost")


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster.

    Args:
        address: HOST:PORT of the cluster's head; "auto": the cluster that this machine belongs to; "local": one that is started
            here on 127.0.0.1, and ends here. None: this process is connected already.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no such cluster, or this process is connected to one already.
    """
    check_ray()
    if address is not None and address not in (LOCAL, AUTO):
        _check_listens(address)
    if address is not None and address.partition(":")[0] in (LOCAL, *LOOPBACK):
        os.environ.setdefault(OVER_THE_NETWORK, "0")
    import ray

    if address is None:
        if not ray.is_initialized():
            raise ValueError("address must name a Ray cluster where this process is connected to none (ray.init), got None")
        yield
        return
    if ray.is_initialized():
        raise ValueError(f"address must be None where this process is connected to a Ray cluster already, got {address!r}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address == LOCAL else {}
    try:
        with _own_handler():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:  # another version of Ray, or a token is missing
        raise ValueError(f"there is no Ray cluster at {address} that takes us in: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Undo that Ray puts its own handler of SIGTERM in the place of this process's, which it does in the main thread."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_listens(address: str) -> None:
    """Raise ValueError unless somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"address must be HOST:PORT of a cluster's head, auto or local, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"there is no Ray cluster at {address}: {error}") from error

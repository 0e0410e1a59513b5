"""How much a server takes on, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

from geep_triton.checks import check_int, check_number


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server. Names and meanings are those of text-embeddings-inference, where it has them.

    Attributes:
        max_wait_ms: the longest that a request waits for others to fill its batch, while the engine has nothing else to do.
        max_batch_tokens: the most tokens that are run together. Those of texts that are expected to leave early count for less:
            by the share of the layers that they are expected to run. None: as the backend says. A longer request runs alone.
        max_concurrent_requests: the most requests that are in hand. Further ones are answered 429 at once.
        max_client_batch_size: the most texts of one request.
        payload_limit: the most bytes of a request's body.
        receive_timeout: the longest, in seconds, that a client may take to send a body.
        audit: the share of the texts of /predict that also run to the end, to compare their answers. 0: none.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value has another type.
    """

    max_wait_ms: float = 1.0
    max_batch_tokens: int | None = None
    max_concurrent_requests: int = 512
    max_client_batch_size: int = 256
    payload_limit: int = 2_000_000
    receive_timeout: float = 30.0
    audit: float = 0.0

    def __post_init__(self) -> None:
        check_number("max_wait_ms", self.max_wait_ms, 0.0, 60_000.0)
        if self.max_batch_tokens is not None:
            check_int("max_batch_tokens", self.max_batch_tokens, 1)
        check_int("max_concurrent_requests", self.max_concurrent_requests, 1)
        check_int("max_client_batch_size", self.max_client_batch_size, 1)
        check_int("payload_limit", self.payload_limit, 1)
        check_number("receive_timeout", self.receive_timeout, 0.001, 86_400.0)
        check_number("audit", self.audit, 0.0, 1.0)

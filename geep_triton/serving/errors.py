"""What goes wrong with a request: a status code, and a body as text-embeddings-inference has it."""

from __future__ import annotations

from collections.abc import Mapping

from geep_triton.checks import BadSample, LongSample

# Kind of an error -> status code, as there; "Timeout" is ours.
STATUS = {
    "Validation": 413,
    "Tokenizer": 422,
    "Backend": 424,
    "Empty": 400,
    "Overloaded": 429,
    "Timeout": 408,
    "Unhealthy": 503,
}


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        kind: a key of `STATUS`.
        status: the status code of the answer.
        headers: of the answer.
    """

    def __init__(self, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = STATUS[kind]
        self.headers = dict(headers or {})

    def body(self) -> dict[str, str]:
        """The answer."""
        return {"error": str(self), "error_type": self.kind}


class Crash(Exception):
    """What a model raised is no error that a server may raise again: it would end a thread, or asyncio would refuse it."""


def as_exception(error: BaseException) -> Exception:
    """The error itself, or a `Crash` by it, such as by a panic of a library in Rust, an exit or a StopIteration."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    crash = Crash(f"{type(error).__name__}: {error}")
    crash.__cause__ = error
    return crash


def of_sample(error: BadSample) -> RequestError:
    """What the error of an engine about a text means to the client who sent it. It does not repeat the text."""
    if isinstance(error, LongSample):
        reason = error.reason.partition(";")[0]
        return RequestError("Validation", f'input {error.index} {reason}; "truncate": true cuts it')
    return RequestError("Tokenizer", f"input {error.index} {error.reason.partition(': ')[0]}")

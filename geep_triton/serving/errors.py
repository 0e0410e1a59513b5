"""What goes wrong with a request: a status code, and a body as text-embeddings-inference has it."""

from __future__ import annotations

from geep_triton.checks import BadSample, LongSample

# Kind of an error -> status code, as there.
STATUS = {"Validation": 413, "Tokenizer": 422, "Backend": 424, "Empty": 400, "Unhealthy": 503}


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        kind: a key of `STATUS`.
        status: the status code of the answer.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = STATUS[kind]

    def body(self) -> dict[str, str]:
        """The answer."""
        return {"error": str(self), "error_type": self.kind}


def of_sample(error: BadSample) -> RequestError:
    """What the error of an engine about a text means to the client who sent it."""
    if isinstance(error, LongSample):
        reason = error.reason.partition(";")[0]
        return RequestError("Validation", f'input {error.index} {reason}; "truncate": true cuts it')
    return RequestError("Tokenizer", f"input {error.index} {error.reason}")

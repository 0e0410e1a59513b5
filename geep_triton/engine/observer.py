"""The protocol of an observer, which is shown an engine's answers."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from geep_triton.tokens.ragged import Tokens


class Observer(Protocol):
    """What an engine asks of its observer. `geep_triton.promises.audit` has one."""

    def see(self, tokens: Tokens, logits: torch.Tensor) -> None:
        """Take a window's samples and their answers [N, C]."""

    def end(self) -> None:
        """Take note that the engine will show no more answers, since those to come are others."""


def observe(observer: Observer | None, tokens: Tokens, logits: torch.Tensor) -> dict[str, float]:
    """Show a window's answers to an observer. Returns the seconds that this took, by stage; none where there is no observer."""
    if observer is None:
        return {}
    start = time.perf_counter()
    observer.see(tokens, logits)
    return {"audit": time.perf_counter() - start}

"""The protocol of an observer, which is shown an engine's answers."""

from __future__ import annotations

from typing import Protocol

import torch

from geep_triton.tokens.ragged import Tokens


class Observer(Protocol):
    """What an engine asks of its observer. `geep_triton.promises.audit` has one."""

    def see(self, tokens: Tokens, logits: torch.Tensor) -> None:
        """Take a window's samples and their answers [N, C]."""

    def end(self) -> None:
        """Take note that the engine will show no more answers, since those to come are others."""

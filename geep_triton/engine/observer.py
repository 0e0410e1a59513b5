"""Who is shown an engine's answers."""

from __future__ import annotations

from typing import Protocol

import torch

from geep_triton.tokens.ragged import Tokens


class Observer(Protocol):
    """What an engine asks of its observer; `geep_triton.promises.audit` has one."""

    def see(self, tokens: Tokens, logits: torch.Tensor) -> None:
        """Look at a window's samples and their answers [N, C]."""

    def end(self) -> None:
        """The engine's answers to come are of another kind, and will not be shown."""

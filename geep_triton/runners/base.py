"""The seam between the engine and the layers: a runner owns the states, and nobody else looks into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.tokens.ragged import Tokens


class States(Protocol):
    """Hidden states of samples that stand after the same layer. Only their runner looks inside."""

    @property
    def lengths(self) -> torch.Tensor:
        """[B] int64 on the host, real tokens per sample."""

    @property
    def longest(self) -> int:
        """Tokens of the widest sample, padding included."""

    @property
    def tokens(self) -> int:
        """Tokens held, padding included."""

    def __len__(self) -> int: ...

    def total(self, cost: Callable[[int | torch.Tensor], int | torch.Tensor]) -> int:
        """What all samples cost, where `cost` tells it of one sample by its tokens, padding included."""


class Runner(Protocol):
    """What the engine asks of a way to run layers.

    Layers count from 1. `order` is on the states' device; everything on the host is told beside it, so that the host never
    waits for a device here.

    Attributes:
        name: of the runner; see `geep_triton.runners.make.RUNNERS`.
        dtype: in which the layers run: "float32", "bfloat16", "float16" or "int8".
        model: whose configuration, exit table and temperatures hold. Its weights are the runner's, too, or copied by it.
        cudnn_attention: whether torch may choose cuDNN's attention on a GPU; see
            `geep_triton.runners.attention.attention_kernels`.
    """

    name: str
    dtype: str
    model: MultiExitBert
    cudnn_attention: bool

    def embed(self, tokens: Tokens, order: torch.Tensor, lengths: torch.Tensor) -> States:
        """The samples `order` [B] of a window, before the first layer.

        Args:
            tokens: the window's samples, on the device.
            order: [B] int64, which of them.
            lengths: [B] int64 on the host, their lengths.
        """

    def layers(self, first: int, last: int, states: States) -> States:
        """Run layers first..last; the states as they are where last < first."""

    def logits(self, layer: int, states: States) -> torch.Tensor:
        """[B, C], the answers of the head at `layer`, at its temperature."""

    def gate(self, layer: int, states: States) -> SkipGate | None:
        """Who skips `layer`, which comes next; None where it has no gate."""

    def take(self, states: States, order: torch.Tensor | slice, lengths: torch.Tensor) -> States:
        """The samples `order` [K] of a batch, and no longer than the longest of them.

        Args:
            states: of the batch.
            order: [K] int64, or a slice, whose states may share the batch's memory.
            lengths: [K] int64 on the host, their lengths.
        """

    def join(self, parts: Sequence[States]) -> States:
        """All samples of several batches as one."""

    def put(self, states: States, order: torch.Tensor, part: States) -> States:
        """A batch whose samples `order` [K] are those of `part`, which `take` took from it."""

    def choose(self, flags: torch.Tensor, kept: States, changed: States) -> States:
        """A batch's samples as in `kept` where `flags` [B] bool (on the device) is true, else as in `changed`."""

    def modules(self) -> Sequence[torch.nn.Module]:
        """All modules that it runs, which must be in evaluation mode."""

"""The interface between the engine and the layers. A runner owns the states, and no other code looks into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from geep_triton.modeling.flops import Count
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.tokens.ragged import Tokens


class Cost(Protocol):
    """What a sample costs by its tokens, padding included; or each of several."""

    def __call__(self, tokens: Count, /) -> Count:
        """Of so many tokens."""


class States(Protocol):
    """Hidden states of samples after the same layer. Only their runner looks inside."""

    @property
    def lengths(self) -> torch.Tensor:
        """[B] int64 on the host, number of real tokens per sample."""

    @property
    def longest(self) -> int:
        """Number of tokens of the widest sample, including padding."""

    @property
    def tokens(self) -> int:
        """Number of tokens in memory, including padding."""

    def __len__(self) -> int: ...

    def total(self, cost: Cost) -> int:
        """Cost of all samples, where `cost` maps the tokens of one sample (including padding) to its cost."""


StatesT = TypeVar("StatesT", bound=States)


class Runner(Protocol[StatesT]):
    """What the engine asks of a way to run layers, on states of its own kind; `Runner[Any]` is a runner of some kind.

    Layers count from 1. `order` is on the device of the states. The host gets its own copy of everything that it needs, so it
    never waits for a device here.

    Attributes:
        name: name of the runner. See `geep_triton.runners.make.RUNNERS`.
        dtype: dtype of the layers: "float32", "bfloat16", "float16" or "int8".
        model: the model with the configuration, exit table and temperatures. The runner uses its weights or copies of them.
        cudnn_attention: whether torch may choose cuDNN's attention on a GPU. See
            `geep_triton.runners.attention.attention_kernels`.
    """

    name: str
    dtype: str
    model: MultiExitBert
    cudnn_attention: bool

    def embed(self, tokens: Tokens, order: torch.Tensor, lengths: torch.Tensor) -> StatesT:
        """The samples `order` [B] of a window, before the first layer.

        Args:
            tokens: the window's samples, on the device.
            order: [B] int64, indices of the samples.
            lengths: [B] int64 on the host, their lengths.

        Returns:
            The states before the first layer.
        """

    def layers(self, first: int, last: int, states: StatesT) -> StatesT:
        """Run layers first..last. The states are returned as they are if last < first."""

    def logits(self, layer: int, states: StatesT) -> torch.Tensor:
        """The answers [B, C] of the head at `layer`, divided by its temperature."""

    def gate(self, layer: int, states: StatesT) -> SkipGate | None:
        """The decisions who skips `layer`, which is the next one. None if it has no gate."""

    def take(self, states: StatesT, order: torch.Tensor | slice, lengths: torch.Tensor) -> StatesT:
        """The samples `order` [K] of a batch, and no longer than the longest of them.

        Args:
            states: states of the batch.
            order: [K] int64, or a slice. The states of a slice may share the memory of the batch.
            lengths: [K] int64 on the host, their lengths.
        """

    def join(self, parts: Sequence[StatesT]) -> StatesT:
        """All samples of several batches as one batch."""

    def put(self, states: StatesT, order: torch.Tensor, part: StatesT) -> StatesT:
        """The batch with its samples `order` [K] replaced by those of `part`, which `take` took from it."""

    def choose(self, flags: torch.Tensor, kept: StatesT, changed: StatesT) -> StatesT:
        """A batch's samples from `kept` if `flags` [B] bool (on the device) is True, else from `changed`."""

    def modules(self) -> Sequence[torch.nn.Module]:
        """All modules that it runs. They must be in evaluation mode."""

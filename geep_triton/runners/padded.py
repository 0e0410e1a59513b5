"""Runners of padded batches: the layers of transformers, and the base of other runners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.runners.base import Cost
from geep_triton.runners.parts import Parts
from geep_triton.tokens.ragged import Tokens

MakeMask = Callable[[torch.Tensor, torch.Tensor], Any]  # hidden states, attention mask -> what layers take


@dataclass(frozen=True, eq=False)
class Padding:
    """Where a batch's samples end. It is shared by all layers that the batch runs.

    Attributes:
        lengths: [B] int64 on the host.
        attention_mask: [B, S] int64.
    """

    lengths: torch.Tensor
    attention_mask: torch.Tensor

    @cached_property
    def none(self) -> bool:
        """Whether no sample is padded. The host knows this without asking the device."""
        return int(self.lengths.min()) == self.attention_mask.shape[1]

    def mask(self, hidden: torch.Tensor, make: MakeMask) -> Any:
        """The layers' mask, cached. None if no sample is padded."""
        if "_mask" not in self.__dict__:
            self.__dict__["_mask"] = None if self.none else make(hidden, self.attention_mask)
        return self.__dict__["_mask"]


@dataclass(frozen=True, eq=False)
class PaddedStates:
    """States [B, S, H] of samples, padded to the longest.

    Attributes:
        hidden: [B, S, H].
        padding: where the samples end.
    """

    hidden: torch.Tensor
    padding: Padding

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def lengths(self) -> torch.Tensor:
        """[B] int64 on the host, number of real tokens per sample."""
        return self.padding.lengths

    @property
    def longest(self) -> int:
        """S."""
        return self.hidden.shape[1]

    @property
    def tokens(self) -> int:
        """B S."""
        return len(self) * self.longest

    def total(self, cost: Cost) -> int:
        """Cost of all samples. Each costs as much as the longest."""
        return len(self) * cost(self.longest)


class PaddedRunner:
    """Runs the modules of `parts` on padded batches. On its own it is the runner "torch".

    Args:
        model: a model in evaluation mode.
        parts: the modules to run. None: the model's own.
        dtype: dtype of their weights. None: the model's.
        name: name of the runner.
        make_mask: makes the mask for the layers. None: the mask of the model's attention implementation.
        cudnn_attention: whether torch may choose cuDNN's attention on a GPU. It builds a plan for every batch shape, so this is
            only for texts that always make the same shapes.
    """

    def __init__(
        self,
        model: MultiExitBert,
        parts: Parts | None = None,
        dtype: str | None = None,
        name: str = "torch",
        make_mask: MakeMask | None = None,
        cudnn_attention: bool = False,
    ) -> None:
        self.model = model
        self.cudnn_attention = cudnn_attention
        self.parts = (Parts.of(model) if parts is None else parts).eval()
        self.dtype = str(model.dtype).removeprefix("torch.") if dtype is None else dtype
        self.name = name
        self._make_mask = make_mask or model.layer_mask

    def embed(self, tokens: Tokens, order: torch.Tensor, lengths: torch.Tensor) -> PaddedStates:
        """See `Runner.embed`."""
        pad_id = self.model.config.pad_token_id or 0
        input_ids, attention_mask, type_ids = tokens.padded(order, pad_id, int(lengths.max()))
        hidden = self.parts.embeddings(input_ids=input_ids, token_type_ids=type_ids)
        return PaddedStates(hidden, Padding(lengths, attention_mask))

    def layers(self, first: int, last: int, states: PaddedStates) -> PaddedStates:
        """See `Runner.layers`."""
        if last < first:
            return states
        return replace(states, hidden=self.run_layers(first, last, states.hidden, states.padding))

    def run_layers(self, first: int, last: int, hidden: torch.Tensor, padding: Padding) -> torch.Tensor:
        """Run layers first..last on [B, S, H]."""
        mask = padding.mask(hidden, self._make_mask)
        for number in range(first, last + 1):
            hidden = self.run_layer(number, hidden, mask)
        return hidden

    def run_layer(self, number: int, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
        """Run one layer on [B, S, H], with the mask for its attention."""
        return self.parts.layers[number - 1](hidden, mask)

    def logits(self, layer: int, states: PaddedStates) -> torch.Tensor:
        """See `Runner.logits`."""
        return self.run_head(layer, states.hidden, states.padding.attention_mask)

    def run_head(self, layer: int, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Run the head at `layer`: [B, S, H], [B, S] -> [B, C]."""
        return self.model.at_temperature(layer, self.parts.heads[str(layer)](hidden, attention_mask))

    def gate(self, layer: int, states: PaddedStates) -> SkipGate | None:
        """See `Runner.gate`."""
        if str(layer) not in self.parts.gates:
            return None
        gate = self.parts.gates[str(layer)]
        return gate(states.hidden, states.padding.attention_mask, self.model.config.skip_threshold)

    def take(self, states: PaddedStates, order: torch.Tensor | slice, lengths: torch.Tensor) -> PaddedStates:
        """See `Runner.take`."""
        longest = int(lengths.max()) if len(lengths) else 0
        hidden, mask = states.hidden[:, :longest], states.padding.attention_mask[:, :longest]
        if isinstance(order, slice):
            return PaddedStates(hidden[order], Padding(lengths, mask[order]))
        return PaddedStates(hidden.index_select(0, order), Padding(lengths, mask.index_select(0, order)))

    def join(self, parts: Sequence[PaddedStates]) -> PaddedStates:
        """See `Runner.join`."""
        longest = max(int(part.lengths.max()) for part in parts)
        if len(parts) == 1 and parts[0].longest == longest:
            return parts[0]
        samples, first = sum(map(len, parts)), parts[0]
        hidden = first.hidden.new_zeros(samples, longest, first.hidden.shape[2])
        mask = first.padding.attention_mask.new_zeros(samples, longest)
        begin = 0
        for part in parts:
            end, width = begin + len(part), min(longest, part.longest)
            hidden[begin:end, :width] = part.hidden[:, :width]
            mask[begin:end, :width] = part.padding.attention_mask[:, :width]
            begin = end
        return PaddedStates(hidden, Padding(torch.cat([part.lengths for part in parts]), mask))

    def put(self, states: PaddedStates, order: torch.Tensor, part: PaddedStates) -> PaddedStates:
        """See `Runner.put`."""
        hidden = states.hidden.clone()
        hidden[:, : part.longest].index_copy_(0, order, part.hidden)
        return replace(states, hidden=hidden)

    def choose(self, flags: torch.Tensor, kept: PaddedStates, changed: PaddedStates) -> PaddedStates:
        """See `Runner.choose`."""
        return replace(kept, hidden=torch.where(flags[:, None, None], kept.hidden, changed.hidden))

    def modules(self) -> list[nn.Module]:
        """See `Runner.modules`."""
        return self.parts.modules()

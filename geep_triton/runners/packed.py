"""A runner without padding: the tokens of all samples in one sequence, with attention within each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional as F

from geep_triton.compat import attention_implementation, varlen_attention
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.runners.base import Cost
from geep_triton.runners.lean import lean, replace_layers
from geep_triton.runners.parts import Parts
from geep_triton.tokens.ragged import Tokens, to_device


@dataclass(frozen=True, eq=False)
class Offsets:
    """Where samples begin and end in a sequence of tokens.

    Attributes:
        lengths: [B] int64 on the host.
        device: device of the tokens.
    """

    lengths: torch.Tensor
    device: torch.device

    @cached_property
    def longest(self) -> int:
        """Number of tokens of the longest sample."""
        return int(self.lengths.max())

    @cached_property
    def bounds(self) -> torch.Tensor:
        """[B + 1] int32 on the device; sample i is the tokens bounds[i]..bounds[i + 1]."""
        return to_device(F.pad(self.lengths.cumsum(0), (1, 0)).int(), self.device)


@dataclass(frozen=True, eq=False)
class PackedStates:
    """States [T, H] of samples in sequence.

    Attributes:
        hidden: [T, H].
        offsets: where the samples begin.
    """

    hidden: torch.Tensor
    offsets: Offsets

    def __len__(self) -> int:
        return self.lengths.numel()

    @property
    def lengths(self) -> torch.Tensor:
        """[B] int64 on the host, number of tokens per sample."""
        return self.offsets.lengths

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sample."""
        return self.offsets.longest

    @property
    def tokens(self) -> int:
        """T."""
        return self.hidden.shape[0]

    def total(self, cost: Cost) -> int:
        """Cost of all samples, each by its own tokens."""
        return int(cost(self.lengths).sum())


class PackedRunner:
    """Runs lean layers on samples without padding, for a GPU in half precision.

    Heads and gates get padded samples. A head that reads only the first token gets only that.

    Args:
        model: a model in evaluation mode with SDPA attention. On other devices than a GPU, samples attend one by one, which is
            for tests.
        parts: the runner's own modules. Their layers are replaced.
        dtype: dtype of their weights.

    Raises:
        ValueError: the model uses another attention than SDPA.
    """

    name = "packed"
    cudnn_attention = False

    def __init__(self, model: MultiExitBert, parts: Parts, dtype: str) -> None:
        if (attention := attention_implementation(model.config)) != "sdpa":
            raise ValueError(f"runner 'packed' needs attn_implementation 'sdpa', got {attention!r}")
        replace_layers(parts.layers, lambda layer: lean(layer, attend=attend))
        self.model, self.parts, self.dtype = model, parts.eval(), dtype

    def embed(self, tokens: Tokens, order: torch.Tensor, lengths: torch.Tensor) -> PackedStates:
        """See `Runner.embed`."""
        offsets = Offsets(lengths, order.device)
        positions = _positions(tokens.offsets[order], offsets)
        type_ids = None if tokens.type_ids is None else tokens.type_ids[positions][None]
        places = _positions(torch.zeros_like(order), offsets)
        hidden = self.parts.embeddings(tokens.ids[positions][None], type_ids, places[None])[0]
        return PackedStates(hidden, offsets)

    def layers(self, first: int, last: int, states: PackedStates) -> PackedStates:
        """See `Runner.layers`."""
        hidden = states.hidden
        for number in range(first, last + 1):
            hidden = self.parts.layers[number - 1](hidden, states.offsets)
        return replace(states, hidden=hidden)

    def logits(self, layer: int, states: PackedStates) -> torch.Tensor:
        """See `Runner.logits`."""
        head = self.parts.heads[str(layer)]
        return self.model.at_temperature(layer, head(*self._padded(states, bool(head.first_token_only))))

    def gate(self, layer: int, states: PackedStates) -> SkipGate | None:
        """See `Runner.gate`."""
        if str(layer) not in self.parts.gates:
            return None
        return self.parts.gates[str(layer)](*self._padded(states, False), self.model.config.skip_threshold)

    def _padded(self, states: PackedStates, first_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """States [B, S, H] and their attention mask [B, S]. S is 1 if only the first token is needed."""
        starts = states.offsets.bounds[:-1].long()
        columns = torch.arange(1 if first_only else states.longest, device=starts.device)
        real = columns < states.offsets.bounds.diff()[:, None]
        places = torch.where(real, starts[:, None] + columns, 0)
        return states.hidden[places], real.long()

    def take(self, states: PackedStates, order: torch.Tensor | slice, lengths: torch.Tensor) -> PackedStates:
        """See `Runner.take`."""
        offsets = Offsets(lengths, states.hidden.device)
        return PackedStates(states.hidden[_positions(states.offsets.bounds[:-1].long()[order], offsets)], offsets)

    def join(self, parts: Sequence[PackedStates]) -> PackedStates:
        """See `Runner.join`."""
        if len(parts) == 1:
            return parts[0]
        lengths = torch.cat([part.lengths for part in parts])
        return PackedStates(torch.cat([part.hidden for part in parts]), Offsets(lengths, parts[0].hidden.device))

    def put(self, states: PackedStates, order: torch.Tensor, part: PackedStates) -> PackedStates:
        """See `Runner.put`."""
        places = _positions(states.offsets.bounds[:-1].long()[order], part.offsets)
        return replace(states, hidden=states.hidden.index_copy(0, places, part.hidden))

    def choose(self, flags: torch.Tensor, kept: PackedStates, changed: PackedStates) -> PackedStates:
        """See `Runner.choose`."""
        repeats = kept.offsets.bounds.diff().long()
        of_tokens = flags.repeat_interleave(repeats, output_size=kept.tokens)[:, None]
        return replace(kept, hidden=torch.where(of_tokens, kept.hidden, changed.hidden))

    def modules(self) -> list[nn.Module]:
        """See `Runner.modules`."""
        return self.parts.modules()


def _positions(starts: torch.Tensor, offsets: Offsets) -> torch.Tensor:
    """[T] int64 on the device: the positions of all tokens of the samples, which begin at `starts` [B]."""
    bounds = offsets.bounds.long()
    total = int(offsets.lengths.sum())
    shift = (starts - bounds[:-1]).repeat_interleave(bounds.diff(), output_size=total)
    return shift + torch.arange(total, device=starts.device)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: Offsets, scale: float) -> torch.Tensor:
    """Attention within each sample: [T, heads, D] three times -> [T, heads, D]."""
    if query.is_cuda:
        return varlen_attention(query, key, value, offsets.bounds, offsets.longest)
    queries, keys, values = (states.split(offsets.lengths.tolist()) for states in (query, key, value))
    return torch.cat([_alone(q, k, v, scale) for q, k, v in zip(queries, keys, values, strict=True)])


def _alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """One sample's query, key and value, [T, heads, D] each -> [T, heads, D]."""
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(0, 1)

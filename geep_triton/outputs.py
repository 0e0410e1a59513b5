"""The dataclasses that travel between rooms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from transformers.utils import ModelOutput


@dataclass
class MultiExitBertOutput(ModelOutput):
    """What `MultiExitBert.forward` returns; absent fields are None.

    Attributes:
        loss: scalar; see `MultiExitBert.forward`.
        logits: [B, C], of the exit that answers (the last one, or `exit_layer`).
        exit_logits: one [B, C] per exit, shallow to deep, ending with the last exit.
        shared_logits: one [B, C] per early exit k below layer L-1: the last head on the last layer on h_k (GEEP's
            sub-networks; k = L-1 is `logits` itself).
        hidden_states: h_0 (embeddings) .. h_k, each [B, S, H].
        gates: one [B] float32 per gated layer up to the depth: the soft gate, the share of the layer that is skipped.
        skips: one [B] bool per gated layer up to the depth: whether the sample skips it.
        layer_outputs: T_1(h_0) .. T_k(h_{k-1}), each [B, S, H]: what each layer gives before a gate mixes it with its input.
        auxiliary: in training, what the recipe's own modules make of the rest, by name.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    exit_logits: tuple[torch.Tensor, ...] | None = None
    shared_logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    gates: tuple[torch.Tensor, ...] | None = None
    skips: tuple[torch.Tensor, ...] | None = None
    layer_outputs: tuple[torch.Tensor, ...] | None = None
    auxiliary: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of N samples without padding.

    Attributes:
        ids: [T] int64, all samples' ids one after another, special tokens included.
        offsets: [N + 1] int64; sample i is ids[offsets[i]:offsets[i + 1]].
        type_ids: [T] int64 segment ids, or None where all are 0.
        cut: [N] bool on the host, the samples that had more tokens and were cut; None where none was.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    type_ids: torch.Tensor | None = None
    cut: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def lengths(self) -> torch.Tensor:
        """[N] int64, tokens per sample."""
        return self.offsets.diff()

    @property
    def truncated(self) -> int:
        """How many samples were cut."""
        return 0 if self.cut is None else int(self.cut.sum())

    @classmethod
    def from_lists(cls, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None = None) -> Tokens:
        """From one list of ids (and one of segment ids) per sample."""
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
        offsets = torch.zeros(len(ids) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        return cls(_flatten(ids), offsets, None if type_ids is None else _flatten(type_ids))

    @classmethod
    def concatenate(cls, parts: Sequence[Tokens]) -> Tokens:
        """All samples of `parts`, in order; segment ids where any part has them."""
        type_ids, cut = None, None
        if any(part.type_ids is not None for part in parts):
            type_ids = torch.cat([torch.zeros_like(p.ids) if p.type_ids is None else p.type_ids for p in parts])
        if any(part.cut is not None for part in parts):
            cut = torch.cat([torch.zeros(len(p), dtype=torch.bool) if p.cut is None else p.cut for p in parts])
        lengths = torch.cat([part.lengths for part in parts])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return cls(torch.cat([part.ids for part in parts]), offsets, type_ids, cut)

    def hashes(self) -> torch.Tensor:
        """[N] int64, a hash of each sample's ids: the same in every process."""
        ids, bounds = memoryview(self.ids.cpu().numpy().tobytes()), (8 * self.offsets).tolist()
        found = [blake2b(ids[start:end], digest_size=8).digest() for start, end in pairwise(bounds)]
        return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.int64) if found else torch.empty(0, dtype=torch.int64)

    def select(self, rows: torch.Tensor) -> Tokens:
        """The samples `rows` [K] int64, in that order."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], lengths)
        positions = torch.repeat_interleave(self.offsets[rows], lengths) + within
        type_ids = None if self.type_ids is None else self.type_ids[positions]
        return Tokens(self.ids[positions], offsets, type_ids, None if self.cut is None else self.cut[rows])

    def to(self, device: torch.device) -> Tokens:
        """The same samples on a device; see `to_device`."""
        type_ids = None if self.type_ids is None else to_device(self.type_ids, device)
        return Tokens(to_device(self.ids, device), to_device(self.offsets, device), type_ids, self.cut)

    def padded(
        self, rows: torch.Tensor, pad_id: int, longest: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The samples `rows` as a padded batch: input_ids, attention_mask, token_type_ids, each [B, S].

        Args:
            rows: [B] int64, where the tokens are.
            pad_id: token that pads.
            longest: S, the most tokens that one of them has; None: the tensors are asked, for which the host waits.
        """
        starts, lengths = self.offsets[rows], self.lengths[rows]
        columns = torch.arange(int(lengths.max()) if longest is None else longest, device=rows.device)
        real = columns < lengths[:, None]
        positions = torch.where(real, starts[:, None] + columns, 0)
        input_ids = torch.where(real, self.ids[positions], pad_id)
        type_ids = None if self.type_ids is None else torch.where(real, self.type_ids[positions], 0)
        return input_ids, real.long(), type_ids


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`; the host does not wait for a copy to a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _flatten(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64))


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which samples run together, and how deep.

    Attributes:
        order: [N] int64, sample indices in running order: exits descending, lengths descending within an exit.
        bounds: batch b holds order[bounds[b]:bounds[b + 1]].
        exits: the exit layer of each batch.
        tokens: what the batches hold, padding included.
        padding: share of them that is padding, 0..1.
    """

    order: torch.Tensor
    bounds: tuple[int, ...]
    exits: tuple[int, ...]
    tokens: int
    padding: float

    def batches(self) -> Iterator[tuple[torch.Tensor, int]]:
        """(rows, exit layer) per batch."""
        for begin, end, layer in zip(self.bounds[:-1], self.bounds[1:], self.exits, strict=True):
            yield self.order[begin:end], layer


@dataclass(frozen=True, eq=False)
class EveryExit:
    """What `Engine.every_exit` records.

    Attributes:
        tokens: N samples.
        logits: [N, E, C] float32, every exit's answers; the head at a layer that a sample skips reads what it would pass on.
        skipped: [N, L] bool, the layers each sample skips: it is not scored at their exits. None where none can be.
    """

    tokens: Tokens
    logits: torch.Tensor
    skipped: torch.Tensor | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[EveryExit]) -> EveryExit:
        """The records of several windows as one."""
        skipped = None if parts[0].skipped is None else torch.cat([part.skipped for part in parts])
        return cls(Tokens.concatenate([part.tokens for part in parts]), torch.cat([part.logits for part in parts]), skipped)


@dataclass
class Flops:
    """Floating-point operations, by what they were for; see `geep_triton.modeling.flops`.

    Attributes:
        layers, heads, gates: padding included.
    """

    layers: int = 0
    heads: int = 0
    gates: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.heads + self.gates

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.layers + other.layers, self.heads + other.heads, self.gates + other.gates)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Results of `Engine.predict`, in the order of the inputs.

    Attributes:
        logits: [N, C] float32.
        exit_layers: [N] int64, the layer after which each sample was answered.
        layers_run: [N] int64, how many layers each sample ran: up to its exit less those it skipped, and one more where the
            teacher's head answered.
        id2label: names of the classes.
        num_layers: L of the model that answered.
        timings: seconds per stage: "tokenize", "plan" (predict exits and schedule), "run" (layers and heads), "gather".
        truncated: how many texts were cut to the model's maximum length.
        tokens: how many tokens the batches held, padding included.
        padding: share of them that was padding.
        flops: what layers, heads and gates that really ran took, padding included; without an audit's.
        skipped: [N, L] bool, the layers below its exit and at it that each sample skipped; None where none can be.
    """

    logits: torch.Tensor
    exit_layers: torch.Tensor
    layers_run: torch.Tensor
    id2label: dict[int, str]
    num_layers: int
    timings: dict[str, float] = field(default_factory=dict)
    truncated: int = 0
    tokens: int = 0
    padding: float = 0.0
    flops: Flops = field(default_factory=Flops)
    skipped: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.logits.shape[0]

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """The predictions of several windows as one."""
        tokens = [part.tokens for part in parts]
        return cls(
            logits=torch.cat([part.logits for part in parts]),
            exit_layers=torch.cat([part.exit_layers for part in parts]),
            layers_run=torch.cat([part.layers_run for part in parts]),
            id2label=parts[0].id2label,
            num_layers=parts[0].num_layers,
            timings={stage: sum(part.timings[stage] for part in parts) for stage in parts[0].timings},
            truncated=sum(part.truncated for part in parts),
            tokens=sum(tokens),
            padding=sum(part.padding * count for part, count in zip(parts, tokens, strict=True)) / sum(tokens),
            flops=sum((part.flops for part in parts), Flops()),
            skipped=None if parts[0].skipped is None else torch.cat([part.skipped for part in parts]),
        )

    @property
    def is_regression(self) -> bool:
        """Whether the logits are one number a sample instead of classes."""
        return self.logits.shape[1] == 1

    @property
    def label_ids(self) -> torch.Tensor:
        """[N] int64, the class with the highest logit. Raises ValueError for regression."""
        if self.is_regression:
            raise ValueError("label_ids: a regression model (num_labels=1) has no classes; read logits[:, 0]")
        return self.logits.argmax(-1)

    @property
    def labels(self) -> list[str]:
        """Class names. Raises ValueError for regression."""
        return [self.id2label[i] for i in self.label_ids.tolist()]

    @property
    def probabilities(self) -> torch.Tensor:
        """[N, C] float32, softmax of the logits. Raises ValueError for regression."""
        if self.is_regression:
            raise ValueError("probabilities: a regression model (num_labels=1) has no classes; read logits[:, 0]")
        return self.logits.softmax(-1)

    @property
    def mean_exit_layer(self) -> float:
        """Mean of `exit_layers`."""
        return float(self.exit_layers.double().mean())

    @property
    def mean_layers(self) -> float:
        """Mean of `layers_run`, the layers that samples needed. Where few skip a layer it may run on all: see `flops`."""
        return float(self.layers_run.double().mean())

    @property
    def histogram(self) -> dict[int, int]:
        """Exit layer -> number of samples, for layers 1..num_layers."""
        counts = torch.bincount(self.exit_layers, minlength=self.num_layers + 1)[1:]
        return dict(enumerate(counts.tolist(), start=1))

    @property
    def skip_histogram(self) -> dict[int, int]:
        """Layer -> number of samples that skipped it, for layers 1..num_layers."""
        counts = [0] * self.num_layers if self.skipped is None else self.skipped.sum(0).tolist()
        return dict(enumerate(counts, start=1))

    @property
    def samples_per_second(self) -> float:
        """Samples over the sum of all stages' seconds, which overlap under `Engine(prefetch=True)`: it then reaches more."""
        return len(self) / sum(self.timings.values())

"""CUDA graphs of layers and heads for small batches, whose kernels take longer to launch than to run."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

from geep_triton.modeling.model import MultiExitBert

SAMPLES = tuple(1 << power for power in range(13))
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MOST_TOKENS = 8192  # of a batch that is replayed; beyond, launches hide behind the work
WARM_UP = 2  # runs before a recording, in which libraries take their workspaces

Work = Callable[[], None]
Record = Callable[[Work], Work]  # work on fixed buffers -> what repeats it


def graph_layers(model: MultiExitBert, record: Record | None = None, most_tokens: int = MOST_TOKENS) -> MultiExitBert:
    """A copy of `model` that shares all it holds, whose layers and heads are recorded once for each shape, and replayed.

    A batch of at most `most_tokens` is padded to a shape of a grid and put into that shape's buffers; larger ones, and those
    whose mask is not [B, 1, 1, S], run as before. Each graph is recorded when its shape first comes. Every shape keeps one
    batch of hidden states, and all graphs share the memory of what they compute in between.

    Args:
        model: in evaluation mode, its weights where they will stay.
        record: how work is recorded; None: as a CUDA graph.
        most_tokens: of a batch that is replayed, as padded to the grid.

    Raises:
        ValueError: a model that is not on a CUDA device, where `record` is None.
    """
    if record is None:
        if model.device.type != "cuda":
            raise ValueError(f"graphs=True needs a model on a CUDA device, got one on {model.device}")
        record = cuda_graphs()
    graphs = _Graphs(model, record, most_tokens)
    other = copy.copy(model)
    other.run_layers, other.exit_logits = graphs.run_layers, graphs.exit_logits
    other.run_layer = lambda layer, hidden_states, layer_mask: graphs.run_layers(layer, layer, hidden_states, layer_mask)
    return other


def cuda_graphs() -> Record:
    """Records CUDA graphs that share one memory pool: they run one after another, and none reads what another left there."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Work) -> Work:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        return graph.replay

    return record


def grid_shape(samples: int, length: int, most_tokens: int = MOST_TOKENS) -> tuple[int, int] | None:
    """The smallest shape of the grid that holds a batch [samples, length]; None where none of `most_tokens` does."""
    if samples > SAMPLES[-1] or length > LENGTHS[-1]:
        return None
    shape = SAMPLES[bisect_left(SAMPLES, samples)], LENGTHS[bisect_left(LENGTHS, length)]
    return shape if shape[0] * shape[1] <= most_tokens else None


class _Buffers:
    """What the graphs of one shape read and write: `hidden` [B, S, H] in place, `mask` [B, S] int64, `logits` by exit."""

    def __init__(self, model: MultiExitBert, shape: tuple[int, int]) -> None:
        self.hidden = torch.zeros(*shape, model.config.hidden_size, device=model.device, dtype=model.dtype)
        self.mask = torch.ones(shape, device=model.device, dtype=torch.int64)
        self.logits: dict[int, torch.Tensor] = {}

    def load(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> None:
        """A batch [b, s, H] and its mask [b, s] (None: nothing masked). What it does not fill is cleared: no NaN may linger."""
        samples, length = hidden.shape[:2]
        self.hidden.zero_()
        self.hidden[:samples, :length] = hidden
        self.mask.zero_()
        self.mask[:, 0] = 1  # a sample that is all padding would attend to nothing
        self.mask[:samples, :length] = 1 if mask is None else mask


class _Graphs:
    """Replays what it recorded of a model; see `graph_layers`."""

    def __init__(self, model: MultiExitBert, record: Record, most_tokens: int) -> None:
        self._model, self._record, self._most_tokens = model, record, most_tokens
        self._buffers: dict[tuple[int, int], _Buffers] = {}
        self._recorded: dict[tuple[Any, ...], Work] = {}

    def run_layers(self, first: int, last: int, hidden_states: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        """As `MultiExitBert.run_layers`."""
        samples, length = hidden_states.shape[:2]
        shape = grid_shape(samples, length, self._most_tokens)
        plain = layer_mask is None or (isinstance(layer_mask, torch.Tensor) and layer_mask.shape == (samples, 1, 1, length))
        if shape is None or not plain or last < first:
            return self._model.run_layers(first, last, hidden_states, layer_mask)
        buffers, whole = self._buffers_of(shape), layer_mask is None and shape[1] == length
        steps = [self._layer(number, shape, buffers, whole) for number in range(first, last + 1)]
        buffers.load(hidden_states, None if layer_mask is None else layer_mask[:, 0, 0])
        for step in steps:
            step()
        return buffers.hidden[:samples, :length].clone()

    def exit_logits(self, layer: int, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """As `MultiExitBert.exit_logits`."""
        samples, length = hidden_states.shape[:2]
        shape = grid_shape(samples, length, self._most_tokens)
        if shape is None:
            return self._model.exit_logits(layer, hidden_states, attention_mask)
        buffers = self._buffers_of(shape)
        step = self._head(layer, shape, buffers)
        buffers.load(hidden_states, attention_mask)
        step()
        return buffers.logits[layer][:samples].clone()

    def _buffers_of(self, shape: tuple[int, int]) -> _Buffers:
        if shape not in self._buffers:
            self._buffers[shape] = _Buffers(self._model, shape)
        return self._buffers[shape]

    def _layer(self, number: int, shape: tuple[int, int], buffers: _Buffers, whole: bool) -> Work:
        """One layer on the buffers; `whole` where no sample is padded, which attention does faster without a mask."""

        def work() -> None:
            mask = None if whole else self._model.layer_mask(buffers.hidden, buffers.mask)
            buffers.hidden.copy_(self._model.run_layer(number, buffers.hidden, mask))

        return self._once(("layer", number, shape, whole), work)

    def _head(self, number: int, shape: tuple[int, int], buffers: _Buffers) -> Work:
        """The head at a layer on the buffers."""
        if number not in buffers.logits:
            buffers.logits[number] = buffers.hidden.new_zeros(shape[0], self._model.config.num_labels)

        def work() -> None:
            buffers.logits[number].copy_(self._model.exit_logits(number, buffers.hidden, buffers.mask))

        return self._once(("head", number, shape), work)

    def _once(self, key: tuple[Any, ...], work: Work) -> Work:
        if key not in self._recorded:
            self._recorded[key] = self._record(work)
        return self._recorded[key]

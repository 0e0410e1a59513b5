"""CUDA graphs of layers and heads for small batches, whose kernels take longer to launch than to run."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable
from threading import RLock
from typing import Any

import torch

from geep_triton.modeling.model import MultiExitBert

SAMPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MOST_TOKENS = 8192  # of a batch that is replayed; beyond, launches hide behind the work
FEW_TOKENS, MOST_PADDING = 512, 1.5  # above so many tokens a batch may grow by this factor only
WARM_UP = 2  # runs before a recording, in which libraries take their workspaces

Work = Callable[[], None]
Record = Callable[[Work], Work]  # work on fixed buffers -> what repeats it


def graph_layers(model: MultiExitBert, record: Record | None = None, most_tokens: int = MOST_TOKENS) -> MultiExitBert:
    """A copy of `model` that shares all it holds, whose layers and heads are recorded once for each shape, and replayed.

    A batch is padded to a shape of a grid (see `grid_shape`) and put into fixed buffers; those that fit none run as before.
    What a shape needs is recorded when it first comes, which takes far longer than running it. FLOPs and padding that the
    engine reports are those of the batches it makes, without what the grid adds.

    Calls may come from several threads, but must use one stream: on another they raise ValueError. They must run within
    `torch.inference_mode`.

    Args:
        model: in evaluation mode, its weights where they will stay.
        record: how work is recorded; None: as a CUDA graph.
        most_tokens: of a batch that is replayed, as padded to the grid.

    Raises:
        ValueError: a model that is not on a CUDA device, where `record` is None, or one with another attention than SDPA.
    """
    if model.config._attn_implementation != "sdpa":
        raise ValueError(f"graphs=True needs attn_implementation 'sdpa', got {model.config._attn_implementation!r}")
    if record is None:
        if model.device.type != "cuda":
            raise ValueError(f"graphs=True needs a model on a CUDA device, got one on {model.device}")
        record = cuda_graphs(model.device)
    graphs = _Graphs(model, record, most_tokens)
    other = copy.copy(model)
    other.run_layers, other.exit_logits = graphs.run_layers, graphs.exit_logits
    other.run_layer = lambda layer, hidden_states, layer_mask: graphs.run_layers(layer, layer, hidden_states, layer_mask)
    return other


def cuda_graphs(device: torch.device) -> Record:
    """Records CUDA graphs that share one memory pool: they run one after another, and none reads what another left there."""
    with torch.cuda.device(device):
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads may go on using the device meanwhile. A capture that fails leaves its own stream behind as the
            # current one; the outer context takes that back.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                work()
        return graph.replay

    return record


def grid_shape(samples: int, length: int, most_tokens: int = MOST_TOKENS) -> tuple[int, int] | None:
    """The smallest shape of the grid that holds a batch [samples, length].

    None where that has more than `most_tokens`, or so many more than the batch that running it as it is will be faster.
    """
    if samples > SAMPLES[-1] or length > LENGTHS[-1]:
        return None
    shape = SAMPLES[bisect_left(SAMPLES, samples)], LENGTHS[bisect_left(LENGTHS, length)]
    tokens = shape[0] * shape[1]
    return shape if tokens <= min(most_tokens, max(FEW_TOKENS, MOST_PADDING * samples * length)) else None


def _current_stream(device: torch.device) -> torch.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


class _Buffers:
    """What the graphs of one shape read and write: `hidden` [B, S, H] in place, `mask` [B, S] int64, `logits` [B, C]."""

    def __init__(self, hidden: torch.Tensor, mask: torch.Tensor, logits: torch.Tensor) -> None:
        self.hidden, self.mask, self.logits = hidden, mask, logits

    def load(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> None:
        """A batch [b, s, H] and which of its tokens are real [b, s] (None: all). The rest is cleared: no NaN may linger."""
        samples, length = hidden.shape[:2]
        self.hidden.zero_()
        self.hidden[:samples, :length] = hidden
        self.mask.zero_()
        self.mask[:, 0] = 1  # a sample that is all padding would attend to nothing
        self.mask[:samples, :length] = 1 if mask is None else mask


class _Graphs:
    """Replays what it recorded of a model; see `graph_layers`. All shapes lie in the same memory, of the largest one."""

    def __init__(self, model: MultiExitBert, record: Record, most_tokens: int) -> None:
        self._model, self._record, self._most_tokens = model, record, most_tokens
        self._own_stream = None
        self._lock = RLock()  # between filling the buffers and reading them nobody else may
        self._recorded: dict[tuple[Any, ...], Work] = {}
        width, like = model.config.hidden_size, {"device": model.device, "dtype": model.dtype}
        with torch.inference_mode():  # as the engine's states are: a compiled layer would compile again for others
            self._hidden = torch.zeros(most_tokens * width, **like)
            self._mask = torch.ones(most_tokens, device=model.device, dtype=torch.int64)
            self._logits = torch.zeros(SAMPLES[-1], model.config.num_labels, **like)

    def run_layers(self, first: int, last: int, hidden_states: torch.Tensor, layer_mask: torch.Tensor | None) -> torch.Tensor:
        """As `MultiExitBert.run_layers`."""
        samples, length = hidden_states.shape[:2]
        shape = grid_shape(samples, length, self._most_tokens)
        if shape is None or last < first:
            return self._model.run_layers(first, last, hidden_states, layer_mask)
        buffers, whole = self._buffers(shape), layer_mask is None and shape[1] == length
        with self._lock:
            self._check_stream()
            steps = [self._layer(number, shape, buffers, whole) for number in range(first, last + 1)]
            buffers.load(hidden_states, None if layer_mask is None else layer_mask[:, 0, 0] == 0)
            for step in steps:
                step()
            return buffers.hidden[:samples, :length].clone()

    def exit_logits(self, layer: int, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """As `MultiExitBert.exit_logits`."""
        samples, length = hidden_states.shape[:2]
        shape = grid_shape(samples, length, self._most_tokens)
        if shape is None:
            return self._model.exit_logits(layer, hidden_states, attention_mask)
        buffers = self._buffers(shape)
        with self._lock:
            self._check_stream()
            step = self._head(layer, shape, buffers)
            buffers.load(hidden_states, attention_mask)
            step()
            return buffers.logits[:samples].clone()

    def _check_stream(self) -> None:
        """The first call fixes the stream: on another one, work would run on the buffers beside that of the first."""
        stream = _current_stream(self._model.device)
        if self._own_stream is None:
            self._own_stream = stream
        if stream != self._own_stream:
            raise ValueError(f"graphs=True runs on one stream, {self._own_stream}, got a call on {stream}: give each an engine")

    def _buffers(self, shape: tuple[int, int]) -> _Buffers:
        tokens, width = shape[0] * shape[1], self._model.config.hidden_size
        hidden = self._hidden[: tokens * width].view(*shape, width)
        return _Buffers(hidden, self._mask[:tokens].view(shape), self._logits[: shape[0]])

    def _layer(self, number: int, shape: tuple[int, int], buffers: _Buffers, whole: bool) -> Work:
        """One layer on the buffers; `whole` where no sample is padded, which attention does faster without a mask."""

        def work() -> None:
            mask = None if whole else self._model.layer_mask(buffers.hidden, buffers.mask)
            buffers.hidden.copy_(self._model.run_layer(number, buffers.hidden, mask))

        return self._once(("layer", number, shape, whole), work)

    def _head(self, number: int, shape: tuple[int, int], buffers: _Buffers) -> Work:
        """The head at a layer on the buffers, at the temperature that it has now."""

        def work() -> None:
            buffers.logits.copy_(self._model.exit_logits(number, buffers.hidden, buffers.mask))

        temperatures = self._model.config.exit_temperatures
        return self._once(("head", number, shape, temperatures and tuple(temperatures)), work)

    def _once(self, key: tuple[Any, ...], work: Work) -> Work:
        if key not in self._recorded:
            self._recorded[key] = self._record(work)
        return self._recorded[key]

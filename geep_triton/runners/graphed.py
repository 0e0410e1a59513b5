"""A runner that replays CUDA graphs of layers and heads for small batches, whose kernels take longer to launch than to run."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from threading import RLock
from typing import Any

import torch

from geep_triton.compat import attention_implementation
from geep_triton.modeling.model import MultiExitBert, additive_mask
from geep_triton.runners.lean import lean, replace_layers
from geep_triton.runners.padded import PaddedRunner, Padding
from geep_triton.runners.parts import Parts

SAMPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MOST_TOKENS = 8192  # of a batch that is replayed; beyond, launches hide behind the work
FEW_TOKENS, MOST_PADDING = 512, 1.5  # above so many tokens a batch may grow by this factor only
WARM_UP = 2  # runs before a recording, in which libraries take their workspaces

Work = Callable[[], None]
Record = Callable[[Work], Work]  # work on fixed buffers -> what repeats it


class GraphsRunner(PaddedRunner):
    """Records layers and heads once for each shape, and replays them.

    A batch is padded to a shape of a grid (see `grid_shape`) and copied into fixed buffers. A batch that fits no shape runs
    normally. A shape is recorded when it first occurs, which takes far longer than running it. The FLOPs and padding that the
    engine reports are those of its own batches, without the padding to the grid. All shapes share one memory block, which has
    the size of the largest.

    Several threads may call it, but all on one stream. A call on another stream raises ValueError. Calls must run within
    `torch.inference_mode`.

    Args:
        model: a model in evaluation mode, whose weights are on their final device.
        parts: the runner's own modules. Their layers are made lean.
        dtype: dtype of their weights.
        record: records work for replay. None: as a CUDA graph.
        most_tokens: maximum number of tokens of a replayed batch, after padding to the grid.

    Raises:
        ValueError: the model uses another attention than SDPA.
    """

    def __init__(
        self,
        model: MultiExitBert,
        parts: Parts,
        dtype: str | None = None,
        record: Record | None = None,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        if (attention := attention_implementation(model.config)) != "sdpa":
            raise ValueError(f"runner 'graphs' needs attn_implementation 'sdpa', got {attention!r}")
        replace_layers(parts.layers, lean)
        super().__init__(model, parts, dtype, "graphs", additive_mask)
        self._record, self._most_tokens = cuda_graphs(model.device) if record is None else record, most_tokens
        self._own_stream: torch.Stream | None = None
        self._lock = RLock()  # between filling the buffers and reading them nobody else may
        self._recorded: dict[tuple[Any, ...], Work] = {}
        like = next(parts.embeddings.parameters())
        with torch.inference_mode():  # as the engine's states are
            self._hidden = like.new_zeros(most_tokens * model.config.hidden_size)
            self._mask = torch.ones(most_tokens, device=like.device, dtype=torch.int64)
            self._logits = like.new_zeros(SAMPLES[-1], model.config.num_labels)

    def run_layers(self, first: int, last: int, hidden: torch.Tensor, padding: Padding) -> torch.Tensor:
        """Run layers first..last on [B, S, H]."""
        samples, length = hidden.shape[:2]
        shape = grid_shape(samples, length, self._most_tokens)
        if shape is None:
            return super().run_layers(first, last, hidden, padding)
        buffers, whole = self._buffers(shape), padding.none and shape[1] == length
        with self._lock:
            self._check_stream()
            steps = [self._layer(number, shape, buffers, whole) for number in range(first, last + 1)]
            buffers.load(hidden, None if padding.none else padding.attention_mask)
            for step in steps:
                step()
            return buffers.hidden[:samples, :length].clone()

    def run_head(self, layer: int, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Run the head at `layer`: [B, S, H], [B, S] -> [B, C]."""
        samples, length = hidden.shape[:2]
        shape = grid_shape(samples, length, self._most_tokens)
        if shape is None:
            return super().run_head(layer, hidden, attention_mask)
        buffers = self._buffers(shape)
        with self._lock:
            self._check_stream()
            step = self._head(layer, shape, buffers)
            buffers.load(hidden, attention_mask)
            step()
            return buffers.logits[:samples].clone()

    def _check_stream(self) -> None:
        """The first call fixes the stream. On another stream, work on the shared buffers would run concurrently."""
        stream = _current_stream(self.model.device)
        if self._own_stream is None:
            self._own_stream = stream
        if stream != self._own_stream:
            raise ValueError(
                f"runner 'graphs' runs on one stream, {self._own_stream}, got a call on {stream}: give each an engine"
            )

    def _buffers(self, shape: tuple[int, int]) -> _Buffers:
        tokens, width = shape[0] * shape[1], self.model.config.hidden_size
        hidden = self._hidden[: tokens * width].view(*shape, width)
        return _Buffers(hidden, self._mask[:tokens].view(shape), self._logits[: shape[0]])

    def _layer(self, number: int, shape: tuple[int, int], buffers: _Buffers, whole: bool) -> Work:
        """One layer on the buffers. `whole` means that no sample is padded, so that attention is faster without a mask."""

        def work() -> None:
            mask = None if whole else self._make_mask(buffers.hidden, buffers.mask)
            buffers.hidden.copy_(self.run_layer(number, buffers.hidden, mask))

        return self._once(("layer", number, shape, whole), work)

    def _head(self, number: int, shape: tuple[int, int], buffers: _Buffers) -> Work:
        """The head at a layer on the buffers, with its present temperature."""

        def work() -> None:
            buffers.logits.copy_(PaddedRunner.run_head(self, number, buffers.hidden, buffers.mask))

        return self._once(("head", number, shape, self.model.exit_config.temperatures), work)

    def _once(self, key: tuple[Any, ...], work: Work) -> Work:
        if key not in self._recorded:
            self._recorded[key] = self._record(work)
        return self._recorded[key]


def cuda_graphs(device: torch.device) -> Record:
    """Records CUDA graphs that share one memory pool. They run one after another, and none reads the results of
    another in it.
    """
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
    """The smallest shape of the grid that fits a batch [samples, length].

    None if it has more than `most_tokens`, or so much more than the batch that running the batch without padding is faster.
    """
    if samples > SAMPLES[-1] or length > LENGTHS[-1]:
        return None
    shape = SAMPLES[bisect_left(SAMPLES, samples)], LENGTHS[bisect_left(LENGTHS, length)]
    tokens = shape[0] * shape[1]
    return shape if tokens <= min(most_tokens, max(FEW_TOKENS, MOST_PADDING * samples * length)) else None


def _current_stream(device: torch.device) -> torch.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


class _Buffers:
    """The buffers of the graphs of one shape: `hidden` [B, S, H] (changed in place), `mask` [B, S] int64, `logits` [B, C]."""

    def __init__(self, hidden: torch.Tensor, mask: torch.Tensor, logits: torch.Tensor) -> None:
        self.hidden, self.mask, self.logits = hidden, mask, logits

    def load(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Load a batch [b, s, H] and its mask [b, s] (None: all tokens are real). The rest is set to 0, so that no
        NaN remains.
        """
        samples, length = hidden.shape[:2]
        self.hidden.zero_()
        self.hidden[:samples, :length] = hidden
        self.mask.zero_()
        self.mask[:, 0] = 1  # a sample that is all padding would attend to nothing
        self.mask[:samples, :length] = 1 if mask is None else mask

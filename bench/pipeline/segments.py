"""Layers by another engine under our exits: each run of layers between two exits is a model of OpenVINO or ONNX Runtime."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.pipeline.rivals_dense import Inputs
from bench.pipeline.rivals_given import Missing, need
from bench.pipeline.rivals_onnx import OnnxBert, exported
from bench.pipeline.rivals_openvino import OpenVinoBert, quantized_on, traced
from geep_triton import MultiExitBert
from geep_triton.runners.padded import PaddedRunner, Padding

ENGINES = ("openvino", "onnxruntime")
KEPT = 32  # segments of one runner
GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # samples of a batch
STEP = 8  # tokens of a sample
SegmentCall = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # states [B, S, H] float32, mask [B, S] -> states


class Segment(nn.Module):
    """Some layers of a model, as an exporter takes them: states [B, S, H], mask [B, S] -> states."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden, attention_mask[:, None, None, :].bool())
        return hidden


@dataclass(frozen=True)
class Build:
    """How segments are made.

    Attributes:
        engine: "openvino" or "onnxruntime".
        dtype: "float32", "bfloat16" or "int8".
        threads: of a segment.
        folder: for files.
        calibration: batches of texts that are not timed, for int8.
    """

    engine: str
    dtype: str
    threads: int
    folder: Path
    calibration: Sequence[Inputs] = ()

    def check(self) -> None:
        """Raises Missing where the engine is not there, or not in this dtype."""
        need(*(["openvino"] if self.engine == "openvino" else ["onnx", "onnxruntime"]))
        if self.dtype == "int8":
            need(*(["nncf"] if self.engine == "openvino" else []))
        if self.engine == "onnxruntime" and self.dtype != "float32":
            raise Missing("no bfloat16 on a CPU" if self.dtype == "bfloat16" else "tried in float32 only")

    def __call__(self, model: MultiExitBert, first: int, last: int) -> SegmentCall:
        """Layers first..last of the model, which is in float32."""
        segment, width = Segment(model.bert.encoder.layer[first - 1 : last]).eval(), model.config.hidden_size
        example = torch.zeros(2, 8, width), torch.ones(2, 8, dtype=torch.int64)
        if self.engine == "onnxruntime":
            path = self.folder / f"layers.{first}.{last}.onnx"
            exported(segment, example, ("hidden", "attention_mask"), "states", {0: "samples", 1: "tokens"}, path)
            return OnnxBert(path, self.threads)
        import openvino

        found = traced(segment, example, [openvino.PartialShape([-1, -1, width]), openvino.PartialShape([-1, -1])])
        if self.dtype == "int8":
            found = quantized_on(found, [self._before(model, first, inputs) for inputs in self.calibration])
        return OpenVinoBert(found, self.dtype, self.threads)

    @torch.inference_mode()
    def _before(self, model: MultiExitBert, first: int, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """What a batch of texts brings to a segment: states and mask."""
        ids, mask, segments = inputs
        hidden = model.bert.embeddings(input_ids=ids, token_type_ids=segments)
        return Segment(model.bert.encoder.layer[: first - 1])(hidden, mask), mask


class SegmentRunner(PaddedRunner):
    """Runs layers by another engine; embeddings and heads by torch, in float32.

    A segment is built when it is first asked for, and so many are kept.

    Args:
        model: in float32.
        build: makes segments.
        grid: pad batches to few row counts and to lengths in steps, so that there are fewer shapes.
    """

    def __init__(self, model: MultiExitBert, build: Build, grid: bool) -> None:
        super().__init__(model, None, build.dtype, build.engine)
        self._build, self._grid = build, grid
        self._segments: OrderedDict[tuple[int, int], SegmentCall] = OrderedDict()

    def run_layers(self, first: int, last: int, hidden: torch.Tensor, padding: Padding) -> torch.Tensor:
        """Run layers first..last on [B, S, H]."""
        mask = padding.attention_mask
        if not self._grid:
            return self._segment(first, last)(hidden.contiguous(), mask.contiguous())
        rows, length = hidden.shape[:2]
        more = next((count for count in GRID if count >= rows), rows) - rows, -length % STEP
        states = nn.functional.pad(hidden, (0, 0, 0, more[1], 0, more[0]))
        wide = nn.functional.pad(mask, (0, more[1], 0, more[0]))
        wide[rows:, 0] = 1  # attention to nothing is NaN
        return self._segment(first, last)(states, wide)[:rows, :length]

    def _segment(self, first: int, last: int) -> SegmentCall:
        key = first, last
        if key not in self._segments:
            self._segments[key] = self._build(self.model, first, last)
            if len(self._segments) > KEPT:
                self._segments.popitem(last=False)
        self._segments.move_to_end(key)
        return self._segments[key]

"""OpenVINO on a CPU, in float32, bfloat16, and int8 that NNCF quantizes after training."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bench.pipeline.rivals_given import Given, Missing, need
from bench.pipeline.rivals_onnx import OnnxGraph

if TYPE_CHECKING:
    import openvino

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}  # of what is not quantized; OpenVINO's own choice


class OpenVinoBert:
    """A model of OpenVINO, compiled for one request at a time.

    Args:
        model: it, or the file of one.
        dtype: "float32", "bfloat16" or "int8".
        threads: of the request.
    """

    def __init__(self, model: openvino.Model | Path, dtype: str, threads: int) -> None:
        import openvino

        core, precision = openvino.Core(), PRECISIONS[dtype]
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            if dtype == "bfloat16":
                raise Missing("this CPU has no bfloat16")
            precision = "f32"
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": precision,
        }
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Ids, mask, segments, each [B, S] -> logits [B, C]; or whatever else the model takes."""
        given = [tensor.numpy() for tensor in inputs]  # the request keeps no input alive
        self._request.infer(given)
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())  # the next answer overwrites it


def openvino_model(given: Given) -> openvino.Model:
    """Converted from torch with lengths left open. Raises Missing without the packages."""
    need("openvino", *(["nncf"] if given.dtype == "int8" else []))
    import openvino

    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in range(3))
    model = traced(OnnxGraph(given.module).eval(), example, [openvino.PartialShape([-1, -1])] * 3)
    return quantized_on(model, given.calibration) if given.dtype == "int8" else model


def traced(module: nn.Module, example: tuple[torch.Tensor, ...], shapes: list[openvino.PartialShape]) -> openvino.Model:
    """A module of torch, traced on an example, for inputs of these shapes."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        return openvino.convert_model(module, example_input=example, input=shapes)


def quantized_on(model: openvino.Model, batches: Sequence[tuple[torch.Tensor, ...]]) -> openvino.Model:
    """Weights and activations in int8, as NNCF does for transformers."""
    import nncf

    def arrays(inputs: tuple[torch.Tensor, ...]) -> list:
        return [tensor.numpy() for tensor in inputs]

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its bars
        data, kind = nncf.Dataset(batches, arrays), nncf.ModelType.TRANSFORMER
        return nncf.quantize(model, data, model_type=kind, subset_size=len(batches))


def openvino_file(given: Given) -> Path:
    """Saved as it runs, for a process that needs nothing else."""
    model, path = openvino_model(given), given.folder / "openvino.xml"
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def openvino_bert(given: Given) -> OpenVinoBert:
    return OpenVinoBert(openvino_model(given), given.dtype, given.threads)

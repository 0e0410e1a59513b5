"""ONNX Runtime on a CPU: the plain export, its fused transformer operators, and its int8, dynamic and static."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.pipeline.rivals_dense import DenseBert, Inputs
from bench.pipeline.rivals_given import Given, Missing, need

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
FUSED = ("Attention", "BiasGelu", "SkipLayerNormalization", "EmbedLayerNormalization")


class OnnxBert:
    """A file in ONNX Runtime on a CPU.

    Args:
        path: it.
        threads: of an operator.
        facts: shown with its results.
    """

    def __init__(self, path: Path, threads: int, facts: Mapping[str, Any] | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.facts = facts or {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Ids, mask, segments, each [B, S] -> logits [B, C]."""
        names = (value.name for value in self._session.get_inputs())
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, given)[0])


class OnnxGraph(nn.Module):
    """`DenseBert` without transformers' making of masks, which asks for values that an exporter does not have."""

    def __init__(self, module: DenseBert) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Each [B, S] -> logits [B, C]."""
        hidden = self.module.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        hidden = self.layers(hidden, attention_mask)
        return self.module.head(hidden, attention_mask) / self.module.temperature

    def layers(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        for layer in self.module.bert.encoder.layer:
            hidden = layer(hidden, attention_mask[:, None, None, :].bool())
        return hidden


class FusibleGraph(OnnxGraph):
    """The same, its attention in the operators that ONNX Runtime's optimizer looks for."""

    def layers(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        heads = self.module.bert.config.num_attention_heads
        bias = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.module.bert.encoder.layer:
            own, (batch, length, width) = layer.attention.self, hidden.shape
            query, key, value = (
                linear(hidden).view(batch, length, heads, width // heads).permute(0, 2, 1, 3)
                for linear in (own.query, own.key, own.value)
            )
            weights = (query @ key.transpose(-1, -2) / (width // heads) ** 0.5 + bias).softmax(-1)
            attended = (weights @ value).permute(0, 2, 1, 3).contiguous().view(batch, length, width)
            hidden = layer.attention.output(attended, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        return hidden


def onnx_bert(given: Given) -> OnnxBert:
    """The plain export, in int8 with dynamic quantization."""
    return OnnxBert(onnx_file(given), given.threads)


def onnx_file(given: Given) -> Path:
    path = _plain(given)
    return _dynamic(path) if given.dtype == "int8" else path


def fused_onnx_bert(given: Given) -> OnnxBert:
    """Its fused operators, in int8 with dynamic quantization."""
    path, fusions = _fused(given)
    path = _dynamic(path, per_channel=True) if given.dtype == "int8" else path
    return OnnxBert(path, given.threads, {"fusions": fusions})


def static_onnx_bert(given: Given) -> OnnxBert:
    """Weights and activations in int8, quantized beforehand on texts that are not timed: the products with weights.

    Of the plain export: fused attention has no static int8, and is slower so. Products' results stay in float32: answers
    are lost where these are quantized, too.
    """
    if given.dtype != "int8":
        raise Missing("it is int8")
    source = _plain(given)
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path = source.with_suffix(".static.onnx")
    with _quiet():
        quantize_static(
            source, path, _reader(given.calibration), QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["MatMul"],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )  # fmt: skip
    return OnnxBert(path, given.threads)


def _plain(given: Given) -> Path:
    need("onnx", "onnxruntime")
    if given.dtype == "bfloat16":
        raise Missing("no bfloat16 on a CPU")
    path = given.folder / "model.onnx"
    if not path.is_file():
        export_onnx(OnnxGraph(given.module), path)
    return path


def _fused(given: Given) -> tuple[Path, dict[str, int]]:
    """The file, and how often each operator stands in it. Raises Missing where attention is not fused."""
    _plain(given)
    from onnxruntime.transformers.optimizer import optimize_model

    source, path = given.folder / "fusible.onnx", given.folder / "fused.onnx"
    config = given.module.bert.config
    with _quiet():
        export_onnx(FusibleGraph(given.module), source)
        sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
        model = optimize_model(str(source), model_type="bert", opt_level=1, **sizes)
    counts = {name: count for name, count in model.get_fused_operator_statistics().items() if name in FUSED}
    if counts["Attention"] != config.num_hidden_layers:
        raise Missing(f"its optimizer fused {counts['Attention']} of {config.num_hidden_layers} attentions")
    model.save_model_to_file(str(path))
    return path, counts


def _dynamic(source: Path, per_channel: bool = False) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = source.with_suffix(".int8.onnx")
    with _quiet():  # fused operators have types that onnx does not know
        options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=per_channel, extra_options=options)
    return path


def _reader(calibration: Sequence[Inputs]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._left, None)
            return None if found is None else {name: one.numpy() for name, one in zip(INPUTS, found, strict=True)}

    return Batches()


def export_onnx(graph: OnnxGraph, path: Path) -> None:
    exported(graph, tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS), INPUTS, "logits", {0: "samples"}, path)


def exported(
    graph: nn.Module, inputs: tuple[torch.Tensor, ...], names: Sequence[str], output: str, open_axes: dict[int, str], path: Path
) -> None:
    """Write a module to a file.

    Args:
        graph: it takes batches of samples, whatever their number and length.
        inputs: an example, by which it is traced; names: theirs.
        output: the name of what it returns, and `open_axes` the axes of that whose size is open.
        path: of the file.
    """
    dynamic = {name: {0: "samples", 1: "tokens"} for name in names} | {output: open_axes}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.eval(),  # the exporter puts all of it back into the mode that the outermost module is in
            inputs, path, input_names=list(names), output_names=[output], dynamic_axes=dynamic,
            opset_version=17, dynamo=False,
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that ONNX Runtime's tools log."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)

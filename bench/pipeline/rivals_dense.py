"""Full-depth and truncated BERTs in common runtimes: Hugging Face eager, compiled and int8, and ONNX Runtime."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from geep_triton import MultiExitBert, Predictions
from geep_triton.tokens.ragged import Tokens, to_device

BATCH = 32  # samples of a batch in the order of arrival
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # ids, mask, segments, each [B, S] -> logits [B, C]


class DenseBert(nn.Module):
    """transformers' BertModel (SDPA) of so many layers with the weights of `model`, and the head of the exit there.

    Args:
        model: whose weights these are; they are shared.
        layers: an exit; the last one is full depth, others a truncated BERT.
    """

    def __init__(self, model: MultiExitBert, layers: int) -> None:
        super().__init__()
        values = model.config.to_dict() | {"num_hidden_layers": layers, "dtype": None}
        config = BertConfig.from_dict(values)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            bert = BertModel(config, add_pooling_layer=False)
        wanted = set(bert.state_dict())
        bert.load_state_dict({k: v for k, v in model.bert.state_dict().items() if k in wanted}, assign=True)
        for name, buffer in bert.embeddings.named_buffers():  # those that no checkpoint holds
            setattr(bert.embeddings, name, getattr(model.bert.embeddings, name).to(device=model.device, dtype=buffer.dtype))
        self.bert = bert
        self.head = model.heads[str(layers)]
        at = model.config.exit_layers.index(layers)
        self.temperature = 1.0 if model.exit_config.temperatures is None else model.exit_config.temperatures[at]
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Each [B, S] -> logits [B, C]."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        return self.head(hidden, attention_mask) / self.temperature


def compiled(module: nn.Module) -> Call:
    return torch.compile(module, dynamic=True)


def frozen(module: nn.Module) -> Call:
    """Compiled, its weights laid out for oneDNN at that (inductor's freezing, for a CPU)."""
    return torch.compile(module, dynamic=True, options={"freezing": True})


def torch_int8(module: nn.Module, inplace: bool = False) -> nn.Module:
    """As torch's documentation shows it: every linear layer."""
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8, inplace=inplace)


class OnnxBert:
    """The module in ONNX Runtime on a CPU, in float32 or with its dynamic int8. Needs the extra `bench`."""

    def __init__(self, module: DenseBert, folder: Path, int8: bool, threads: int) -> None:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = folder / "model.onnx"
        if not path.is_file():
            export_onnx(module, path)
        if int8:
            small = folder / "model.int8.onnx"
            if not small.is_file():
                quantize_dynamic(path, small, weight_type=QuantType.QInt8)
            path = small
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
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
        bert = self.module.bert
        hidden = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        for layer in bert.encoder.layer:
            hidden = layer(hidden, attention_mask[:, None, None, :].bool())
        return self.module.head(hidden, attention_mask) / self.module.temperature


def export_onnx(module: DenseBert, path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    dynamic = {name: {0: "samples", 1: "tokens"} for name in names} | {"logits": {0: "samples"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            OnnxGraph(module).eval(),  # the exporter puts all of it back into the mode that the outermost module is in
            inputs, path, input_names=list(names), output_names=["logits"], dynamic_axes=dynamic,
            opset_version=17, dynamo=False,
        )  # fmt: skip


def missing_onnx() -> str | None:
    """Why ONNX Runtime cannot be a rival here; None where it can."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed (pip install 'geep-triton[bench]')" if missing else None


class DenseRival:
    """Batches of tokenized texts through one call that runs all its layers.

    Args:
        call: runs a batch.
        model: that ours runs: its names of classes, and where it is.
        layers: that the call runs.
        token_budget: of length-sorted batches, padding included; None: batches of 32 in the order of arrival.
        max_length: tokens at which texts are cut.
    """

    def __init__(
        self,
        call: Call,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        layers: int,
        token_budget: int | None,
        max_length: int,
    ) -> None:
        self.call, self.model, self.tokenizer = call, model, tokenizer
        self.layers, self.token_budget, self.max_length = layers, token_budget, max_length

    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`."""
        start = time.perf_counter()
        tokens = encode(self.tokenizer, rows, self.max_length)
        tokenized = time.perf_counter()
        parts, answered, padded = list(self._batches(tokens.lengths)), [], 0
        with torch.inference_mode():
            for part in parts:
                input_ids, mask, type_ids = tokens.padded(part, self.tokenizer.pad_token_id or 0)
                type_ids = torch.zeros_like(input_ids) if type_ids is None else type_ids
                inputs = (to_device(tensor, self.model.device) for tensor in (input_ids, mask, type_ids))
                answered.append(self.call(*inputs).clone())  # a graph's answer is overwritten by the next
                padded += input_ids.numel()
            logits = torch.cat(answered).float().cpu()[torch.cat(parts).argsort()]
        depth = torch.full((len(rows),), self.layers)
        seconds = {"tokenize": tokenized - start, "run": time.perf_counter() - tokenized}
        return answers(self.model, logits, depth, seconds, padded, 1 - int(tokens.lengths.sum()) / padded)

    def _batches(self, lengths: torch.Tensor) -> Iterator[torch.Tensor]:
        if self.token_budget is None:
            yield from torch.arange(len(lengths)).split(BATCH)
            return
        order, begin = lengths.argsort(descending=True), 0
        while begin < len(order):
            part = order[begin : begin + max(1, self.token_budget // int(lengths[order[begin]]))]
            yield part
            begin += len(part)


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_length: int) -> Tokens:
    """Token ids of texts or pairs, or those that the rows hold already."""
    if "input_ids" in rows[0]:
        return Tokens.from_lists([row["input_ids"] for row in rows])
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    texts = [row["text"] for row in rows]
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False)
    return Tokens.from_lists(encoded["input_ids"], encoded["token_type_ids"] if pairs else None)


def answers(
    model: MultiExitBert,
    logits: torch.Tensor,
    exits: torch.Tensor,
    seconds: dict[str, float],
    tokens: int = 0,
    padding: float = 0.0,
) -> Predictions:
    return Predictions(
        logits=logits,
        exit_layers=exits,
        layers_run=exits,
        answers=model.answers,
        num_layers=model.config.num_hidden_layers,
        timings=seconds,
        tokens=tokens,
        padding=padding,
    )

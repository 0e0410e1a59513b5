"""Part 3 runs all layers on every text, from token ids to answers: ours in every way, beside what a careful user runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from bench.gpu.setting import GRAPHED, WAYS, Cells, Setting
from bench.pipeline.rivals_dense import DenseBert
from bench.pipeline.rivals_varlen import VarlenBert
from bench.rows import Found, found
from bench.timing import quiet_garbage_collector
from geep_triton.modeling.flops import layer_flops
from geep_triton.timing import in_turns
from geep_triton.tokens.ragged import to_device

# Mean, of a probability from float32's. A random model's exits are stretched until texts differ, and rounding with them.
DIFFERENCE = 0.1
CHECKED = 64  # texts
Answer = Callable[[torch.Tensor], torch.Tensor]  # ids [N, S] on the host -> logits [N, C] on the host


def cells(setting: Setting) -> Cells:
    for way in WAYS:
        yield f"prepare, {way}", partial(prepared, setting, way)
    rivals = Rivals(setting)
    for length in setting.sizes.lengths:
        for tokens in setting.sizes.tokens:
            yield f"{length} long, {tokens} tokens", partial(compared, setting, rivals, tokens, length)


def prepared(setting: Setting, way: str) -> list[Found]:
    """The seconds to make a way to run layers. Most of them go to the compiler."""
    start = time.perf_counter()
    setting.runner(way)
    return [found("", {"seconds": time.perf_counter() - start})]


class Unmasked(nn.Module):
    """transformers' BERT on texts of one length, which need no mask."""

    def __init__(self, bert: DenseBert) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, S] -> logits [B, C]."""
        return self.bert.head(self.bert.bert(ids).last_hidden_state, torch.ones_like(ids))


class CompiledLayer(nn.Module):
    """A layer that runs as an input of one function, which is compiled for all layers."""

    def __init__(self, layer: nn.Module, run: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Do what the layer does."""
        return self.run(self.layer, *arguments, **options)


def _run(layer: nn.Module, *arguments: Any, **options: Any) -> torch.Tensor:
    return layer(*arguments, **options)


def batched(call: Answer, device: torch.device, size: int, ids: torch.Tensor) -> torch.Tensor:
    """The answers of a rival, batch by batch. The host waits once, at the end."""
    with torch.inference_mode():
        there = to_device(ids, device)
        return torch.cat([call(part) for part in there.split(size)]).float().cpu()


class Replayed:
    """A call on batches of one shape as a CUDA graph. A careful user runs this if batches are small."""

    def __init__(self, setting: Setting, call: Answer, samples: int, length: int) -> None:
        self._ids = setting.ids(samples, length).to(setting.machine.device)
        self._logits: torch.Tensor | None = None

        def work() -> None:
            self._logits = call(self._ids)

        with torch.inference_mode():
            self._replay = setting.machine.recorder()(work)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        self._ids.copy_(ids)
        self._replay()
        return self._logits.clone()


def packed(bert: VarlenBert, ids: torch.Tensor) -> torch.Tensor:
    """Texts [B, S] one after another without padding -> logits [B, C]."""
    samples, length = ids.shape
    offsets = torch.arange(0, samples * length + 1, length, device=ids.device)
    return bert(ids.flatten(), torch.zeros_like(ids.flatten()), offsets, length)


class Rivals:
    """What a careful user runs without us. What is compiled is compiled once for all shapes."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._depth = setting.model.config.num_hidden_layers

    @cached_property
    def eager(self) -> Unmasked:
        return Unmasked(DenseBert(self._setting.model, self._depth))

    @cached_property
    def compiled(self) -> Unmasked:
        """Compiled layer by layer: one graph serves all layers, and nothing would fuse across them."""
        bert = Unmasked(DenseBert(self._setting.model, self._depth))
        run = torch.compile(_run, backend=self._setting.machine.compiler, dynamic=True)
        layers = bert.bert.bert.encoder.layer
        for number, layer in enumerate(layers):
            layers[number] = CompiledLayer(layer, run)
        return bert

    @cached_property
    def packed(self) -> Answer:
        return partial(packed, VarlenBert(self._setting.model, self._depth))

    @cached_property
    def packed_compiled(self) -> Answer:
        return partial(packed, VarlenBert(self._setting.model, self._depth, compile=self._setting.machine.compiler))

    def makers(self, tokens: int, length: int) -> dict[str, Callable[[], Answer]]:
        """Name -> a function that makes the rival for batches of one shape."""
        size = max(1, tokens // length)

        def batches(call: Answer) -> Answer:
            return partial(batched, call, self._setting.machine.device, size)

        return {
            "huggingface": lambda: batches(self.eager),
            "huggingface, compiled": lambda: batches(self.compiled),
            "packed tokens": lambda: batches(self.packed),
            "packed tokens, compiled": lambda: batches(self.packed_compiled),
            "huggingface, compiled, CUDA graph": lambda: batches(Replayed(self._setting, self.compiled, size, length)),
        }


def ways(tokens: int) -> list[str]:
    """The ways that take part on texts of one length: packing changes nothing there, and graphs have a largest batch."""
    return [way for way in WAYS if way != "packed" and (way != "graphs" or tokens <= GRAPHED)]


def cause(error: BaseException) -> str:
    """An error and the one behind it in one line, since that a recording failed says less than what failed in it."""
    first = error
    while first.__context__ is not None:
        first = first.__context__
    lines = [f"{type(each).__name__}: {(str(each).splitlines() or [''])[0]}" for each in dict.fromkeys((error, first))]
    return "; behind it ".join(lines)[:600]


def ours(setting: Setting, tokens: int, way: str, **options: Any) -> Answer:
    engine = setting.engine("full", way, token_budget=tokens, window=1 << 16, prefetch=False, **options)
    return lambda ids: engine.predict({"input_ids": ids}).logits


def compared(setting: Setting, rivals: Rivals, tokens: int, length: int) -> list[Found]:
    """Check every system that can be made, then time them in turns."""
    samples, size = setting.samples(tokens, length), max(1, tokens // length)
    samples -= samples % size  # whole batches
    ids, missing, systems = setting.ids(samples, length), {}, {}
    makers = {f"ours, {way}": partial(ours, setting, tokens, way) for way in ways(tokens)}
    makers["ours, plain, cuDNN"] = partial(ours, setting, tokens, "plain", cudnn_attention=True)
    makers |= rivals.makers(tokens, length)  # last one that records: a recording that fails may spoil what follows
    exact = Unmasked(DenseBert(setting.reference, setting.reference.config.num_hidden_layers))
    expected = batched(exact, setting.machine.device, CHECKED, ids[:CHECKED]).softmax(-1)
    differences = {}
    for name, make in makers.items():
        try:
            system = make()
            differences[name] = float((system(ids)[:CHECKED].softmax(-1) - expected).abs().mean())
        except Exception as error:  # one that fails does not take the others along
            missing[name] = cause(error)
            continue
        if differences[name] <= DIFFERENCE:
            systems[name] = system
        else:
            missing[name] = f"probabilities differ by {differences[name]:.3g}"
    calls = {name: partial(answer, ids) for name, answer in systems.items()}
    with quiet_garbage_collector():
        seconds = in_turns(calls, setting.sizes.rounds, limit=setting.sizes.seconds)
    config, work = setting.model.config, samples * layer_flops(setting.model.config, length)
    ceiling = setting.known("ceilings, matrix", "flops_per_second")
    measured = [found("", {"tokens": tokens, "length": length, "samples": samples, "missing": missing})]
    for name, values in seconds.items():
        median = statistics.median(values)
        rate = work * config.num_hidden_layers / median
        metrics = {
            "seconds": median,
            "rounds": len(values),
            "samples_per_second": samples / median,
            "flops_per_second": rate,
            "share_of_ceiling": ceiling and rate / ceiling,
            "difference": differences[name],
        }
        measured.append(found(name, metrics))
    return measured

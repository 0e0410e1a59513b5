"""Part 2 times the steps of one layer and of one stop: how long the host takes to ask for each, and the device to do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch.nn import functional as F

from bench.gpu.setting import Cells, Setting
from bench.rows import Found, found
from geep_triton.engine.flight import Copying
from geep_triton.modeling.flops import layer_flops
from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.partition import partition
from geep_triton.runners.attention import attention_kernels
from geep_triton.runners.packed import Offsets, PackedStates

CALLS = 30  # of a step in a row: far fewer launches than a device's queue holds, or the host would wait for it
REPLAYS = 20  # milliseconds
LAYER = 1
WAYS = ("plain", "lean", "compiled", "packed")
FLOAT8 = torch.float8_e4m3fn
Step = Callable[[], Any]


def cells(setting: Setting) -> Cells:
    length = setting.sizes.lengths[0]
    least = min(setting.sizes.tokens)
    for way in WAYS:
        setting.runner(way)  # here, since what is made in inference mode could not be copied later
    yield "host", partial(asked, setting, least, length)
    for tokens in sorted(setting.sizes.tokens):
        yield f"device, {tokens} tokens", partial(done, setting, tokens, length)


@dataclass(eq=False)
class Batch:
    """The states of texts of one length, and the steps that run on them."""

    setting: Setting
    tokens: int
    length: int

    @cached_property
    def hidden(self) -> torch.Tensor:
        shape = (max(2, self.tokens // self.length), self.length, self.setting.model.config.hidden_size)
        return torch.randn(shape, device=self.setting.machine.device).to(self.setting.model.dtype)

    @cached_property
    def attention_mask(self) -> torch.Tensor:
        """A mask in which every second text is half as long."""
        mask = torch.ones(self.hidden.shape[:2], dtype=torch.int64, device=self.hidden.device)
        mask[::2, self.length // 2 :] = 0
        return mask

    def layers(self) -> dict[str, Step]:
        """A whole layer in every way that runs without a recording."""
        mask = self.setting.model.layer_mask(self.hidden, self.attention_mask)
        run = {way: self.setting.runner(way).run_layer for way in WAYS if way != "packed"}
        lengths = self.attention_mask.sum(1).cpu()
        states = PackedStates(self.hidden[self.attention_mask.bool()], Offsets(lengths, self.hidden.device))
        packed = self.setting.runner("packed")
        return {
            "layer, plain, no mask": lambda: run["plain"](LAYER, self.hidden, None),
            "layer, plain": lambda: run["plain"](LAYER, self.hidden, mask),
            "layer, lean, no mask": lambda: run["lean"](LAYER, self.hidden, None),
            "layer, lean": lambda: run["lean"](LAYER, self.hidden, mask),
            "layer, packed": lambda: packed.layers(LAYER, LAYER, states),
            "layer, compiled": lambda: run["compiled"](LAYER, self.hidden, mask),
        }

    def parts(self) -> dict[str, Step]:
        """The steps of a layer."""
        layer = self.setting.runner("lean").parts.layers[LAYER - 1]
        attention, expand, reduce = layer.attention.self, layer.intermediate.dense, layer.output
        heads = self.setting.model.config.num_attention_heads
        states = [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in attention.qkv(self.hidden).chunk(3, -1)]
        wide, mask = expand(self.hidden), self.setting.model.layer_mask(self.hidden, self.attention_mask)
        return {
            "query, key, value in one product": lambda: attention.qkv(self.hidden),
            "output product": lambda: layer.attention.output.dense(self.hidden),
            "product that widens": lambda: expand(self.hidden),
            "product that narrows": lambda: reduce.dense(wide),
            "attention, no mask": lambda: F.scaled_dot_product_attention(*states),
            "attention, mask": lambda: F.scaled_dot_product_attention(*states, attn_mask=mask),
            "GELU": lambda: F.gelu(wide),
            "residual and LayerNorm": lambda: reduce.LayerNorm(self.hidden + self.hidden),
            "copy of the states": lambda: self.hidden.clone(),
        }

    def float8(self) -> dict[str, Step]:
        """The product that widens on scaled rows in float8, and what makes the states 8-bit."""
        weight = self.setting.runner("lean").parts.layers[LAYER - 1].intermediate.dense.weight
        right, right_scale = _float8(weight)
        left, left_scale = _float8(self.hidden.flatten(0, 1))
        product = partial(torch._scaled_mm, out_dtype=torch.bfloat16, use_fast_accum=True)
        return {
            "product that widens, float8": lambda: product(left, right.t(), scale_a=left_scale, scale_b=right_scale.t()),
            "states to float8": lambda: _float8(self.hidden.flatten(0, 1)),
        }

    def stop(self) -> dict[str, Step]:
        """The steps of a stop at an exit."""
        model, samples = self.setting.model, len(self.hidden)
        logits = model.exit_logits(LAYER, self.hidden, self.attention_mask)
        leaves = score_exits(logits, 0.5).leaves
        staying = torch.arange(0, samples, 2, device=leaves.device)
        return {
            "attention mask of a batch": lambda: model.layer_mask(self.hidden, self.attention_mask),
            "head": lambda: model.exit_logits(LAYER, self.hidden, self.attention_mask),
            "score_exits": lambda: score_exits(logits, 0.5),
            "partition": lambda: partition(leaves),
            "index_select of states": lambda: self.hidden.index_select(0, staying),
            "index_select of logits": lambda: logits.index_select(0, staying),
            "copy to the host, not waited for": lambda: Copying(leaves),
            "copy to the host, waited for": lambda: Copying(leaves).get(),
        }


def _float8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] -> the same by rows scaled to float8's range, and the scales [N, 1] float32."""
    scale = values.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / torch.finfo(FLOAT8).max
    return (values / scale).to(FLOAT8), scale


def timed(
    made: dict[str, Callable[[], dict[str, Step]]], measure: Callable[[Step], float]
) -> tuple[list[Found], dict[str, str]]:
    """The seconds of each step, and the reasons why some steps have none."""
    rows, missing = [], {}
    for group, make in made.items():
        name = group
        try:
            for name, step in make().items():
                rows.append(found(name, {"seconds": measure(step)}))
        except Exception as error:  # one that cannot run here does not take the others along
            missing[name] = f"{type(error).__name__}: {error}"[:300]
    return rows, missing


def asked(setting: Setting, tokens: int, length: int) -> list[Found]:
    """The seconds that the host takes for each step while the device has little to do."""
    machine, batch = setting.machine, Batch(setting, tokens, length)
    value = torch.zeros(1, device=machine.device)

    def measure(step: Step) -> float:
        for _ in range(3):
            step()
        machine.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            step()
        seconds = (time.perf_counter() - start) / CALLS
        machine.synchronize()
        return seconds

    def replayed() -> dict[str, Step]:
        return {"layer, replayed": machine.recorder()(batch.layers()["layer, lean"])}

    groups = {"tiny": lambda: {"tiny kernel": lambda: value.add_(1)}, "parts": batch.parts, "layers": batch.layers}
    groups |= {"stop": batch.stop, "replayed": replayed}
    with torch.inference_mode(), attention_kernels(cudnn=False):
        rows, missing = timed(groups, measure)
    return [found("", {"tokens": tokens, "length": length, "missing": missing}), *rows]


def done(setting: Setting, tokens: int, length: int) -> list[Found]:
    """The seconds that the device takes for each step, replayed as a CUDA graph so that no launch counts."""
    batch = Batch(setting, tokens, length)
    groups = {"parts": batch.parts}
    if not setting.machine.rehearsal:  # what multiplies float8 is the GPU's
        groups["float8"] = batch.float8
    groups["layers"] = batch.layers
    with torch.inference_mode(), attention_kernels(cudnn=False):
        rows, missing = timed(groups, lambda step: setting.machine.replayed_seconds(step, REPLAYS))
    work = len(batch.hidden) * layer_flops(setting.model.config, length)
    facts = {"tokens": tokens, "length": length, "layer_flops": work, "missing": missing}
    return [found("", facts), *rows]

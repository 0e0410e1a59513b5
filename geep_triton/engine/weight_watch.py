"""A watch over the weights of a model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from geep_triton.compat import register_optimizer_step_post_hook
from geep_triton.modeling.model import MultiExitBert

VERSION = attrgetter("_version")


class WeightWatch:
    """Notices within microseconds that a model's weights have changed.

    It knows replaced modules and weights by identity, moved weights by their place, and written weights by their version. Fused
    optimizers do not change versions, so it watches the steps of every optimizer, too. It also compares the values of some
    small weights, for changes that go round all this. It misses one change: a write to a large weight alone, behind torch's
    back (`weight.data`).
    """

    def __init__(self, model: MultiExitBert) -> None:
        holders = [held for module in model.modules() for held in (module._modules, module._parameters) if held]
        self._holders: list[dict[str, Any]] = holders
        self._held = list(self._now_held())
        layers = [layer.get_submodule("output.LayerNorm") for layer in model.bert.encoder.layer]
        norms = [model.bert.embeddings.LayerNorm, *layers]
        classifiers = [head.get_submodule("classifier") for head in model.heads.values()]
        biases = [getattr(part, "bias", None) for part in (*norms, *classifiers)]
        # A layer that was converted in place holds no parameters, and is not trained any more.
        self._small: list[torch.Tensor] = [bias for bias in biases if isinstance(bias, nn.Parameter)]
        self._values = self._now()
        self._trained = False
        self._start()

    def _start(self) -> None:
        """Begin to watch whatever differs between processes."""
        self._weights = [held for held in self._held if isinstance(held, nn.Parameter)]
        self._ids = {id(weight) for weight in self._weights}
        self._versioned = [weight for weight in self._weights if not weight.is_inference()]
        self._versions = self._version()
        self._places = self._place()
        _watch_steps(self)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_trained": self.changed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def changed(self) -> bool:
        """Whether something has changed since the watch began. This waits for a GPU."""
        if self._trained or sum(map(len, self._holders)) != len(self._held) or not all(map(is_, self._now_held(), self._held)):
            return True
        now, then = self._now(), self._values
        same_place = now.device == then.device and now.dtype == then.dtype
        if self._version() != self._versions or self._place() != self._places or not same_place:
            return True
        return not torch.equal(now, then)

    def stepped(self, optimizer: Optimizer) -> None:
        """Take note of an optimizer's step."""
        trains = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        self._trained = self._trained or not self._ids.isdisjoint(trains)

    def _now_held(self) -> Iterator[nn.Module | nn.Parameter | None]:
        """All modules and weights."""
        return chain.from_iterable(map(dict.values, self._holders))

    def _version(self) -> int:
        return sum(map(VERSION, self._versioned))

    def _place(self) -> list[int]:
        """Where weights lie. The place changes when they are moved or resized."""
        return list(map(torch.Tensor.data_ptr, self._weights))

    def _now(self) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(self._small)


def _watch_steps(watch: WeightWatch) -> None:
    """Tell a watch of every optimizer's steps, as long as it lives."""
    found = weakref.ref(watch)

    def step(optimizer: Optimizer, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (watch := found()) is not None:
            watch.stepped(optimizer)

    weakref.finalize(watch, register_optimizer_step_post_hook(step).remove)

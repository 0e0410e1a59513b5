"""Noticing that weights were written or replaced, without reading them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn


class SeenWeights:
    """The weights of a module as they are now.

    A weight is known by its identity and torch's count of writes to it. Casting and moving a module, which are no writes, and
    writes behind torch's back (`weight.data`) are not noticed. `geep_triton.engine.weight_watch` notices more of a model that
    serves.

    Args:
        module: it is not held.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = [weight for weight in module.parameters() if not weight.is_inference()]
        self._dtype = _dtype_of(module)
        self._seen = [(weakref.ref(weight), weight._version) for weight in weights]

    def changed(self, module: nn.Module) -> bool:
        """Whether a weight of the module was written since, or is another one. Weights that are gone do not count."""
        known = {id(weight): version for reference, version in self._seen if (weight := reference()) is not None}
        now = (weight for weight in module.parameters() if not weight.is_inference())
        return any(known.get(id(weight)) != weight._version for weight in now)

    def cast(self, module: nn.Module) -> bool:
        """Whether the module has another dtype now."""
        return _dtype_of(module) != self._dtype

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module has other weights, which its copy of this has not seen: it is left out of copies and pickles."""
        return _nothing, ()


def _dtype_of(module: nn.Module) -> torch.dtype | None:
    """That of the first weight."""
    return next((weight.dtype for weight in module.parameters()), None)


def _nothing() -> None:
    """What stands for `SeenWeights` in a copy or a pickle."""

"""The modules of a model that a runner runs: the model's own, or copies that may be converted without changing the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import nn

from geep_triton.modeling.model import MultiExitBert


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules that a runner calls.

    Attributes:
        embeddings: BERT's embeddings.
        layers: the L layers.
        heads: exit heads by the number of their layer.
        gates: skip gates by the number of their layer.
    """

    embeddings: nn.Module
    layers: nn.ModuleList
    heads: nn.ModuleDict
    gates: nn.ModuleDict

    @classmethod
    def of(cls, model: MultiExitBert) -> Parts:
        """The model's own modules. Replacing a layer or head here replaces it in the model."""
        return cls(model.bert.embeddings, model.bert.encoder.layer, model.heads, model.gates)

    @classmethod
    def copied(cls, model: MultiExitBert, dtype: torch.dtype | None = None) -> Parts:
        """New modules in evaluation mode that share the model's tensors and configuration.

        With `dtype`, weights of another dtype are converted copies. Later training of the model does not change these.
        """
        own = cls.of(model)
        memo = {id(thing): thing for thing in (model.config, *(buffer for part in own for buffer in part.buffers()))}
        for part in own:
            for parameter in part.parameters():
                value = parameter
                if dtype is not None and parameter.dtype != dtype:
                    value = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                memo.setdefault(id(parameter), value)
        return copy.deepcopy(own, memo).eval()

    def eval(self) -> Parts:
        """Set all modules to evaluation mode."""
        for part in self:
            part.eval()
        return self

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([getattr(self, field.name) for field in fields(self)])

    def modules(self) -> list[nn.Module]:
        """All modules, including nested ones."""
        return [module for part in self for module in part.modules()]

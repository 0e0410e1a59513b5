"""Freezes what a stage does not train, and scales gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from geep_triton.modeling.model import MultiExitBert
from geep_triton.training.stages import Recipe, Stage


class StageParameters:
    """The parameters that a stage trains. Parameters that the user froze stay frozen.

    Optimizers skip parameters without a gradient, so neither momentum nor weight decay changes a frozen parameter.

    Attributes:
        flags: each parameter, and whether it trains.
        frozen: modules in which the stage trains nothing.

    Raises:
        ValueError: nothing is left to train.
    """

    def __init__(self, model: MultiExitBert, recipe: Recipe, stage: Stage) -> None:
        last_layer = model.config.num_hidden_layers
        wanted = {name: stage.wants(name, last_layer) for name, _ in model.named_parameters()}
        self.flags = [(parameter, wanted[name] and parameter.requires_grad) for name, parameter in model.named_parameters()]
        if not any(trains for _, trains in self.flags):
            raise ValueError(
                f"recipe {recipe.name!r} has a stage that trains {stage.trains!r}, but this model has no such parameters to "
                f"train; its exits are {model.config.exit_layers}"
            )
        self.frozen = list(_unwanted(model, "", wanted))

    def apply(self) -> None:
        """Freeze and unfreeze. Call this after `model.train()`, which also turns on the dropout of the frozen modules."""
        for parameter, trains in self.flags:
            parameter.requires_grad_(trains)
        for module in self.frozen:
            module.eval()


def _unwanted(module: nn.Module, name: str, wanted: dict[str, bool]) -> Iterator[nn.Module]:
    """The topmost modules that have parameters and train none of them."""
    own = [wanted[f"{name}{parameter}"] for parameter, _ in module.named_parameters()]
    if own and not any(own):
        yield module
    elif own:
        for child_name, child in module.named_children():
            yield from _unwanted(child, f"{name}{child_name}.", wanted)


def scale_gradients(model: MultiExitBert, scale: Callable[[str, tuple[int, ...]], float]) -> list[RemovableHandle]:
    """Multiply the gradient of each parameter by `scale(name, exit layers)` until the returned hooks are removed."""
    exit_layers = tuple(model.config.exit_layers)
    return [
        parameter.register_hook(partial(torch.mul, scale(name, exit_layers)))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]

"""Recipes: what the forward pass must return, and the loss made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from geep_triton.checks import check_choice
from geep_triton.outputs import MultiExitBertOutput
from geep_triton.training.losses import geep_loss


@dataclass(frozen=True)
class Recipe:
    """One way to train a MultiExitBert.

    Attributes:
        name: as given to `MultiExitTrainer(recipe=...)`.
        loss: model output and labels [B] -> scalar.
        forward: what `MultiExitBert.forward` is asked for besides its inputs.
    """

    name: str
    loss: Callable[[MultiExitBertOutput, torch.Tensor], torch.Tensor]
    forward: dict[str, bool] = field(default_factory=dict)


def _geep(output: MultiExitBertOutput, labels: torch.Tensor) -> torch.Tensor:
    return geep_loss(output.exit_logits, output.shared_logits, labels)


RECIPES = {
    recipe.name: recipe for recipe in (Recipe("geep", _geep, {"output_exit_logits": True, "output_shared_logits": True}),)
}


def get_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name, or as it is. Raises ValueError naming the known ones."""
    if isinstance(recipe, Recipe):
        return recipe
    check_choice("recipe", recipe, RECIPES)
    return RECIPES[recipe]

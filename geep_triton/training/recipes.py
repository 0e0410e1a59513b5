"""The recipes by name: settings of stages, losses and curriculum."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch

from geep_triton.checks import check_choice, check_number
from geep_triton.outputs import MultiExitBertOutput
from geep_triton.training.losses import cross_entropy, geep_loss, joint_loss, self_distillation_loss
from geep_triton.training.smartbert import smartbert
from geep_triton.training.stages import Batch, Recipe, Stage

EXITS = {"output_exit_logits": True}


def _geep_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return geep_loss(output.exit_logits, output.shared_logits, batch.labels, batch.class_weights)


def _last_exit_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return cross_entropy(output.logits, batch.labels, batch.class_weights)


def _joint_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return joint_loss(output.exit_logits, batch.labels, class_weights=batch.class_weights)


def _self_distillation_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return self_distillation_loss(output.exit_logits)


def geep() -> Recipe:
    """One step: sub-networks through the shared last layer, and self-distillation (GEEP, doi 10.1007/s11704-022-2341-9)."""
    return Recipe("geep", (Stage(_geep_loss, {**EXITS, "output_shared_logits": True}),))


def joint() -> Recipe:
    """The sum of every exit's cross entropy, all trained together."""
    return Recipe("joint", (Stage(_joint_loss, EXITS),))


def _two_steps(name: str, finetune: float, exits: Stage) -> Recipe:
    """Fine-tune everything but the early heads for a share of the training, then train those."""
    check_number("finetune", finetune, 0.0, 1.0)
    full = Stage(_last_exit_loss, trains="all but early heads", share=finetune or 1.0)
    exits = dataclasses.replace(exits, trains="early heads", share=1.0 - finetune or 1.0)
    return Recipe(name, tuple(stage for stage, share in ((full, finetune), (exits, 1.0 - finetune)) if share > 0))


def fastbert(finetune: float = 0.5) -> Recipe:
    """Two steps: fine-tune the full model, then distill it into the early heads, the rest frozen (FastBERT, Liu et al. 2020).

    Args:
        finetune: share of the training in the first step; 0 leaves a fine-tuned model as it is, 1 trains no early exit.
    """
    return _two_steps("fastbert", finetune, Stage(_self_distillation_loss, EXITS, needs_labels=False))


RECIPES: dict[str, Callable[..., Recipe]] = {
    "fastbert": fastbert,
    "geep": geep,
    "joint": joint,
    "smartbert": smartbert,
}


def get_recipe(recipe: str | Recipe, **settings: Any) -> Recipe:
    """A recipe by name with its settings (see the function of that name), or one of your own as it is.

    Raises:
        ValueError: an unknown recipe or setting, naming the known ones; settings beside a `Recipe` of your own.
    """
    if isinstance(recipe, Recipe):
        if settings:
            raise ValueError(f"settings {', '.join(settings)} go with a recipe's name, not with the Recipe {recipe.name!r}")
        return recipe
    check_choice("recipe", recipe, RECIPES)
    make = RECIPES[recipe]
    known = inspect.signature(make).parameters
    for name in settings:
        if name not in known:
            raise ValueError(f"recipe {recipe!r} has no setting {name!r}; known: {', '.join(known) or 'none'}")
    chosen = {name: parameter.default for name, parameter in known.items()} | settings
    return dataclasses.replace(make(**settings), settings=chosen)

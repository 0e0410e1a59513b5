"""The recipes by name: settings of stages and losses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from geep_triton.checks import check_bool, check_choice, check_number
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.training.distillation import ORDERS, PAIRINGS, feature_loss, layerwise_distillation_loss
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


def joint(gradient_scale: bool = False) -> Recipe:
    """The sum of every exit's cross entropy, all trained together.

    Args:
        gradient_scale: scale the backbone's gradients by `gradient_equilibrium`, as ElasticBERT does (Liu et al. 2022).
    """
    check_bool("gradient_scale", gradient_scale)
    return Recipe("joint", (Stage(_joint_loss, EXITS),), gradient_scale=gradient_equilibrium if gradient_scale else None)


def pabee() -> Recipe:
    """Every exit's cross entropy, weighted by depth: sum_j j CE_j / sum_j j (PABEE, Zhou et al. 2020, eq. 6)."""

    def loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
        weights = [layer / sum(batch.exit_layers) for layer in batch.exit_layers]
        return joint_loss(output.exit_logits, batch.labels, weights, batch.class_weights)

    return Recipe("pabee", (Stage(loss, EXITS),))


def gradient_equilibrium(name: str, exit_layers: Sequence[int]) -> float:
    """Factor of a parameter's gradient: 1 / (exits at its layer or deeper) in the backbone, 1 in the heads.

    Gradient equilibrium (Li et al., ICCV 2019) scales what flows back at each exit so that each layer gets the mean instead of
    the sum of the gradients of the exits above it. The factors of the way multiply to this one. Adam is blind to a constant
    factor: with it only gradient clipping feels the difference.

    Args:
        name: of the parameter.
        exit_layers: the exits' layers.
    """
    if not name.startswith("bert."):
        return 1.0
    layer = re.match(r"bert\.encoder\.layer\.(\d+)\.", name)
    depth = 0 if layer is None else int(layer[1]) + 1
    return 1.0 / sum(exit_layer >= depth for exit_layer in exit_layers)


def berxit() -> Recipe:
    """By turns, step by step: the last exit's cross entropy, and that of all exits (BERxiT, Xin et al. 2021, "alternating")."""
    return Recipe("berxit", (Stage(_last_exit_loss), Stage(_joint_loss, EXITS)), alternating=True)


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


def deebert(finetune: float = 0.5) -> Recipe:
    """Two steps: fine-tune the full model, then the early heads by their cross entropies, the rest frozen (DeeBERT, Xin et al.
    2020).

    Args:
        finetune: as in `fastbert`.
    """

    def loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
        return joint_loss(output.exit_logits[:-1], batch.labels, class_weights=batch.class_weights)

    return _two_steps("deebert", finetune, Stage(loss, EXITS))


def frozen() -> Recipe:
    """Exits for a model that is fine-tuned already, whose full-depth answers stay as they are to the bit.

    FastBERT's second step alone: the early heads learn the last exit's answers. Labels are not needed.
    """
    return dataclasses.replace(fastbert(finetune=0.0), name="frozen")


def distillation(
    alpha: float = 1.0, temperature: float = 2.0, pairing: str = "next", feature: float = 0.0, order: str = "together"
) -> Recipe:
    """Every exit's cross entropy, and layer-wise distillation between exits (Gu et al. 2023; see `training.distillation`).

    With `MultiExitTrainer(curriculum=...)` beside it, it is our reconstruction of all of Gu et al., IJSEKE 33(3):395-413.

    Args:
        alpha: weight of the distillation between answers.
        temperature: of that distillation.
        pairing: each exit learns from the "next" one, the "last", all "deeper" ones, or the trainer's external "teacher".
        feature: weight of the distillation between hidden states.
        order: "together", or "shallow_to_deep": one exit more learns from its teacher in each equal part of the training.
    """
    check_number("alpha", alpha, 0.0)
    check_number("temperature", temperature, 1e-3)
    check_choice("pairing", pairing, PAIRINGS)
    check_number("feature", feature, 0.0)
    check_choice("order", order, ORDERS)
    if feature and pairing == "teacher":
        raise ValueError("feature must be 0 with pairing 'teacher': hidden states are compared between the model's own exits")

    def loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
        schedule = {"pairing": pairing, "progress": batch.progress, "order": order}
        total = joint_loss(output.exit_logits, batch.labels, class_weights=batch.class_weights)
        if alpha:
            total = total + alpha * layerwise_distillation_loss(
                output.exit_logits, temperature=temperature, teacher_logits=batch.teacher_logits, **schedule
            )
        if feature:
            states = [output.hidden_states[layer] for layer in batch.exit_layers]
            total = total + feature * feature_loss(states, batch.attention_mask, **schedule)
        return total

    forward = {**EXITS, "output_hidden_states": True} if feature else EXITS
    return Recipe("distillation", (Stage(loss, forward, needs_teacher=pairing == "teacher"),))


RECIPES: dict[str, Callable[..., Recipe]] = {
    "berxit": berxit,
    "deebert": deebert,
    "distillation": distillation,
    "fastbert": fastbert,
    "frozen": frozen,
    "geep": geep,
    "joint": joint,
    "pabee": pabee,
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

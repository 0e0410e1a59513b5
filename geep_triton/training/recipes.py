"""The recipes by name."""

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
from geep_triton.training.losses import geep_loss, joint_loss, self_distillation_loss
from geep_triton.training.smartbert import smartbert
from geep_triton.training.stages import Batch, Recipe, Stage, asked

EXITS = {"output_exit_logits": True}


def _learned(exit_logits: Sequence[torch.Tensor], batch: Batch, exit_weights: Sequence[float] | None = None) -> torch.Tensor:
    """The sum of what exits lose on the labels."""
    return joint_loss(exit_logits, asked(batch.labels), exit_weights, batch.class_weights, batch.objective)


def _geep_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return geep_loss(
        asked(output.exit_logits), asked(output.shared_logits), asked(batch.labels), batch.class_weights, batch.objective
    )


def _last_exit_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return batch.objective.learn(asked(output.logits), asked(batch.labels), batch.class_weights)


def _joint_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return _learned(asked(output.exit_logits), batch)


def _self_distillation_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return self_distillation_loss(asked(output.exit_logits), batch.objective)


def geep() -> Recipe:
    """Sub-networks through the shared last layer, and self-distillation, in one stage (GEEP, doi 10.1007/s11704-022-2341-9)."""
    return Recipe("geep", (Stage(_geep_loss, {**EXITS, "output_shared_logits": True}),))


def joint(gradient_scale: bool = False) -> Recipe:
    """The sum of the cross entropies of all exits, which train together.

    Args:
        gradient_scale: whether to scale the backbone's gradients by `gradient_equilibrium`, as ElasticBERT does (Liu et al.
            2022).

    Raises:
        TypeError: `gradient_scale` is not a bool.
    """
    check_bool("gradient_scale", gradient_scale)
    return Recipe("joint", (Stage(_joint_loss, EXITS),), gradient_scale=gradient_equilibrium if gradient_scale else None)


def pabee() -> Recipe:
    """The cross entropies of all exits, weighted by depth: sum_j j CE_j / sum_j j (PABEE, Zhou et al. 2020, eq. 6)."""

    def loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
        weights = [layer / sum(batch.exit_layers) for layer in batch.exit_layers]
        return _learned(asked(output.exit_logits), batch, weights)

    return Recipe("pabee", (Stage(loss, EXITS),))


def gradient_equilibrium(name: str, exit_layers: Sequence[int]) -> float:
    """Factor of a parameter's gradient: 1 / (number of exits at its layer or deeper) in the backbone, 1 in the heads.

    Gradient equilibrium (Li et al., ICCV 2019) scales the gradient at each exit so that a layer gets the mean, not the sum, of
    the gradients of the exits above it. The product of these scales is this factor. Adam ignores a constant factor, so with
    Adam only gradient clipping is affected.

    Args:
        name: name of the parameter.
        exit_layers: layers that have an exit.
    """
    if not name.startswith("bert."):
        return 1.0
    layer = re.match(r"bert\.encoder\.layer\.(\d+)\.", name)
    depth = 0 if layer is None else int(layer[1]) + 1
    return 1.0 / sum(exit_layer >= depth for exit_layer in exit_layers)


def berxit() -> Recipe:
    """Alternate between the last exit's cross entropy and that of all exits (BERxiT, Xin et al. 2021, "alternating")."""
    return Recipe("berxit", (Stage(_last_exit_loss), Stage(_joint_loss, EXITS)), alternating=True)


def _two_steps(name: str, finetune: float, exits: Stage) -> Recipe:
    """Train everything but the early heads for a share of the training, then train the early heads."""
    check_number("finetune", finetune, 0.0, 1.0)
    full = Stage(_last_exit_loss, trains="all but early heads", share=finetune or 1.0)
    exits = dataclasses.replace(exits, trains="early heads", share=1.0 - finetune or 1.0)
    return Recipe(name, tuple(stage for stage, share in ((full, finetune), (exits, 1.0 - finetune)) if share > 0))


def fastbert(finetune: float = 0.5) -> Recipe:
    """Fine-tune the full model, then distill it into the early heads with the rest frozen (FastBERT, Liu et al. 2020).

    Args:
        finetune: share of the training for the first stage. 0 leaves a fine-tuned model as it is, 1 trains no early exit.

    Raises:
        ValueError: `finetune` is not in 0..1.
    """
    return _two_steps("fastbert", finetune, Stage(_self_distillation_loss, EXITS, needs_labels=False))


def deebert(finetune: float = 0.5) -> Recipe:
    """Fine-tune the full model, then train the early heads by cross entropy with the rest frozen (DeeBERT, Xin et al. 2020).

    Args:
        finetune: as in `fastbert`.

    Raises:
        ValueError: `finetune` is not in 0..1.
    """

    def loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
        return _learned(asked(output.exit_logits)[:-1], batch)

    return _two_steps("deebert", finetune, Stage(loss, EXITS))


def frozen() -> Recipe:
    """Add exits to a fine-tuned model. Its full-depth answers do not change by a single bit.

    This is FastBERT's second stage alone: the early heads learn the answers of the last exit. It needs no labels.
    """
    return dataclasses.replace(fastbert(finetune=0.0), name="frozen")


def distillation(
    alpha: float = 1.0, temperature: float = 2.0, pairing: str = "next", feature: float = 0.0, order: str = "together"
) -> Recipe:
    """The cross entropies of all exits plus layer-wise distillation between exits (Gu et al. 2023, see
    `training.distillation`).

    Together with `MultiExitTrainer(curriculum=...)` this is *our reconstruction* of Gu et al., IJSEKE 33(3):395-413.

    Args:
        alpha: weight of the distillation between answers.
        temperature: temperature of the distillation between answers.
        pairing: the teacher of each exit: the "next" exit, the "last" one, all "deeper" ones, or the trainer's external
            "teacher".
        feature: weight of the distillation between hidden states.
        order: "together", or "shallow_to_deep" if one more exit learns from its teacher in each equal part of the training.

    Raises:
        ValueError: a setting is out of range, or `feature` is used with pairing "teacher".
        TypeError: a setting has another type.
    """
    check_number("alpha", alpha, 0.0)
    check_number("temperature", temperature, 1e-3)
    check_choice("pairing", pairing, PAIRINGS)
    check_number("feature", feature, 0.0)
    check_choice("order", order, ORDERS)
    if feature and pairing == "teacher":
        raise ValueError("feature must be 0 with pairing 'teacher': hidden states are compared between the model's own exits")

    def loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
        exits = asked(output.exit_logits)
        schedule: dict[str, Any] = {"pairing": pairing, "progress": batch.progress, "order": order}
        total = _learned(exits, batch)
        if alpha:
            total = total + alpha * layerwise_distillation_loss(
                exits, temperature=temperature, teacher_logits=batch.teacher_logits, objective=batch.objective, **schedule
            )
        if feature:
            states = [asked(output.hidden_states)[layer] for layer in batch.exit_layers]
            total = total + feature * feature_loss(states, asked(batch.attention_mask), **schedule)
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
    """A recipe by name with its settings (the arguments of the function of that name), or a `Recipe` as it is.

    Raises:
        ValueError: the recipe or a setting is unknown (the error names the known ones), or settings are given with a `Recipe`.
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

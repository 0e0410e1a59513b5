"""The parts of a recipe: stages, each with its loss, its forward options and the parameters that it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import nn

from geep_triton.checks import check_choice, check_number
from geep_triton.config import MultiExitBertConfig
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.training.losses import CLASSES, Objective


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loss may need besides the model's output.

    Attributes:
        labels: [B] int64, or None for unlabelled data; [B] float32 for scores, [B, C] float32 for label sets.
        attention_mask: [B, S], 1 for real tokens.
        exit_layers: layers that have an exit, ascending.
        class_weights: [C], or None.
        teacher_logits: [B, C] of an external teacher, or None.
        progress: share of the stage that is over, 0 <= progress < 1.
        objective: by what exits learn; see `geep_triton.training.losses.objective_of`.
    """

    labels: torch.Tensor | None
    attention_mask: torch.Tensor | None = None
    exit_layers: tuple[int, ...] = ()
    class_weights: torch.Tensor | None = None
    teacher_logits: torch.Tensor | None = None
    progress: float = 0.0
    objective: Objective = CLASSES


T = TypeVar("T")
Loss = Callable[[MultiExitBertOutput, Batch], torch.Tensor]


def asked(value: T | None) -> T:
    """What a loss reads of output or batch. TypeError where it is not there, since its stage did not ask for it."""
    if value is None:
        raise TypeError("the stage's loss reads what the stage did not ask for: see forward, needs_labels and needs_teacher")
    return value


def _is_early_head(name: str, last_layer: int) -> bool:
    return name.startswith("heads.") and not name.startswith(f"heads.{last_layer}.")


# Parts of a model that can train. Each function takes a parameter's name and the number of the last layer.
PARTS: dict[str, Callable[[str, int], bool]] = {
    "all": lambda name, last_layer: True,
    "heads": lambda name, last_layer: name.startswith("heads."),
    "early heads": _is_early_head,
    "all but early heads": lambda name, last_layer: not _is_early_head(name, last_layer),
}


@dataclass(frozen=True)
class Stage:
    """One part of the training.

    Attributes:
        loss: maps a model output and a batch to a scalar, which is a mean over the batch.
        forward: options of `MultiExitBert.forward` besides its inputs. They should ask for no more than the loss uses. A
            function gets the share of the stage that is over and returns the options.
        trains: a name in `PARTS`, or a function of a parameter's name and the number of the last layer that says whether the
            parameter trains. All other parameters are frozen and their modules are in evaluation mode, as in inference.
        share: share of the training steps, relative to the shares of the other stages.
        needs_labels: whether the loss reads `Batch.labels`.
        needs_teacher: whether the loss reads `Batch.teacher_logits`.

    Raises:
        ValueError: `trains` names an unknown part, or `share` is not above 0.
        TypeError: a setting has another type.
    """

    loss: Loss
    forward: Mapping[str, Any] | Callable[[float], Mapping[str, Any]] = field(default_factory=dict)
    trains: str | Callable[[str, int], bool] = "all"
    share: float = 1.0
    needs_labels: bool = True
    needs_teacher: bool = False

    def __post_init__(self) -> None:
        if not callable(self.trains):
            check_choice("trains", self.trains, PARTS)
        check_number("share", self.share, 1e-6)

    def asks(self, progress: float) -> Mapping[str, Any]:
        """Options of the forward pass at this progress, which is the share of the stage that is over."""
        return self.forward(progress) if callable(self.forward) else self.forward

    def wants(self, name: str, last_layer: int) -> bool:
        """Whether the parameter of this name trains."""
        chosen = self.trains if callable(self.trains) else PARTS[self.trains]
        return chosen(name, last_layer)


@dataclass(frozen=True)
class Recipe:
    """One way to train a MultiExitBert.

    Attributes:
        name: the name that `MultiExitTrainer(recipe=...)` takes.
        stages: run one after another, each with its own learning rate schedule.
        alternating: if True, the stages take turns step by step instead (BERxiT).
        gradient_scale: maps a parameter's name and the exit layers to a factor for its gradient. None: the factor is 1.
        modules: maps the configuration to an extra module that is needed only in training, or None. The module trains with the
            model as `model.auxiliary` and is saved in checkpoints. It is removed after the training. In each training step it
            is called with the model, its output and the attention mask [B, S], and its result becomes `output.auxiliary`.
        gates: whether the recipe trains skip gates.
        settings: the settings of a named recipe. Checkpoints store the name and the settings.

    Raises:
        ValueError: there are no stages.
    """

    name: str
    stages: tuple[Stage, ...]
    alternating: bool = False
    gradient_scale: Callable[[str, tuple[int, ...]], float] | None = None
    modules: Callable[[MultiExitBertConfig], nn.Module] | None = None
    gates: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"recipe {self.name!r} has no stages")

    def bounds(self, max_steps: int) -> list[int]:
        """The first step of each stage, followed by `max_steps`. Alternating stages share one range.

        Raises:
            ValueError: there are fewer steps than stages.
        """
        if self.alternating:
            return [0, max_steps]
        total = sum(stage.share for stage in self.stages)
        bounds = [0, *(round(max_steps * share / total) for share in accumulate(stage.share for stage in self.stages))]
        if len(set(bounds)) != len(bounds):
            raise ValueError(
                f"recipe {self.name!r} divides the training into {len(self.stages)} stages, but {max_steps} steps are too few "
                "for them"
            )
        return bounds

    def at(self, step: int, max_steps: int) -> tuple[int, float]:
        """Stage of a training step.

        Args:
            step: number of the step, from 0.
            max_steps: number of steps of the training.

        Returns:
            The index of the stage and the share of it that is over.
        """
        if self.alternating:
            return step % len(self.stages), step / max_steps
        bounds = self.bounds(max_steps)
        index = next((i for i, end in enumerate(bounds[1:]) if step < end), len(self.stages) - 1)
        first, end = bounds[index : index + 2]
        return index, (step - first) / (end - first)

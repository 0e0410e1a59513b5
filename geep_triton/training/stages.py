"""What a recipe is made of: stages, each with its loss, what the forward pass returns for it, and what trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from geep_triton.checks import check_choice, check_number
from geep_triton.config import MultiExitBertConfig
from geep_triton.modeling.outputs import MultiExitBertOutput


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loss may need besides the model's output.

    Attributes:
        labels: [B] int64; None in unlabelled data.
        attention_mask: [B, S], 1 for real tokens.
        exit_layers: the exits' layers, ascending.
        class_weights: [C], or None.
        teacher_logits: [B, C] of an external teacher, or None.
        progress: share of the stage that is over, 0 <= progress < 1.
    """

    labels: torch.Tensor | None
    attention_mask: torch.Tensor | None = None
    exit_layers: tuple[int, ...] = ()
    class_weights: torch.Tensor | None = None
    teacher_logits: torch.Tensor | None = None
    progress: float = 0.0


Loss = Callable[[MultiExitBertOutput, Batch], torch.Tensor]


def _is_early_head(name: str, last_layer: int) -> bool:
    return name.startswith("heads.") and not name.startswith(f"heads.{last_layer}.")


# Parts of a model that can train: (name of a parameter, number of the last layer) -> whether it does.
PARTS: dict[str, Callable[[str, int], bool]] = {
    "all": lambda name, last_layer: True,
    "heads": lambda name, last_layer: name.startswith("heads."),
    "early heads": _is_early_head,
    "all but early heads": lambda name, last_layer: not _is_early_head(name, last_layer),
}


@dataclass(frozen=True)
class Stage:
    """A stretch of the training.

    Attributes:
        loss: model output and batch -> scalar, a mean over the batch.
        forward: what `MultiExitBert.forward` is asked for besides its inputs, no more than the loss uses; or a function of the
            share of the stage that is over.
        trains: one of `PARTS`, or a function (name of a parameter, number of the last layer) -> whether it trains. The rest is
            frozen and in evaluation mode, so that it answers as it will answer when it is used.
        share: of the training's steps, relative to the other stages' shares.
        needs_labels: whether the loss reads `Batch.labels`.
        needs_teacher: whether it reads `Batch.teacher_logits`.

    Raises:
        ValueError, TypeError: an unknown part, or a share that is not above 0.
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
        """What the forward pass is asked for when so much of the stage is over."""
        return self.forward(progress) if callable(self.forward) else self.forward

    def wants(self, name: str, last_layer: int) -> bool:
        """Whether the parameter of this name trains."""
        chosen = self.trains if callable(self.trains) else PARTS[self.trains]
        return chosen(name, last_layer)


@dataclass(frozen=True)
class Recipe:
    """One way to train a MultiExitBert.

    Attributes:
        name: as given to `MultiExitTrainer(recipe=...)`.
        stages: run one after another, each with a learning-rate schedule of its own.
        alternating: the stages take turns step by step instead (BERxiT).
        gradient_scale: (name of a parameter, exit layers) -> factor of its gradient; None: 1 for all.
        modules: configuration -> a module of the recipe's own, which trains with the model as `model.auxiliary`, is in its
            checkpoints and leaves it when the training is over. In each training step it is called with the model, its output
            and the attention mask [B, S], and makes `output.auxiliary`. None: none.
        gates: whether it is made for skip gates.
        settings: that a named recipe was made with; checkpoints remember name and settings.

    Raises:
        ValueError: no stages.
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
        """First step of each stage, then `max_steps`; stages that take turns share one stretch.

        Raises:
            ValueError: fewer steps than stages.
        """
        if self.alternating:
            return [0, max_steps]
        total = sum(stage.share for stage in self.stages)
        bounds = [0, *(round(max_steps * share / total) for share in accumulate(stage.share for stage in self.stages))]
        if len(set(bounds)) != len(bounds):
            raise ValueError(
                f"recipe {self.name!r} divides the training into {len(self.stages)} stages, for which {max_steps} steps are "
                "too few"
            )
        return bounds

    def at(self, step: int, max_steps: int) -> tuple[int, float]:
        """(index of the stage, share of it that is over) at a step of the training, counted from 0."""
        if self.alternating:
            return step % len(self.stages), step / max_steps
        bounds = self.bounds(max_steps)
        index = next((i for i, end in enumerate(bounds[1:]) if step < end), len(self.stages) - 1)
        first, end = bounds[index : index + 2]
        return index, (step - first) / (end - first)

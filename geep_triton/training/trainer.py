"""MultiExitTrainer: transformers' Trainer with a recipe's loss and the accuracy of every exit."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction, Trainer
from transformers.utils import logging

from geep_triton.checks import check_number
from geep_triton.modeling.model import MultiExitBert
from geep_triton.training.recipes import Recipe, get_recipe

logger = logging.get_logger(__name__)


class MultiExitTrainer(Trainer):
    """Trains a `MultiExitBert` by a recipe; everything else is transformers' Trainer (Accelerate, mixed precision,
    checkpoints and resume, several processes, callbacks).

    Evaluation runs every exit: predictions are logits [N, exits, C], and unless `compute_metrics` is given the metrics are
    `accuracy_exit_<layer>` and `accuracy` (the last exit).

    Args:
        *args, **kwargs: of `transformers.Trainer`.
        head_learning_rate: of the exit heads, where it differs from the backbone's; new heads learn faster with about ten
            times as much.
        recipe: name of a recipe (see `geep_triton.training.recipes.RECIPES`) or a `Recipe`.

    Raises:
        ValueError: unknown recipe, a regression model, or arguments that would replace the recipe's loss.
        TypeError: another kind of model.
    """

    # A recipe's loss is a mean over the batch: the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self, *args: Any, recipe: str | Recipe = "geep", head_learning_rate: float | None = None, **kwargs: Any
    ) -> None:
        self.recipe = get_recipe(recipe)
        if head_learning_rate is not None:
            check_number("head_learning_rate", head_learning_rate, 0.0, 1.0)
        self.head_learning_rate = head_learning_rate
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError(
                "compute_loss_func and label_smoothing_factor would be ignored: the recipe makes the loss; "
                "pass a Recipe with a loss of your own"
            )
        if not isinstance(self.model, MultiExitBert):
            raise TypeError(f"model must be a MultiExitBert, got {type(self.model).__name__}")
        if self.model.config.num_labels < 2:
            raise ValueError(f"recipe {self.recipe.name!r} needs classes, but the model is a regression (num_labels=1)")
        if self.compute_metrics is None:
            self.compute_metrics = self._exit_accuracies

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer; what the model holds about its old weights is dropped: table, temperatures, calibration."""
        if self.model.exit_table is not None:
            logger.warning("The model's exit table is dropped, since training changes its exits: build it again afterwards.")
            self.model.exit_table = None
        self.model.forget_calibration()
        self.model.config.exit_temperatures = None
        return super().train(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """transformers' optimizer, with the heads in groups of their own where they have their own learning rate."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.head_learning_rate is None:
            return optimizer
        heads = {id(parameter) for parameter in self.model.heads.parameters()}
        for group in list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in heads]
            if own:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in heads]
                optimizer.add_param_group({**group, "params": own, "lr": self.head_learning_rate})
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The recipe's loss, a mean over the batch."""
        features = {name: value for name, value in inputs.items() if name != "labels"}
        output = model(**features, **self.recipe.forward)
        loss = self.recipe.loss(output, inputs["labels"])
        return (loss, output) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Loss (mean cross entropy over exits), logits [B, exits, C], labels [B]."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, output_exit_logits=True)
        loss = None if output.loss is None else output.loss.detach()
        if prediction_loss_only:
            return loss, None, None
        return loss, torch.stack(output.exit_logits, dim=1).float(), inputs.get("labels")

    def _exit_accuracies(self, prediction: EvalPrediction) -> dict[str, float]:
        correct = (prediction.predictions.argmax(-1) == prediction.label_ids[:, None]).mean(0)
        metrics = {
            f"accuracy_exit_{layer}": float(value) for layer, value in zip(self.model.config.exit_layers, correct, strict=True)
        }
        return {**metrics, "accuracy": float(correct[-1])}

"""MultiExitTrainer: transformers' Trainer with a recipe's loss and the accuracy of every exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import SequentialLR
from torch.utils.data import Dataset, Sampler, SequentialSampler
from torch.utils.hooks import RemovableHandle
from transformers import EvalPrediction, PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, TrainOutput, has_length
from transformers.utils import logging

from geep_triton.answers import kind_of
from geep_triton.checks import check_number
from geep_triton.modeling.model import MultiExitBert
from geep_triton.training.checkpoints import RecipeRecord, check_same_recipe, check_same_steps, checkpoint_of
from geep_triton.training.curriculum import TrainSampler
from geep_triton.training.freezing import StageParameters, scale_gradients
from geep_triton.training.frequencies import start_at_frequencies
from geep_triton.training.losses import Objective, objective_of
from geep_triton.training.metrics import exit_metric
from geep_triton.training.recipes import get_recipe
from geep_triton.training.requirements import (
    check_curriculum,
    check_difficulty,
    check_gates,
    check_labels,
    check_stopping,
    check_targets_of,
    check_teacher,
    labels_of,
    refuse_unlabelled,
    resolve_class_weights,
    teacher_logits,
)
from geep_triton.training.stages import Batch, Recipe

logger = logging.get_logger(__name__)

WANT_METRICS = ("reduce_lr_on_plateau", "greedy")  # these schedules follow evaluations, not steps


class MultiExitTrainer(Trainer):
    """Trains a `MultiExitBert` by a recipe.

    Everything else is transformers' Trainer: Accelerate, mixed precision, checkpoints and resume, several processes, callbacks.

    All stages of a recipe run within one `train()`. The stage depends only on the global step, so a resumed training continues
    in the right stage. The optimizer holds the parameters of all stages. Each stage has its own learning rate schedule.

    What an exit's loss is depends on the model: cross entropy for classes; squared loss for one score (num_labels=1); logistic
    loss with the problem type "multi_label_classification". Where a recipe lets an exit learn the answers of another one, it
    does so in the same unit. New exits of label sets start at the frequencies of the labels.

    Evaluation runs every exit. Predictions are logits [N, exits, C]. Without `compute_metrics`, the metrics are
    `accuracy_exit_<layer>` and `accuracy` (of the last exit); `mse` instead of `accuracy` for a score, and `f1` (micro average)
    for label sets.

    Args:
        *args: arguments of `transformers.Trainer`.
        recipe: name of a recipe (see `geep_triton.training.recipes.RECIPES`) or a `Recipe`, which `get_recipe(name,
            **settings)` makes.
        head_learning_rate: learning rate of the exit heads and of a recipe's own modules. None: the backbone's. About ten times
            the backbone's suits new heads.
        gate_learning_rate: learning rate of the skip gates. None: the backbone's.
        curriculum: maps the share of the training that is over to the share of the training set to draw from, easiest samples
            first (both 0..1). Pass a `geep_triton.training.curriculum.Curriculum` or your own function. None: all samples are
            used from the start.
        difficulty: one number per training sample for a curriculum, higher is harder. See `geep_triton.training.difficulty`.
        teacher: a classifier with the same classes and token ids, for recipes that learn from one.
        class_weights: one factor per class or label for the losses on labels, or "balanced" for N / (C * samples of the class).
        **kwargs: keyword arguments of `transformers.Trainer`.

    Raises:
        ValueError: the recipe is unknown, or an argument would replace the recipe's loss.
        ValueError: there are no rows, or labels are not of the model's kind. Labels that cannot be read before
            the training are checked while it runs.
        ValueError: a difficulty, teacher or class weights are missing, have no use in this training, or do not fit it.
        ValueError: while training, a stage has nothing to train, there are fewer steps than stages, a batch has no labels, the
            checkpoint is of another recipe, or early stopping is used with several stages.
        TypeError: `model` is not a MultiExitBert, or `curriculum` cannot be called.
    """

    model: MultiExitBert
    # A recipe's loss is a mean over the batch, so the Trainer has to divide it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        recipe: str | Recipe = "joint",
        head_learning_rate: float | None = None,
        gate_learning_rate: float | None = None,
        curriculum: Callable[[float], float] | None = None,
        difficulty: Sequence[float] | torch.Tensor | None = None,
        teacher: PreTrainedModel | None = None,
        class_weights: Sequence[float] | str | None = None,
        **kwargs: Any,
    ) -> None:
        self.recipe = get_recipe(recipe)
        self.curriculum = check_curriculum(curriculum)
        self._learning_rates = {"heads": head_learning_rate, "auxiliary": head_learning_rate, "gates": gate_learning_rate}
        for name, rate in (("head_learning_rate", head_learning_rate), ("gate_learning_rate", gate_learning_rate)):
            if rate is not None:
                check_number(name, rate, 0.0, 1.0)
        self._labels_are_checked = False
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError(
                "compute_loss_func and label_smoothing_factor would be ignored: the recipe makes the loss; "
                "pass a Recipe with a loss of your own"
            )
        _checked_model(self.model).check_config()
        self.kind = kind_of(self.model.config)
        if self.kind == "score" and self.model.config.problem_type == "single_label_classification":
            raise ValueError(
                "problem_type single_label_classification with num_labels=1 has nothing to learn: set 'regression' for a "
                "score, or 'multi_label_classification' for the probability of one label"
            )
        self.objective: Objective = objective_of(self.model.config)
        if gate_learning_rate is not None and not len(self.model.gates):
            raise ValueError("gate_learning_rate would be ignored: the model has no skip gates")
        if self.recipe.modules is not None and self.optimizer is not None:
            raise ValueError(f"recipe {self.recipe.name!r} has its own modules, which your optimizer would not train")
        if self.train_dataset is not None and has_length(self.train_dataset) and not len(self.train_dataset):
            raise ValueError("train_dataset has no rows")
        if self.compute_metrics is None:
            self.compute_metrics = self._exit_metrics
        self._check_unlabelled()
        self._labels_are_checked = self._check_labels()
        self.teacher = check_teacher(teacher, self.model, self.recipe)
        self.class_weights = resolve_class_weights(class_weights, self.model, self.recipe, self.train_dataset)
        self.difficulty = check_difficulty(difficulty, self.curriculum, self.train_dataset)
        self.add_callback(RecipeRecord.of(self.recipe, self.curriculum))
        self._stages: list[StageParameters] = []
        self._flags: list[tuple[nn.Parameter, bool]] = []  # as the user set them
        self._hooks: list[RemovableHandle] = []
        self._resumes_from: Path | None = None

    def _check_unlabelled(self) -> None:
        """Raise ValueError if a data set shows no labels and the recipe or an evaluation needs them."""
        if self._needs_labels and self.train_dataset is not None:
            refuse_unlabelled("train_dataset", self.train_dataset, f"recipe {self.recipe.name!r}")
        strategy = IntervalStrategy(self.args.eval_strategy).value
        if strategy != "no":
            for name, dataset in self._eval_datasets().items():
                refuse_unlabelled(name, dataset, f"evaluation (eval_strategy={strategy!r})")

    def _check_labels(self) -> bool:
        """Whether all labels of the training set are known to be classes."""
        for name, dataset in self._eval_datasets().items():
            check_labels(name, dataset, self.model.config)
        if self.train_dataset is None or not self._needs_labels:
            return False
        return check_labels("train_dataset", self.train_dataset, self.model.config)

    @property
    def _needs_labels(self) -> bool:
        return any(stage.needs_labels for stage in self.recipe.stages)

    def _eval_datasets(self) -> dict[str, Any]:
        """The evaluation data sets by the names that errors use."""
        if isinstance(self.eval_dataset, dict):
            return {f"eval_dataset[{name!r}]": dataset for name, dataset in self.eval_dataset.items()}
        return {} if self.eval_dataset is None else {"eval_dataset": self.eval_dataset}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as transformers' Trainer does. The model's exit table, temperatures and calibration are dropped, because
        training changes the exits.

        Args:
            resume_from_checkpoint: path of a checkpoint, or True for the newest one in `args.output_dir`.
            **kwargs: as in transformers' Trainer.

        Raises:
            ValueError: the checkpoint is missing, damaged, or of another recipe or number of steps; early stopping is used with
                several stages; or the errors of the class that occur while training.
        """
        self._resumes_from = checkpoint_of(resume_from_checkpoint, str(self.args.output_dir))
        if self._resumes_from is not None:
            check_same_recipe(RecipeRecord.of(self.recipe, self.curriculum), self._resumes_from)
        check_stopping(self.recipe, self.callback_handler.callbacks, self.args.load_best_model_at_end)
        check_gates(self.recipe, self.model)
        if self.model.exit_table is not None:
            logger.warning("The model's exit table is dropped, because training changes its exits: build it again afterwards.")
            self.model.exit_table = None
        self.model.forget_calibration()
        if self.model.exit_config.temperatures is not None:
            logger.warning("The model's exit temperatures are dropped, including the last exit's: fit them again afterwards.")
            self.model.exit_config.temperatures = None
        if self.model.exit_config.max_length is not None:
            logger.warning("The model's max_length is dropped, because it is that of another training: set it again.")
            self.model.exit_config.max_length = self.model.exit_config.truncation = None
        self._prepare(self.model)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for parameter, flag in self._flags:
                parameter.requires_grad_(flag)
            self.model.auxiliary = None
            for hook in self._hooks:
                hook.remove()

    def call_model_init(self, *args: Any, **kwargs: Any) -> MultiExitBert:
        """Make a new model as transformers' Trainer does for each `train()`, with the recipe's modules."""
        model = _checked_model(super().call_model_init(*args, **kwargs))
        self._prepare(model)
        return model

    def _prepare(self, model: MultiExitBert) -> None:
        """Add the recipe's modules and start new exits, before a checkpoint is loaded that has their weights too."""
        if self.recipe.modules is not None:
            model.auxiliary = self.recipe.modules(model.config).to(model.device, model.dtype)
        if kind_of(model.config) == "label sets" and self._labels_are_checked and self.class_weights is None:
            start_at_frequencies(model, labels_of(self.train_dataset) or ())

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """transformers' optimizer over the parameters that any stage trains. Heads and gates with their own learning rates form
        their own groups.
        """
        self._flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self._stages = [StageParameters(self.model, self.recipe, stage) for stage in self.recipe.stages]
        for flags in zip(*(stage.flags for stage in self._stages), strict=True):
            flags[0][0].requires_grad_(any(trains for _, trains in flags))
        if self.recipe.gradient_scale is not None:
            self._hooks = scale_gradients(self.model, self.recipe.gradient_scale)
        optimizer = super().create_optimizer(*args, **kwargs)
        for name, rate in self._learning_rates.items():
            part = getattr(self.model, name)
            own = set() if rate is None or part is None else {id(parameter) for parameter in part.parameters()}
            for group in list(optimizer.param_groups):
                apart = [parameter for parameter in group["params"] if id(parameter) in own]
                if apart:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
                    optimizer.add_param_group({**group, "params": apart, "lr": rate})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """transformers' learning rate schedule for each stage. It starts anew with each stage, including warm-up.

        Raises:
            ValueError: there are fewer steps than stages, the checkpoint is of a training with another number of steps, or the
                schedule follows evaluations and the recipe has several stages.
        """
        if self._resumes_from is not None:
            check_same_steps(self.recipe, self.curriculum, self._resumes_from, num_training_steps)
        bounds = self.recipe.bounds(num_training_steps)
        if self.lr_scheduler is not None or len(bounds) == 2:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.args.lr_scheduler_type in WANT_METRICS:
            raise ValueError(
                f"lr_scheduler_type {self.args.lr_scheduler_type!s} cannot start anew with each stage of recipe "
                f"{self.recipe.name!r}, because it follows evaluations: use linear, cosine, constant_with_warmup or the like"
            )
        schedules = []
        for first, end in pairwise(bounds):
            self.lr_scheduler = None
            schedules.append(super().create_scheduler(end - first, optimizer))
        self.lr_scheduler = SequentialLR(schedules[0].optimizer, schedules, bounds[1:-1])  # type: ignore[assignment]  # it is stepped and saved, no more
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Our sampler for a curriculum or for batches of similar length, which can resume within an epoch; else transformers'
        sampler.
        """
        dataset = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if self.curriculum is None and not grouped:
            return super()._get_train_sampler(train_dataset)
        if not has_length(dataset):
            raise ValueError("a curriculum and group_by_length need a training set with a length")
        if not grouped and self.args.train_sampling_strategy != "random":
            raise ValueError(
                "a curriculum chooses its samples by their difficulty: train_sampling_strategy must be random or "
                f"group_by_length, got {self.args.train_sampling_strategy!r}"
            )
        batch_size = self.get_total_train_batch_size(self.args)
        steps = self.args.max_steps
        return TrainSampler(
            len(dataset),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
            difficulty=self.difficulty,
            curriculum=self.curriculum,
            total=steps * batch_size if steps > 0 else math.ceil(self.args.num_train_epochs * len(dataset)),
            lengths=_lengths(dataset) if grouped else None,
            batch_size=batch_size,
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """Keep predictions in the order of the data set. transformers' sampler would follow the sampling strategy of the
        training.
        """
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) and self.args.world_size <= 1 else None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Remove an old trainer_state.json before transformers saves the checkpoint and writes this file last.

        Otherwise the old file would make a half-written checkpoint look complete.
        """
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of the recipe's stage at this step, a mean over the batch.

        Raises:
            ValueError: the batch has no labels, or labels that are not classes.
        """
        index, progress = self.recipe.at(self.state.global_step, self.state.max_steps)
        stage = self.recipe.stages[index]
        self._stages[index].apply()
        features = {name: value for name, value in inputs.items() if name != "labels"}
        if stage.needs_labels and "labels" not in inputs:
            raise ValueError(f"recipe {self.recipe.name!r} needs labels, but the batch has only {', '.join(inputs)}")
        labels = inputs.get("labels")
        if labels is not None and self.kind != "classes":
            labels = labels.float()  # a data set may hold whole numbers as ints
        if stage.needs_labels and labels is not None and not self._labels_are_checked:
            check_targets_of(self.model.config, labels)
        output = model(**features, **stage.asks(progress))
        batch = Batch(
            labels=labels,
            attention_mask=inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])),
            exit_layers=tuple(self.model.config.exit_layers),
            class_weights=None if self.class_weights is None else self.class_weights.to(output.logits.device),
            teacher_logits=teacher_logits(self.teacher, features) if stage.needs_teacher and self.teacher is not None else None,
            progress=progress,
            objective=self.objective,
        )
        loss = stage.loss(output, batch)
        return (loss, output) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as transformers' Trainer does.

        Raises:
            ValueError: nothing was evaluated, because there are no rows or no labels.
        """
        metrics = super().evaluate(*args, **kwargs)
        if not any(name.endswith("loss") for name in metrics):
            raise ValueError(
                "evaluation needs rows with labels, but eval_dataset has no rows or no labels; "
                "MultiExitTrainer.predict gives every exit's answers without labels"
            )
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without a change to the random numbers of the training.

        transformers' data loader draws a seed. A training that resumes at the end of an epoch and does not evaluate there again
        would otherwise draw other numbers.
        """
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Loss (mean over exits), logits [B, exits, C], labels [B]."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, output_exit_logits=True)
        loss = None if output.loss is None else output.loss.detach()
        if prediction_loss_only:
            return loss, None, None
        return loss, torch.stack(output.exit_logits, dim=1).float(), inputs.get("labels")

    def _exit_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        labels, logits = torch.as_tensor(prediction.label_ids), torch.as_tensor(prediction.predictions)
        if self.kind != "classes":
            labels = labels.float()
        check_targets_of(self.model.config, labels)
        name, values = exit_metric(self.model.answers, logits, labels)
        metrics = {
            f"{name}_exit_{layer}": float(value) for layer, value in zip(self.model.config.exit_layers, values, strict=True)
        }
        return {**metrics, name: float(values[-1])}


def _checked_model(given: Any) -> MultiExitBert:
    """The model; TypeError where it is of another kind."""
    if not isinstance(given, MultiExitBert):
        raise TypeError(f"model must be a MultiExitBert, got {type(given).__name__}")
    return given


def _lengths(dataset: Any) -> list[int]:
    return [len(sample["input_ids"]) for sample in dataset]

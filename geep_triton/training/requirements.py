"""Checks of the trainer's arguments against its recipe, model and data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import EarlyStoppingCallback, PretrainedConfig, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

from geep_triton.answers import is_logistic, kind_of
from geep_triton.checks import LARGEST_SCORE, shorten
from geep_triton.config import MultiExitBertConfig
from geep_triton.labels import check_label_sets, check_scores, check_targets
from geep_triton.modeling.loading import is_fine_tuned
from geep_triton.modeling.model import MultiExitBert
from geep_triton.training.dataset import TextDataset
from geep_triton.training.stages import Recipe, Stage

logger = logging.get_logger(__name__)

LABEL_COLUMNS = {"labels", "label", "label_ids"}


def check_stopping(recipe: Recipe, callbacks: Iterable[TrainerCallback], load_best_model_at_end: bool) -> None:
    """Check options that choose by evaluations, because they do not know about stages.

    Raises:
        ValueError: the recipe has several stages and early stopping could end it before the exits are trained.
    """
    if recipe.alternating or len(recipe.stages) == 1:
        return
    if any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
        raise ValueError(
            f"EarlyStoppingCallback could end recipe {recipe.name!r} in the first of its {len(recipe.stages)} stages, before "
            "its exits are trained: use a recipe of one stage, or train the stages apart, such as fastbert with finetune=1, "
            "then frozen"
        )
    if load_best_model_at_end:
        logger.warning(
            f"load_best_model_at_end may choose a checkpoint from before recipe {recipe.name!r} trained the exits, unless "
            "metric_for_best_model judges them."
        )


def check_last_exit(recipe: Recipe, config: PretrainedConfig) -> None:
    """Check that somebody trains the last exit: the recipe, or whoever made the checkpoint.

    Args:
        recipe: by which the checkpoint will be trained.
        config: of the checkpoint.

    Raises:
        ValueError: nobody does.
    """
    if not is_fine_tuned(config) and not trains_last_exit(recipe.stages, config.num_hidden_layers):
        raise ValueError(
            f"recipe {recipe.name!r} leaves the last exit as it is, but {config.name_or_path} is not fine-tuned: train it by "
            "another recipe first"
        )


def trains_last_exit(stages: Iterable[Stage], last_layer: int) -> bool:
    """Whether one of the stages trains the head of the last layer."""
    return any(stage.wants(f"heads.{last_layer}.", last_layer) for stage in stages)


def check_gates(recipe: Recipe, model: MultiExitBert) -> None:
    """Warn if the model has skip gates and the recipe does not train them."""
    if len(model.gates) and not recipe.gates:
        logger.warning(
            f"The model has skip gates, but recipe {recipe.name!r} is not made for them: they do not learn what layers cost, "
            "or do not learn at all, and Engine skips layers by them all the same. Recipe 'smartbert' trains them; "
            "Engine(..., 'full+skip:never') runs every layer."
        )


def check_curriculum(curriculum: Callable[[float], float] | None) -> Callable[[float], float] | None:
    """Return the curriculum.

    Raises:
        TypeError: it cannot be called.
    """
    if curriculum is not None and not callable(curriculum):
        raise TypeError(
            f"curriculum must be a Curriculum, or a function from the share of the training that is over to the share of the "
            f"training set to draw from, got {shorten(curriculum)}"
        )
    return curriculum


def check_difficulty(
    difficulty: Sequence[float] | torch.Tensor | None,
    curriculum: Callable[[float], float] | None,
    dataset: Dataset | None,
) -> torch.Tensor | None:
    """The difficulties [N] float32 for a training with a curriculum, else None.

    Raises:
        ValueError: difficulties are missing, are given without a curriculum, have another length than the training set, or have
            gaps. The training set has no length, so that no sample can be chosen from it.
        TypeError: a difficulty is not a number.
    """
    if curriculum is None:
        if difficulty is not None:
            raise ValueError("difficulty would be ignored: the training has no curriculum")
        return None
    if dataset is None:
        return None
    if isinstance(dataset, IterableDataset) or not has_length(dataset):
        raise ValueError("a curriculum chooses its samples: train_dataset must have a length and take an index")
    if difficulty is None:
        raise ValueError(
            "a curriculum needs the difficulty of each training sample: from geep_triton.training.difficulty take "
            "cross_review, first_right_exit or difficulty_column"
        )
    if not isinstance(difficulty, torch.Tensor):
        gaps = [index for index, value in enumerate(difficulty) if value is None]
        if gaps:
            raise ValueError(f"difficulty has no number for {len(gaps)} samples, the first being {gaps[0]}")
    try:
        values = torch.as_tensor(difficulty, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"difficulty must be one number per training sample, got {shorten(difficulty)}") from error
    if values.shape != (len(dataset),):
        raise ValueError(f"difficulty must have one number per training sample ({len(dataset)}), got {tuple(values.shape)}")
    gaps = (~values.isfinite()).nonzero()[:, 0].tolist()
    if gaps:
        raise ValueError(f"difficulty must be finite, but is not for {len(gaps)} samples, the first being {gaps[0]}")
    return values


def check_teacher(teacher: PreTrainedModel | None, model: MultiExitBert, recipe: Recipe) -> PreTrainedModel | None:
    """The teacher in evaluation mode on the model's device, or None.

    Raises:
        TypeError: the teacher is not a transformers model.
        ValueError: the recipe needs a teacher and there is none, or the reverse. The teacher has other classes or another
            vocabulary than the model.
    """
    needed = any(stage.needs_teacher for stage in recipe.stages)
    if needed != (teacher is not None):
        raise ValueError(
            f"recipe {recipe.name!r} needs a teacher" if needed else f"recipe {recipe.name!r} has no use for a teacher"
        )
    if teacher is None:
        return None
    if not isinstance(teacher, PreTrainedModel):
        raise TypeError(f"teacher must be a transformers model, got {shorten(teacher)} of type {type(teacher).__name__}")
    own, other = model.config, teacher.config
    if own.num_labels != other.num_labels:
        raise ValueError(f"teacher has {other.num_labels} classes, the model {own.num_labels}")
    if is_logistic(own) != is_logistic(other):
        raise ValueError(f"teacher has the problem_type {other.problem_type!r}, the model {own.problem_type!r}")
    if _has_names(own) and _has_names(other) and own.id2label != other.id2label:
        raise ValueError(f"teacher has the classes {shorten(other.id2label)}, the model {shorten(own.id2label)}")
    if own.vocab_size != other.vocab_size:
        raise ValueError(
            f"teacher has a vocabulary of {other.vocab_size}, the model of {own.vocab_size}: both must read the same ids"
        )
    return teacher.eval().to(model.device)


def _has_names(config: PretrainedConfig) -> bool:
    return config.id2label != {index: f"LABEL_{index}" for index in range(config.num_labels or 0)}


@torch.no_grad()
def teacher_logits(teacher: PreTrainedModel, features: Mapping[str, Any]) -> torch.Tensor:
    """Logits [B, C] of the teacher on a batch, at its full depth."""
    # Without this, a teacher that transformers' Auto classes loaded would answer by its own policy.
    depth = {"exit_layer": teacher.config.num_hidden_layers} if isinstance(teacher, MultiExitBert) else {}
    return teacher(**features, **depth).logits


def check_labels(name: str, dataset: Any, config: MultiExitBertConfig) -> bool:
    """Check the labels of a data set before the training, where they can be read without running the user's code.

    Args:
        name: the name of the data set in errors.
        dataset: the data set.
        config: the model's kind of answers and number of labels.

    Returns:
        Whether the labels were checked. If False, they are checked batch by batch.

    Raises:
        ValueError: there are no rows, or a label does not fit (the error names it and its row).
    """
    if has_length(dataset) and not len(dataset):
        raise ValueError(f"{name} has no rows")
    labels = labels_of(dataset)
    if labels is None:
        return False
    fits, expected = _label_check(config)
    for row, label in enumerate(labels):
        if not fits(label):
            raise ValueError(
                f"{name}: row {row} has the label {shorten(label)}, expected {expected}"
                + (" (drop rows without a label)" if label is None or (_is_int(label) and label == -100) else "")
            )
    return True


def _label_check(config: MultiExitBertConfig) -> tuple[Callable[[Any], bool], str]:
    """Whether a label fits the model, and what labels fit in words."""
    kind, classes = kind_of(config), config.num_labels
    if kind == "classes":
        return lambda label: _is_int(label) and 0 <= int(label) < classes, f"one of the classes 0..{classes - 1}"
    if kind == "label sets":
        return lambda label: _is_set(label, classes), f"a list of {classes} numbers from 0 to 1, one per label"
    if is_logistic(config):
        return lambda label: _is_number(label, 0.0, 1.0), "0, 1 or a probability"
    return _is_number, f"a finite number from -{LARGEST_SCORE:g} to {LARGEST_SCORE:g}"


def _is_int(label: Any) -> bool:
    return isinstance(label, Integral) and not isinstance(label, bool)


def _is_number(label: Any, low: float = -LARGEST_SCORE, high: float = LARGEST_SCORE) -> bool:
    return isinstance(label, Real) and not isinstance(label, bool) and label <= high and not label < low


def _is_set(label: Any, classes: int) -> bool:
    """Whether a label is a number from 0 to 1 for each of the classes."""
    if hasattr(label, "tolist"):  # of numpy or torch
        label = label.tolist()
    if not isinstance(label, Sequence) or isinstance(label, str) or len(label) != classes:
        return False
    return all(isinstance(value, bool) or _is_number(value, 0.0, 1.0) for value in label)


def check_targets_of(config: MultiExitBertConfig, labels: torch.Tensor) -> None:
    """Raise ValueError unless the labels of a batch fit the model. On a GPU the host waits for the check."""
    kind = kind_of(config)
    if kind == "classes":
        check_targets(labels, config.num_labels)
    elif is_logistic(config):
        check_label_sets(labels, config.num_labels)
    else:
        check_scores(labels)


def refuse_unlabelled(name: str, dataset: Any, needed_by: str) -> None:
    """Check that a data set has labels, as far as its columns show it.

    Raises:
        ValueError: it has none.
    """
    columns = _columns(dataset)
    if (isinstance(dataset, TextDataset) and dataset.labels is None) or not (columns is None or set(columns) & LABEL_COLUMNS):
        what = "TextDataset(..., label2id=...) makes them" if columns is None else f"its columns are {', '.join(columns)}"
        raise ValueError(f"{needed_by} needs labels, but {name} has none: {what}")


def _columns(dataset: Any) -> list[str] | None:
    """Columns of a list of rows or of a `datasets.Dataset` without a custom transform, else None."""
    if _is_rows(dataset):
        return list(dict.fromkeys(name for row in dataset for name in row))
    names, form = getattr(dataset, "column_names", None), getattr(dataset, "format", None)
    if not isinstance(names, list) or not has_length(dataset) or form is None or form["type"] == "custom":
        return None
    return names


def labels_of(dataset: Any) -> Iterable[Any] | None:
    """The labels of a data set, if they can be read without running the user's code."""
    if isinstance(dataset, TextDataset):
        return dataset.labels
    column = next((column for column in _columns(dataset) or () if column in LABEL_COLUMNS), None)
    if column is None:
        return None
    return [row.get(column) for row in dataset] if _is_rows(dataset) else dataset.with_format(None)[column]


def _is_rows(dataset: Any) -> bool:
    return isinstance(dataset, (list, tuple)) and all(isinstance(row, Mapping) for row in dataset)


def resolve_class_weights(
    class_weights: Sequence[float] | str | None, model: MultiExitBert, recipe: Recipe, dataset: Dataset | None
) -> torch.Tensor | None:
    """Class weights [C] float32, or None.

    Raises:
        ValueError: the recipe reads no labels, the number of weights is not the number of classes, or a weight is negative or
            not finite. With "balanced": the training set lacks a class or has no labels.
    """
    if class_weights is None:
        return None
    if not any(stage.needs_labels for stage in recipe.stages):
        raise ValueError(f"class_weights would be ignored: recipe {recipe.name!r} reads no labels")
    if (kind := kind_of(model.config)) == "score":
        raise ValueError("class_weights are for classes and label sets, but the model answers with one score")
    if isinstance(class_weights, str):
        if class_weights == "balanced" and kind == "label sets":
            raise ValueError("class_weights 'balanced' are for classes; for label sets pass a number per label")
        if class_weights != "balanced":
            raise ValueError(f"class_weights must be 'balanced' or a number per class, got {shorten(class_weights)}")
        return None if dataset is None else _balanced(dataset, model.config.num_labels)
    weights = torch.as_tensor(class_weights, dtype=torch.float32)
    if weights.shape != (model.config.num_labels,) or not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError(
            f"class_weights must be 'balanced' or {model.config.num_labels} finite numbers from 0, got {shorten(class_weights)}"
        )
    return weights


def _balanced(dataset: Any, classes: int) -> torch.Tensor:
    """N / (C * samples of the class), as [C]."""
    name = next((name for name in ("labels", "label") if name in dataset[0]), None)
    if name is None:
        raise ValueError(f"class_weights 'balanced' needs labels in train_dataset, which has {', '.join(dataset[0])}")
    counts = torch.bincount(torch.tensor([sample[name] for sample in dataset]), minlength=classes)
    if not counts.all():
        raise ValueError(f"class_weights 'balanced' needs samples of every class, got {counts.tolist()} of each")
    return counts.sum() / (classes * counts)

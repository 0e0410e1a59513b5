"""Difficulty of each training sample: by cross review, by the exit that it needs, or from a column."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

import torch
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments

from geep_triton.answers import check_kind_of
from geep_triton.checks import check_int, check_kind, check_tensor, shorten
from geep_triton.modeling.model import MultiExitBert
from geep_triton.tokens.columns import Row
from geep_triton.tokens.samples import check_rows
from geep_triton.training.dataset import TextDataset
from geep_triton.training.recipes import get_recipe
from geep_triton.training.trainer import MultiExitTrainer

Teach = Callable[[Dataset], torch.Tensor]


def cross_review(labels: torch.Tensor, dataset: Dataset, teach: Teach, folds: int = 5, seed: int = 0) -> torch.Tensor:
    """Difficulty by cross review: the number of teachers of other folds that get a sample wrong (Xu et al., ACL 2020).

    Args:
        labels: [N] int64.
        dataset: the N samples.
        teach: trains a teacher on a fold and returns its answers [N] int64 for the whole data set. See `full_model_teacher`.
        folds: number of folds, 2..N.
        seed: seed of the random folds.

    Returns:
        [N] float32, 0..folds - 1.

    Raises:
        ValueError: there are fewer samples than folds.
    """
    check_tensor("labels", labels, 1, torch.int64)
    check_int("folds", folds, 2)
    if folds > len(labels):
        raise ValueError(f"folds must be at most the number of samples ({len(labels)}), got {folds}")
    fold_of = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % folds
    wrong = torch.zeros(len(labels))
    for fold in range(folds):
        taught = fold_of == fold
        answers = teach(Subset(dataset, taught.nonzero()[:, 0].tolist()))
        wrong += (answers != labels) & ~taught
    return wrong


def remembered(teach: Teach, folder: Path) -> Teach:
    """A `teach` that saves the answers of each fold's teacher and reads the answers that are already saved.

    So a cross review that was killed continues with the remaining teachers. The first call is fold 0.

    Args:
        teach: as for `cross_review`.
        folder: where to save the answers. It serves one data set, seed and number of folds.
    """
    fold = count()

    def recall(part: Dataset) -> torch.Tensor:
        path = folder / f"answers_{next(fold)}.json"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}.part")
            unfinished.write_text(json.dumps(teach(part).tolist()))
            unfinished.replace(path)
        return torch.tensor(json.loads(path.read_text()))

    return recall


def full_model_teacher(
    make_model: Callable[[], MultiExitBert],
    args: TrainingArguments,
    data_collator: Callable,
    dataset: TextDataset,
    class_weights: Sequence[float] | str | None = None,
) -> Teach:
    """A `teach` for `cross_review`: it fine-tunes the last exit of a new model on the fold, then answers `dataset`.

    Args:
        make_model: returns a new model.
        args: training arguments of each teacher. They should save nothing.
        data_collator: pads the batches.
        dataset: the samples to answer.
        class_weights: see `MultiExitTrainer`.

    Raises:
        ValueError: while teaching: the model has no classes, so that its answers are neither right nor wrong.
    """

    def teach(fold: Dataset) -> torch.Tensor:
        recipe = get_recipe("fastbert", finetune=1.0)  # finetune=1 is plain fine-tuning
        model = make_model()
        check_kind_of(model.config, ("classes",), "a cross review")
        trainer = MultiExitTrainer(
            model=model,
            args=args,
            train_dataset=fold,
            data_collator=data_collator,
            recipe=recipe,
            class_weights=class_weights,
        )
        trainer.train()
        return torch.as_tensor(trainer.predict(dataset).predictions)[:, -1].argmax(-1)

    return teach


def first_right_exit(exit_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Difficulty by depth: the index of the first exit from which on all answers of a trained model are right.

    Args:
        exit_logits: [N, E, C].
        labels: [N] int64.

    Returns:
        [N] int64, 0..E. It is E if the last exit is wrong.

    Raises:
        ValueError: a tensor has another number of dimensions.
        TypeError: an argument is not a tensor, or `labels` is not int64.
    """
    check_tensor("exit_logits", exit_logits, 3)
    check_tensor("labels", labels, 1, torch.int64)
    right = (exit_logits.argmax(-1) == labels[:, None]).long()
    return right.shape[1] - right.flip(1).cumprod(1).sum(1)


def within_classes(difficulty: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Difficulty as a rank within each class, so that a curriculum takes the same share of every class at each point.

    Where a class is rare, its samples are the hardest for most teachers, and a curriculum over all samples at once keeps the
    class away from the first half of the training. Teachers tell few difficulties apart, so that ties are many: they are broken
    at random within the class. *Our reconstruction*: Gu et al. do not say how they rank.

    Args:
        difficulty: [N], higher is harder.
        labels: [N] int64.
        seed: of the order of ties, at least 0.

    Returns:
        [N] float32, the share of the samples of its class that come before it, 0 up to but not including 1.

    Raises:
        ValueError: a tensor has another number of dimensions, or the lengths differ.
        TypeError: an argument is not a tensor, or `labels` is not int64.
    """
    check_tensor("difficulty", difficulty, 1)
    check_tensor("labels", labels, 1, torch.int64)
    check_int("seed", seed, 0)
    if len(difficulty) != len(labels):
        raise ValueError(f"difficulty and labels must be of one length, got {len(difficulty)} and {len(labels)}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    ordered = shuffled[difficulty[shuffled].argsort(stable=True)]
    ranks = torch.empty(len(labels))
    for label in labels.unique():
        own = ordered[labels[ordered] == label]
        ranks[own] = torch.arange(len(own)) / len(own)
    return ranks


def difficulty_column(rows: Sequence[Row], name: str = "difficulty") -> torch.Tensor:
    """Difficulty from a column of the training rows.

    Args:
        rows: the training rows.
        name: name of the column.

    Returns:
        [N] float32.

    Raises:
        ValueError: rows have no value, or a value that is not a finite number (the error names the rows).
    """
    check_rows(rows)
    for index, row in enumerate(rows):
        check_kind(f"row {index}", row, Mapping)
    gaps = [index for index, row in enumerate(rows) if row.get(name) is None or row[name] == ""]
    if gaps:
        shown = ", ".join(map(str, gaps[:5])) + (f" and {len(gaps) - 5} more" if len(gaps) > 5 else "")
        raise ValueError(f"column {name!r} must have a number in every row; it has none in row {shown}")
    values = []
    for index, row in enumerate(rows):
        try:
            values.append(float(row[name]))
        except (TypeError, ValueError):
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise ValueError(f"column {name!r} must have finite numbers, got {shorten(row[name])} in row {index}")
    return torch.tensor(values)

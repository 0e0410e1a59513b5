"""How hard each training sample is: reviewed by models that never saw it, by the exit it needs, or from a column."""

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

from geep_triton.checks import check_int, check_kind, check_tensor, shorten
from geep_triton.data import Row
from geep_triton.modeling.model import MultiExitBert
from geep_triton.tokens.samples import check_rows
from geep_triton.training.dataset import TextDataset
from geep_triton.training.recipes import get_recipe
from geep_triton.training.trainer import MultiExitTrainer

Teach = Callable[[Dataset], torch.Tensor]


def cross_review(labels: torch.Tensor, dataset: Dataset, teach: Teach, folds: int = 5, seed: int = 0) -> torch.Tensor:
    """Difficulty by cross review (Xu et al., ACL 2020): how many of the teachers of the other folds get a sample wrong.

    Args:
        labels: [N] int64.
        dataset: the N samples.
        teach: trains a teacher on a fold and returns its answers [N] int64 on the whole data set; see `full_model_teacher`.
        folds: 2..N.
        seed: of the random folds.

    Returns:
        [N] float32, 0..folds - 1.

    Raises:
        ValueError: fewer samples than folds.
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
    """`teach` that writes down the answers of each fold's teacher, the first call being fold 0, and reads what is there: a
    cross review that was killed goes on with the teachers that are left.

    Args:
        teach: for `cross_review`.
        folder: for the answers, of one data set, seed and number of folds.
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
    """A `teach` for `cross_review`: fine-tunes a new model's last exit on the fold and has it answer `dataset`.

    Args:
        make_model: gives a fresh model.
        args: of each teacher's training; nothing should be saved.
        data_collator: pads.
        dataset: to answer.
        class_weights: of the teachers' losses; see `MultiExitTrainer`.
    """

    def teach(fold: Dataset) -> torch.Tensor:
        recipe = get_recipe("fastbert", finetune=1.0)  # its first step alone is plain fine-tuning
        trainer = MultiExitTrainer(
            model=make_model(),
            args=args,
            train_dataset=fold,
            data_collator=data_collator,
            recipe=recipe,
            class_weights=class_weights,
        )
        trainer.train()
        return torch.from_numpy(trainer.predict(dataset).predictions[:, -1].argmax(-1))

    return teach


def first_right_exit(exit_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Difficulty by depth: index of the first exit from which a trained model's answer stays right to the end.

    Args:
        exit_logits: [N, E, C].
        labels: [N] int64.

    Returns:
        [N] int64, 0..E, E where the last exit is wrong.
    """
    check_tensor("exit_logits", exit_logits, 3)
    check_tensor("labels", labels, 1, torch.int64)
    right = (exit_logits.argmax(-1) == labels[:, None]).long()
    return right.shape[1] - right.flip(1).cumprod(1).sum(1)


def difficulty_column(rows: Sequence[Row], name: str = "difficulty") -> torch.Tensor:
    """Difficulty from a column of the training rows, [N] float32.

    Raises:
        ValueError: rows without a value, or with something that is no finite number, naming them.
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

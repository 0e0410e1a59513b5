"""The classes of a model that is about to be trained: which there are, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from geep_triton.modeling.loading import is_fine_tuned
from geep_triton.tokens.columns import Row
from geep_triton.training.dataset import label_names


def class_names(
    config: PretrainedConfig, rows: Sequence[Row], names: Sequence[str] | None = None, problem_type: str | None = None
) -> list[str] | None:
    """Names of the classes or labels by number. None: those of the checkpoint, whose numbers never change; or a score has none.

    Args:
        config: of the checkpoint.
        rows: the training rows, with labels.
        names: what the user says.
        problem_type: what the model shall answer with. None: as the checkpoint says.

    Raises:
        ValueError: the checkpoint is fine-tuned and has no names for its classes, and the rows do; or labels are missing or of
            another kind.
    """
    if names is not None:
        return list(names)
    problem_type = problem_type or config.problem_type
    if not is_fine_tuned(config):
        return None if problem_type == "regression" else label_names(rows, problem_type)
    if problem_type is not None and problem_type != "single_label_classification":
        return None
    known = list((config.id2label or {}).values())
    given = {str(row["label"]) for row in rows if row.get("label") is not None}
    numbers = [str(number) for number in range(len(known))]
    if given <= set(known) or known != [f"LABEL_{number}" for number in numbers]:
        return None
    if given <= set(numbers):
        return numbers
    raise ValueError(
        f"{config.name_or_path} has no names for its classes ({', '.join(known)}), and the rows call them "
        f"{', '.join(sorted(given))}: give the names of the model's classes in their order (--label)"
    )


def config_of_classes(names: Sequence[str] | None, problem_type: str | None = None) -> dict[str, Any]:
    """What `MultiExitBert.from_pretrained` takes for these classes and this problem type, either of which may be the model's.

    Args:
        names: as `class_names` gives them.
        problem_type: as in the model's configuration.
    """
    found: dict[str, Any] = {} if problem_type is None else {"problem_type": problem_type}
    if names is not None:
        found |= {"num_labels": len(names), "id2label": dict(enumerate(names))}
        found["label2id"] = {name: index for index, name in enumerate(names)}
    elif problem_type == "regression":
        found["num_labels"] = 1
    return found

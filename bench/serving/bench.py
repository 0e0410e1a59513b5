"""What all cells share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.serving.loads import Outcome
from bench.serving.questions import Question, Sample, singles
from bench.serving.servers import Running, System, running
from bench.serving.truth import Truth, make_truths

EXITS, FULL, PIPELINE, ONE_AT_A_TIME = "ours, exits", "ours, all layers", "pipeline", "pipeline, one text at a time"


@dataclass(frozen=True)
class Cores:
    """Where processes run.

    Attributes:
        server: the core of every server, with all of its threads.
        client: the core of this process, which loads them.
    """

    server: int
    client: int

    @classmethod
    def found(cls) -> Cores:
        """The first two that this process may use; one where there is no other."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[min(1, len(usable) - 1)])


@dataclass(frozen=True)
class Bench:
    """Systems and texts.

    Attributes:
        work: folder for logs and what is kept.
        exits: folder of the model with exits.
        systems: by name.
        texts: all different.
        cores: where processes run.
    """

    work: Path
    exits: Path
    systems: Mapping[str, System]
    texts: Sequence[str]
    cores: Cores

    @contextmanager
    def running(self, name: str, *options: object) -> Iterator[Running]:
        """A system's server, started with further options."""
        log = self.work / f"{name.replace(' ', '_').replace(',', '')}.log"
        with running(self.systems[name].with_options(*options), log, self.cores.server) as server:
            yield server

    def truths(self, samples: Sequence[Sample]) -> Mapping[str, Truth]:
        """The answers that each system must give, by the system's name."""
        made = make_truths(self.exits, samples, self.work)
        return {name: made[system.truth] for name, system in self.systems.items()}

    def one_by_one(self) -> tuple[list[Question], list[bytes], Mapping[str, Truth]]:
        """For each text a request, and the bytes of it; and the answers that each system must give."""
        questions = singles(self.texts)
        return questions, [question.payload for question in questions], self.truths([(text, None) for text in self.texts])


def held(truth: Truth, questions: Sequence[Question], outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many answers are right, and how many those of another exit.

    Raises:
        RuntimeError: some are wrong or lost.
    """
    return check_held(truth.count(questions, outcomes))


def check_held(verdicts: Counter[str]) -> dict[str, int]:
    """As `held`, of verdicts that were counted."""
    if verdicts["wrong"] or verdicts["lost"]:
        raise RuntimeError(f"{verdicts['wrong']} answers are wrong and {verdicts['lost']} requests lost, of {verdicts.total()}")
    return {"right": verdicts["right"], "moved": verdicts["moved"]}

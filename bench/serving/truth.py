"""The engine's own answers, made beforehand, and the judgement of what a server sent."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.serving.loads import Outcome
from bench.serving.questions import Question, Sample
from bench.serving.wire import Reply
from geep_triton import Engine

TOLERANCE = 1e-3  # of a logit: what float32's order of additions, which follows from a text's neighbours, may change
VERDICTS = ("right", "moved", "wrong", "lost")


@dataclass(frozen=True)
class Truth:
    """The answers to samples.

    Attributes:
        labels: the names of the C classes.
        logits: [N, C] that are expected.
        every: [N, E, C] of every exit.
    """

    labels: Sequence[str]
    logits: torch.Tensor
    every: torch.Tensor

    def verdict(self, question: Question, reply: Reply | None) -> str:
        """ "right"; "moved": that of another exit, since a text near a threshold may go either way; "wrong"; or "lost"."""
        if reply is None:
            return "lost"
        if reply.status != question.status:
            return "wrong"
        if not question.samples:
            return "right"
        answers = json.loads(reply.body)
        found = torch.tensor([self._logits_of(one) for one in (answers if question.kind == "batch" else [answers])])
        rows = list(question.samples)
        if len(found) != len(rows):
            return "wrong"
        if _near(found, self.logits[rows]).all():
            return "right"
        return "moved" if _near(found[:, None], self.every[rows]).any(1).all() else "wrong"

    def count(self, questions: Sequence[Question], outcomes: Iterable[Outcome]) -> Counter[str]:
        """How many outcomes have each verdict."""
        return Counter(self.verdict(questions[one.number], one.reply) for one in outcomes)

    def confusable(self) -> float:
        """The chance that the answer to another sample would be taken for right."""
        values, _ = self.logits[:, 0].double().sort()
        neighbours = torch.searchsorted(values, values + TOLERANCE, right=True) - torch.searchsorted(values, values - TOLERANCE)
        return float((neighbours - 1).double().mean() / (len(values) - 1))

    def _logits_of(self, answer: list[dict[str, float | str]]) -> list[float]:
        of = {one["label"]: float(one["score"]) for one in answer}
        return [of.get(label, float("nan")) for label in self.labels]


def _near(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """[...] whether all classes of [..., C] are near."""
    return ((found - expected).abs() <= TOLERANCE).all(-1)


def make_truths(exits: Path, samples: Sequence[Sample], work: Path) -> dict[str, Truth]:
    """What full depth ("full") and the calibrated policy ("exits") answer. It is kept in `work` for the next time."""
    digest = hashlib.sha256(json.dumps([str(exits.resolve()), samples]).encode()).hexdigest()[:16]
    path = work / f"truth-{digest}.safetensors"
    engine = Engine.from_pretrained(exits, device="cpu", progress=False)
    if not path.exists():
        save_file({"every": engine.every_exit(samples).logits, "exits": engine.predict(samples).logits}, path)
    kept, labels = load_file(path), list(engine.model.config.id2label.values())
    full = kept["every"][:, -1]
    return {"full": Truth(labels, full, full[:, None]), "exits": Truth(labels, kept["exits"], kept["every"])}

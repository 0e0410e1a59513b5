"""The order of a query's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from geep_triton.answers import Score


@dataclass(frozen=True, eq=False)
class Ranking:
    """The result of `Engine.rank` for a query with N candidates.

    Attributes:
        order: [K] int64, numbers of the candidates, the best first. K is the `top_k` that was asked for, or N where that is
            less.
        logits: [N] float32, candidate by candidate; of those that left early, from the exit where they left.
        exit_layers: [N] int64, the layer after which each candidate left.
        answers: what the logits mean.
        documents: the N candidates' texts; None unless they were asked for.
        truncated: how many of the N pairs were cut to the maximum length.
    """

    order: torch.Tensor
    logits: torch.Tensor
    exit_layers: torch.Tensor
    answers: Score
    documents: Sequence[str] | None = None
    truncated: int = 0

    def __len__(self) -> int:
        return self.order.numel()

    @property
    def scores(self) -> torch.Tensor:
        """[N] float32, the candidates' scores. ValueError for a model of another kind."""
        return self.answers.scores(self.logits[:, None])

    @property
    def mean_layers(self) -> float:
        """Mean of `exit_layers`; NaN without candidates."""
        return float(self.exit_layers.double().mean())

    def results(self) -> list[dict[str, Any]]:
        """A dict for each of the K best, as `CrossEncoder.rank` of sentence-transformers gives them.

        Its keys are "corpus_id" (int), "score" (float) and, where documents were asked for, "text".
        """
        scores = self.scores.tolist()
        texts = [{} if self.documents is None else {"text": self.documents[index]} for index in self.order.tolist()]
        return [
            {"corpus_id": index, "score": scores[index], **text} for index, text in zip(self.order.tolist(), texts, strict=True)
        ]


def order_of(logits: torch.Tensor, exit_layers: torch.Tensor) -> torch.Tensor:
    """The order of a query's candidates: deeper first, then the higher logit, then the one that was given first.

    Scores of different exits are not compared: who went deeper was better where both were compared last.

    Args:
        logits: [N].
        exit_layers: [N] int64.

    Returns:
        [N] int64, their numbers.
    """
    order = logits.argsort(descending=True, stable=True)
    return order[exit_layers[order].argsort(descending=True, stable=True)]

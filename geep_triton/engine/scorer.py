"""Scoring batches at their stops: who is sure leaves, and who is not stays."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Generic

import torch

from geep_triton.engine.batch import Answer, Batch
from geep_triton.engine.flight import Copying
from geep_triton.engine.layers import Ran, WindowLayers
from geep_triton.engine.not_finite import NotFinite
from geep_triton.ops.partition import partition
from geep_triton.policies.leave import ExitRule
from geep_triton.runners.base import StatesT


class Scorer(Generic[StatesT]):
    """Parts those who leave a batch at its stop from those who stay.

    Args:
        rule: who may leave at a stop.
        layers: of the window; they run the heads.

    Attributes:
        not_finite: counts answers that are no numbers.
    """

    def __init__(self, rule: ExitRule, layers: WindowLayers[StatesT]) -> None:
        self.rule = rule
        self.not_finite = NotFinite()
        self._layers = layers
        self._runner = layers.runner
        self._last = layers.last

    def leave(
        self, batch: Batch[StatesT], ran: Ran | None
    ) -> Generator[Copying, None, tuple[Answer | None, Batch[StatesT] | None]]:
        """Score a batch at its stop: the answer of those who leave, and the batch of those who stay, with their next stop.

        Who skipped the layer stays: its head never learned to answer for them.

        Args:
            batch: after the layer of its stop.
            ran: which rows ran that layer; None: all.
        """
        stop, batch = batch.layer, self._with_memory(batch)
        next_stop = self.rule.next_stop(stop, self._last)
        if ran is not None and ran.index.numel() == 0:
            return None, replace(batch, stop=next_stop)
        logits, on_device, prediction, streak = self._score(stop, batch, ran)
        batch = replace(batch, stop=next_stop, prediction=prediction, streak=streak)
        # The host must know who is left, to go on with them alone.
        copying = Copying(on_device)
        yield copying
        leaves = copying.get()
        leaving = int(leaves.sum())
        if leaving == 0:
            return None, batch
        order, _ = partition(on_device)
        answer = Answer(batch.rows[leaves], logits.index_select(0, order[:leaving]), stop, stop)
        if leaving == len(batch):
            return answer, None
        return answer, batch.take(self._runner, ~leaves, order[leaving:])

    def _with_memory(self, batch: Batch[StatesT]) -> Batch[StatesT]:
        """The batch with a prediction and a streak, where the rule remembers them and nobody was scored before."""
        if not self.rule.remembers or batch.streak is not None:
            return batch
        prediction, streak = self.rule.nothing_remembered(len(batch), self._runner.model.device)
        return replace(batch, prediction=prediction, streak=streak)

    def _score(
        self, stop: int, batch: Batch[StatesT], ran: Ran | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Answers [B, C], who may leave [B] bool, and predictions and streaks [B] where the rule remembers them.

        Those who did not run have answers of 0, may not leave, and are remembered as before.
        """
        prediction, streak = batch.prediction, batch.streak
        if ran is not None:
            prediction, streak = (None if v is None else v.index_select(0, ran.index) for v in (prediction, streak))
        logits = self._layers.logits_of_ran(batch, ran)
        scores = self.rule.score(stop, logits, prediction, streak)
        self.not_finite.add(stop, scores.counts[1:])
        leaves = scores.leaves
        prediction, streak = (scores.prediction, scores.streak) if self.rule.remembers else (None, None)
        if ran is not None:
            logits = logits.new_zeros(len(batch), logits.shape[1]).index_copy(0, ran.index, logits)
            leaves = leaves.new_zeros(len(batch)).index_copy(0, ran.index, leaves)
            prediction, streak = _put(batch.prediction, ran.index, prediction), _put(batch.streak, ran.index, streak)
        return logits, leaves, prediction, streak


def _put(before: torch.Tensor | None, index: torch.Tensor, new: torch.Tensor | None) -> torch.Tensor | None:
    """What is remembered of a batch [B], with what is new of the rows `index`."""
    return None if before is None or new is None else before.index_copy(0, index, new)

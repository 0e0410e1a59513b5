"""Running one window: each sample from stop to stop until it is answered."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.flight import Copying, Run, fly
from geep_triton.engine.pools import Batch, Pools
from geep_triton.engine.rules import ExitRule
from geep_triton.engine.skipping import Layers, Ran
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.partition import partition
from geep_triton.outputs import Schedule, Tokens, to_device


@dataclass(frozen=True, eq=False)
class Answer:
    """Samples that were answered together.

    Attributes:
        rows: [B] int64 on the host, which samples.
        logits: [B, C].
        exit_layer: after which layer.
        layers_run: how many layers they ran, had they skipped none.
    """

    rows: torch.Tensor
    logits: torch.Tensor
    exit_layer: int
    layers_run: int


@dataclass(frozen=True, eq=False)
class _First:
    """A planned batch before its first layer: its first stop, and who [B] bool is certain to leave there (None: nobody)."""

    stop: int
    batch: Batch
    certain: torch.Tensor | None


class WindowRun:
    """Runs a window's batches to their first stop, and the samples that are not sure there on to the next one.

    Where a batch waits for the device's decision, others have their turn. At most `in_flight` batches hold states, each of at
    most the schedule's token budget (or one longer sample), besides what waits in pools.

    Args:
        model: in evaluation mode.
        tokens: the window's samples.
        rule: who may leave at a stop; None: everybody.
        certain: [N] bool, samples that leave at their first stop unscored; None: nobody.
        answer_head: which head answers; see `MultiExitBert.forward`.
        pools: where survivors wait for others; None: they go on in the batch that shrinks.
        costs: whether waiting pays is decided by them; None: survivors always wait.
        layers: run the window's layers; None: all of them on every sample.
        in_flight: batches that run by turns.
    """

    def __init__(
        self,
        model: MultiExitBert,
        tokens: Tokens,
        rule: ExitRule | None = None,
        certain: torch.Tensor | None = None,
        answer_head: str = "student",
        pools: Pools | None = None,
        costs: LayerCosts | None = None,
        layers: Layers | None = None,
        in_flight: int = 1,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.rule = rule
        self.certain = certain
        self.answer_head = answer_head
        self.pools = pools
        self.costs = costs
        self.layers = layers or Layers(model, tokens)
        self.in_flight = in_flight
        self.last = model.config.num_hidden_layers
        self._counts: list[tuple[int, torch.Tensor]] = []

    def answers(self, plan: Schedule) -> Iterator[Answer]:
        """Every sample of the window in exactly one answer; batches as planned, pools as they fill, the rest at the end."""
        planned = (self._run(0, first.stop, first.batch, first.certain) for first in self._embedded(plan))

        def start(alone: bool) -> Run[Answer] | None:
            """A full pool's batch, else a planned one, and of what is left over once nothing else could still join it."""
            if self.pools is not None and (full := self.pools.take_full()) is not None:
                return self._resume(*full)
            if (run := next(planned, None)) is not None or self.pools is None or not alone:
                return run
            return None if (rest := self.pools.take_rest()) is None else self._resume(*rest)

        return fly(start, self.in_flight)

    def every_exit(self, plan: Schedule) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits of every exit, all batches to the last layer: rows [B] and [B, E, C]."""
        planned = (self._every_exit(first.batch) for first in self._embedded(plan))
        return fly(lambda alone: next(planned, None), self.in_flight)

    def _every_exit(self, batch: Batch) -> Run[tuple[torch.Tensor, torch.Tensor]]:
        rows, hidden, attention_mask = batch.rows, batch.hidden, batch.attention_mask
        mask, logits = self.layers.mask(rows, hidden, attention_mask), []
        for number in range(1, self.last + 1):
            if number == self.last or number not in self.model.config.exit_layers:
                hidden, _ = yield from self.layers.run(number, rows, hidden, attention_mask, mask)
                continue
            output, hidden = yield from self.layers.run_and_go_on(number, rows, hidden, attention_mask, mask)
            logits.append(self.layers.exit_logits(number, output, attention_mask))
        logits.append(self.layers.exit_logits(self.last, hidden, attention_mask))
        yield rows, torch.stack(logits, dim=1)

    def _embedded(self, plan: Schedule) -> Iterator[_First]:
        """Each batch as planned, before its first layer.

        A GPU is sent the window as a whole, once, and makes the batches itself: the host never waits for it here.
        """
        device, pad_id = self.model.device, self.model.config.pad_token_id or 0
        tokens, order = self.tokens.to(device), to_device(plan.order, device)
        certain = None if self.certain is None else to_device(self.certain, device)
        for (rows, stop), there in zip(plan.batches(), order.tensor_split(plan.bounds[1:-1]), strict=True):
            longest = int(self.tokens.lengths[rows].max())
            input_ids, attention_mask, type_ids = tokens.padded(there, pad_id, longest)
            batch = Batch(rows, self.model.embed(input_ids, type_ids), attention_mask, *self._no_memory(rows))
            yield _First(stop, batch, None if certain is None else certain[there])

    def _no_memory(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Prediction and streak of samples that were not scored yet, where the rule asks for them."""
        if self.rule is None or not self.rule.remembers:
            return None, None
        prediction = torch.full((rows.numel(),), -1, device=self.model.device)
        return prediction, torch.zeros_like(prediction, dtype=torch.int32)

    def _resume(self, layer: int, batch: Batch) -> Run[Answer]:
        return self._run(layer, self.rule.next_stop(layer, self.last), batch, None)

    def _run(self, layer: int, stop: int, batch: Batch, certain: torch.Tensor | None) -> Run[Answer]:
        """Take a batch that stands after `layer` to `stop`, and those who stay on from there or into a pool.

        `certain` [B] bool, where the states are: who leaves at `stop` unscored.
        """
        while True:
            mask = self.layers.mask(batch.rows, batch.hidden, batch.attention_mask)
            unchecked = self.rule is None or stop == self.last
            everybody = unchecked and stop < self.last and self.answer_head == "student"
            last = stop - 1 if everybody else stop
            hidden, ran = yield from self.layers.run_through(
                layer + 1, last, batch.rows, batch.hidden, batch.attention_mask, mask
            )
            if everybody:
                hidden = self.layers.run_on_all(stop, hidden, mask)
            batch = replace(batch, hidden=hidden)
            if unchecked:
                yield self._answer(batch, mask, stop)
                return
            answer, batch = yield from self._leave(stop, batch, certain, ran)
            if answer is not None:
                yield answer
            if batch is None:
                return
            layer, stop, certain = stop, self.rule.next_stop(stop, self.last), None
            if self._waits(layer, stop, batch):
                self.pools.put(layer, batch)
                return

    def _waits(self, layer: int, stop: int, batch: Batch) -> bool:
        """Whether a batch of survivors after `layer`, scored next at `stop`, waits for others."""
        if self.pools is None or self.costs is None:
            return self.pools is not None
        return self.costs.regrouping_pays(batch.tokens, self.pools.padded(layer, batch), stop - layer)

    def _leave(
        self, stop: int, batch: Batch, certain: torch.Tensor | None, ran: Ran | None
    ) -> Generator[Copying, None, tuple[Answer | None, Batch | None]]:
        """Score a batch at `stop`: the answer of those who leave, and the batch of those who stay.

        Who skipped the layer stays: its head never learned to answer for them.
        """
        if ran is not None and ran.index.numel() == 0:
            return None, batch
        logits, on_device, memory = self._score(stop, batch, certain, ran)
        # The host must know who is left to go on with them alone.
        copying = Copying(on_device)
        yield copying
        leaves = copying.get()
        leaving = int(leaves.sum())
        if leaving == 0:
            return None, Batch(batch.rows, batch.hidden, batch.attention_mask, *memory)
        order, _ = partition(on_device)
        answer = Answer(batch.rows[leaves], logits.index_select(0, order[:leaving]), stop, stop)
        if leaving == len(batch):
            return answer, None
        rows, staying = batch.rows[~leaves], order[leaving:]
        # Those who stay may all be shorter than the longest who left.
        longest = int(self.tokens.lengths[rows].max())
        values = (batch.hidden[:, :longest], batch.attention_mask[:, :longest], *memory)
        return answer, Batch(rows, *(None if value is None else value.index_select(0, staying) for value in values))

    def _score(
        self, stop: int, batch: Batch, certain: torch.Tensor | None, ran: Ran | None
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Answers [B, C], who may leave [B] bool, and what the rule remembers; 0, nobody and as before for who did not run."""
        values = (batch.hidden, batch.attention_mask, batch.prediction, batch.streak, certain)
        if ran is not None:
            values = tuple(None if value is None else value.index_select(0, ran.index) for value in values)
        hidden, attention_mask, prediction, streak, certain = values
        logits = self.layers.exit_logits(stop, hidden, attention_mask)
        scores = self.rule.score(stop, logits, prediction, streak)
        self._counts.append((stop, scores.counts))
        leaves = scores.leaves if certain is None else scores.leaves | certain
        after = (scores.prediction, scores.streak) if self.rule.remembers else (None, None)
        if ran is None:
            return logits, leaves, after
        spread = logits.new_zeros(len(batch), logits.shape[1]).index_copy(0, ran.index, logits)
        leaves = leaves.new_zeros(len(batch)).index_copy(0, ran.index, leaves)
        if self.rule.remembers:
            known = (batch.prediction, batch.streak)
            after = tuple(old.index_copy(0, ran.index, new) for old, new in zip(known, after, strict=True))
        return spread, leaves, after

    def check_scores(self, first: int) -> None:
        """ValueError where samples of this window, which begins at sample `first`, got scores that are not numbers.

        They went on to a later exit: an exit that is damaged would go unnoticed otherwise. Waits for a GPU.
        """
        if not self._counts:
            return
        bad = torch.stack([counts for _, counts in self._counts])[:, 1].tolist()
        for (stop, _), count in zip(self._counts, bad, strict=True):
            if count:
                last = first + len(self.tokens) - 1
                raise ValueError(
                    f"{count} of the samples {first} to {last} got logits that are NaN or infinite at the exit of layer {stop}"
                )

    def _answer(self, batch: Batch, mask: Any, stop: int) -> Answer:
        if self.answer_head == "teacher" and stop < self.last:
            return Answer(batch.rows, self.layers.shared_logits(batch.hidden, batch.attention_mask, mask), stop, stop + 1)
        return Answer(batch.rows, self.layers.exit_logits(stop, batch.hidden, batch.attention_mask), stop, stop)

"""Running one window: each sample from stop to stop until it is answered."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch

from geep_triton.engine.batching import Schedule
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.flight import Copying, Run, fly
from geep_triton.engine.layers import Ran, WindowLayers
from geep_triton.engine.pools import Batch, Pools
from geep_triton.ops.partition import partition
from geep_triton.policies.leave import ExitRule
from geep_triton.tokens.ragged import Tokens, to_device


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


class WindowRun:
    """Runs a window's batches to their first stop, and the samples that are not sure there on to the next one.

    Where a batch waits for the device's decision, others have their turn. At most `in_flight` batches hold states, each of at
    most the schedule's token budget (or one longer sample), besides what waits in pools.

    Args:
        layers: run the window's layers.
        tokens: the window's samples.
        rule: who may leave at a stop; None: everybody.
        answer_head: which head answers; see `MultiExitBert.forward`.
        pools: where survivors wait for others; None: they go on in the batch that shrinks.
        costs: whether waiting pays is decided by them; None: survivors always wait.
        in_flight: batches that run by turns.
    """

    def __init__(
        self,
        layers: WindowLayers,
        tokens: Tokens,
        rule: ExitRule | None = None,
        answer_head: str = "student",
        pools: Pools | None = None,
        costs: LayerCosts | None = None,
        in_flight: int = 1,
    ) -> None:
        self.layers = layers
        self.runner = layers.runner
        self.tokens = tokens
        self.rule = rule
        self.answer_head = answer_head
        self.pools = pools
        self.costs = costs
        self.in_flight = in_flight
        self.config = layers.runner.model.config
        self.last = self.config.num_hidden_layers
        self._counts: list[tuple[int, torch.Tensor]] = []

    def answers(self, plan: Schedule) -> Iterator[Answer]:
        """Every sample of the window in exactly one answer; batches as planned, pools as they fill, the rest at the end."""
        planned = (self._run(0, stop, batch) for stop, batch in self._embedded(plan))

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
        planned = (self._every_exit(batch) for _, batch in self._embedded(plan))
        return fly(lambda alone: next(planned, None), self.in_flight)

    def _every_exit(self, batch: Batch) -> Run[tuple[torch.Tensor, torch.Tensor]]:
        logits = []
        for number in range(1, self.last + 1):
            if number == self.last or number not in self.config.exit_layers:
                batch, _ = yield from self.layers.run(number, batch)
                continue
            output, batch = yield from self.layers.run_for_all_then_choose(number, batch)
            logits.append(self.layers.exit_logits(number, output))
        logits.append(self.layers.exit_logits(self.last, batch.states))
        yield batch.rows, torch.stack(logits, dim=1)

    def _embedded(self, plan: Schedule) -> Iterator[tuple[int, Batch]]:
        """Each batch as planned, before its first layer; with its first stop.

        A GPU is sent the window as a whole, once, and makes the batches itself: the host never waits for it here.
        """
        device = self.runner.model.device
        tokens, order = self.tokens.to(device), to_device(plan.order, device)
        for (rows, stop), there in zip(plan.batches(), order.tensor_split(plan.bounds[1:-1]), strict=True):
            states = self.runner.embed(tokens, there, self.tokens.lengths[rows])
            yield stop, Batch(rows, states, *self._no_memory(rows))

    def _no_memory(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Prediction and streak of samples that were not scored yet, where the rule asks for them."""
        if self.rule is None or not self.rule.remembers:
            return None, None
        prediction = torch.full((rows.numel(),), -1, device=self.runner.model.device)
        return prediction, torch.zeros_like(prediction, dtype=torch.int32)

    def _resume(self, layer: int, batch: Batch) -> Run[Answer]:
        return self._run(layer, self.rule.next_stop(layer, self.last), batch)

    def _run(self, layer: int, stop: int, batch: Batch) -> Run[Answer]:
        """Take a batch that stands after `layer` to `stop`, and those who stay on from there or into a pool."""
        while True:
            unchecked = self.rule is None or stop == self.last
            everybody = unchecked and stop < self.last and self.answer_head == "student"
            batch, ran = yield from self.layers.run_through(layer + 1, stop - 1 if everybody else stop, batch)
            if everybody:
                batch = replace(batch, states=self.layers.run_on_all(stop, batch.states))
            if unchecked:
                yield self._answer(batch, stop)
                return
            answer, batch = yield from self._leave(stop, batch, ran)
            if answer is not None:
                yield answer
            if batch is None:
                return
            layer, stop = stop, self.rule.next_stop(stop, self.last)
            if self._waits(layer, stop, batch):
                self.pools.put(layer, batch)
                return

    def _waits(self, layer: int, stop: int, batch: Batch) -> bool:
        """Whether a batch of survivors after `layer`, scored next at `stop`, waits for others."""
        if self.pools is None or self.costs is None:
            return self.pools is not None
        return self.costs.regrouping_pays(batch.states.tokens, self.pools.padded(layer, batch), stop - layer)

    def _leave(self, stop: int, batch: Batch, ran: Ran | None) -> Generator[Copying, None, tuple[Answer | None, Batch | None]]:
        """Score a batch at `stop`: the answer of those who leave, and the batch of those who stay.

        Who skipped the layer stays: its head never learned to answer for them.
        """
        if ran is not None and ran.index.numel() == 0:
            return None, batch
        logits, on_device, batch = self._score(stop, batch, ran)
        # The host must know who is left to go on with them alone.
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
        return answer, batch.take(self.runner, ~leaves, order[leaving:])

    def _score(self, stop: int, batch: Batch, ran: Ran | None) -> tuple[torch.Tensor, torch.Tensor, Batch]:
        """Answers [B, C], who may leave [B] bool, and the batch with what the rule remembers.

        0, nobody and as before for those who did not run.
        """
        states, prediction, streak = batch.states, batch.prediction, batch.streak
        if ran is not None:
            states = self.runner.take(states, ran.index, states.lengths[ran.flags])
            prediction, streak = (None if v is None else v.index_select(0, ran.index) for v in (prediction, streak))
        logits = self.layers.exit_logits(stop, states)
        scores = self.rule.score(stop, logits, prediction, streak)
        self._counts.append((stop, scores.counts))
        leaves = scores.leaves
        memory = {"prediction": scores.prediction, "streak": scores.streak} if self.rule.remembers else {}
        if ran is not None:
            logits = logits.new_zeros(len(batch), logits.shape[1]).index_copy(0, ran.index, logits)
            leaves = leaves.new_zeros(len(batch)).index_copy(0, ran.index, leaves)
            memory = {name: getattr(batch, name).index_copy(0, ran.index, new) for name, new in memory.items()}
        return logits, leaves, replace(batch, **memory)

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

    def _answer(self, batch: Batch, stop: int) -> Answer:
        if self.answer_head == "shared" and stop < self.last:
            return Answer(batch.rows, self.layers.shared_logits(batch.states), stop, stop + 1)
        return Answer(batch.rows, self.layers.exit_logits(stop, batch.states), stop, stop)

"""Running one window: each sample from stop to stop until it is answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.pools import Batch, Pools
from geep_triton.engine.rules import ExitRule
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.move_rows import gather_rows
from geep_triton.ops.partition import partition
from geep_triton.outputs import Schedule, Tokens


@dataclass(frozen=True, eq=False)
class Answer:
    """Samples that were answered together.

    Attributes:
        rows: [B] int64 on the host, which samples.
        logits: [B, C].
        exit_layer: after which layer.
        layers_run: how many layers they ran.
    """

    rows: torch.Tensor
    logits: torch.Tensor
    exit_layer: int
    layers_run: int


class WindowRun:
    """Runs a window's batches to their first stop, and the samples that are not sure there on to the next one.

    Args:
        model: in evaluation mode.
        tokens: the window's samples.
        rule: who may leave at a stop; None: everybody.
        certain: [N] bool, samples that leave at their first stop unscored; None: nobody.
        answer_head: which head answers; see `MultiExitBert.forward`.
        pools: where survivors wait for others; None: they go on in the batch that shrinks.
        costs: whether waiting pays is decided by them; None: survivors always wait.
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
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.rule = rule
        self.certain = certain
        self.answer_head = answer_head
        self.pools = pools
        self.costs = costs
        self.last = model.config.num_hidden_layers

    def answers(self, plan: Schedule) -> Iterator[Answer]:
        """Every sample of the window in exactly one answer; batches as planned, pools as they fill, the rest at the end."""
        for rows, stop in plan.batches():
            input_ids, attention_mask, type_ids = _batch(self.model, self.tokens, rows)
            yield from self._run(0, stop, Batch(rows, self.model.embed(input_ids, type_ids), attention_mask))
            while self.pools is not None and (full := self.pools.take_full()) is not None:
                yield from self._resume(*full)
        while self.pools is not None and (waiting := self.pools.take_full() or self.pools.take_rest()) is not None:
            yield from self._resume(*waiting)

    def _resume(self, layer: int, batch: Batch) -> Iterator[Answer]:
        yield from self._run(layer, self.rule.next_stop(layer, self.last), batch)

    def _run(self, layer: int, stop: int, batch: Batch) -> Iterator[Answer]:
        """Take a batch that stands after `layer` to `stop`, and those who stay on from there or into a pool."""
        first = layer == 0
        while True:
            mask = _layer_mask(self.model, self.tokens, batch)
            hidden = batch.hidden
            for number in range(layer + 1, stop + 1):
                hidden = self.model.run_layer(number, hidden, mask)
            if self.rule is None or stop == self.last:
                yield self._answer(batch.rows, hidden, batch.attention_mask, mask, stop)
                return
            answer, batch = self._leave(stop, batch, hidden, first)
            if answer is not None:
                yield answer
            if batch is None:
                return
            layer, stop, first = stop, self.rule.next_stop(stop, self.last), False
            if self._waits(layer, stop, batch):
                self.pools.put(layer, batch)
                return

    def _waits(self, layer: int, stop: int, batch: Batch) -> bool:
        """Whether a batch of survivors after `layer`, scored next at `stop`, waits for others."""
        if self.pools is None or self.costs is None:
            return self.pools is not None
        return self.costs.regrouping_pays(batch.tokens, self.pools.padded(layer, batch), stop - layer)

    def _leave(self, stop: int, batch: Batch, hidden: torch.Tensor, first: bool) -> tuple[Answer | None, Batch | None]:
        """Score a batch at `stop`: the answer of those who leave, and the batch of those who stay."""
        logits = self.model.exit_logits(stop, hidden, batch.attention_mask)
        scores = self.rule.score(stop, logits, batch.prediction, batch.streak)
        on_device = scores.leaves
        if first and self.certain is not None:
            on_device = on_device | self.certain[batch.rows].to(on_device.device)
        # The one time that the host waits for the device: it must know who is left to go on with them alone.
        leaves = on_device.cpu()
        leaving = int(leaves.sum())
        memory = (scores.prediction, scores.streak) if self.rule.remembers else (None, None)
        if leaving == 0:
            return None, Batch(batch.rows, hidden, batch.attention_mask, *memory)
        order, _ = partition(on_device)
        answer = Answer(batch.rows[leaves], gather_rows(logits, order[:leaving]), stop, stop)
        if leaving == len(batch):
            return answer, None
        staying = order[leaving:]
        values = (None if value is None else gather_rows(value, staying) for value in (hidden, batch.attention_mask, *memory))
        return answer, Batch(batch.rows[~leaves], *values)

    def _answer(
        self, rows: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor, mask: torch.Tensor | None, stop: int
    ) -> Answer:
        if self.answer_head == "teacher" and stop < self.last:
            return Answer(rows, self.model.shared_logits(hidden, attention_mask, mask), stop, stop + 1)
        return Answer(rows, self.model.exit_logits(stop, hidden, attention_mask), stop, stop)


def run_every_exit(model: MultiExitBert, tokens: Tokens, rows: torch.Tensor) -> torch.Tensor:
    """Logits of every exit for the samples `rows`: [B, E, C]."""
    input_ids, attention_mask, type_ids = _batch(model, tokens, rows)
    return torch.stack(model(input_ids, attention_mask, type_ids, output_exit_logits=True).exit_logits, dim=1)


def _batch(model: MultiExitBert, tokens: Tokens, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The padded samples on the model's device: input_ids, attention_mask, token_type_ids."""
    tensors = tokens.padded(rows, model.config.pad_token_id or 0)
    return tuple(None if tensor is None else tensor.to(model.device) for tensor in tensors)


def _layer_mask(model: MultiExitBert, tokens: Tokens, batch: Batch) -> torch.Tensor | None:
    """None where no row is padded, which the host knows without asking the device."""
    if int(tokens.lengths[batch.rows].min()) == batch.hidden.shape[1]:
        return None
    return model.layer_mask(batch.hidden, batch.attention_mask)

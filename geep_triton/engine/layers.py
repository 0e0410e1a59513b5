"""The layers of a window's batches. Samples may skip some of them (SmartBERT, Hu et al., IJCAI 2023)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Generic

import torch

from geep_triton.engine.batch import Answer, Batch
from geep_triton.engine.batching import Batches
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.flight import Copying, Run
from geep_triton.modeling.flops import Flops, gate_flops, head_flops, layer_flops
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.policies.skip import Skip, planned_paths
from geep_triton.runners.base import Runner, StatesT
from geep_triton.table.paths import choose_paths
from geep_triton.tokens.ragged import Tokens, to_device


@dataclass(frozen=True, eq=False)
class Ran:
    """Which rows of a batch ran a layer.

    Attributes:
        flags: [B] bool on the host.
        index: [A] int64 where the states are, the same rows in ascending order.
    """

    flags: torch.Tensor
    index: torch.Tensor


class WindowLayers(Generic[StatesT]):
    """Runs layers and heads on a window's samples, and counts what ran and what was skipped.

    A method that may have to wait for a gate is a generator. It yields the copy that it waits for, so that other batches have
    a turn meanwhile (`geep_triton.engine.flight`).

    Args:
        runner: it runs the layers.
        tokens: the window's samples.
        skip: how samples skip layers; None: they skip none.
        costs: they decide whether a layer runs on fewer rows, which must be moved for that; None: it always does.

    Attributes:
        skipped: [N, L] bool on the host, the layers that each sample has skipped so far; None with "never".
        groups: [N] int64, the number of each sample's path; None where paths are not planned.
        flops: of all that really ran, padding included.
        last: the model's last layer.
    """

    def __init__(
        self, runner: Runner[StatesT], tokens: Tokens, skip: Skip | None = None, costs: LayerCosts | None = None
    ) -> None:
        self.runner = runner
        self.tokens = tokens
        self.costs = costs
        self.flops = Flops()
        self._config = runner.model.config
        self.last = self._config.num_hidden_layers
        self._gated = skip is not None and skip.mode == "gates"
        self._paths: torch.Tensor | None = None
        self.groups: torch.Tensor | None = None
        self.skipped: torch.Tensor | None = None
        if skip is not None and skip.mode == "planned":
            table, self._paths = planned_paths(runner.model)
            self.groups = choose_paths(table.predict_skips(tokens, runner.model.device), self._paths, skip.price)
        if skip is not None and skip.mode != "never":
            self.skipped = torch.zeros(len(tokens), self.last, dtype=torch.bool)

    def embed(self, batches: Batches) -> Iterator[Batch[StatesT]]:
        """The window's batches in running order, each before its first layer.

        A GPU is sent the window as a whole, once, and makes the batches itself. The host never waits for it here.
        """
        device = self.runner.model.device
        tokens, order = self.tokens.to(device), to_device(batches.order, device)
        for (rows, stop), there in zip(batches, order.tensor_split(batches.bounds[1:-1]), strict=True):
            states = self.runner.embed(tokens, there, self.tokens.lengths[rows])
            yield Batch(rows, states, stop, path=0 if self.groups is None else int(self.groups[rows[0]]))

    def answer(self, batch: Batch[StatesT], answer_head: str) -> Generator[Copying, None, Answer]:
        """Run a batch to its stop, where nobody is scored, and answer everybody there."""
        stop = batch.stop
        if answer_head == "student" and stop < self.last and self.skipped is not None:
            # An early head answers by what its layer gives to everybody.
            batch, _ = yield from self.run_to(stop - 1, batch)
            return Answer(batch.rows, self.exit_logits(stop, self.run_on_all(stop, batch.states)), stop, stop)
        batch, _ = yield from self.run_to(stop, batch)
        if answer_head == "shared" and stop < self.last:
            return Answer(batch.rows, self.shared_logits(batch.states), stop, stop + 1)
        return Answer(batch.rows, self.exit_logits(stop, batch.states), stop, stop)

    def answer_everywhere(self, batch: Batch[StatesT]) -> Run[tuple[torch.Tensor, torch.Tensor]]:
        """Run a batch to the last layer: its rows [B] and the logits of every exit [B, E, C]."""
        logits = []
        for number in range(1, self.last):
            if number not in self._config.exit_layers:
                batch, _ = yield from self.run_next(batch)
                continue
            output, batch = yield from self.run_for_all_then_choose(batch)
            logits.append(self.exit_logits(number, output))
        batch, _ = yield from self.run_next(batch)
        logits.append(self.exit_logits(self.last, batch.states))
        yield batch.rows, torch.stack(logits, dim=1)

    def run_to(self, last: int, batch: Batch[StatesT]) -> Generator[Copying, None, tuple[Batch[StatesT], Ran | None]]:
        """Run a batch up to layer `last`. Returns the batch and, as `run_next` does, which rows ran that layer."""
        if self.skipped is None:
            self._count_layers(last - batch.layer, batch.states)
            return batch.after(last, self.runner.layers(batch.layer + 1, last, batch.states)), None
        ran = None
        while batch.layer < last:
            batch, ran = yield from self.run_next(batch)
        return batch, ran

    def run_next(self, batch: Batch[StatesT]) -> Generator[Copying, None, tuple[Batch[StatesT], Ran | None]]:
        """Run a batch's next layer on the samples that do not skip it.

        Returns:
            The batch, in which the states of those who skip are unchanged; and which rows ran, None for all.
        """
        number = batch.layer + 1
        skips, gate = yield from self._decide(number, batch)
        if skips is None or not skips.any():
            return batch.after(number, self.run_on_all(number, batch.states)), None
        active = len(batch) - int(skips.sum())
        if gate is None or not active:
            index = torch.empty(0, dtype=torch.int64) if gate is None else gate.order[:0]
            return batch.after(number, batch.states), Ran(~skips, index)
        index = gate.order[:active]
        states = self._run_active(number, batch.states, ~skips, index, gate.hard)
        return batch.after(number, states), Ran(~skips, index)

    def run_for_all_then_choose(self, batch: Batch[StatesT]) -> Generator[Copying, None, tuple[StatesT, Batch[StatesT]]]:
        """Run a batch's next layer once, on all. Returns what it gives to all, and the batch as `run_next` returns it."""
        number = batch.layer + 1
        output = self.run_on_all(number, batch.states)
        skips, gate = yield from self._decide(number, batch)
        if skips is None:
            return output, batch.after(number, output)
        if gate is None:
            return output, batch.after(number, batch.states)
        return output, batch.after(number, self.runner.choose(gate.hard.bool(), batch.states, output))

    def _decide(
        self, number: int, batch: Batch[StatesT]
    ) -> Generator[Copying, None, tuple[torch.Tensor | None, SkipGate | None]]:
        """Who skips a layer, [B] bool on the host, None where nobody can; and the gate, if a gate decided.

        By a planned path all of them skip the layer, since samples of one path run together.
        """
        if self._paths is not None:
            if not bool(self._paths[batch.path, number - 1]):
                return None, None
            return self._noted(number, batch, torch.ones(len(batch), dtype=torch.bool)), None
        gate = self.runner.gate(number, batch.states) if self._gated else None
        if gate is None:
            return None, None
        self.flops.gates += batch.states.total(lambda tokens: gate_flops(self._config, tokens))
        # The host must know how many rows are left, to run the layer on them alone.
        copying = Copying(gate.hard.bool())
        yield copying
        return self._noted(number, batch, copying.get()), gate

    def _noted(self, number: int, batch: Batch[StatesT], skips: torch.Tensor) -> torch.Tensor:
        if self.skipped is not None:
            self.skipped[batch.rows, number - 1] = skips
        return skips

    def run_on_all(self, number: int, states: StatesT) -> StatesT:
        """What the layer gives to all samples. The layer's early head answers by these states."""
        self._count_layers(1, states)
        return self.runner.layers(number, number, states)

    def _count_layers(self, layers: int, states: StatesT) -> None:
        self.flops.layers += layers * states.total(lambda tokens: layer_flops(self._config, tokens))

    def _run_active(
        self, number: int, states: StatesT, active: torch.Tensor, index: torch.Tensor, skips: torch.Tensor
    ) -> StatesT:
        """Run a layer on its active rows, or on all rows where few skip it.

        Args:
            number: of the layer.
            states: [B] samples.
            active: [B] bool on the host, who runs the layer.
            index: [A] int64 on the device, the same rows.
            skips: [B] on the device, who skips it.
        """
        tokens = int(active.sum()) * states.longest
        if self.costs is not None and not self.costs.skipping_pays(states.tokens, tokens):
            return self.runner.choose(skips.bool(), states, self.run_on_all(number, states))
        part = self.runner.take(states, index, states.lengths[active])
        return self.runner.put(states, index, self.run_on_all(number, part))

    def exit_logits(self, number: int, states: StatesT) -> torch.Tensor:
        """Logits [B, C] of the head at layer `number`."""
        self.flops.heads += states.total(lambda tokens: head_flops(self._config, number, tokens))
        return self.runner.logits(number, states)

    def logits_of_ran(self, batch: Batch[StatesT], ran: Ran | None) -> torch.Tensor:
        """Logits [A, C] of the head at a batch's layer, of the rows that ran it (None: all): it never learned of others."""
        states = batch.states
        if ran is not None:
            states = self.runner.take(states, ran.index, states.lengths[ran.flags])
        return self.exit_logits(batch.layer, states)

    def shared_logits(self, states: StatesT) -> torch.Tensor:
        """Logits [B, C] of the last head after the last layer, which runs on these states for all (GEEP's sub-networks)."""
        return self.exit_logits(self.last, self.run_on_all(self.last, states))

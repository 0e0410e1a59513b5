"""Running the layers of a window's batches where samples may skip some of them (SmartBERT, Hu et al., IJCAI 2023)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.flight import Copying
from geep_triton.engine.pools import Batch
from geep_triton.modeling.flops import Flops, gate_flops, head_flops, layer_flops
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.policies.skip import Skip
from geep_triton.runners.base import Runner, States
from geep_triton.table.paths import choose_paths
from geep_triton.tokens.ragged import Tokens


@dataclass(frozen=True, eq=False)
class Ran:
    """Which rows of a batch ran a layer.

    Attributes:
        flags: [B] bool on the host.
        index: [A] int64 where the states are, the same rows in ascending order.
    """

    flags: torch.Tensor
    index: torch.Tensor


class WindowLayers:
    """Runs layers on a window's samples, each of which may skip some, and keeps count.

    What may have to wait for a gate is a generator: it yields the copy that it waits for, so that other batches have a turn
    meanwhile (`geep_triton.engine.flight`).

    Args:
        runner: of the layers.
        tokens: the window's samples.
        skip: how layers are skipped; None: none is.
        costs: whether running a layer on fewer rows pays for moving them; None: always.

    Attributes:
        skipped: [N, L] bool on the host, which layers each sample has skipped so far; None with "never".
        groups: [N] int64, samples of one group have one path; None where paths are not planned.
        flops: what has really run, padding included.
    """

    def __init__(self, runner: Runner, tokens: Tokens, skip: Skip | None = None, costs: LayerCosts | None = None) -> None:
        self.runner = runner
        self.costs = costs
        self.flops = Flops()
        self._config = runner.model.config
        self._gated = skip is not None and skip.mode == "gates"
        self._paths, self.groups, self.skipped = None, None, None
        if skip is not None and skip.mode == "planned":
            table = runner.model.exit_table
            self._paths = table.learned["skips"].paths
            self.groups = choose_paths(table.predict_skips(tokens, runner.model.device), self._paths, skip.price)
        if skip is not None and skip.mode != "never":
            self.skipped = torch.zeros(len(tokens), self._config.num_hidden_layers, dtype=torch.bool)

    def run_through(self, first: int, last: int, batch: Batch) -> Generator[Copying, None, tuple[Batch, Ran | None]]:
        """Layers first..last, each on the samples that run it; as `run`, which rows ran the last of them."""
        if not self._gated and self._paths is None:
            self._count_layers(max(0, last - first + 1), batch.states)
            return replace(batch, states=self.runner.layers(first, last, batch.states)), None
        ran = None
        for number in range(first, last + 1):
            batch, ran = yield from self.run(number, batch)
        return batch, ran

    def run(self, number: int, batch: Batch) -> Generator[Copying, None, tuple[Batch, Ran | None]]:
        """One layer, counted from 1, on the samples that run it; yields where it waits for a gate.

        Returns:
            The batch, in which the states of skippers are as they were; and which rows ran, None for all.
        """
        skips, gate = yield from self._decide(number, batch)
        active = len(batch) if skips is None else len(batch) - int(skips.sum())
        if active == len(batch):
            return replace(batch, states=self.run_on_all(number, batch.states)), None
        if active == 0:
            return batch, Ran(~skips, gate.order[:0] if gate is not None else torch.empty(0, dtype=torch.int64))
        index = gate.order[:active]
        states = self._run_active(number, batch.states, ~skips, index, gate.hard)
        return replace(batch, states=states), Ran(~skips, index)

    def run_for_all_then_choose(self, number: int, batch: Batch) -> Generator[Copying, None, tuple[States, Batch]]:
        """`run_on_all`, and the batch as `run` returns it, from one pass through the layer."""
        output = self.run_on_all(number, batch.states)
        skips, gate = yield from self._decide(number, batch)
        if skips is None:
            return output, replace(batch, states=output)
        if gate is None:
            return output, batch
        return output, replace(batch, states=self.runner.choose(gate.hard.bool(), batch.states, output))

    def _decide(self, number: int, batch: Batch) -> Generator[Copying, None, tuple[torch.Tensor | None, SkipGate | None]]:
        """Who skips a layer, [B] bool on the host, None where nobody can; and the gate that decided so, if one did.

        Without a gate it is all of them: samples of one path run together.
        """
        if self._paths is not None:
            if not bool(self._paths[int(self.groups[batch.rows[0]]), number - 1]):
                return None, None
            self.skipped[batch.rows, number - 1] = True
            return torch.ones(len(batch), dtype=torch.bool), None
        gate = self.runner.gate(number, batch.states) if self._gated else None
        if gate is None:
            return None, None
        self.flops.gates += batch.states.total(lambda tokens: gate_flops(self._config, tokens))
        # The host must know how many rows are left to run the layer on them alone.
        copying = Copying(gate.hard.bool())
        yield copying
        skips = copying.get()
        self.skipped[batch.rows, number - 1] = skips
        return skips, gate

    def run_on_all(self, number: int, states: States) -> States:
        """What the layer gives to everybody, which is what the layer's early head answers by."""
        self._count_layers(1, states)
        return self.runner.layers(number, number, states)

    def _count_layers(self, layers: int, states: States) -> None:
        self.flops.layers += layers * states.total(lambda tokens: layer_flops(self._config, tokens))

    def _run_active(
        self, number: int, states: States, active: torch.Tensor, index: torch.Tensor, skips: torch.Tensor
    ) -> States:
        """The layer on the rows `active` [B] bool (on the host), `index` [A] on the device; on all, where few skip.

        `skips` [B] says on the device who skips it.
        """
        tokens = int(active.sum()) * states.longest
        if self.costs is not None and not self.costs.skipping_pays(states.tokens, tokens):
            return self.runner.choose(skips.bool(), states, self.run_on_all(number, states))
        part = self.runner.take(states, index, states.lengths[active])
        return self.runner.put(states, index, self.run_on_all(number, part))

    def exit_logits(self, number: int, states: States) -> torch.Tensor:
        """Logits [B, C] of the head at layer `number`."""
        self.flops.heads += states.total(lambda tokens: head_flops(self._config, number, tokens))
        return self.runner.logits(number, states)

    def shared_logits(self, states: States) -> torch.Tensor:
        """Logits [B, C] of the last head on the last layer, ungated, on these states (GEEP's sub-networks)."""
        last = self._config.num_hidden_layers
        return self.exit_logits(last, self.run_on_all(last, states))

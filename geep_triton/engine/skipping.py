"""Running the layers of a window's batches where samples may skip some of them (SmartBERT, Hu et al., IJCAI 2023)."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_number, shorten
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.flight import Copying
from geep_triton.exits.fingerprint import tokenizer_fingerprint
from geep_triton.exits.paths import choose_paths
from geep_triton.modeling.flops import gate_flops, head_flops, layer_flops
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.outputs import Flops, Tokens

MODES = ("gates", "planned", "never")


@dataclass(frozen=True)
class Skipping:
    """How layers are skipped; its short form is "gates", "planned", "planned:PRICE" or "never".

    Args:
        mode: "gates": each gate decides as a sample reaches it. "planned": a sample's whole path is predicted from its tokens
            by the exit table and no gate runs. "never": every layer runs.
        price: of a layer in "planned"; see `geep_triton.exits.paths.choose_paths`.
    """

    mode: str = "never"
    price: float = 0.0

    def __post_init__(self) -> None:
        check_choice("skipping", self.mode, MODES)
        check_number("price", self.price)
        if not math.isfinite(self.price):
            raise ValueError(f"price must be finite, got {self.price}")
        if self.price and self.mode != "planned":
            raise ValueError(f"skipping {self.mode!r} takes no price, got {self.price:g}")

    @classmethod
    def parse(cls, text: str | None, model: MultiExitBert) -> Skipping:
        """From its short form; None: what the model was calibrated with, else by gates where it has them.

        Raises:
            ValueError, TypeError: no such form.
        """
        if text is None:
            text = model.config.skipping or ("gates" if len(model.gates) else "never")
        if not isinstance(text, str):
            raise TypeError(f"skipping must be one of {', '.join(MODES)}, or planned:PRICE, got {shorten(text)}")
        mode, colon, price = text.partition(":")
        try:
            return cls(mode, float(price)) if colon else cls(mode)
        except ValueError as error:
            raise ValueError(f"skipping {shorten(text)}: {error}; known: {', '.join(MODES)}, planned:PRICE") from error

    def __str__(self) -> str:
        return f"{self.mode}:{self.price!r}" if self.price else self.mode

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where this model lacks the gates, or its table the learned paths."""
        if self.mode != "never" and not len(model.gates):
            raise ValueError(f"skipping={self.mode!r}: {NO_GATES}")
        if self.mode == "planned":
            table = model.exit_table
            if table is None or table.skip_values is None:
                raise ValueError(
                    "skipping='planned' needs an exit table that learned them: "
                    "model.exit_table = build_exit_table(model, ..., learn_skips=True)"
                )
            if table.paths.shape[1] != model.config.num_hidden_layers:
                raise ValueError(
                    f"exit_table learned paths of {table.paths.shape[1]} layers, the model has "
                    f"{model.config.num_hidden_layers}: build it again"
                )
            gated = torch.tensor([layer in model.config.skip_layers for layer in range(1, table.paths.shape[1] + 1)])
            if bool((table.paths & ~gated).any()):
                raise ValueError(
                    f"exit_table learned paths that skip layers beside skip_layers={model.config.skip_layers}: build it again"
                )
            table.check_fits(model.config.vocab_size, model.config.exit_layers, tokenizer_fingerprint(tokenizer))


@dataclass(frozen=True, eq=False)
class Ran:
    """Which rows of a batch ran a layer.

    Attributes:
        flags: [B] bool on the host.
        index: [A] int64 where the states are, the same rows in ascending order.
    """

    flags: torch.Tensor
    index: torch.Tensor


class Layers:
    """Runs layers on a window's samples, each of which may skip some, and keeps count.

    What may have to wait for a gate is a generator: it yields the copy that it waits for, so that other batches have a turn
    meanwhile (`geep_triton.engine.flight`).

    Args:
        model: in evaluation mode.
        tokens: the window's samples.
        skipping: how layers are skipped.
        costs: whether running a layer on fewer rows pays for moving them; None: always.

    Attributes:
        skipped: [N, L] bool on the host, which layers each sample has skipped so far; None with "never".
        groups: [N] int64, samples of one group have one path; None where paths are not planned.
        flops: what has really run, padding included.
    """

    def __init__(
        self, model: MultiExitBert, tokens: Tokens, skipping: Skipping | None = None, costs: LayerCosts | None = None
    ) -> None:
        self.model = model
        self.costs = costs
        self.flops = Flops()
        self._tokens = tokens
        self._gated = skipping is not None and skipping.mode == "gates"
        self._paths, self.groups, self.skipped = None, None, None
        if skipping is not None and skipping.mode == "planned":
            self._paths = model.exit_table.paths
            self.groups = choose_paths(model.exit_table.predict_skips(tokens, model.device), self._paths, skipping.price)
        if skipping is not None and skipping.mode != "never":
            self.skipped = torch.zeros(len(tokens), model.config.num_hidden_layers, dtype=torch.bool)

    def mask(self, rows: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """The layers' mask; None where no row is padded, which the host knows without asking the device."""
        if int(self._tokens.lengths[rows].min()) == hidden.shape[1]:
            return None
        return self.model.layer_mask(hidden, attention_mask)

    def run_through(
        self, first: int, last: int, rows: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor, mask: Any
    ) -> Generator[Copying, None, tuple[torch.Tensor, Ran | None]]:
        """Layers first..last, each on the samples that run it; as `run`, which rows ran the last of them."""
        if not self._gated and self._paths is None:
            self._count_layers(max(0, last - first + 1), hidden)
            return self.model.run_layers(first, last, hidden, mask), None
        ran = None
        for number in range(first, last + 1):
            hidden, ran = yield from self.run(number, rows, hidden, attention_mask, mask)
        return hidden, ran

    def run(
        self, number: int, rows: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor, mask: Any
    ) -> Generator[Copying, None, tuple[torch.Tensor, Ran | None]]:
        """One layer on the samples that run it; yields where it waits for a gate.

        Args:
            number: of the layer, from 1.
            rows: [B] int64 on the host, which samples.
            hidden: [B, S, H]; attention_mask: [B, S]; mask: of `mask`.

        Returns:
            h [B, S, H], that of skippers as it was; and which rows ran, None for all.
        """
        skips, gate = yield from self._decide(number, rows, hidden, attention_mask)
        active = len(rows) if skips is None else len(rows) - int(skips.sum())
        if active == len(rows):
            return self.run_on_all(number, hidden, mask), None
        if active == 0:
            return hidden, Ran(~skips, torch.empty(0, dtype=torch.int64, device=hidden.device))
        index = gate.order[:active]
        hidden = self._some(number, rows[~skips], hidden, index, gate.hard, attention_mask, mask)
        return hidden, Ran(~skips, index)

    def run_and_go_on(
        self, number: int, rows: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor, mask: Any
    ) -> Generator[Copying, None, tuple[torch.Tensor, torch.Tensor]]:
        """`run_on_all`, and h [B, S, H] as `run` returns it, from one pass through the layer."""
        output = self.run_on_all(number, hidden, mask)
        skips, gate = yield from self._decide(number, rows, hidden, attention_mask)
        if skips is None:
            return output, output
        if gate is None:
            return output, hidden
        return output, torch.where(gate.hard.bool()[:, None, None], hidden, output)

    def _decide(
        self, number: int, rows: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor
    ) -> Generator[Copying, None, tuple[torch.Tensor | None, SkipGate | None]]:
        """Who skips a layer, [B] bool on the host, None where nobody can; and the gate that decided so, if one did.

        Without a gate it is all of them: samples of one path run together.
        """
        if self._paths is not None:
            if not bool(self._paths[int(self.groups[rows[0]]), number - 1]):
                return None, None
            self.skipped[rows, number - 1] = True
            return torch.ones(len(rows), dtype=torch.bool), None
        gate = self.model.skip_gate(number, hidden, attention_mask) if self._gated else None
        if gate is None:
            return None, None
        self.flops.gates += len(rows) * gate_flops(self.model.config, hidden.shape[1])
        # The host must know how many rows are left to run the layer on them alone.
        copying = Copying(gate.hard.bool())
        yield copying
        skips = copying.get()
        self.skipped[rows, number - 1] = skips
        return skips, gate

    def run_on_all(self, number: int, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
        """What the layer gives to everybody, [B, S, H], which is what the layer's early head answers by."""
        self._count_layers(1, hidden)
        return self.model.run_layer(number, hidden, mask)

    def _count_layers(self, layers: int, hidden: torch.Tensor) -> None:
        self.flops.layers += layers * hidden.shape[0] * layer_flops(self.model.config, hidden.shape[1])

    def _some(
        self,
        number: int,
        rows: torch.Tensor,
        hidden: torch.Tensor,
        order: torch.Tensor,
        skips: torch.Tensor,
        attention_mask: torch.Tensor,
        mask: Any,
    ) -> torch.Tensor:
        """The layer on the rows `order`, the samples `rows`; on all, where few skip, and then a choice."""
        size, length = hidden.shape[:2]
        if self.costs is not None and not self.costs.skipping_pays(size * length, len(rows) * length):
            return torch.where(skips.bool()[:, None, None], hidden, self.run_on_all(number, hidden, mask))
        part, part_mask = hidden.index_select(0, order), attention_mask.index_select(0, order)
        return hidden.index_copy(0, order, self.run_on_all(number, part, self.mask(rows, part, part_mask)))

    def exit_logits(self, number: int, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See `MultiExitBert.exit_logits`."""
        self.flops.heads += hidden.shape[0] * head_flops(self.model.config, number, hidden.shape[1])
        return self.model.exit_logits(number, hidden, attention_mask)

    def shared_logits(self, hidden: torch.Tensor, attention_mask: torch.Tensor, mask: Any) -> torch.Tensor:
        """See `MultiExitBert.shared_logits`."""
        last = self.model.config.num_hidden_layers
        return self.exit_logits(last, self.run_on_all(last, hidden, mask), attention_mask)

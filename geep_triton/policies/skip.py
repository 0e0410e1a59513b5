"""Which layers a sample skips: the third of the three questions of a policy (SmartBERT, Hu et al., IJCAI 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_number
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint

MODES = ("gates", "planned", "never")


@dataclass(frozen=True)
class Skip:
    """How samples skip layers.

    Args:
        mode: "gates" (each gate decides when a sample reaches it), "planned" (the exit table predicts a sample's whole path
            from its tokens, and no gate runs) or "never" (every layer runs).
        price: price of a layer for "planned". See `geep_triton.table.paths.choose_paths`.

    Raises:
        ValueError: the mode is unknown, the price is not finite, or a price is given without "planned".
        TypeError: the price is not a number.
    """

    mode: str = "never"
    price: float = 0.0

    def __post_init__(self) -> None:
        check_choice("skip", self.mode, MODES)
        check_number("price", self.price)
        if not math.isfinite(self.price):
            raise ValueError(f"price must be finite, got {self.price}")
        if self.price and self.mode != "planned":
            raise ValueError(f"skip {self.mode!r} takes no price, got {self.price:g}")

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError if the model lacks gates, or its table lacks learned paths."""
        if self.mode != "never" and not len(model.gates):
            raise ValueError(f"skip={self.mode!r}: {NO_GATES}")
        if self.mode == "planned":
            table, paths = planned_paths(model)
            if paths.shape[1] != model.config.num_hidden_layers:
                raise ValueError(
                    f"exit_table learned paths of {paths.shape[1]} layers, the model has "
                    f"{model.config.num_hidden_layers}: build it again"
                )
            gated = torch.tensor([layer in (model.config.skip_layers or ()) for layer in range(1, paths.shape[1] + 1)])
            if bool((paths & ~gated).any()):
                raise ValueError(
                    f"exit_table learned paths that skip layers beside skip_layers={model.config.skip_layers}: build it again"
                )
            fingerprint = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
            table.check_fits(model.config.vocab_size, model.config.exit_layers, fingerprint)


def planned_paths(model: MultiExitBert) -> tuple[ExitTable, torch.Tensor]:
    """The model's exit table, and the paths [P, L] bool that it has learned; ValueError where it has none."""
    table = model.exit_table
    learned = None if table is None else table.learned.get("skips")
    if table is None or learned is None or learned.paths is None:
        raise ValueError(
            "skip='planned' needs an exit table that learned them: "
            "model.exit_table = build_exit_table(model, ..., learn=['skips'])"
        )
    return table, learned.paths

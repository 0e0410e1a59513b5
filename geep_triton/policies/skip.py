"""What a sample skips: the third of the three questions that a policy answers (SmartBERT, Hu et al., IJCAI 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_number
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.table.fingerprint import tokenizer_fingerprint

MODES = ("gates", "planned", "never")


@dataclass(frozen=True)
class Skip:
    """How samples skip layers.

    Args:
        mode: "gates": each gate decides as a sample reaches it. "planned": the exit table predicts a sample's whole path from
            its tokens, and no gate runs. "never": every layer runs.
        price: of a layer in "planned"; see `geep_triton.table.paths.choose_paths`.

    Raises:
        ValueError: an unknown mode, a price that is not finite, or one without "planned". TypeError: a price that is no number.
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

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where this model lacks the gates, or its table the learned paths."""
        if self.mode != "never" and not len(model.gates):
            raise ValueError(f"skip={self.mode!r}: {NO_GATES}")
        if self.mode == "planned":
            table = model.exit_table
            if table is None or "skips" not in table.learned:
                raise ValueError(
                    "skip='planned' needs an exit table that learned them: "
                    "model.exit_table = build_exit_table(model, ..., learn=['skips'])"
                )
            paths = table.learned["skips"].paths
            if paths.shape[1] != model.config.num_hidden_layers:
                raise ValueError(
                    f"exit_table learned paths of {paths.shape[1]} layers, the model has "
                    f"{model.config.num_hidden_layers}: build it again"
                )
            gated = torch.tensor([layer in model.config.skip_layers for layer in range(1, paths.shape[1] + 1)])
            if bool((paths & ~gated).any()):
                raise ValueError(
                    f"exit_table learned paths that skip layers beside skip_layers={model.config.skip_layers}: build it again"
                )
            table.check_fits(model.config.vocab_size, model.config.exit_layers, tokenizer_fingerprint(tokenizer))

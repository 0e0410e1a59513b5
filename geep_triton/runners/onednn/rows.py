"""Rows: the tokens of a batch below each other, so many that oneDNN meets few different numbers of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

# oneDNN builds a kernel for each number of rows that it meets, in the time of some 30 rows of BERT-base's largest product, and
# keeps the last 1,024, of up to a megabyte each. Shrinking batches have any number of rows; above the first of a pair it is
# made a multiple of the second, so that few kernels do.
MULTIPLES = ((512, 32), (64, 16), (16, 8))


def pad_rows(states: torch.Tensor) -> torch.Tensor:
    """[.., I] -> [R, I]: all rows, padded with zeros so that few different numbers of rows occur."""
    rows = states.reshape(-1, states.shape[-1])
    multiple = next((multiple for above, multiple in MULTIPLES if len(rows) > above), 1)
    return F.pad(rows, (0, 0, 0, -len(rows) % multiple)) if len(rows) % multiple else rows


def on_padded_rows(product: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """Apply a product of rows, [R, I] -> [R, O], to states: [.., I] -> [.., O]."""
    return product(pad_rows(states))[: states.shape[:-1].numel()].unflatten(0, states.shape[:-1])


@dataclass(frozen=True, eq=False)
class Layout:
    """Which row of a batch is which token of which sample.

    Attributes:
        samples: B; length: S.
        mask: an additive mask [B, 1, 1 or S, S]; None: no sample is padded.
        tokens: [T] int64, where the first T rows lie among the B S places of the batch; None: each place has its row.
        rows: [B S] int64, the row of each place; that of a place without a token is any. None: as above.
    """

    samples: int
    length: int
    mask: torch.Tensor | None
    tokens: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    def without_padding(self, attention_mask: torch.Tensor) -> Layout:
        """The same batch, with rows for the tokens [B, S] alone."""
        real = attention_mask.flatten()
        # A place without a token takes the row before it: a number, where rows that nobody wrote could be NaN.
        return replace(self, tokens=real.nonzero()[:, 0], rows=(real.cumsum(0) - 1).clamp(min=0))

    def from_batch(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, S, H] -> rows [R, H]."""
        places = hidden.reshape(self.samples * self.length, -1)
        return pad_rows(places if self.tokens is None else places.index_select(0, self.tokens))

    def to_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [R, I] -> [B, S, I]. Places without a token hold those of another."""
        places = rows[: self.samples * self.length] if self.rows is None else rows.index_select(0, self.rows)
        return places.unflatten(0, (self.samples, self.length))

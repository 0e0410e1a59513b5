"""Rows: all tokens of a batch below each other, padded so that oneDNN meets few different numbers of them."""

from __future__ import annotations

from collections.abc import Callable

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

"""Measure how long 4,096 samples of token ids take to become `Tokens`, by the kind of container, beside NumPy's bare
concatenation.

    python -m bench.ops.encode

It prints median milliseconds on one thread with all checks (dtypes, lengths, ranges, vocabulary). The first line is the rival,
which concatenates and checks nothing. `datasets.Dataset` and pyarrow tables are left out if these packages are missing.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from geep_triton.timing import in_turns
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.samples import iter_samples

SAMPLES, LENGTH, VOCABULARY = 4096, 128, 30522
ROUNDS = 15


def containers(samples: int = SAMPLES, length: int = LENGTH) -> dict[str, Any]:
    """The same random ids, the last quarter of every second sample masked, in whatever holds them."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, VOCABULARY, (samples, length))
    mask = np.ones_like(ids)
    mask[::2, length - length // 4 :] = 0
    arrays = {"input_ids": ids, "attention_mask": mask}
    tensors = {name: torch.from_numpy(column) for name, column in arrays.items()}
    cut = [row[real] for row, real in zip(ids, mask.astype(bool), strict=True)]
    lists = [row.tolist() for row in cut]
    held = {
        "columns, tensors [N, S] and mask": tensors,
        "columns, int32 arrays [N, S] and bool mask": {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(bool)},
        "column, list of arrays": {"input_ids": cut},
        "column, list of tensors": {"input_ids": list(map(torch.from_numpy, cut))},
        "rows of arrays": [{"input_ids": row} for row in cut],
        "rows of tensors and masks": [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=True)],
        "column, lists of int": {"input_ids": lists},
        "rows of lists of int": [{"input_ids": row} for row in lists],
        "as a tokenizer gives them, lists": {
            "input_ids": lists,
            "token_type_ids": [[0] * len(row) for row in lists],
            "attention_mask": [[1] * len(row) for row in lists],
        },
        "as a tokenizer gives them, tensors": {**tensors, "token_type_ids": torch.zeros_like(tensors["input_ids"])},
    }
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow

        table = pyarrow.table({"input_ids": lists})
        held |= {"pyarrow Table": table, "pyarrow RecordBatch": table.to_batches()[0]}
        held["column, ChunkedArray"] = {"input_ids": table.column("input_ids")}
    if importlib.util.find_spec("datasets") is not None:
        import datasets

        dataset = datasets.Dataset.from_dict({"input_ids": lists})
        held |= {f"Dataset, format {name}": dataset.with_format(name) for name in (None, "numpy", "torch", "arrow")}
    return held


def measure(rounds: int = ROUNDS, **size: int) -> dict[str, float]:
    """Median milliseconds of each container in turns, the rival first."""
    held = containers(**size)
    encoder = Encoder(None, LENGTH, vocab_size=VOCABULARY)
    cut = held["column, list of arrays"]["input_ids"]
    calls: dict[str, Callable[[], Any]] = {"NumPy, concatenate the arrays": lambda: np.concatenate(cut)}
    calls |= {name: lambda inputs=inputs: encoder(list(iter_samples(inputs))) for name, inputs in held.items()}
    return {name: 1000 * statistics.median(seconds) for name, seconds in in_turns(calls, rounds).items()}


def main() -> None:
    torch.set_num_threads(1)
    for name, taken in measure().items():
        print(f"{taken:8.2f} ms  {name}")


if __name__ == "__main__":
    main()

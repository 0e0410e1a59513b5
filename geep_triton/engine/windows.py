"""Windows of samples: planned on the host, one ahead of the device where that is wanted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from tqdm.auto import tqdm

from geep_triton.engine.batching import Schedule
from geep_triton.engine.layers import WindowLayers
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import iter_samples

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Samples that were tokenized together.

    Attributes:
        tokens: of the samples.
        first: index of the first one among all inputs.
        seconds: taken to tokenize.
        padding: to warn of it, once; see `geep_triton.tokens.encoder.Encoder.padding_of`.
    """

    tokens: Tokens
    first: int
    seconds: float
    padding: str | None


def encoded_windows(inputs: Any, encoder: Encoder, size: int, columns: tuple[str, str], progress: bool) -> Iterator[Encoded]:
    """Read and tokenize inputs, `size` samples at a time.

    This may run in a thread of its own, where no warning would find the user's line.

    Args:
        inputs: what `Engine.predict` takes.
        encoder: makes tokens of samples.
        size: of a window.
        columns: where rows hold their text, and the other text of a pair.
        progress: show a progress bar.

    Raises:
        ValueError: no inputs, and all that the encoder raises.
    """
    known = isinstance(inputs, Sized) and not isinstance(inputs, (str, Mapping)) and getattr(inputs, "ndim", 1) > 0
    total = len(inputs) if known else None
    samples, first, padding = iter_samples(inputs, *columns), 0, None
    with tqdm(total=total, unit="text", disable=not progress) as bar:
        while True:
            start = time.perf_counter()
            window = list(islice(samples, size))
            if not window:
                break
            tokens = encoder(window, first)
            told, padding = padding, padding or encoder.padding_of(window, tokens, first)
            yield Encoded(tokens, first, time.perf_counter() - start, None if told else padding)
            bar.update(len(window))
            first += len(window)
    if not first:
        raise ValueError("inputs: expected at least one text, got none")


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are planned and sorted together.

    Attributes:
        encoded: its samples.
        layers: run its layers.
        batches: in running order.
        plan_seconds: taken to plan it.
    """

    encoded: Encoded
    layers: WindowLayers
    batches: Schedule
    plan_seconds: float


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; while one is used, the next is already made, in a thread of its own.

    What making an item raises is raised here in its turn. A reader who stops early waits for the item that is being made.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="geep_triton-window") as maker:
        coming = maker.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = maker.submit(next, items, end)
            yield item

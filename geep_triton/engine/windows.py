"""Windows of samples. The host may make one while the device runs the one before."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from tqdm.auto import tqdm

from geep_triton.engine.batching import Batches
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
        first: index of the first sample among all inputs.
        seconds: that tokenizing took.
        padding: a warning about it; None: there is nothing to tell, or it was told. See
            `geep_triton.tokens.encoder.Encoder.padding_of`.
    """

    tokens: Tokens
    first: int
    seconds: float
    padding: str | None


def encoded_windows(
    inputs: Any, encoder: Encoder, size: int, columns: tuple[str, str | None], progress: bool
) -> Iterator[Encoded]:
    """Read and tokenize inputs, `size` samples at a time.

    This may run in a thread of its own, where a warning would not find the user's line.

    Args:
        inputs: what `Engine.predict` takes. Tokens are cut into windows as they are.
        encoder: makes tokens of samples.
        size: of a window.
        columns: see `geep_triton.tokens.samples.iter_samples`.
        progress: show a progress bar.

    Raises:
        ValueError: there are no inputs; and whatever the encoder raises.
    """
    if isinstance(inputs, Tokens):
        yield from _windows_of_tokens(inputs, encoder, size, progress)
        return
    known = isinstance(inputs, Sized) and not isinstance(inputs, (str, Mapping)) and getattr(inputs, "ndim", 1) > 0
    total = len(inputs) if known else None
    samples, first, padding = iter_samples(inputs, columns), 0, None
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


def _windows_of_tokens(tokens: Tokens, encoder: Encoder, size: int, progress: bool) -> Iterator[Encoded]:
    if not len(tokens):
        raise ValueError("inputs: expected at least one text, got none")
    encoder.check(tokens)
    starts = range(0, len(tokens), size)
    parts = tokens.split([min(size, len(tokens) - first) for first in starts])
    for first, part in zip(starts, tqdm(parts, unit="window", disable=not progress), strict=True):
        yield Encoded(part, first, 0.0, None)


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are sorted together, ready to run.

    Attributes:
        encoded: its samples.
        layers: they run its layers.
        batches: in running order.
        plan_seconds: that it took to predict exits and to schedule.
    """

    encoded: Encoded
    layers: WindowLayers[Any]
    batches: Batches
    plan_seconds: float


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items. While one is used, a thread already makes the next.

    An error in making an item is raised here in its turn. A reader who stops early waits for the item that is being made.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="geep_triton-window") as maker:
        coming = maker.submit(_next, items)
        while item := coming.result():
            coming = maker.submit(_next, items)
            yield from item


def _next(items: Iterator[Item]) -> list[Item]:
    """One item, or none at the end."""
    return list(islice(items, 1))

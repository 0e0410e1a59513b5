"""Windows of samples: planned on the host, one ahead of the device where that is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from geep_triton.engine.policies import Plan
from geep_triton.engine.skipping import Layers
from geep_triton.outputs import Schedule, Tokens

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are planned and sorted together.

    Attributes:
        tokens: of the samples.
        first: index of the first one among all inputs.
        plan: first stops.
        layers: run its layers.
        batches: in running order.
        seconds: taken for each step so far.
        padding: to warn of it; see `geep_triton.data.Encoder.padding_of`.
    """

    tokens: Tokens
    first: int
    plan: Plan
    layers: Layers
    batches: Schedule
    seconds: dict[str, float]
    padding: str | None


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

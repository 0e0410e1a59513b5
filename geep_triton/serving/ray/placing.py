"""Placing by foretold depth: shallow texts go to one kind of actors, deep ones to another."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from geep_triton.checks import check_int, check_number
from geep_triton.engine.source import EngineSource
from geep_triton.over_files.predicting import Predicting
from geep_triton.serving.ray.planner import LAYERS, WORK, Planner
from geep_triton.serving.ray.scorer import Scorer

if TYPE_CHECKING:
    from ray.data import Dataset

ORDER = "order"


@dataclass(frozen=True)
class ActorKind:
    """A kind of actors that answer batches.

    Attributes:
        source: of their engines.
        actors: how many.
        speed: of all of them together, in any unit that is the same for both kinds: they get work in this proportion.
        cpus, gpus: what each needs of its node.
        resources: further resources that each needs, by which nodes are told apart.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value has another type.
    """

    source: EngineSource
    actors: int = 1
    speed: float = 1.0
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_int("actors", self.actors, 1)
        check_number("speed", self.speed, 0.0, sys.float_info.max)
        if not self.speed:
            raise ValueError("speed must be above 0, got 0")
        check_number("cpus", self.cpus, 0.0)
        check_number("gpus", self.gpus, 0.0)


def numbered(rows: Dataset, column: str = ORDER) -> Dataset:
    """Rows with a column of their numbers from 0, in the order in which they are read: Ray does not keep the order of rows.

    `answered.sort(column)` puts answers back into that order. The rows are read, and held in the cluster's object store.

    Args:
        rows: a data set without such a column.
        column: its name.
    """
    import ray

    # Inside, so that what runs them need not import this module, and torch with it.
    def count(block: pa.Table) -> int:
        return block.num_rows

    def number(block: pa.Table, start: int) -> pa.Table:
        if column in block.column_names:
            raise ValueError(f"the rows have a column {column!r} already: choose another name")
        return block.append_column(column, pa.array(range(start, start + block.num_rows), pa.int64()))

    with _in_order(rows):
        blocks = rows.materialize().to_arrow_refs()
    counts = ray.get([ray.remote(count).remote(block) for block in blocks])
    starts = np.cumsum([0, *counts])[:-1].tolist()
    return ray.data.from_arrow_refs([ray.remote(number).remote(*given) for given in zip(blocks, starts, strict=True)])


def plan(
    rows: Dataset,
    model: str,
    *,
    predicting: Predicting | None = None,
    max_length: int | None = None,
    actors: int = 1,
    batch_size: int = 4096,
) -> Dataset:
    """Rows with their expected layers and work; see `Planner`. They are held in the cluster's object store.

    Args:
        rows: a data set with texts.
        model: the folder of a model with an exit table.
        predicting: the columns with the texts; None: the defaults.
        max_length: the number of tokens to which engines will cut a text; None: as many as the model takes.
        actors: how many plan.
        batch_size: rows planned together.
    """
    from ray.data import ActorPoolStrategy

    arguments = {"model": str(Path(model).absolute()), "predicting": predicting, "max_length": max_length}
    pool = ActorPoolStrategy(size=actors)
    planned = rows.map_batches(
        Planner, fn_constructor_kwargs=arguments, batch_size=batch_size, batch_format="pyarrow", compute=pool
    )
    return planned.materialize()


def choose_cut(layers: np.ndarray, work: np.ndarray, share: float) -> float:
    """The depth up to which texts count as shallow, so that these make about a share of the work.

    Args:
        layers, work: what is expected of each text; see `Planner`.
        share: of the work that the shallow texts shall make, 0..1.

    Returns:
        The number of layers of the deepest shallow text; below all texts where none is shallow.

    Raises:
        ValueError: there are no texts, or the share is out of range.
    """
    check_number("share", share, 0.0, 1.0)
    if not len(layers):
        raise ValueError("layers must be of at least one text, got none")
    depths, places = np.unique(layers, return_inverse=True)
    up_to = np.concatenate([[0.0], np.bincount(places, weights=work).cumsum()])
    best = int(np.abs(up_to - share * up_to[-1]).argmin())
    return float(depths[best - 1]) if best else float(np.nextafter(depths[0], -np.inf))


def place(
    planned: Dataset,
    shallow: ActorKind,
    deep: ActorKind,
    *,
    cut: float | None = None,
    batch_size: int = 4096,
    **options: Any,
) -> Dataset:
    """Answer rows: the shallow ones by one kind of actors, the deep ones by the other, both at once.

    The rows come in any order; see `numbered`.

    Args:
        planned: what `plan` returned.
        shallow, deep: the two kinds.
        cut: rows of at most so many expected layers are shallow. None: so many that both kinds get the work that matches their
            speeds; see `choose_cut`.
        batch_size: rows answered together.
        **options: of `Scorer`: predicting, prefix, bad_rows.
    """
    if not planned.count():  # Ray knows no columns where there are no rows
        return planned
    if cut is None:
        expected = planned.select_columns([LAYERS, WORK]).to_pandas()
        share = shallow.speed / (shallow.speed + deep.speed)
        cut = choose_cut(expected[LAYERS].to_numpy(), expected[WORK].to_numpy(), share)
    from ray.data.expressions import col, lit

    of_shallow = answer(planned.filter(expr=col(LAYERS) <= lit(cut)), shallow, batch_size, **options)
    return of_shallow.union(answer(planned.filter(expr=col(LAYERS) > lit(cut)), deep, batch_size, **options))


def answer(rows: Dataset, kind: ActorKind, batch_size: int = 4096, **options: Any) -> Dataset:
    """Answer rows by one kind of actors.

    Args:
        rows: a data set with texts.
        kind: of the actors.
        batch_size: rows answered together.
        **options: of `Scorer`: predicting, prefix, bad_rows.
    """
    from ray.data import ActorPoolStrategy

    return rows.map_batches(
        Scorer,
        fn_constructor_kwargs={"source": kind.source.absolute(), **options},
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=kind.actors),
        num_cpus=kind.cpus,
        num_gpus=kind.gpus,
        resources=dict(kind.resources),
    )


@contextlib.contextmanager
def _in_order(rows: Dataset) -> Iterator[None]:
    """A data set keeps the order of its rows. It has the options of when it was made."""
    options = rows.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before

"""Measuring policies on labelled rows: accuracy and wall clock."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from geep_triton.data import Row, check_columns, check_rows
from geep_triton.engine.checks import label_ids
from geep_triton.engine.engine import Engine
from geep_triton.engine.timing import in_turns
from geep_triton.evaluation.metrics import accuracy
from geep_triton.outputs import Predictions


@dataclass(frozen=True)
class Measurement:
    """One policy measured on labelled data.

    Attributes:
        policy: its short form, e.g. "threshold:0.3".
        accuracy: 0..1.
        mean_layers: layers run per sample, on average.
        samples_per_second: wall clock.
    """

    policy: str
    accuracy: float
    mean_layers: float
    samples_per_second: float


@contextmanager
def quiet_garbage_collector() -> Iterator[None]:
    """What lives already is not searched for garbage: else a full search, a fifth of a second, falls on one run by chance."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure(
    engines: dict[str, Engine], rows: Sequence[Row], rounds: int, report: Callable[[str], None] | None = None
) -> tuple[list[Measurement], dict[str, Predictions]]:
    """Run every engine over the rows, interleaved, after one unmeasured warm-up batch each.

    Args:
        engines: by the name of their policy.
        rows: with text, label (names of classes, or numbers) and optionally text_pair.
        rounds: how often each engine answers all rows; speed is the median round's.
        report: called with the name of each finished run.

    Returns:
        A measurement per engine, and its last predictions.

    Raises:
        ValueError: no rows, a row without a label, or a label that an engine's model does not know. TypeError: something else
            than rows.
    """
    check_rows(rows)
    for index, row in enumerate(rows):
        check_columns(row, ("label",))
        if row["label"] is None or row["label"] == "":
            raise ValueError(f"row {index} has no label")
    labels = [row["label"] for row in rows]
    numbers = {name: {label: index for index, label in of.model.config.id2label.items()} for name, of in engines.items()}
    truth = {name: label_ids(labels, len(rows), numbers[name]) for name in engines}
    predictions: dict[str, Predictions] = {}

    def run(name: str) -> None:
        predictions[name] = engines[name].predict(rows)

    for engine in engines.values():
        engine.predict(rows[:64])
    with quiet_garbage_collector():
        seconds = in_turns({name: partial(run, name) for name in engines}, rounds, report)
    measurements = [
        Measurement(
            name,
            accuracy(predictions[name].logits, truth[name]),
            predictions[name].mean_layers,
            len(rows) / statistics.median(seconds[name]),
        )
        for name in engines
    ]
    return measurements, predictions

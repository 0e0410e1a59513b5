"""`Scorer`: a class for `map_batches` of Ray Data, each of whose actors holds an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from geep_triton.checks import check_choice
from geep_triton.engine.source import EngineSource
from geep_triton.files.answerer import BadRow
from geep_triton.files.outputs import AnswerColumns
from geep_triton.over_files.predicting import Predicting

Batch: TypeAlias = pa.Table | Mapping[str, np.ndarray]
BAD_ROWS = ("stop", "empty")  # a batch has no place for rows that are left out


class Scorer:
    """Answers batches of rows: all columns stay, and those of the answers come, as `geep predict` names them.

    Use it as `ds.map_batches(Scorer, fn_constructor_kwargs={"source": "/runs/fast"}, batch_size=4096,
    batch_format="pyarrow", compute=ActorPoolStrategy(size=2))`. A batch is sorted as a whole, so that batches of thousands are
    fast. Ray does not keep the order of rows unless it is told to; see `geep_triton.serving.ray.placing.numbered`.

    Args:
        source: of the engine; a text is its model: a folder, which all machines see at the same path, or a hub id.
        predicting: the columns with the texts, and whether all scores are wanted; None: the defaults.
        prefix: before the names of the answers' columns.
        bad_rows: what becomes of rows that cannot be answered: "stop"; "empty": they stay, with empty answers, and a column
            "error" says why. In a mapping of arrays, an empty answer is None or NaN.

    Raises:
        ValueError: a value is unknown; and whatever loading the engine raises.
    """

    def __init__(
        self,
        source: EngineSource | str,
        *,
        predicting: Predicting | None = None,
        prefix: str = "",
        bad_rows: str = "stop",
    ) -> None:
        check_choice("bad_rows", bad_rows, BAD_ROWS)
        found = EngineSource(source) if isinstance(source, str) else source
        self._answerer = (predicting or Predicting()).by(found.load())
        self._stops = bad_rows == "stop"
        self._columns = AnswerColumns.of(self._answerer.types, prefix, with_errors=not self._stops)

    def __call__(self, batch: Batch) -> Batch:
        """Answer a batch: an Arrow table, or a mapping of columns to arrays. What comes is of the same kind.

        Raises:
            BadRow: under "stop", a row cannot be answered.
            ValueError: a column is missing, or is there that the answers would have.
            TypeError: the batch is of another kind.
        """
        rows = rows_of(batch, self._answerer.wanted, self._answerer.optional)
        _refuse_taken(batch, self._columns.names, "give the answers a prefix")
        answers = self._answerer.answer(rows).answers
        if self._stops:
            for index, answer in enumerate(answers):
                if isinstance(answer, str):
                    raise BadRow(f"row {index} of a batch, {rows[index]!r:.80}, {answer}")
        return beside(batch, self._columns.table(answers))


def rows_of(batch: Batch, wanted: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[Any, ...]]:
    """The values of some columns, row by row. Optional columns that are not there give None.

    Raises:
        ValueError: a column is missing.
        TypeError: the batch is neither an Arrow table nor a mapping of columns.
    """
    if isinstance(batch, pa.Table):
        columns = {name: batch[name].to_pylist() for name in (*wanted, *optional) if name in batch.column_names}
        count = batch.num_rows
    elif isinstance(batch, Mapping):
        columns = {name: np.asarray(batch[name]).tolist() for name in (*wanted, *optional) if name in batch}
        count = len(next(iter(batch.values()), ()))
    else:
        raise TypeError(
            f'a batch must be an Arrow table or a dict of arrays (batch_format="pyarrow"), got {type(batch).__name__}'
        )
    if missing := [name for name in wanted if name not in columns]:
        raise ValueError(f"the batch has no column {missing[0]!r}")
    return list(zip(*(columns.get(name, [None] * count) for name in (*wanted, *optional)), strict=True))


def beside(batch: Batch, found: pa.Table) -> Batch:
    """A batch with further columns, of the same kind. ValueError if it has such a column already."""
    _refuse_taken(batch, found.column_names, "drop it, or give it another name")
    if isinstance(batch, pa.Table):
        for field in found.schema:
            batch = batch.append_column(field, found[field.name])
        return batch
    return {**batch, **{name: found[name].to_numpy(zero_copy_only=False) for name in found.column_names}}


def _refuse_taken(batch: Batch, new: Sequence[str], advice: str) -> None:
    names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
    if taken := [name for name in new if name in names]:
        raise ValueError(f"the batch has a column {', '.join(map(repr, taken))} already: {advice}")

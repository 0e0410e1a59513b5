"""`rank_files`: an engine orders the candidates of all queries of files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from geep_triton.answers import Score
from geep_triton.checks import check_int, shorten
from geep_triton.engine.engine import Engine
from geep_triton.engine.ranking import Ranking
from geep_triton.files.answerer import Answer, Answered
from geep_triton.files.crew import Here
from geep_triton.files.readers import Values
from geep_triton.files.run import Report, answer_files
from geep_triton.files.settings import Settings
from geep_triton.over_files.bad_samples import answer_good
from geep_triton.over_files.identity import identity_of
from geep_triton.warn import warn

WINDOW = 256  # queries that are answered together, each with all of its candidates
TYPES: Mapping[str, pa.DataType] = {
    "order": pa.list_(pa.int64()),
    "scores": pa.list_(pa.float32()),
    "exit_layers": pa.list_(pa.int64()),
}


class FileRanker:
    """Ranks candidates by an engine.

    Args:
        engine: it scores them.
        query_column: the column with the queries.
        candidates_column: the column with the lists of candidates; in CSV files they are JSON.
        top_k: how many of the best are wanted; None: all.

    Raises:
        ValueError: the engine's model gives no score, or `top_k` is below 1.
        TypeError: `top_k` is no int.
    """

    optional: Sequence[str] = ()
    types = TYPES
    window = WINDOW

    def __init__(self, engine: Engine, query_column: str, candidates_column: str, top_k: int | None) -> None:
        if not isinstance(engine.model.answers, Score):
            raise ValueError(f"to rank needs a model of one score (num_labels=1), got {engine.model.config.num_labels} labels")
        if top_k is not None:
            check_int("top_k", top_k, 1)
        self.engine, self.top_k = engine, top_k
        self.wanted: Sequence[str] = (query_column, candidates_column)

    def answer(self, rows: Sequence[Values]) -> Answered:
        """See `geep_triton.files.answerer.Answerer`."""
        groups = [(query, _candidates(given)) for query, given in rows]
        reasons = {index: reason for index, group in enumerate(groups) if (reason := _wrong(*group)) is not None}
        counts: list[Mapping[str, int]] = [{}] * len(groups)

        def rank(good: list[int]) -> list[Answer]:
            found = list(self.engine.rank_many([groups[index] for index in good], self.top_k))
            for index, ranking in zip(good, found, strict=True):
                exits = Counter(f"exit {layer}" for layer in ranking.exit_layers.tolist())
                counts[index] = {**exits, "truncated": ranking.truncated}
            return [describe_ranking(ranking) for ranking in found]

        return Answered(answer_good(len(groups), reasons, rank), counts)


def rank_files(
    engine: Engine,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    query_column: str = "query",
    candidates_column: str = "candidates",
    top_k: int | None = None,
    settings: Settings | None = None,
    tell: Callable[[str], None] = warn,
    progress: bool = False,
) -> Report:
    """Order the candidates of all queries of files: parquet, Arrow, CSV or JSON lines, also folders of them.

    The outputs have all columns of the inputs, and `order` (numbers of the candidates, the best first, at most `top_k`),
    `scores` and `exit_layers` (both candidate by candidate, as they were given). A run that was killed goes on when it is
    started again; see `geep_triton.files.run.answer_files`.

    Args:
        engine: of a model of one score.
        inputs, output, tell, progress: see `geep_triton.files.run.answer_files`.
        query_column: the column with the queries.
        candidates_column: the column with the lists of candidates; in CSV files they are JSON.
        top_k: how many of the best are wanted; None: all.
        settings: how files are treated. None: the defaults.

    Returns:
        What was done. Its counts are "exit L", how many candidates left at layer L, and "truncated", how many pairs were cut.

    Raises:
        ValueError: see `answer_files`; or the model gives no score.
        TypeError: an argument has another type.
    """
    ranker = FileRanker(engine, query_column, candidates_column, top_k)
    asked = {"task": "rank", "query_column": query_column, "candidates_column": candidates_column, "top_k": top_k}
    return answer_files(
        Here(ranker), inputs, output, settings or Settings(), {**identity_of(engine), **asked}, tell=tell, progress=progress
    )


def describe_ranking(ranking: Ranking) -> Answer:
    """The values of the columns of answers."""
    return {
        "order": ranking.order.tolist(),
        "scores": ranking.scores.tolist(),
        "exit_layers": ranking.exit_layers.tolist(),
    }


def _candidates(given: Any) -> Any:
    """The candidates as a list, where they are one in JSON."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return given


def _wrong(query: Any, candidates: Any) -> str | None:
    """Why a query cannot be answered, before its texts are read."""
    if not isinstance(query, str):
        return f"has a query that is not a string: {shorten(query)}"
    if not isinstance(candidates, list):
        return f"has candidates that are no list: {shorten(candidates)}"
    for number, text in enumerate(candidates):
        if not isinstance(text, str):
            return f"has a candidate ({number}) that is not a string: {shorten(text)}"
    return None

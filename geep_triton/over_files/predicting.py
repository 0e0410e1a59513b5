"""`predict_files`: an engine answers all texts of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from geep_triton.answers import LabelSet, Score
from geep_triton.checks import check_bool
from geep_triton.engine.engine import Engine
from geep_triton.engine.predictions import Predictions
from geep_triton.files.answerer import Answer, Answered
from geep_triton.files.crew import Here
from geep_triton.files.readers import Values
from geep_triton.files.run import Report, answer_files
from geep_triton.files.settings import Settings
from geep_triton.over_files.bad_samples import answer_good
from geep_triton.over_files.identity import identity_of
from geep_triton.tokens.samples import COLUMNS
from geep_triton.warn import warn


@dataclass(frozen=True)
class Predicting:
    """What is asked of an engine over files.

    Attributes:
        text_column: the column with the texts.
        pair_column: the column with the second texts of pairs, which must be there. None: "text_pair", where there is one.
        all_scores: of a model of classes, also `scores`, the probability of each.
    """

    text_column: str = COLUMNS[0]
    pair_column: str | None = None
    all_scores: bool = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return (self.text_column,) if self.pair_column is None else (self.text_column, self.pair_column)

    @property
    def optional(self) -> tuple[str, ...]:
        """A column of second texts, which may be missing."""
        return (COLUMNS[1],) if self.pair_column is None else ()

    def by(self, engine: Engine) -> Predictor:
        """Whoever answers by this engine. ValueError if `all_scores` is asked of a model without classes."""
        return Predictor(engine, self)

    def manifest(self, engine: Engine) -> dict[str, Any]:
        """Everything that the answers of this engine depend on, in JSON values."""
        return {**identity_of(engine), "task": "predict", **asdict(self)}


class Predictor:
    """Answers texts, or pairs of texts, by an engine.

    Args:
        engine: it answers.
        asked: the columns with the texts, and what is asked of these.

    Raises:
        ValueError: all scores are asked of a model without classes.
    """

    def __init__(self, engine: Engine, asked: Predicting) -> None:
        check_bool("all_scores", asked.all_scores)
        self.engine = engine
        self.wanted: Sequence[str] = asked.wanted
        self.optional: Sequence[str] = asked.optional
        self.window = engine.window
        self.all_scores = asked.all_scores
        self.types = answer_types(engine, asked.all_scores)

    def answer(self, rows: Sequence[Values]) -> Answered:
        """See `geep_triton.files.answerer.Answerer`."""
        samples, nothing = samples_of(rows)
        counts: list[Mapping[str, int]] = [{}] * len(samples)

        def predict(good: list[int]) -> list[Answer]:
            found = self.engine.predict([samples[index] for index in good])
            cut = [False] * len(good) if found.cut is None else found.cut.tolist()
            for index, layer, is_cut in zip(good, found.exit_layers.tolist(), cut, strict=True):
                counts[index] = {f"exit {layer}": 1, "truncated": int(is_cut)}
            return describe_predictions(found, self.all_scores)

        return Answered(answer_good(len(samples), nothing, predict), counts)


def samples_of(rows: Sequence[Values]) -> tuple[list[tuple[Any, Any]], dict[int, str]]:
    """The text and the second text (or None) of each row, and why some rows cannot be answered: they have no text."""
    samples = [(row[0], row[1] if len(row) > 1 else None) for row in rows]
    return samples, {index: "has no text (null)" for index, (text, _) in enumerate(samples) if text is None}


def predict_files(
    engine: Engine,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    text_column: str = COLUMNS[0],
    pair_column: str | None = None,
    all_scores: bool = False,
    settings: Settings | None = None,
    tell: Callable[[str], None] = warn,
    progress: bool = False,
) -> Report:
    """Answer all texts of files: parquet, Arrow, CSV or JSON lines, also folders of them.

    The outputs have all columns of the inputs, and those of the answers: `label`, `score` and `exit_layer`; of a multi-label
    model `labels`, `scores` and `exit_layer`; of a model of one score `score`, `exit_layer` and, where it has a cut,
    `decision`. A run that was killed goes on when it is started again; see `geep_triton.files.run.answer_files`.

    Args:
        engine: it answers.
        inputs, output, tell, progress: see `geep_triton.files.run.answer_files`.
        text_column: the column with the texts.
        pair_column: the column with the second texts of pairs, which must be there. None: "text_pair", where there is one.
        all_scores: of a model of classes, also `scores`, the probability of each.
        settings: how files are treated. None: the defaults.

    Returns:
        What was done. Its counts are "exit L", how many texts left at layer L, and "truncated", how many were cut.

    Raises:
        ValueError: see `answer_files`; or `all_scores` is given for a model without classes.
    """
    predicting = Predicting(text_column, pair_column, all_scores)
    return answer_files(
        Here(predicting.by(engine)), inputs, output, settings or Settings(), predicting.manifest(engine), tell=tell,
        progress=progress,
    )  # fmt: skip


def answer_types(engine: Engine, all_scores: bool) -> Mapping[str, pa.DataType]:
    """The columns of an engine's answers. ValueError if all scores are asked of a model without classes."""
    answers = engine.model.answers
    each = pa.struct([(name, pa.float32()) for name in answers.id2label.values()])
    if isinstance(answers, Score):
        if all_scores:
            raise ValueError("all_scores is for models of classes, got a model of one score")
        cut = {} if answers.decision is None else {"decision": pa.bool_()}
        return {"score": pa.float32(), "exit_layer": pa.int64(), **cut}
    if isinstance(answers, LabelSet):
        return {"labels": pa.list_(pa.string()), "scores": each, "exit_layer": pa.int64()}
    scores = {"scores": each} if all_scores else {}
    return {"label": pa.string(), "score": pa.float32(), "exit_layer": pa.int64(), **scores}


def describe_predictions(found: Predictions, all_scores: bool = False) -> list[Answer]:
    """The values of the columns of `answer_types` for each sample."""
    exits = found.exit_layers.tolist()
    if isinstance(found.answers, Score):
        lines: list[Answer] = [{"score": s, "exit_layer": e} for s, e in zip(found.scores.tolist(), exits, strict=True)]
        if found.answers.decision is None:
            return lines
        return [line | {"decision": of} for line, of in zip(lines, found.decisions.tolist(), strict=True)]
    names = list(found.id2label.values())
    scores = [dict(zip(names, row, strict=True)) for row in found.probabilities.tolist()]
    if isinstance(found.answers, LabelSet):
        return [
            {"labels": labels, "scores": row, "exit_layer": layer}
            for labels, row, layer in zip(found.label_sets, scores, exits, strict=True)
        ]
    return [
        {"label": label, "score": row[label], "exit_layer": layer} | ({"scores": row} if all_scores else {})
        for label, row, layer in zip(found.labels, scores, exits, strict=True)
    ]

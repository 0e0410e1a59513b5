"""Rows of the tasks: for training, and of dev and test, on which promises are made and judged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from bench.answers.tasks import WIKIQA, Task
from bench.data import data_folder
from geep_triton.files.rows import read_rows
from geep_triton.tokens.columns import Row

NEGATIVES = 3  # wrong answers of its own question that each right answer is trained with, and one of another question
QUESTIONS = 400  # of wikiqa's records: half of them to calibrate on
CANDIDATES = 25  # of each question in the records


def folder_of(task: Task) -> Path:
    """Where the rows of a task are. Raises ValueError where GEEP_DATA is no folder."""
    return data_folder() / task.name


def split(task: Task, *names: str) -> list[Row]:
    """The rows of these splits."""
    return [row for name in names for row in read_rows(folder_of(task) / f"{name}.jsonl", required=("text", "label"))]


def training_rows(task: Task, limit: int | None = None) -> list[Row]:
    """The same training rows for all models and seeds, drawn at random.

    Args:
        task: wikiqa's are its right answers, each with some wrong ones of the same question and one answer of another question,
            because a reranker meets both.
        limit: at most so many, to try it out.
    """
    rows, generator = split(task, "train"), random.Random(0)
    if task.name == WIKIQA.name:
        rows = contrasted(rows, generator)
    size = min(len(rows), task.train, len(rows) if limit is None else limit)
    return generator.sample(rows, size)


def contrasted(rows: Sequence[Row], generator: random.Random) -> list[Row]:
    """Each right answer, `NEGATIVES` wrong ones of its question, and a random answer of another question."""
    wrong: dict[str, list[Row]] = {}
    for row in rows:
        if row["label"] == "0":
            wrong.setdefault(row["text"], []).append(row)
    found: list[Row] = []
    for row in rows:
        if row["label"] == "1":
            own = wrong.get(row["text"], [])
            found += [row, *generator.sample(own, min(NEGATIVES, len(own)))]
            other = generator.choice(rows)
            if other["text"] != row["text"]:
                found.append({"text": row["text"], "text_pair": other["text_pair"], "label": "0"})
    return found


def recorded_rows(task: Task, limit: int | None = None) -> list[Row]:
    """The rows of dev and test whose every exit is recorded. Those of wikiqa are `CANDIDATES` rows per question, in turn."""
    if task.name == WIKIQA.name:
        questions = QUESTIONS if limit is None else max(4, limit // CANDIDATES)
        return [row for group in groups(task, questions, CANDIDATES) for row in group]
    rows = split(task, "dev", "test")
    size = min(len(rows) if task.recorded is None else task.recorded, len(rows) if limit is None else limit)
    return random.Random(1).sample(rows, size)


def groups(task: Task, questions: int, candidates: int) -> list[list[Row]]:
    """Questions of dev and test with so many candidates each, as a search by words would give them.

    A question's own candidates come first. The others are those answers of other questions that share the most words with it
    (cosine of tf-idf). They count as wrong.

    Args:
        task: wikiqa.
        questions: how many, drawn at random among those with a right answer first, then among the others.
        candidates: of each question.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    own: dict[str, list[Row]] = {}
    for row in split(task, "dev", "test"):
        own.setdefault(row["text"], []).append(row)
    generator = random.Random(2)
    answered = [text for text, rows in own.items() if any(row["label"] == "1" for row in rows)]
    others = [text for text in own if text not in set(answered)]
    chosen = [*generator.sample(answered, len(answered)), *generator.sample(others, len(others))][:questions]
    generator.shuffle(chosen)
    texts = list(dict.fromkeys(row["text_pair"] for rows in own.values() for row in rows))
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(texts)
    similarity = (vectorizer.transform(chosen) @ vectorizer.transform(texts).T).toarray()
    found = []
    for text, row_of_similarity in zip(chosen, similarity, strict=True):
        group = own[text][:candidates]
        known = {row["text_pair"] for row in group}
        for index in row_of_similarity.argsort(kind="stable")[::-1]:
            if len(group) == candidates:
                break
            if texts[index] not in known:
                group = [*group, {"text": text, "text_pair": texts[index], "label": "0"}]
        found.append(group)
    return found

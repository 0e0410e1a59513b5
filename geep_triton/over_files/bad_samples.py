"""Answers the rows that can be answered, and says of the others why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from geep_triton.checks import BadSample
from geep_triton.files.answerer import Answer


def answer_good(count: int, known: Mapping[int, str], answer: Callable[[list[int]], Sequence[Answer]]) -> list[Answer | str]:
    """Answer rows again without those that turn out to be bad.

    Args:
        count: how many rows there are.
        known: number of a row that cannot be answered -> why.
        answer: answers the rows of these numbers, or raises BadSample, whose `index` is a place among them.

    Returns:
        For each row its answer, or why there is none.
    """
    found: dict[int, Answer | str] = dict(known)
    while good := [index for index in range(count) if index not in found]:
        try:
            found.update(zip(good, answer(good), strict=True))
        except BadSample as error:
            found.update({good[bad.index]: bad.reason for bad in (error, *error.others)})
    return [found[index] for index in range(count)]

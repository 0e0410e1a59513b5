"""Reads queries with their candidates in windows of whole groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from geep_triton.checks import BadSample, shorten
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens

# Queries with their candidates, one after another. A list of pairs [query, candidates] is as good as tuples.
RankInputs: TypeAlias = Iterable[tuple[str, Iterable[str]]]


@dataclass(frozen=True, eq=False)
class Groups:
    """The candidates of some queries, ready to run.

    Attributes:
        candidates: of each query.
        tokens: of all pairs of a query and a candidate, query by query; None where there is no pair.
        first: the number of the first query among all.
    """

    candidates: list[list[str]]
    tokens: Tokens | None
    first: int

    @property
    def bounds(self) -> list[int]:
        """Where each query's pairs begin, and at last the number of pairs."""
        return list(accumulate(map(len, self.candidates), initial=0))

    @property
    def truncated(self) -> list[int]:
        """How many pairs of each query were cut."""
        if self.tokens is None or self.tokens.cut is None:
            return [0] * len(self.candidates)
        return [int(cut.sum()) for cut in self.tokens.cut.split([len(texts) for texts in self.candidates])]

    def find(self, pair: int) -> tuple[int, int]:
        """The numbers of a pair's query, among all, and of its candidate, among those of the query."""
        query = max(index for index, bound in enumerate(self.bounds[:-1]) if bound <= pair)
        return self.first + query, pair - self.bounds[query]

    def place(self, pair: int) -> str:
        """The words by which an error names a pair of these."""
        query, candidate = self.find(pair)
        return f"candidate {candidate} of query {query}"


class BadGroup(BadSample):
    """A query with a candidate that cannot be scored. Its `index` is the number of the query."""

    def __init__(self, query: int, candidate: int, reason: str, others: Sequence[BadGroup] = ()) -> None:
        super().__init__(query, f"has a candidate ({candidate}) that {reason}", others)
        self.args = (f"candidate {candidate} of query {query} {reason}",)


def windows_of_groups(groups: Iterable[tuple[str, Iterable[str]] | Groups], encoder: Encoder, size: int) -> Iterator[Groups]:
    """Read and tokenize whole groups, so many together that they have at least `size` pairs. Those that are encoded stay so.

    Raises:
        ValueError: a query or a candidate is empty, too long or no valid text; the error names it.
        TypeError: a group is not a query with its candidates.
    """
    read: list[tuple[str, list[str]] | Groups] = []
    first = pairs = 0
    _check_groups(groups)
    for number, group in enumerate(groups):
        checked = group if isinstance(group, Groups) else _read_group(group, number)
        pairs += checked.bounds[-1] if isinstance(checked, Groups) else len(checked[1])
        read.append(checked)
        if pairs >= size:
            yield _window(read, first, encoder)
            read, first, pairs = [], number + 1, 0
    if read:
        yield _window(read, first, encoder)


def read_groups(groups: Any) -> Iterator[tuple[str, list[str]]]:
    """Each query with the list of its candidates.

    Raises:
        TypeError: a group is something else.
        ValueError: a candidate is None.
    """
    _check_groups(groups)
    for number, group in enumerate(groups):
        yield _read_group(group, number)


def _check_groups(groups: Any) -> None:
    if isinstance(groups, (str, Mapping)) or not isinstance(groups, Iterable):
        raise TypeError(f"groups must be an iterable of (query, candidates), got {shorten(groups)}")


def _read_group(group: Any, number: int) -> tuple[str, list[str]]:
    if not isinstance(group, (tuple, list)) or len(group) != 2:
        raise TypeError(f"query {number} must be a tuple (query, candidates), got {shorten(group)}")
    query, candidates = group
    if not isinstance(query, str):
        raise TypeError(f"query {number} must be a text, got {shorten(query)} of type {type(query).__name__}")
    if isinstance(candidates, (str, bytes, Mapping, Set)) or not isinstance(candidates, Iterable):
        raise TypeError(f"candidates of query {number} must be a list of texts, got {shorten(candidates)}")
    texts = list(candidates)
    for index, text in enumerate(texts):
        if text is None:  # the encoder would take the query for a single text
            raise ValueError(f"candidate {index} of query {number} is None, expected a text")
    return query, texts


def _window(read: Sequence[tuple[str, list[str]] | Groups], first: int, encoder: Encoder) -> Groups:
    """The groups as one window. `first` is the number of the first."""
    texts = [group for group in read if not isinstance(group, Groups)]
    if len(texts) == len(read):
        return _encoded(texts, first, encoder)
    parts = [
        group if isinstance(group, Groups) else _encoded([group], first + number, encoder) for number, group in enumerate(read)
    ]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    candidates = [texts for part in parts for texts in part.candidates]
    window = Groups(candidates, Tokens.concatenate(tokens) if tokens else None, first)
    if window.tokens is not None:
        with naming_pairs(window):
            encoder.check(window.tokens)
    return window


def _encoded(read: Sequence[tuple[str, list[str]]], first: int, encoder: Encoder) -> Groups:
    groups = Groups([texts for _, texts in read], None, first)
    with naming_pairs(groups):
        pairs = pairs_of([query for query, _ in read], groups)
        return Groups(groups.candidates, encoder(pairs), first) if pairs else groups


def pairs_of(queries: Sequence[str], groups: Groups) -> list[tuple[str, str]]:
    """All pairs, query by query."""
    return [(query, text) for query, texts in zip(queries, groups.candidates, strict=True) for text in texts]


@contextmanager
def naming_pairs(groups: Groups) -> Iterator[None]:
    """Let errors name a pair by its query and candidate."""
    try:
        yield
    except BadSample as error:
        others = [BadGroup(*groups.find(other.index), other.reason) for other in error.others]
        raise BadGroup(*groups.find(error.index), error.reason, others) from error

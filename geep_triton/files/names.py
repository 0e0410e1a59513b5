"""Names of columns, and names in messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from geep_triton.checks import shorten


def refuse_twice(names: Sequence[str]) -> None:
    """Raise ValueError if a column's name appears twice: only one of its values would be kept."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"column {', '.join(map(shorten, twice))} appears more than once; columns: {shorten(names)}")


def few(names: Sequence[str]) -> str:
    """The first names, for messages."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

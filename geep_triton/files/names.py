"""Names of columns, and names in messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from geep_triton.checks import shorten


def refuse_twice(names: Sequence[str]) -> None:
    """Raise ValueError if a column's name appears twice: only one of its values would be kept."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"column {', '.join(map(shorten, twice))} appears more than once; columns: {shorten(names)}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], each: str) -> tuple[str, str]:
    """Where two mappings differ, for messages: the names, and what is said of each by its name and its two values."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    told = "; ".join(each.format(name, shorten(before.get(name), 60), shorten(now.get(name), 60)) for name in names)
    return ", ".join(names), told


def few(names: Sequence[str]) -> str:
    """The first names, for messages."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

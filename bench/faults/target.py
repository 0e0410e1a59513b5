"""A callable and the values that its arguments must not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.faults.hostile import Values


@dataclass(frozen=True)
class Target:
    """A callable and the values that it must refuse.

    Attributes:
        name: the name that a user knows.
        call: takes keyword arguments.
        refuses: argument -> values that it must refuse.
        valid: argument -> a right value.
    """

    name: str
    call: Callable[..., Any]
    refuses: Mapping[str, Values]
    valid: Mapping[str, Any] = field(default_factory=dict)

"""A callable with what its arguments must not be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.faults.hostile import Values


@dataclass(frozen=True)
class Target:
    """A callable.

    Attributes:
        name: as a user calls it.
        call: with keyword arguments.
        refuses: argument -> values that it must refuse.
        valid: what the other arguments are.
    """

    name: str
    call: Callable[..., Any]
    refuses: Mapping[str, Values]
    valid: Mapping[str, Any] = field(default_factory=dict)

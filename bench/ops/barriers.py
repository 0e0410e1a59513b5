"""Finds barriers in AMD assembly that do not order global memory, so that a later load may miss an earlier store."""

from __future__ import annotations

import re
from enum import Enum, auto


class Stores(Enum):
    """What became of this wave's last global stores."""

    LANDED = auto()  # other waves see them, or know not to
    ON_THEIR_WAY = auto()
    PASSED = auto()  # a barrier while they were on their way
    TOO_LATE = auto()  # they landed behind that barrier; the next one orders them


def unordered_barriers(assembly: str) -> int:
    """How many `s_barrier` are reached with a global store on its way and followed by a global load, on any way through.

    On CDNA a barrier alone orders no global memory: other waves see a store for sure if its wave reached `s_waitcnt vmcnt(0)`
    before the barrier.
    """
    lines = [line.split(";")[0].strip() for line in assembly.splitlines()]
    labels = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}
    found: set[int] = set()
    seen: set[tuple[int, Stores, int]] = set()
    ways = [(0, Stores.LANDED, -1)]  # a line, what it is reached with, the last barrier that was no help
    while ways:
        if (way := ways.pop()) in seen or way[0] == len(lines):
            continue
        seen.add(way)
        at, stores, barrier = way
        line = lines[at]
        if line.startswith("s_endpgm"):
            continue
        if branch := re.match(r"s_c?branch\w*\s+(\S+)", line):
            ways.append((labels[branch[1]], stores, barrier))
            if line.startswith("s_branch"):
                continue
        elif line.startswith("global_store"):
            # Those before it, if any, go on beside it.
            ways.append((at + 1, Stores.ON_THEIR_WAY, -1))
        elif line.startswith("s_waitcnt") and "vmcnt(0)" in line:
            stores = {Stores.ON_THEIR_WAY: Stores.LANDED, Stores.PASSED: Stores.TOO_LATE}.get(stores, stores)
        elif line.startswith("s_barrier"):
            barrier = at if stores is Stores.ON_THEIR_WAY else barrier
            stores = {Stores.ON_THEIR_WAY: Stores.PASSED, Stores.TOO_LATE: Stores.LANDED}.get(stores, stores)
        elif line.startswith("global_load") and stores in (Stores.PASSED, Stores.TOO_LATE):
            found.add(barrier)
            continue
        ways.append((at + 1, stores, barrier))
    return len(found)

"""The page on many machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.report.tables import lines, measured_on
from bench.rows import read, records

INTRODUCTION = """# Many machines

Made by `python -m bench.report` from `bench/results/ray`, which `python -m bench.ray` writes. All nodes are on one machine, one
core and one thread each, so that figures show what Ray costs and what placing saves, not what more machines give.
[Many machines](../ray.md) says how it is used.
"""
NAMES = {"one process": "one process", "two nodes": "two nodes", "killed": "two nodes, an actor and a node killed"}


def page(folder: Path = RESULTS / "ray") -> str:
    found = records(read(folder))
    cases = {case: {one["system"]: one for one in found if one["case"] == case} for case in ("nodes", "placing")}
    return "\n".join([INTRODUCTION, *nodes(cases["nodes"]), *placing(cases["placing"])])


def nodes(of: dict[str, dict[str, Any]]) -> list[str]:
    """One process beside two nodes."""
    if not of:
        return ["## Two nodes", "", "Not yet measured.", ""]
    first = of["one process"]
    told = first["declaration"]
    rows = [
        (
            name, seconds(of[system]), "-" if (loading := of[system].get("loading_seconds")) is None else f"{loading:.1f}",
            f"{of[system]['same']} of {first['shards']}",
        )
        for system, name in NAMES.items()
    ]  # fmt: skip
    return [
        "## Two nodes",
        "",
        f"`geep predict` over {first['shards']} shards with {first['rows']:,} rows: {told['model']}, "
        f"policy `{told['policy']}`, texts of {told['texts']}. {measured_on(first['environment'])}.",
        "",
        lines(["run", "seconds", "of them until the first row", "outputs of the same bytes"], rows),
        "",
        "Seconds are medians of interleaved rounds, with the range. In the last run an actor is killed (SIGKILL) once a shard "
        "is done, and the second node once another is; what they had begun, the actors that are left go on with.",
        "",
    ]


def placing(of: dict[str, dict[str, Any]]) -> list[str]:
    """Texts placed by depth beside others."""
    if not of:
        return ["## Placing", "", "Not yet measured.", ""]
    common = of[""]
    told = common["declaration"]
    kinds = " and ".join(
        f"{name} ({common[f'{name}_texts_per_second']:.0f} texts a second alone, as it runs a batch's layers {_times(times)})"
        for name, times in told["kinds"].items()
    )
    policy = "as calibrated" if told["policy"] is None else f"`{told['policy']}`"
    return [
        "## Placing",
        "",
        f"{common['texts']:,} texts of {told['texts']} by two actors in float32: {kinds}. Model {told['model']}, "
        f"policy {policy}, batches of {told['batch']}. {measured_on(common['environment'])}.",
        "",
        lines(
            ["texts are placed", "seconds"],
            [(name, seconds(one)) for name, one in of.items() if name],
        ),
        "",
        f"By depth, the {common['shallow']:,} texts of at most {common['cut']:.2f} expected layers go to the slow actor: about "
        f"{100 * common['share']:.0f} % of the work, as its speed is. At random it gets as large a share of the texts. "
        f"From both ends: batches are made of texts sorted by depth, the slow actor takes the shallowest that is left and the "
        f"fast one the deepest. Anywhere: whoever is free takes the next batch. "
        f"Planning took {common['plan_seconds']:.2f} s, which is not in these seconds.",
        "",
        could_show(common),
        "",
    ]


def could_show(common: dict[str, Any]) -> str:
    """What a text costs on both kinds: how much placing could save at all."""
    times = common["declaration"]["kinds"]["slow"]
    slow, fast = (1000 / common[f"{kind}_texts_per_second"] for kind in ("slow", "fast"))
    alike = max(0.0, (times * fast - slow) / (times - 1))
    return (
        f"By depth can save only what one kind does as fast as the other. Of a text's {fast:.2f} ms on the fast actor "
        f"{alike:.2f} are such (tokenizing). The rest, layers, takes {times} times as long on the slow one at any depth, so "
        "that it matters little which texts it gets. Placing by depth is for kinds of machines of which one is worse at deep "
        "texts than at shallow ones; these two are none, and no such two were measured."
    )


def seconds(one: dict[str, Any]) -> str:
    """A median with its range, where there is one."""
    if "seconds.low" not in one:
        return f"{one['seconds']:.1f}"
    return f"{one['seconds']:.1f} ({one['seconds.low']:.1f}-{one['seconds.high']:.1f})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"

"""Actors of a Ray cluster, one engine each, that come and go."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from geep_triton.checks import check_number, shorten
from geep_triton.engine.source import EngineSource
from geep_triton.files.names import differences
from geep_triton.serving.ray.actor import Asking, GroupActor, Introduction

MOST_LOSSES = 3  # actors that may die one after another while they load, or over one group: it may be what kills them
REASON = re.compile(r"The actor (is dead|died) because")  # with it Ray's text comes to the point
WAIT = 10.0  # seconds without any actor until the user is told so

Handle: TypeAlias = Any  # Ray's own: an actor, a reference to what it will return, or a generator of such references


class ActorLost(OSError):
    """Actors died again and again."""


@dataclass(frozen=True)
class ActorSize:
    """What an actor needs of its node.

    Attributes:
        cpus: cores. As many threads run its engine.
        gpus: GPUs, or a share of one.

    Raises:
        ValueError: a value is below 0.
        TypeError: a value is no number.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check_number("cpus", self.cpus, 0.0)
        check_number("gpus", self.gpus, 0.0)

    def room(self) -> int:
        """For how many such actors the nodes of the cluster are large enough."""
        import ray

        wanted = {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(min((_times(node.get(name, 0.0), of) for name, of in wanted.items()), default=1) for node in nodes)


class Pool:
    """Actors that answer alike.

    Args:
        source: of their engines.
        asking: what is asked of them.
        size: what each needs.

    Attributes:
        starting: what an actor will say of itself -> the actor.
        idle: actors that have loaded their engines and have nothing to do.
    """

    def __init__(self, source: EngineSource, asking: Asking, size: ActorSize) -> None:
        import ray

        kind = ray.remote(GroupActor).options(num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=0)
        self._make: Callable[[], Handle] = lambda: kind.remote(source, asking)
        self.starting: dict[Handle, Handle] = {}
        self.idle: list[Handle] = []
        self._first: Introduction | None = None
        self._losses = 0

    def start(self) -> None:
        """Place one more actor, as soon as there is room."""
        actor = self._make()
        self.starting[actor.introduce.remote()] = actor

    def first(self, tell: Callable[[str], None]) -> Introduction:
        """Start an actor, and wait until it has introduced itself."""
        import ray

        self.start()
        while self._first is None:
            ready, _ = ray.wait([*self.starting], num_returns=1, timeout=WAIT)
            if not ready:
                tell("waiting for the first actor: for room in the cluster, or until it has loaded the model")
            for one in ready:
                for message in self.welcome(one):
                    tell(message)
        return self._first

    def welcome(self, introduction: Handle) -> list[str]:
        """Take in an actor that has introduced itself, or start another if it died.

        Returns:
            What the user should know.

        Raises:
            ActorLost: one after another died.
            ValueError: it would not answer as the others do; and whatever loading the engine raises.
        """
        import ray

        actor = self.starting.pop(introduction)
        try:
            found: Introduction = ray.get(introduction)
        except ray.exceptions.RayTaskError as error:
            end(actor)
            raise own_error(error) from error
        except ray.exceptions.RayError as error:
            self._losses += 1
            if self._losses > MOST_LOSSES:
                end(actor)
                raise ActorLost(f"{self._losses} actors died while they loaded the model: {one_line(error)}") from error
            self.lose(actor)
            return [f"an actor died while it loaded the model, another is started ({one_line(error)})"]
        self._losses = 0
        self._first = self._first or found
        self.idle.append(actor)
        _check_same(self._first, found)
        return list(found.told)

    def lose(self, actor: Handle) -> None:
        """End an actor that cannot be reached, and start another."""
        end(actor)
        self.start()

    def close(self) -> None:
        """End all actors that are at no work."""
        for actor in (*self.starting.values(), *self.idle):
            end(actor)
        self.starting.clear()
        self.idle.clear()


def end(actor: Handle) -> None:
    """Kill an actor. Nothing happens where it is dead."""
    import ray

    ray.kill(actor, no_restart=True)


def own_error(error: Any) -> BaseException:
    """What was raised in an actor. Ray wraps it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else RuntimeError(str(error))


def one_line(error: BaseException) -> str:
    """The beginning of what an error of Ray's says, after the numbers by which Ray knows an actor."""
    text = " ".join(str(error).split())
    found = REASON.search(text)
    return shorten(text[found.start() if found else 0 :], 300).strip("'\"")


def _times(there: float, amount: float) -> int:
    """How often an amount is there. Ray counts in ten-thousandths, so that 0.1 is there ten times in 1."""
    return round(there * 10_000) // max(round(amount * 10_000), 1)


def _check_same(first: Introduction, found: Introduction) -> None:
    names, told = differences(first.manifest, found.manifest, "{}: {} and {}")
    if names:
        raise ValueError(f"actors on different machines would answer by another {names} ({told})")

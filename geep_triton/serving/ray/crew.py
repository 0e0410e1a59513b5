"""Actors that answer the groups of shards of a run; what one leaves that dies, another goes on with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from geep_triton.engine.source import EngineSource
from geep_triton.files.group_work import GroupWork, Progress
from geep_triton.files.names import few
from geep_triton.files.shards import Shard
from geep_triton.files.targets import Target
from geep_triton.serving.ray.actor import Asking, Introduction
from geep_triton.serving.ray.pool import MOST_LOSSES, WAIT, ActorLost, ActorSize, Handle, Pool, end, one_line, own_error


@dataclass
class _Job:
    """A group that an actor is at, and how many of its rows were told of."""

    actor: Handle
    group: list[Target]
    rows: int = 0


@dataclass
class Losses:
    """How many actors died over a group since one of them got further than those before it."""

    rows: int = 0
    count: int = 0

    def after(self, rows: int) -> int:
        """How many they are with one that died after so many rows."""
        self.rows, self.count = (rows, 1) if rows > self.rows else (self.rows, self.count + 1)
        return self.count


class RayCrew:
    """A crew of actors; see `geep_triton.files.crew.Crew`.

    Args:
        pool: the actors.
        introduction: of the first of them.
        most: so many of them are there at most.

    Attributes:
        manifest: everything that their answers depend on, in JSON values.
        wanted, optional, types, window: see `geep_triton.files.answerer.Answering`.
    """

    def __init__(self, pool: Pool, introduction: Introduction, most: int) -> None:
        self._pool, self._most = pool, most
        self.manifest: Mapping[str, Any] = introduction.manifest
        self.wanted: Sequence[str] = introduction.wanted
        self.optional: Sequence[str] = introduction.optional
        self.types, self.window = introduction.types, introduction.window

    def answer_groups(self, work: GroupWork, groups: Sequence[Sequence[Target]]) -> Generator[Progress, None, None]:
        """See `Crew`.

        Raises:
            ActorLost: actors died one after another over one group.
        """
        import ray

        work, left = work.absolute(), deque(map(_absolute, groups))
        losses: dict[str, Losses] = {}
        busy: dict[Handle, _Job] = {}
        for _ in range(min(self._most, len(left)) - len(self._pool.idle) - len(self._pool.starting)):
            self._pool.start()
        try:
            while left or busy:
                while left and self._pool.idle:
                    job = _Job(self._pool.idle.pop(), left.popleft())
                    busy[job.actor.answer.options(num_returns="streaming").remote(work, job.group)] = job
                ready, _ = ray.wait([*busy, *self._pool.starting], num_returns=1, timeout=WAIT)
                if not (ready or busy):
                    yield "waiting for room in the cluster for an actor"
                for one in ready:
                    if one in self._pool.starting:
                        yield from self._pool.welcome(one)
                        continue
                    job = busy[one]
                    try:
                        step = ray.get(next(one))
                    except StopIteration:
                        del busy[one]
                        self._pool.idle.append(job.actor)
                    except ray.exceptions.RayTaskError as error:
                        raise own_error(error) from error
                    except ray.exceptions.RayError as error:
                        yield from self._give_away(job, losses, one_line(error))
                        del busy[one]
                        left.appendleft(job.group)
                    else:
                        job.rows += step if isinstance(step, int) else 0
                        yield step
        finally:
            _end_jobs(busy, work)

    def _give_away(self, job: _Job, losses: dict[str, Losses], reason: str) -> Iterator[Progress]:
        """Tell that an actor died over a group, which another shall go on with."""
        names = [target.shard.name for target in job.group]
        if (count := losses.setdefault(names[0], Losses()).after(job.rows)) > MOST_LOSSES:
            end(job.actor)
            raise ActorLost(f"{count} actors died over the same rows of {few(names)}: {reason}")
        self._pool.lose(job.actor)
        yield -job.rows
        yield f"an actor died, another goes on with {few(names)} ({reason})"


@contextmanager
def ray_crew(
    source: EngineSource,
    asking: Asking,
    tell: Callable[[str], None],
    actors: int | None = None,
    size: ActorSize | None = None,
) -> Iterator[RayCrew]:
    """Actors of the cluster to which this process is connected, until the end of the `with`.

    Args:
        source: of their engines.
        asking: what is asked of them.
        tell: takes what the user should know.
        actors: how many, at most; None: as many as the cluster has room for.
        size: what each needs; None: one core.

    Raises:
        ActorLost: actors died one after another while they loaded the model.
        ValueError: no node is large enough for an actor; and whatever loading the engine raises.
        TypeError: an argument has another type.
    """
    size = size or ActorSize()
    room = size.room()
    if not room:
        raise ValueError(f"no node of the cluster is large enough for an actor of {size.cpus:g} CPUs and {size.gpus:g} GPUs")
    pool = Pool(source.absolute(), asking, size)
    try:
        yield RayCrew(pool, pool.first(tell), min(room, actors or room))
    finally:
        pool.close()


def _absolute(group: Sequence[Target]) -> list[Target]:
    """The same shards for processes in other folders."""
    return [
        replace(target, shard=Shard(target.shard.path.absolute(), target.shard.name), path=target.path.absolute())
        for target in group
    ]


def _end_jobs(busy: Mapping[Handle, _Job], work: GroupWork) -> None:
    """End the actors that are at work, wait until they are dead, and remove what they leave beside the outputs."""
    import ray

    for job in busy.values():
        end(job.actor)
    for steps, job in busy.items():
        while ray.wait([steps], timeout=WAIT)[0]:
            try:
                ray.get(next(steps))
            except (StopIteration, ray.exceptions.RayError):
                break
        work.clear(job.group)

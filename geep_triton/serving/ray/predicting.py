"""`predict_files_by_ray`: the engines of a cluster answer all texts of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from geep_triton.checks import check_int
from geep_triton.engine.source import EngineSource
from geep_triton.files.run import Report, answer_files
from geep_triton.files.settings import Settings
from geep_triton.files.shards import list_shards
from geep_triton.over_files.predicting import Predicting
from geep_triton.serving.ray.cluster import connected
from geep_triton.serving.ray.crew import ray_crew
from geep_triton.serving.ray.pool import ActorSize
from geep_triton.warn import warn


def predict_files_by_ray(
    source: EngineSource,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    address: str | None = None,
    actors: int | None = None,
    size: ActorSize | None = None,
    predicting: Predicting | None = None,
    settings: Settings | None = None,
    tell: Callable[[str], None] = warn,
    progress: bool = False,
) -> Report:
    """Answer all texts of files by actors of a Ray cluster, as `geep_triton.over_files.predicting.predict_files` does here.

    Each actor answers whole shards (small ones in groups), and what it writes is what one process writes. If an actor or its
    node dies, another actor goes on with its shards after the last window that was answered. If this process dies, the same
    call goes on, and so does `predict_files`. All machines see model, inputs and output at the same paths.

    Args:
        source: of the engines. This process loads none.
        inputs, output, settings, tell, progress: see `geep_triton.over_files.predicting.predict_files`.
        address: of the cluster; see `geep_triton.serving.ray.cluster.connected`.
        actors: how many, at most; None: as many as the cluster has room for.
        size: what each needs of its node; None: one core.
        predicting: the columns with the texts, and whether all scores are wanted; None: the defaults.

    Returns:
        What was done, as of `predict_files`.

    Raises:
        ActorLost: actors died one after another.
        ImportError: Ray is not installed.
        ValueError: there is no such cluster, no node is large enough for an actor, or actors is below 1; and whatever
            `predict_files` and loading the engine raise.
        TypeError: actors is no number.
    """
    if actors is not None:
        check_int("actors", actors, 1)
    list_shards(inputs)  # what is not there is told before a cluster starts
    with connected(address), ray_crew(source, predicting or Predicting(), tell, actors, size) as crew:
        return answer_files(crew, inputs, output, settings or Settings(), crew.manifest, tell=tell, progress=progress)

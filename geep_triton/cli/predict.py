"""`geep predict`: answer all texts of files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from geep_triton.cli import options
from geep_triton.cli.console import results_alone, say, show
from geep_triton.cli.over_files import settings_of, summary_of, values_of
from geep_triton.engine.source import EngineSource
from geep_triton.over_files.predicting import Predicting, predict_files
from geep_triton.serving.ray.pool import ActorSize
from geep_triton.serving.ray.predicting import predict_files_by_ray


def predict(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model with exits.")],
    inputs: options.Inputs,
    output: options.FilesOutput,
    policy: options.PolicyText = None,
    text_column: options.TextColumn = "text",
    pair_column: options.PairColumn = None,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Of classes: the probability of each, too.")] = False,
    columns: options.Columns = None,
    prefix: options.Prefix = "",
    bad_rows: options.BadRows = "stop",
    out_format: options.OutFormat = None,
    overwrite: options.OverwriteFile = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    runner: options.RunnerName = "auto",
    max_length: options.MaxLength = None,
    truncate: options.Truncate = False,
    window: options.Window = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Answer by actors of the Ray cluster whose head is at HOST:PORT; local: of one started here."),
    ] = None,
    actors: Annotated[int | None, typer.Option(help="With --ray: how many; by default as many as there is room for.")] = None,
    actor_cpus: Annotated[float, typer.Option(help="With --ray: cores, and threads, of each.")] = 1.0,
    actor_gpus: Annotated[float, typer.Option(help="With --ray: GPUs of each, or a share of one.")] = 0.0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer all texts of files: a label (or labels, or a score) and the layer of its exit, beside the columns of the input.

    A run that was killed goes on when it is started again, and answers only what is missing; with --ray or without.
    """
    settings = settings_of(columns, prefix, bad_rows, out_format, overwrite, window)
    source = EngineSource(model, policy, device, dtype, runner, max_length, truncate or None, window)
    predicting = Predicting(text_column, pair_column, all_scores)
    tell = partial(say, quiet=quiet)
    if ray is None and (actors, actor_cpus, actor_gpus) != (None, 1.0, 0.0):
        raise ValueError("--actors, --actor-cpus and --actor-gpus are for --ray")
    with results_alone(quiet):
        if ray is None:
            report = predict_files(
                source.load(), inputs, Path(output), text_column=text_column, pair_column=pair_column, all_scores=all_scores,
                settings=settings, tell=tell, progress=not quiet,
            )  # fmt: skip
        else:
            report = predict_files_by_ray(
                source,
                inputs,
                Path(output),
                address=ray,
                actors=actors,
                size=ActorSize(actor_cpus, actor_gpus),
                predicting=predicting,
                settings=settings,
                tell=tell,
                progress=not quiet,
            )
    show(summary_of(report), values_of(report), as_json)

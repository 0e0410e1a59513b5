"""`geep rank`: order the candidates of all queries of files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from geep_triton.cli import options
from geep_triton.cli.console import results_alone, say, show
from geep_triton.cli.over_files import settings_of, summary_of, values_of
from geep_triton.engine.source import EngineSource
from geep_triton.over_files.ranking import rank_files


def rank(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a reranker with exits, a model of one score.")],
    inputs: options.Inputs,
    output: options.FilesOutput,
    query_column: Annotated[str, typer.Option(help="Column with the queries.")] = "query",
    candidates_column: Annotated[
        str, typer.Option(help="Column with the lists of candidates; in CSV files they are JSON.")
    ] = "candidates",
    top_k: Annotated[int | None, typer.Option(help="How many of the best are wanted; by default all.")] = None,
    policy: options.PolicyText = None,
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
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Order the candidates of all queries of files: numbers of the candidates, the best first, their scores and exits.

    A run that was killed goes on when it is started again, and answers only what is missing.
    """
    settings = settings_of(columns, prefix, bad_rows, out_format, overwrite, window)
    with results_alone(quiet):
        report = rank_files(
            EngineSource(model, policy, device, dtype, runner, max_length, truncate or None).load(),
            inputs,
            Path(output),
            query_column=query_column,
            candidates_column=candidates_column,
            top_k=top_k,
            settings=settings,
            tell=partial(say, quiet=quiet),
            progress=not quiet,
        )
    show(summary_of(report), values_of(report), as_json)

"""`geep predict`: answer all texts of files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from geep_triton.cli import options
from geep_triton.cli.console import results_alone, say, show
from geep_triton.cli.over_files import settings_of, summary_of, values_of
from geep_triton.engine.engine import Engine
from geep_triton.over_files.predicting import predict_files


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
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer all texts of files: a label (or labels, or a score) and the layer of its exit, beside the columns of the input.

    A run that was killed goes on when it is started again, and answers only what is missing.
    """
    settings = settings_of(columns, prefix, bad_rows, out_format, overwrite, window)
    with results_alone(quiet):
        engine = Engine.from_pretrained(
            model,
            policy,
            device=device,
            dtype=dtype,
            runner=runner,
            max_length=max_length,
            truncation=truncate or None,
            **({} if window is None else {"window": window}),
        )
        report = predict_files(
            engine,
            inputs,
            Path(output),
            text_column=text_column,
            pair_column=pair_column,
            all_scores=all_scores,
            settings=settings,
            tell=partial(say, quiet=quiet),
            progress=not quiet,
        )
    show(summary_of(report), values_of(report), as_json)

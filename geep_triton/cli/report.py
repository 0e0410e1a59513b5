"""`geep report`: one page that shows what a model promises and gains, and where exits do not pay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geep_triton.cli import options
from geep_triton.cli.console import results_alone, show
from geep_triton.cli.texts import read_texts
from geep_triton.engine.engine import Engine
from geep_triton.report.data import SHOWN
from geep_triton.report.page import write_report

OPTION_OF = {"shown": "show"}  # where a parameter has another name than its option
OF_TEXTS = ("shown", "device", "dtype", "runner", "max_length", "truncate", "text_column", "pair_column", "split")


def report(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model with exits.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    texts: Annotated[
        str | None,
        typer.Option(help="File, folder or hub id with texts: the page shows how deep they go, and explains some of them."),
    ] = None,
    shown: Annotated[
        int | None,
        typer.Option("--show", min=0, help=f"How many of --texts are explained, WRITTEN INTO THE PAGE; by default {SHOWN}."),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    runner: options.RunnerName = "auto",
    max_length: options.MaxLength = None,
    truncate: options.Truncate = False,
    text_column: options.TextColumn = "text",
    pair_column: options.PairColumn = None,
    split: Annotated[str, typer.Option(help="Split of a data set on the hub.")] = "validation",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one self-contained HTML page: what a model promises, what it gains, and where exits do not pay.

    Without --texts it shows what the calibration knows, and has no text in it.
    """
    if texts is None:
        given = [name for name in OF_TEXTS if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
        if given:
            raise typer.BadParameter(
                f"--{OPTION_OF.get(given[0], given[0]).replace('_', '-')} is for --texts, and there are none"
            )
    elif output.is_file() and Path(texts).is_file() and output.samefile(texts):
        raise ValueError(f"{output} would be overwritten, but it holds the texts: choose another output")
    rows = None if texts is None else read_texts(texts, split, text_column, pair_column)
    with results_alone(quiet):
        engine = Engine.from_pretrained(
            model,
            # What a calibration promises can be shown where it could not be served, such as that of a GPU on a CPU.
            "full" if texts is None else None,
            device="cpu" if texts is None else device,
            dtype=dtype,
            runner=runner,
            max_length=max_length,
            truncation=truncate or None,
            progress=not quiet,
        )
        data = write_report(engine, output, rows, SHOWN if shown is None else shown)
    show(str(output), {"output": str(output), **data.to_dict()}, as_json)

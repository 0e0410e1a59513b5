"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from geep_triton.runners.make import DTYPES, RUNNERS

AUTO = "auto"
RUNNER_NAMES = ("auto", *RUNNERS)


def _dtypes(begun: str) -> list[str]:
    return [name for name in DTYPES if name.startswith(begun)]


def _dtypes_or_auto(begun: str) -> list[str]:
    return [name for name in (AUTO, *DTYPES) if name.startswith(begun)]


def _runners(begun: str) -> list[str]:
    return [name for name in RUNNER_NAMES if name.startswith(begun)]


Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU where there is one.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"Of the layers: {', '.join(DTYPES)}; by default as calibrated, else the model's own.", autocompletion=_dtypes
    ),
]
DtypeOrAuto = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help=f"Of the layers: {', '.join(DTYPES)}; by default the model's own. auto (on a CPU): the fastest whose answers keep "
        "the promise against float32.",
        autocompletion=_dtypes_or_auto,
    ),
]
RunnerName = Annotated[
    str, typer.Option("--runner", help=f"How layers run: {', '.join(RUNNER_NAMES)}.", autocompletion=_runners)
]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of a text; by default as calibrated, else the model's most.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut longer texts instead of stopping.")]
TextColumn = Annotated[str, typer.Option(help="Column with the texts.")]
PairColumn = Annotated[
    str | None, typer.Option(help="Column with the second texts of pairs; by default text_pair where there is one.")
]
LabelColumn = Annotated[str, typer.Option(help="Column with the labels.")]
Decision = Annotated[
    float | None,
    typer.Option(help="Score from which on a text counts as positive, or probability from which on a label is given."),
]
Tolerance = Annotated[float | None, typer.Option(help="Scores that differ by at most this are the same answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no messages but errors.")]

# Of the commands over files.
Inputs = Annotated[
    list[str],
    typer.Argument(help="Files (parquet, arrow, csv, tsv, jsonl; lines also as .gz or .zst), folders of them, or patterns."),
]
FilesOutput = Annotated[
    str, typer.Option("--output", "-o", help="A file, if the input is one file; else a folder with a file for each of them.")
]
PolicyText = Annotated[
    str | None,
    typer.Option("--policy", help="full, constant:3, threshold:0.3, predicted:0.9, ...; by default as calibrated, else full."),
]
Columns = Annotated[str | None, typer.Option(help="Columns of the input to carry along, e.g. id,url; by default all.")]
Prefix = Annotated[str, typer.Option(help="Before the names of the columns of answers, e.g. predicted_.")]
BadRows = Annotated[
    str,
    typer.Option(
        help="Rows without a text, with one that is too long, ...: stop; skip (left out, and written with the reason beside "
        "the output); empty (empty answers, and a column that says why)."
    ),
]
OutFormat = Annotated[
    str | None,
    typer.Option("--format", help="parquet, arrow, csv, tsv or jsonl, lines also .gz or .zst; by default as the input."),
]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace an output file that is there already.")]
Window = Annotated[int | None, typer.Option(help="How many rows are answered together.")]

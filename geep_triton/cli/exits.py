"""`geep exits`: from a fine-tuned model and texts to exits, table, calibrated policy and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geep_triton.calibrated import brief
from geep_triton.checks import OutputTaken
from geep_triton.cli import options
from geep_triton.cli.calibrate import table_of
from geep_triton.cli.console import results_alone, say, show
from geep_triton.cli.texts import read_texts
from geep_triton.from_fine_tuned import UNFINISHED, give_exits
from geep_triton.report.page import write_report

REPORT = "report.html"


def exits(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a fine-tuned BERT, with its tokenizer.")],
    texts: Annotated[str, typer.Option(help="File, folder or hub id with texts like those that you will serve; no labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model with exits, table, policy and report.")],
    agreement: Annotated[float, typer.Option(help="Least share of texts that get the answer of all layers.")] = 0.98,
    decision: options.Decision = None,
    tolerance: options.Tolerance = None,
    exit_layers: Annotated[list[int] | None, typer.Option("--exit-layer", help="A layer with an exit; again for each.")] = None,
    head: Annotated[str | None, typer.Option(help="attention, pooler or linear.")] = None,
    pooling: Annotated[str | None, typer.Option(help="cls, or mean for sentence-transformers models.")] = None,
    epochs: Annotated[float, typer.Option(help="Of the exits' training.")] = 3.0,
    learning_rate: Annotated[float, typer.Option(help="Of the exits.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Texts per training step.")] = 32,
    max_length: options.MaxLength = None,
    truncate: options.Truncate = False,
    dtype: options.DtypeOrAuto = None,
    text_column: options.TextColumn = "text",
    pair_column: options.PairColumn = None,
    split: Annotated[str, typer.Option(help="Split of a data set on the hub.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the held-out texts and of the training.")] = 42,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is in the output already.")] = False,
    report: Annotated[bool, typer.Option(help=f"Write {REPORT} into the output.")] = True,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Give a fine-tuned model early exits, and find the fastest policy that keeps its answers.

    Two thirds of the texts train the exits; a third calibrates. A call that was killed goes on when it is made again.
    """
    if (output / "config.json").exists() and not (output / UNFINISHED).exists() and not overwrite:
        raise OutputTaken(
            f"{output} holds a model already: choose another --output, or --overwrite replaces it (`geep report {output} -o "
            f"{output / REPORT}` writes its report alone)"
        )
    rows = read_texts(texts, split, text_column, pair_column)
    shape: dict[str, Any] = {"exit_layers": exit_layers, "head": head, "pooling": pooling}
    with results_alone(quiet):
        engine = give_exits(
            model,
            rows,
            output=output,
            agreement=agreement,
            decision=decision,
            tolerance=tolerance,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            truncation=truncate,
            dtype=dtype,
            seed=seed,
            progress=not quiet,
            **{name: value for name, value in shape.items() if value is not None},
        )
        if report:
            write_report(engine, output / REPORT)
    found = engine.model.exit_config.calibration or {}
    told = {"output": str(output), "report": str(output / REPORT) if report else None, **found}
    show(f"{table_of(found)}\n\n{output}: {brief(found['chosen']['policy'])}", told, as_json)
    say(f"next: geep predict {output} texts.jsonl -o answers.jsonl", quiet)

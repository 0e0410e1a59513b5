"""`geep train`: train a BERT with exits by a recipe, evaluate every exit, and build the exit table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from geep_triton.cli import options
from geep_triton.cli.console import results_alone, say, show
from geep_triton.cli.train_options import Options
from geep_triton.cli.train_run import TrainingRun, is_main_process
from geep_triton.config import HEADS, POOLINGS, PROBLEM_TYPES, SKIP_GATES
from geep_triton.training.curriculum import SCHEDULES
from geep_triton.training.recipes import RECIPES

MODEL, RECIPE, STEPS, TABLE = "The model", "What is learned", "How it is trained", "The exit table"  # panels of the help


class Setting(NamedTuple):
    """One of a recipe or curriculum."""

    name: str
    value: Any


def setting(text: str) -> Setting:
    """Parse NAME=VALUE. The value is read as JSON if possible, else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"expected NAME=VALUE, as in temperature=2, got {text!r}")
    try:
        return Setting(name, json.loads(value))
    except ValueError:
        return Setting(name, value)


def difficulty_source(text: str) -> str | int:
    """The name of a column, or a number of folds."""
    kind, _, folds = text.partition(":")
    if kind != "cross-review":
        return text
    if not folds.isdecimal() or int(folds) < 2:
        raise typer.BadParameter(f"expected cross-review:FOLDS with at least 2 folds, got {text!r}")
    return int(folds)


def _settings(option: str, given: list[Setting] | None) -> dict[str, Any]:
    found = dict(given or ())
    if len(found) < len(given or ()):
        raise typer.BadParameter(f"{option} names a setting twice")
    return found


def _columns(text: str, pair: str | None, label: str) -> dict[str, str]:
    """Our names of columns -> those of the files. Without "text_pair" there are pairs where a column has that name."""
    return {"text": text, "label": label} | ({} if pair is None else {"text_pair": pair})


def train(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a BERT with safetensors weights, and its tokenizer.")],
    texts: Annotated[str, typer.Option(help="File, folder or hub id with text, label, maybe text_pair.")],
    dev: Annotated[str, typer.Option(help="The same, to evaluate on; of a hub id the split 'validation'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trained model.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a class or label, again for each, in the model's order; by default those of a fine-tuned MODEL, else "
            "those of --texts, sorted.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    problem_type: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(PROBLEM_TYPES)}; by default that of MODEL, else one class.", rich_help_panel=MODEL),
    ] = None,
    decision: options.Decision = None,
    tolerance: options.Tolerance = None,
    exit_layer: Annotated[
        list[int] | None,
        typer.Option(help="A layer with an exit, again for each, the last among them; by default all.", rich_help_panel=MODEL),
    ] = None,
    head: Annotated[str | None, typer.Option(help=f"{', '.join(HEADS)}; by default attention.", rich_help_panel=MODEL)] = None,
    head_size: Annotated[
        int | None, typer.Option(help="Inner width of an attention head; by default 128.", rich_help_panel=MODEL)
    ] = None,
    head_dropout: Annotated[float | None, typer.Option(help="By default 0.5.", rich_help_panel=MODEL)] = None,
    pooling: Annotated[
        str | None,
        typer.Option(help=f"{' or '.join(POOLINGS)}; mean for sentence-transformers models.", rich_help_panel=MODEL),
    ] = None,
    skip_gate: Annotated[
        str | None,
        typer.Option(help=f"Gates that skip layers, for the recipe smartbert: {', '.join(SKIP_GATES)}.", rich_help_panel=MODEL),
    ] = None,
    skip_layer: Annotated[
        list[int] | None,
        typer.Option(help="A layer that may be skipped, again for each; by default all.", rich_help_panel=MODEL),
    ] = None,
    recipe: Annotated[str, typer.Option(help=", ".join(sorted(RECIPES)), rich_help_panel=RECIPE)] = "joint",
    recipe_setting: Annotated[
        list[Setting] | None,
        typer.Option(parser=setting, metavar="NAME=VALUE", help="Of the recipe; again for each.", rich_help_panel=RECIPE),
    ] = None,
    curriculum: Annotated[
        str | None,
        typer.Option(help=f"Easy texts first: {', '.join(SCHEDULES)}; by default all from the start.", rich_help_panel=RECIPE),
    ] = None,
    curriculum_setting: Annotated[
        list[Setting] | None,
        typer.Option(
            parser=setting, metavar="NAME=VALUE", help="start, buckets or until; again for each.", rich_help_panel=RECIPE
        ),
    ] = None,
    difficulty: Annotated[
        Any,
        typer.Option(
            parser=difficulty_source,
            metavar="SOURCE",
            help="For a curriculum: cross-review:FOLDS, or a column of --texts; by default cross-review:5.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="balanced: rare classes count more; by default all the same.", rich_help_panel=RECIPE)
    ] = None,
    epochs: Annotated[float, typer.Option(rich_help_panel=STEPS)] = 3.0,
    batch_size: Annotated[int, typer.Option(help="Texts per step and device.", rich_help_panel=STEPS)] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of the backbone.", rich_help_panel=STEPS)] = 3e-5,
    head_learning_rate: Annotated[float, typer.Option(help="Of the exit heads, which are new.", rich_help_panel=STEPS)] = 1e-3,
    gate_learning_rate: Annotated[
        float | None, typer.Option(help="Of the skip gates; by default the backbone's.", rich_help_panel=STEPS)
    ] = None,
    gradient_accumulation_steps: Annotated[int, typer.Option(rich_help_panel=STEPS)] = 1,
    save_steps: Annotated[int, typer.Option(help="Steps from checkpoint to checkpoint.", rich_help_panel=STEPS)] = 500,
    keep_best: Annotated[
        bool,
        typer.Option(
            "--keep-best",
            help="Evaluate at each checkpoint, and keep the weights that are best on --dev by the accuracy of the last exit, "
            "or by the loss of all exits if only early exits train at the end, or for scores.",
            rich_help_panel=STEPS,
        ),
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(help="With --keep-best: stop after so many evaluations without improvement.", rich_help_panel=STEPS),
    ] = None,
    seed: Annotated[int, typer.Option(rich_help_panel=STEPS)] = 42,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.", rich_help_panel=STEPS)] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Mixed precision, on a GPU.", rich_help_panel=STEPS)] = False,
    text_column: options.TextColumn = "text",
    pair_column: options.PairColumn = None,
    label_column: options.LabelColumn = "label",
    max_length: Annotated[int, typer.Option(help="Most tokens of a text.")] = 128,
    truncate: options.Truncate = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Of a model of classes: uncertainty (0 to 1) up to which a text leaves; by default 0.3.", rich_help_panel=TABLE
        ),
    ] = None,
    ngram: Annotated[int, typer.Option(help="Highest order of the table's n-grams.", rich_help_panel=TABLE)] = 2,
    save_records: Annotated[
        bool,
        typer.Option(
            "--save-records",
            help="Save the texts' token ids with the table, so that it can be rebuilt. Who has them can read the texts.",
            rich_help_panel=TABLE,
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the output already.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a BERT with exits by a recipe, evaluate every exit, and build the exit table.

    A training that was killed goes on when it is started again with the same options.

    Several processes: `accelerate launch -m geep_triton train ...`, or torchrun.
    """
    chosen = Options(
        model=model,
        texts=texts,
        dev=dev,
        output=output,
        columns=_columns(text_column, pair_column, label_column),
        labels=label,
        problem_type=problem_type,
        decision=decision,
        tolerance=tolerance,
        exit_layers=exit_layer,
        head=head,
        head_size=head_size,
        head_dropout=head_dropout,
        pooling=pooling,
        skip_gate=skip_gate,
        skip_layers=skip_layer,
        recipe=recipe,
        recipe_settings=_settings("--recipe-setting", recipe_setting),
        curriculum=curriculum,
        curriculum_settings=_settings("--curriculum-setting", curriculum_setting),
        difficulty=difficulty,
        class_weights=class_weights,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        gate_learning_rate=gate_learning_rate,
        gradient_accumulation_steps=gradient_accumulation_steps,
        save_steps=save_steps,
        keep_best=keep_best,
        patience=patience,
        seed=seed,
        bf16=bf16,
        fp16=fp16,
        max_length=max_length,
        truncate=truncate,
        threshold=threshold,
        ngram=ngram,
        save_records=save_records,
    )
    chosen.check()
    with results_alone(quiet):
        found = TrainingRun(chosen, overwrite, quiet or not is_main_process()).run()
    if found is None:
        return
    show("\n".join(map(_line, found["exits"])), found, as_json)
    say(f"model and tokenizer{' and exit table' if found['exit_table'] else ''}: {output}", quiet)


def _line(exit_: dict[str, Any]) -> str:
    """How good one exit is."""
    values = " ".join(f"{name} {value:.4f}" for name, value in exit_.items() if name != "layer")
    return f"exit {exit_['layer']}: {values}"

"""`geep calibrate`: hold a model to a promise on your own texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import geep_triton.promises.calibrate
from geep_triton.calibrated import Calibrated, brief
from geep_triton.cli import options
from geep_triton.cli.console import results_alone, show
from geep_triton.cli.texts import read_texts
from geep_triton.engine.engine import Engine
from geep_triton.engine.loading import load_both
from geep_triton.engine.quantize import load_quantized
from geep_triton.exit_config import PROMISES, PROMISES_ON_ANSWERS
from geep_triton.promises.terms import METHODS
from geep_triton.report.findings import faster_but_fragile


def calibrate(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model with exits.")],
    texts: Annotated[str, typer.Option(help="File, folder or hub id with texts that are new to the model and its table.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for model and policy; by default MODEL itself.")
    ] = None,
    agreement: Annotated[
        float | None, typer.Option(help="Least share of texts that get the answer of all layers, e.g. 0.98.")
    ] = None,
    label_agreement: Annotated[
        float | None, typer.Option(help="Of a multi-label model: the same for each label, e.g. 0.99.")
    ] = None,
    class_recall: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE",
            help="Least share of those texts that get this class or label to which all layers give it, e.g. toxic=0.99; "
            "again for each.",
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Greatest loss of accuracy against all layers, e.g. 0.01; needs labels.")
    ] = None,
    mean_depth: Annotated[float | None, typer.Option(help="A budget: greatest mean number of layers of a text.")] = None,
    speedup: Annotated[float | None, typer.Option(help="A budget: least speed-up over all layers, measured here.")] = None,
    decision: options.Decision = None,
    tolerance: options.Tolerance = None,
    method: Annotated[str, typer.Option(help=f"{' or '.join(METHODS)}.")] = METHODS[0],
    confidence: Annotated[float | None, typer.Option(help="Of a promise by learn-then-test; by default 0.95.")] = None,
    device: options.Device = None,
    dtype: options.DtypeOrAuto = None,
    runner: options.RunnerName = "auto",
    max_length: options.MaxLength = None,
    truncate: options.Truncate = False,
    text_column: options.TextColumn = "text",
    pair_column: options.PairColumn = None,
    label_column: options.LabelColumn = "label",
    split: Annotated[str, typer.Option(help="Split of a data set on the hub.")] = "validation",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the fastest policy that keeps a promise, or the most faithful one within a budget, and save it with the model.

    One promise on answers or several (--agreement, --label-agreement, --class-recall, --max-accuracy-drop), or one budget
    (--mean-depth, --speedup).
    """
    if output is None and not Path(model).is_dir():
        raise typer.BadParameter(f"{model} is no folder: --output must say where to save the policy")
    given = {
        "agreement": agreement, "label_agreement": label_agreement, "class_recall": recalls(class_recall),
        "max_accuracy_drop": max_accuracy_drop, "mean_depth": mean_depth, "speedup": speedup,
    }  # fmt: skip
    if dtype == options.AUTO and runner != options.AUTO:
        raise typer.BadParameter(f"--dtype auto finds the fastest runner, too, got --runner {runner}")
    promise = check_promises({name: value for name, value in given.items() if value is not None})
    labelled = max_accuracy_drop is not None
    rows = read_texts(texts, split, text_column, pair_column, label_column if labelled else None)
    with results_alone(quiet):
        settings: dict[str, Any] = {"max_length": max_length, "truncation": truncate or None, "progress": not quiet}
        if dtype == options.AUTO:
            engine = Engine(*load_both(model, device), "full", runner=runner, dtype="float32", **settings)
        else:
            engine = load_quantized(model, rows, "full", device=device, dtype=dtype, runner=runner, **settings)
        found = geep_triton.promises.calibrate.calibrate(
            engine,
            rows,
            [row["label"] for row in rows] if labelled else None,
            decision=decision,
            tolerance=tolerance,
            dtypes=options.AUTO if dtype == options.AUTO else None,
            method=method,
            confidence=confidence,
            **promise,
        ).to_dict()
        engine.save_pretrained(output or model)
    saved = str(output or model)
    show(f"{table_of(found)}\n\n{saved}: {brief(found['chosen']['policy'])}", {"output": saved, **found}, as_json)


def recalls(given: list[str] | None) -> dict[str, float] | None:
    """Class -> share, of NAME=SHARE texts. BadParameter where one is not of that form."""
    if not given:
        return None
    found = {}
    for text in given:
        name, equals, share = text.rpartition("=")
        try:
            if not equals:
                raise ValueError
            found[name] = float(share)
        except ValueError:
            raise typer.BadParameter(f"expected NAME=SHARE, as in toxic=0.99, got {text!r}") from None
    return found


def check_promises(asked: dict[str, Any]) -> dict[str, Any]:
    """The promises as they were asked for. BadParameter unless they are one or several on answers, or one budget."""
    if asked and (len(asked) == 1 or asked.keys() <= set(PROMISES_ON_ANSWERS)):
        return asked
    on_answers, budgets = (
        ", ".join(f"--{name.replace('_', '-')}" for name in PROMISES if (name in PROMISES_ON_ANSWERS) == wanted)
        for wanted in (True, False)
    )
    got = ", ".join(f"--{name.replace('_', '-')}" for name in asked) or "none"
    raise typer.BadParameter(f"expected one or several of {on_answers}, or one of {budgets}, got {got}")


def table_of(found: Mapping[str, Any]) -> str:
    """A table of the candidates and the choice, and why faster ones were not chosen."""
    calibrated = Calibrated.of(found)
    chosen, rows = calibrated.chosen, [(calibrated.named(each), each) for each in calibrated.with_chosen()]
    labelled = chosen is not None and chosen.accuracy is not None
    accuracy = f"{'accuracy':>10}" if labelled else ""
    wide = max(30, *(len(name) + 2 for name, _ in rows))
    lines = [f"{'policies':<{wide}}{'layers':>7}{'agreement':>11}{accuracy}{'texts/s':>9}{'speed-up':>10}"]
    for name, of in rows:
        right = f"{of.accuracy:>10.3f}" if labelled else ""
        lines.append(
            f"{name:<{wide}}{of.mean_layers:>7.2f}{of.agreement:>11.3f}{right}{of.samples_per_second:>9.0f}"
            f"{of.speed_up:>9.2f}x{'  chosen' if of == chosen else ''}"
        )
    lines += faster_but_fragile(calibrated)
    lines += calibrated.why_so()
    if calibrated.unsafe:
        lines.append(f"without a setting that keeps the promise: {', '.join(calibrated.unsafe)}")
    return "\n".join(lines)

"""Find the fastest policy that keeps a promise on your own texts, or the most faithful one within a budget. Save it with the
model.

    python examples/calibrate.py --model runs/mine --texts calibration.jsonl --agreement 0.98
    python examples/calibrate.py --model runs/mine --texts calibration.jsonl --max-accuracy-drop 0.01 --output runs/calibrated

The texts must be new to the model: not used for training and not for the exit table. Agreement with all layers needs no labels.
`examples/predict.py` and `Engine` use the saved policy by default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from geep_triton import Engine, calibrate
from geep_triton.data import read_rows
from geep_triton.exit_config import PROMISES, PROMISES_ON_ANSWERS
from geep_triton.promises.calibration import Calibration, Candidate
from geep_triton.promises.terms import METHODS
from geep_triton.runners.make import RUNNERS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained MultiExitBert, or hub id")
    parser.add_argument(
        "--texts", required=True, help="JSON lines, CSV or hub id, with text, maybe text_pair; label for --max-accuracy-drop"
    )
    promise = parser.add_argument_group("promises on answers, one or several; or one budget, --mean-depth or --speedup")
    promise.add_argument("--agreement", type=float, help="least share of texts that get the answer of all layers, e.g. 0.98")
    promise.add_argument("--label-agreement", type=float, help="of a multi-label model: the same for each label, e.g. 0.99")
    promise.add_argument(
        "--class-recall",
        type=recall,
        action="append",
        metavar="NAME=SHARE",
        help="least share of the texts that get this class or label to which all layers give it, e.g. toxic=0.99",
    )
    promise.add_argument(
        "--max-accuracy-drop", type=float, help="greatest loss of accuracy against all layers, e.g. 0.01; needs labels"
    )
    promise.add_argument("--mean-depth", type=float, help="greatest mean number of layers per text")
    promise.add_argument("--speedup", type=float, help="least speed-up over all layers, measured on this machine")
    parser.add_argument(
        "--decision", type=float, help="score from which on a text counts as positive, or a label's probability"
    )
    parser.add_argument("--tolerance", type=float, help="scores that differ by at most this are the same answer")
    parser.add_argument("--method", default=METHODS[0], choices=METHODS)
    parser.add_argument("--confidence", type=float, help="confidence of a promise by learn-then-test (default: 0.95)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], help="dtype of the layers (default: the model's)")
    parser.add_argument("--runner", default="auto", choices=["auto", *RUNNERS], help="how layers run (default: auto)")
    parser.add_argument("--max-length", type=int, help="maximum number of tokens of a text (default: the model's)")
    parser.add_argument("--truncate", action="store_true", help="cut longer texts")
    parser.add_argument("--output", type=Path, help="folder for model and policy (default: --model)")
    parser.add_argument("--plot", type=Path, help="PNG of the chosen family's curve; needs matplotlib")
    arguments = parser.parse_args()
    given = {name for name in PROMISES if getattr(arguments, name) is not None}
    if not given or (len(given) > 1 and not given <= set(PROMISES_ON_ANSWERS)):
        on_answers, budgets = (
            ", ".join("--" + name.replace("_", "-") for name in PROMISES if (name in PROMISES_ON_ANSWERS) == wanted)
            for wanted in (True, False)
        )
        parser.error(f"expected one or several of {on_answers}, or one of {budgets}, got {', '.join(sorted(given)) or 'none'}")
    return arguments


def recall(text: str) -> tuple[str, float]:
    """Parse NAME=SHARE."""
    name, equals, share = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=SHARE, as in toxic=0.99, got {text!r}") from None


def line(candidate: Candidate, chosen: bool) -> str:
    accuracy = "" if candidate.accuracy is None else f"{candidate.accuracy:>10.3f}"
    return (
        f"{candidate.family:<24}{candidate.mean_layers:>7.2f}{candidate.agreement:>11.3f}{accuracy}"
        f"{candidate.samples_per_second:>12.0f}{candidate.speed_up:>9.2f}x{'  chosen' if chosen else ''}"
    )


def report(found: Calibration) -> str:
    """A table of the candidates and the choice."""
    accuracy = "" if found.chosen.accuracy is None else f"{'accuracy':>10}"
    lines = [f"{'family':<24}{'layers':>7}{'agreement':>11}{accuracy}{'samples/s':>12}{'speed-up':>10}"]
    lines += [line(candidate, candidate == found.chosen) for candidate in found.candidates]
    if found.chosen not in found.candidates:
        lines.append(line(found.chosen, True))
    if found.unsafe:
        lines.append(f"families without a setting that keeps the promise: {', '.join(found.unsafe)}")
    return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    output = arguments.output or Path(arguments.model)
    if arguments.output is None and not output.is_dir():
        raise SystemExit(f"--model {arguments.model} is not a folder: --output must say where to save the policy")
    promise = {name: value for name in PROMISES if (value := getattr(arguments, name)) is not None}
    if "class_recall" in promise:
        promise["class_recall"] = dict(promise["class_recall"])
    judged_by = {"decision": arguments.decision, "tolerance": arguments.tolerance}
    try:
        labelled = "max_accuracy_drop" in promise
        rows = read_rows(arguments.texts, "validation", ("text", "label") if labelled else ("text",))
        labels = [row["label"] for row in rows] if labelled else None
        engine = Engine.from_pretrained(
            arguments.model,
            "full",
            device=arguments.device,
            dtype=arguments.dtype,
            runner=arguments.runner,
            max_length=arguments.max_length,
            truncation=arguments.truncate or None,
            progress=True,
        )
        settings = {"method": arguments.method, "confidence": arguments.confidence} | judged_by
        found = calibrate(engine, rows, labels, **settings, **promise)
        print(report(found))
        engine.save_pretrained(output)
        if arguments.plot is not None:
            found.plot(arguments.plot)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from None
    print(f"{found.chosen.policy} saved with the model: {output}")


if __name__ == "__main__":
    main()

"""Classify a JSON lines file: one line out per line in, in the same order, with label, score and exit layer.

    python examples/predict.py --model runs/mine --input in.jsonl --output out.jsonl --policy threshold:0.3

The output appears only when it is whole; a run that was killed goes on where it stood when it is started again with the same
arguments. A bad line (no JSON object, no text, empty or too long a text) stops the run
with its number; with --skip-bad-lines it is reported and becomes a line {"error": ...} of the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from geep_triton import Engine
from geep_triton.data import BadLine, BadSample, Row, read_json_lines
from geep_triton.outputs import Predictions


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained MultiExitBert, or hub id")
    parser.add_argument("--input", required=True, type=Path, help="JSON lines with text and optionally text_pair")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument(
        "--policy",
        help="full, constant:3, threshold:0.3, predicted:0.9, ... (default: as calibrated, else full)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], help="of the layers (default: the model's)")
    parser.add_argument("--packed", action="store_true", help="on a CPU: weights laid out for oneDNN, often much faster")
    parser.add_argument("--truncate", action="store_true", help="cut texts longer than the model can take")
    parser.add_argument("--skip-bad-lines", action="store_true", help="report bad lines and go on")
    parser.add_argument("--window", type=int, default=4096, help="lines read and sorted together")
    return parser.parse_args()


class Progress:
    """What is answered already, in two files beside the output: the lines, and how far they are known to be whole.

    Attributes:
        lines: of the input that are answered.
        truncated: texts of them that were cut.
        exits: how many of them left at each layer.
    """

    def __init__(self, output: Path, run: dict[str, Any]) -> None:
        self.output, self.run = output, run
        self.partial = output.with_name(f"{output.name}.partial")
        self.state = output.with_name(f"{output.name}.partial.json")
        self.lines, self.bytes, self.truncated = 0, 0, 0
        self.exits: Counter[int] = Counter()

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Progress:
        """Of this run, as far as an earlier one with the same arguments and input got."""
        files = [arguments.input, *sorted(path for path in Path(arguments.model).glob("*") if path.is_file())]
        stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        run = {name: str(value) for name, value in vars(arguments).items()} | {"files": stats}
        progress = cls(arguments.output, run)
        try:
            state = json.loads(progress.state.read_text(encoding="utf-8"))
            whole = progress.partial.stat().st_size >= state["bytes"]
        except (OSError, ValueError, KeyError):
            return progress
        if state["run"] != run or not whole:
            print(f"{progress.partial} is of another run: starting over", file=sys.stderr)
            return progress
        progress.lines, progress.bytes, progress.truncated = state["lines"], state["bytes"], state["truncated"]
        progress.exits = Counter({int(layer): count for layer, count in state["exits"].items()})
        return progress

    def open_output(self) -> TextIO:
        """The file to write further lines to; what an interruption left half written is cut off."""
        with self.partial.open("ab") as file:
            file.truncate(self.bytes)
        return self.partial.open("a", encoding="utf-8")

    def record(self, file: TextIO, results: list[dict], truncated: int) -> None:
        """A window was written."""
        file.flush()
        self.lines += len(results)
        self.bytes = self.partial.stat().st_size
        self.truncated += truncated
        self.exits.update(result["exit_layer"] for result in results if "exit_layer" in result)
        state = {name: getattr(self, name) for name in ("run", "lines", "bytes", "truncated", "exits")}
        new = self.state.with_name(f"{self.state.name}.new")
        new.write_text(json.dumps(state), encoding="utf-8")
        new.replace(self.state)

    def finish(self) -> None:
        """All is answered: the output appears."""
        self.partial.replace(self.output)
        self.state.unlink()

    def forget(self) -> None:
        """Leave nothing behind."""
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)


def answer_window(engine: Engine, path: Path, rows: list[Row], first_line: int, skip: bool) -> tuple[list[dict], int]:
    """One result per row of a window, and how many were truncated; bad rows become errors, or stop the run."""
    errors = {index: row["error"] for index, row in enumerate(rows) if isinstance(row.get("error"), BadLine)}
    results: Predictions | None = None
    good: list[int] = []
    while results is None:
        good = [index for index in range(len(rows)) if index not in errors]
        if not good:
            break
        try:
            results = engine.predict([(rows[index]["text"], rows[index].get("text_pair")) for index in good])
        except BadSample as error:
            bad = {good[e.index]: BadLine(path, first_line + good[e.index], e.reason) for e in (error, *error.others)}
            if not skip:
                raise bad[min(bad)] from None
            errors |= bad
    for index in sorted(errors):
        print(errors[index], file=sys.stderr)
    answers = iter([] if results is None else describe(results))
    lines = [{"error": str(errors[index])} if index in errors else next(answers) for index in range(len(rows))]
    return lines, 0 if results is None else results.truncated


def describe(results: Predictions) -> list[dict]:
    """label (a regression has none), score and exit_layer of each sample."""
    exits = results.exit_layers.tolist()
    if results.is_regression:
        return [{"score": s, "exit_layer": e} for s, e in zip(results.logits[:, 0].tolist(), exits, strict=True)]
    scores = results.probabilities.amax(-1).tolist()
    return [
        {"label": label, "score": score, "exit_layer": layer}
        for label, score, layer in zip(results.labels, scores, exits, strict=True)
    ]


def main() -> None:
    arguments = parse_arguments()
    if not arguments.input.is_file():
        raise SystemExit(f"no such file: {arguments.input}")
    try:
        engine = Engine.from_pretrained(
            arguments.model,
            arguments.policy,
            device=arguments.device,
            dtype=arguments.dtype,
            packed=arguments.packed,
            truncation=arguments.truncate,
            window=arguments.window,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    on_bad_line = (lambda error: {"error": error}) if arguments.skip_bad_lines else None
    with arguments.input.open("rb") as file:
        total = sum(1 for _ in file)
    progress = Progress.of(arguments)
    if progress.lines:
        print(f"going on after line {progress.lines}")
    rows = islice(read_json_lines(arguments.input, ("text",), on_bad_line), progress.lines, None)
    try:
        with progress.open_output() as file, tqdm(total=total, initial=progress.lines, unit="line") as bar:
            while window := list(islice(rows, arguments.window)):
                results, cut = answer_window(engine, arguments.input, window, progress.lines + 1, arguments.skip_bad_lines)
                file.writelines(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
                progress.record(file, results, cut)
                bar.update(len(window))
    except BadLine as error:
        progress.forget()
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(f"stopped after line {progress.lines}; the same command goes on from there") from None
    if not progress.lines:
        progress.forget()
        raise SystemExit(f"{arguments.input} has no lines")
    progress.finish()
    exits, truncated = progress.exits, progress.truncated
    answered = sum(exits.values())
    if truncated:
        print(f"{truncated} texts were cut to the model's maximum length")
    if answered:
        mean = sum(layer * count for layer, count in exits.items()) / answered
        print(f"{answered} of {progress.lines} lines answered, mean exit layer {mean:.2f}: {arguments.output}")


if __name__ == "__main__":
    main()

"""Classify a JSON lines file. Each input line gives one output line with label, score and exit layer, in the same order.
A model of one score has no label, but a decision where there is a cut; a multi-label model has labels and scores.

    python examples/predict.py --model runs/mine --input in.jsonl --output out.jsonl --policy threshold:0.3

The output appears only when it is complete. A run that was killed continues when it is started again with the same arguments,
input and model. A second run with the same output is refused while the first one lives. An output that is an input or no
regular file is refused too. The run stops if the input changes while it is read. It also stops at a bad line (no JSON object,
no text, an empty text or one that is too long) and prints its number. With --skip-bad-lines a bad line is reported and becomes
a line {"error": ...} of the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from geep_triton import Engine
from geep_triton.answers import LabelSet, Score
from geep_triton.checks import BadSample
from geep_triton.data import BadLine, Row, read_json_lines
from geep_triton.engine.predictions import Predictions
from geep_triton.resumable import InputChanged, InputFile, ResumableFile, check_input
from geep_triton.runners.make import RUNNERS

MODEL_FILES = (
    "*.safetensors", "model.safetensors.index*.json", "config.json", "exit_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
)  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained MultiExitBert, or hub id")
    parser.add_argument("--input", required=True, type=Path, help="JSON lines with text and optionally text_pair")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument(
        "--policy",
        help="full, constant:3, threshold:0.3, predicted:0.9, ... (default: as calibrated, else full)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], help="dtype of the layers (default: the model's)")
    parser.add_argument("--runner", default="auto", choices=["auto", *RUNNERS], help="how layers run (default: auto)")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long for the model")
    parser.add_argument("--skip-bad-lines", action="store_true", help="report bad lines and continue")
    parser.add_argument("--window", type=int, default=4096, help="lines read and sorted together")
    return parser.parse_args()


def model_files(arguments: argparse.Namespace) -> list[Path]:
    """The files that a model and its tokenizer are loaded from. Empty for a hub id."""
    files = (path for pattern in MODEL_FILES for path in Path(arguments.model).glob(pattern))
    return sorted(path for path in files if path.is_file())


def made_of(arguments: argparse.Namespace, source: InputFile, engine: Engine) -> dict[str, Any]:
    """Everything that answers depend on. Two runs may write to the same file only if this is the same."""
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in model_files(arguments)]
    run = {name: str(value) for name, value in vars(arguments).items()}
    return run | {"input_sha256": source.digest, "model_files": stats, "runs_on": f"{engine.model.device}, {engine.dtype}"}


def answer_window(engine: Engine, path: Path, rows: list[Row], first_line: int, skip: bool) -> tuple[list[dict], int]:
    """One result per row of a window, and the number of truncated texts. Bad rows become errors or stop the run."""
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
    """The label (of a multi-label model: the labels), score and exit_layer of each sample.

    Of a score model no label, and the decision where there is a cut.
    """
    exits = results.exit_layers.tolist()
    if isinstance(results.answers, Score):
        lines = [{"score": s, "exit_layer": e} for s, e in zip(results.scores.tolist(), exits, strict=True)]
        if results.answers.decision is None:
            return lines
        return [line | {"decision": decision} for line, decision in zip(lines, results.decisions.tolist(), strict=True)]
    if isinstance(results.answers, LabelSet):
        names = list(results.id2label.values())
        scores = [dict(zip(names, row, strict=True)) for row in results.probabilities.tolist()]
        return [
            {"labels": labels, "scores": row, "exit_layer": layer}
            for labels, row, layer in zip(results.label_sets, scores, exits, strict=True)
        ]
    scores = results.probabilities.amax(-1).tolist()
    return [
        {"label": label, "score": score, "exit_layer": layer}
        for label, score, layer in zip(results.labels, scores, exits, strict=True)
    ]


def main() -> None:
    arguments = parse_arguments()
    try:
        check_input(arguments.input)
        with ResumableFile(arguments.output, [arguments.input, *model_files(arguments)]) as output:
            answer_file(arguments, output)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


def answer_file(arguments: argparse.Namespace, output: ResumableFile) -> None:
    """Answer the remaining lines, and report."""
    source = InputFile(arguments.input)
    engine = Engine.from_pretrained(
        arguments.model,
        arguments.policy,
        device=arguments.device,
        dtype=arguments.dtype,
        runner=arguments.runner,
        truncation=arguments.truncate or None,
        window=arguments.window,
    )
    if (unused := output.resume(made_of(arguments, source, engine))) is not None:
        print(unused, file=sys.stderr)
    if output.lines:
        print(f"continuing after line {output.lines}")
    on_bad_line = (lambda error: {"error": error}) if arguments.skip_bad_lines else None
    rows = islice(read_json_lines(arguments.input, ("text",), on_bad_line), output.lines, None)
    counts = Counter(output.counts)
    try:
        with tqdm(total=source.lines, initial=output.lines, unit="line") as bar:
            while window := list(islice(rows, arguments.window)):
                results, cut = answer_window(engine, arguments.input, window, output.lines + 1, arguments.skip_bad_lines)
                counts["truncated"] += cut
                counts.update(str(result["exit_layer"]) for result in results if "exit_layer" in result)
                source.check()
                output.write([json.dumps(result, ensure_ascii=False) + "\n" for result in results], counts)
                bar.update(len(window))
        source.check()
    except (BadLine, InputChanged):
        output.forget()
        raise
    except KeyboardInterrupt:
        raise SystemExit(f"stopped after line {output.lines}; the same command continues there") from None
    if not output.lines:
        output.forget()
        raise ValueError(f"{arguments.input} has no lines")
    output.finish()
    truncated = counts.pop("truncated", 0)
    answered = sum(counts.values())
    if truncated:
        print(f"{truncated} texts were cut to {engine.max_length} tokens")
    if answered:
        mean = sum(int(layer) * count for layer, count in counts.items()) / answered
        print(f"{answered} of {output.lines} lines answered, mean exit layer {mean:.2f}: {arguments.output}")


if __name__ == "__main__":
    main()

"""Measure a trained model's exits and policies beside Hugging Face.

    python -m bench.claims.policies --model runs/sst2 --name sst2 --test sst2/test.jsonl --dev sst2/dev.jsonl

The model comes from `geep train --save-records`, so that its table can be rebuilt for other thresholds. Accuracies are
over all test rows, from one run of every exit. Speed is the median of interleaved rounds over `--speed-samples` rows. Before
that, the exits and answers of each engine are compared with that one run.
"""

from __future__ import annotations

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.cells import Cell, declared, run_missing
from bench.claims.metrics import per_exit
from bench.claims.predictor_report import predictor_report
from bench.environment import RESULTS, without_folders
from bench.pipeline.rivals_dense import DenseBert, DenseRival
from bench.pipeline.systems import targets
from bench.rows import Found, found
from bench.timing import quiet_garbage_collector, rate
from geep_triton import Engine, MultiExitBert, Predictions
from geep_triton.files.rows import read_rows
from geep_triton.ops.exit_scores import score_exits
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.records import first_sure_exit
from geep_triton.timing import in_turns

RIVAL = "huggingface, length-sorted"
DECISIONS = ("argmax", "mean", 0.9)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True, help="of the data set")
    parser.add_argument("--test", required=True, help="labelled rows to measure on")
    parser.add_argument("--dev", help="further labelled rows, for the exits' accuracies only")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.3, 0.5], help="of threshold and table")
    parser.add_argument("--ngram", type=int, default=1)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed-samples", type=int, default=2000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "policies.jsonl")
    return parser.parse_args()


def with_table(model: MultiExitBert, table: ExitTable) -> MultiExitBert:
    """The same weights with another table."""
    other = copy.copy(model)
    other.exit_table = table
    return other


def check_run(name: str, got: Predictions, logits: torch.Tensor, exits: torch.Tensor, exit_layers: list[int]) -> None:
    """Raise ValueError unless an engine left where, and answered what, the one run of every exit says."""
    moved = float((got.exit_layers != exits).float().mean())
    at = torch.searchsorted(torch.tensor(exit_layers), got.exit_layers)
    difference = float((got.logits - logits[torch.arange(len(got)), at]).abs().max())
    # Batches of other shapes round differently, which may carry a sample over a threshold that it touches.
    if moved > 0.001 or difference > 1e-3:
        raise ValueError(f"{name}: {moved:.2%} of the samples left elsewhere, logits differ by {difference}")


def measured(arguments: argparse.Namespace) -> list[Found]:
    """Every exit, and every policy beside full depth and Hugging Face."""
    rows = read_rows(arguments.test, required=("text", "label"))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = MultiExitBert.from_pretrained(arguments.model).to(arguments.device)
    settings = {"token_budget": arguments.token_budget, "truncation": True}
    layers, depth = model.config.exit_layers, model.config.num_hidden_layers

    full = Engine(model, tokenizer, "full", **settings)
    record = full.every_exit(rows)
    tokens, logits = record.tokens, record.logits
    labels = targets(rows, model.config.label2id)
    exit_rows = {"test": per_exit("accuracy", logits, labels)}
    if arguments.dev:
        dev_rows = read_rows(arguments.dev, required=("text", "label"))
        dev_logits = full.every_exit(dev_rows).logits
        exit_rows["dev"] = per_exit("accuracy", dev_logits, targets(dev_rows, model.config.label2id))

    # Each policy's engine, and where all test rows leave under it.
    uncertainty = score_exits(logits.flatten(0, 1), 1.0).uncertainty.view(logits.shape[:2])
    longest = model.config.max_position_embeddings
    rival = DenseRival(DenseBert(model, depth), model, tokenizer, depth, arguments.token_budget, longest)
    engines: dict[str, Any] = {RIVAL: rival, "full": full}
    exits = {name: torch.full((len(rows),), depth) for name in engines}
    for layer in layers[:-1]:
        engines[f"constant:{layer}"] = Engine(model, tokenizer, f"constant:{layer}", **settings)
        exits[f"constant:{layer}"] = torch.full((len(rows),), layer)
    reports = []
    for threshold in arguments.thresholds:
        actual = torch.tensor(layers)[first_sure_exit(uncertainty, threshold)]
        engines[f"threshold:{threshold:g}"] = Engine(model, tokenizer, f"threshold:{threshold}", **settings)
        exits[f"threshold:{threshold:g}"] = actual
        table = model.exit_table.rebuild(threshold=threshold, ngram=arguments.ngram)
        for decision in DECISIONS:
            predicted = table.predict(tokens, decision).exits
            report = predictor_report(logits, labels, predicted, actual, layers)
            reports.append(found("exit table", report, threshold=threshold, decision=decision))
        name = f"predicted:mean (table {threshold:g})"
        engines[name] = Engine(with_table(model, table), tokenizer, "predicted:mean", **settings)
        exits[name] = table.predict(tokens, "mean").exits

    step = max(1, len(rows) // arguments.speed_samples)
    chosen = torch.arange(0, len(rows), step)[: arguments.speed_samples]
    texts = [rows[i] for i in chosen.tolist()]
    predictions = {name: engine.predict(texts) for name, engine in tqdm(engines.items(), desc="answer", unit="policy")}
    with quiet_garbage_collector():
        calls = {name: partial(engine.predict, texts) for name, engine in engines.items()}
        seconds = in_turns(calls, arguments.rounds)
    answers = logits[:, -1].argmax(-1)
    full_speed = rate(len(texts), seconds["full"]).value
    policies = []
    for name, p in predictions.items():
        check_run(name, p, logits[chosen], exits[name][chosen], layers)
        speed = rate(len(texts), seconds[name])
        given = logits[torch.arange(len(rows)), torch.searchsorted(torch.tensor(layers), exits[name])].argmax(-1)
        metrics = {
            "samples_per_second": speed,
            "speed_up": speed.value / full_speed,
            "share_of_bound": speed.value / full_speed / (depth / p.mean_layers),
            "mean_layers": float(exits[name].double().mean()),
            "mean_layers_timed": p.mean_layers,
            "padding": p.padding,
            "timings": p.timings,
            "histogram": torch.bincount(exits[name], minlength=depth + 1)[1:].tolist(),
            "accuracy": float((given == labels).double().mean()),
            "agreement": float((given == answers).double().mean()),
        }
        policies.append(found(name, metrics))
    facts = {
        "texts": {"samples": len(rows), "tokens": int(tokens.lengths.sum()), "timed": len(texts)},
        "table_samples": int(model.exit_table.exit_counts.sum()),
        "training": without_folders(json.loads((Path(arguments.model) / "training.json").read_text())),
        "exit_layers": layers,
        "exit_accuracies": exit_rows,
    }
    return [found("", facts), *policies, *reports]


def main() -> None:
    arguments = parse_arguments()
    run_missing("policies", [Cell(arguments.name, declared(arguments), lambda _: measured(arguments))], arguments.output)


if __name__ == "__main__":
    main()

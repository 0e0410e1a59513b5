"""Measures a trained model's exits and policies beside Hugging Face, and writes one result file.

    python -m bench.policies --model runs/sst2 --name sst2 --test sst2/test.jsonl --dev sst2/dev.jsonl

The model is one of `examples/train.py --save-records`, whose table can be rebuilt for other thresholds. Accuracies are over
all test rows, from one run of every exit. Speed is the median of interleaved rounds over `--speed-samples` of them; each
engine's exits and answers are compared with that one run first.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.environment import RESULTS, environment, without_folders
from bench.rivals import HuggingFaceSorted
from geep_triton import Engine, MultiExitBert, Predictions
from geep_triton.data import read_rows
from geep_triton.engine.policies import Predicted
from geep_triton.evaluation.measure import measure
from geep_triton.evaluation.predictor import exit_accuracies, predictor_report
from geep_triton.exits.table import ExitTable, first_sure_exit
from geep_triton.ops.exit_scores import score_exits

RIVAL = "huggingface, length-sorted"
DECISIONS = ("argmax", "mean", 0.9)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--name", required=True, help="of the data set; names the result file")
    parser.add_argument("--test", required=True, help="labelled rows to measure on")
    parser.add_argument("--dev", help="further labelled rows, for the exits' accuracies only")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.3, 0.5], help="of threshold and table")
    parser.add_argument("--ngram", type=int, default=1)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed-samples", type=int, default=2000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def targets(rows: list[dict[str, Any]], label2id: dict[str, int]) -> torch.Tensor:
    return torch.tensor([label2id[str(row["label"])] for row in rows])


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


def main() -> None:
    arguments = parse_arguments()
    rows = read_rows(arguments.test, required=("text", "label"))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = MultiExitBert.from_pretrained(arguments.model).to(arguments.device)
    settings = {"token_budget": arguments.token_budget, "truncation": True}
    layers, depth = model.config.exit_layers, model.config.num_hidden_layers

    full = Engine(model, tokenizer, "full", **settings)
    tokens, logits = full.exit_logits(rows)
    labels = targets(rows, model.config.label2id)
    exit_rows = {"test": exit_accuracies(logits, labels).tolist()}
    if arguments.dev:
        dev_rows = read_rows(arguments.dev, required=("text", "label"))
        dev_logits = full.exit_logits(dev_rows)[1]
        exit_rows["dev"] = exit_accuracies(dev_logits, targets(dev_rows, model.config.label2id)).tolist()

    # Each policy's engine, and where all test rows leave under it.
    uncertainty = score_exits(logits.flatten(0, 1), 1.0).uncertainty.view(logits.shape[:2])
    rival = HuggingFaceSorted(model, tokenizer, arguments.token_budget)
    difference = rival.check_same_backbone(model, rows[0]["text"])
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
            reports.append({"threshold": threshold, "decision": decision, **asdict(report)})
        name = f"predicted:mean (table {threshold:g})"
        engines[name] = Engine(with_table(model, table), tokenizer, Predicted("mean"), **settings)
        exits[name] = table.predict(tokens, "mean").exits

    step = max(1, len(rows) // arguments.speed_samples)
    chosen = torch.arange(0, len(rows), step)[: arguments.speed_samples]
    with tqdm(total=arguments.rounds * len(engines), unit="run") as bar:
        measurements, predictions = measure(
            engines, [rows[i] for i in chosen.tolist()], arguments.rounds, lambda _: bar.update()
        )
    answers = logits[:, -1].argmax(-1)
    full_speed = next(m.samples_per_second for m in measurements if m.policy == "full")
    policies = []
    for m in measurements:
        p = predictions[m.policy]
        row = {
            "policy": m.policy,
            "samples_per_second": m.samples_per_second,
            "speed_up": m.samples_per_second / full_speed,
            "share_of_bound": m.samples_per_second / full_speed / (depth / m.mean_layers),
            "mean_layers": float(exits[m.policy].double().mean()),
            "mean_layers_timed": m.mean_layers,
            "padding": p.padding,
            "timings": p.timings,
            "histogram": torch.bincount(exits[m.policy], minlength=depth + 1)[1:].tolist(),
        }
        if m.policy != RIVAL:  # its classifier is untrained
            check_run(m.policy, p, logits[chosen], exits[m.policy][chosen], layers)
            index = torch.searchsorted(torch.tensor(layers), exits[m.policy])
            given = logits[torch.arange(len(rows)), index].argmax(-1)
            row["accuracy"] = float((given == labels).double().mean())
            row["agreement"] = float((given == answers).double().mean())
        policies.append(row)

    result = {
        "environment": environment() | {"device": arguments.device},
        "data": {"name": arguments.name, "samples": len(rows), "tokens": int(tokens.lengths.sum())},
        "settings": {
            "token_budget": arguments.token_budget,
            "rounds": arguments.rounds,
            "speed_samples": chosen.numel(),
            "ngram": arguments.ngram,
            "table_samples": int(model.exit_table.exit_counts.sum()),
        },
        "training": without_folders(json.loads((arguments.model / "training.json").read_text())),
        "backbone_difference": difference,
        "exit_layers": layers,
        "exit_accuracies": exit_rows,
        "policies": policies,
        "predictors": reports,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"policies_{re.sub('[^a-z0-9_]', '_', arguments.name.lower())}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

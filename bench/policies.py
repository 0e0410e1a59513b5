"""Measures a trained model's exits and policies beside Hugging Face, and writes one result file.

python -m bench.policies --model runs/sst2 --name sst2 --test sst2/test.jsonl --dev sst2/dev.jsonl
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

from bench.environment import RESULTS, environment
from bench.rivals import HuggingFaceSorted
from geep_triton import Engine, MultiExitBert
from geep_triton.data import read_rows
from geep_triton.engine.policies import Predicted
from geep_triton.evaluation.measure import measure
from geep_triton.evaluation.predictor import exit_accuracies, predictor_report
from geep_triton.exits.table import first_sure_exit
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
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def targets(rows: list[dict[str, Any]], label2id: dict[str, int]) -> torch.Tensor:
    return torch.tensor([label2id[str(row["label"])] for row in rows])


def main() -> None:
    arguments = parse_arguments()
    rows = read_rows(arguments.test, required=("text", "label"))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = MultiExitBert.from_pretrained(arguments.model).to(arguments.device)
    settings = {"token_budget": arguments.token_budget, "truncation": True}

    full = Engine(model, tokenizer, **settings)
    tokens, logits = full.exit_logits(rows)
    labels = targets(rows, model.config.label2id)
    exits = {"test": exit_accuracies(logits, labels).tolist()}
    if arguments.dev:
        dev_rows = read_rows(arguments.dev, required=("text", "label"))
        dev_logits = full.exit_logits(dev_rows)[1]
        exits["dev"] = exit_accuracies(dev_logits, targets(dev_rows, model.config.label2id)).tolist()

    rival = HuggingFaceSorted(model, tokenizer, arguments.token_budget)
    difference = rival.check_same_backbone(model, rows[0]["text"])
    engines: dict[str, Any] = {RIVAL: rival, "full": full}
    for layer in model.config.exit_layers[:-1]:
        engines[f"constant:{layer}"] = Engine(model, tokenizer, f"constant:{layer}", **settings)
    for threshold in arguments.thresholds:
        engines[f"threshold:{threshold:g}"] = Engine(model, tokenizer, f"threshold:{threshold}", **settings)

    reports = []
    uncertainty = score_exits(logits.flatten(0, 1), 1.0)[1].view(logits.shape[:2])
    tables = {t: model.exit_table.rebuild(threshold=t, ngram=arguments.ngram) for t in arguments.thresholds}
    for threshold, table in tables.items():
        own = copy.copy(model)  # the same weights with another table
        own.exit_table = table
        actual = torch.tensor(table.exit_layers)[first_sure_exit(uncertainty, threshold)]
        for decision in DECISIONS:
            predicted = table.predict(tokens, decision)
            report = predictor_report(logits, labels, predicted, actual, table.exit_layers)
            reports.append({"threshold": threshold, "decision": decision, **asdict(report)})
            name = f"predicted:{decision} (table {threshold:g})"
            engines[name] = Engine(own, tokenizer, Predicted(decision), **settings)

    with tqdm(total=arguments.rounds * len(engines), unit="run") as bar:
        measurements, predictions = measure(engines, rows, arguments.rounds, lambda _: bar.update())
    answers = predictions["full"].label_ids
    depth = model.config.num_hidden_layers
    full_speed = next(m.samples_per_second for m in measurements if m.policy == "full")
    result_rows = []
    for m in measurements:
        p = predictions[m.policy]
        row = asdict(m) | {"padding": p.padding, "timings": p.timings, "histogram": p.histogram}
        row["agreement"] = float((p.label_ids == answers).float().mean())
        row["speed_up"] = m.samples_per_second / full_speed
        row["share_of_bound"] = row["speed_up"] / (depth / m.mean_layers)
        if m.policy == RIVAL:
            row["accuracy"] = row["agreement"] = None  # its classifier is untrained
        result_rows.append(row)

    training = arguments.model / "training.json"
    result = {
        "environment": environment() | {"device": arguments.device},
        "data": {"name": arguments.name, "samples": len(rows), "tokens": int(tokens.lengths.sum())},
        "settings": {"token_budget": arguments.token_budget, "rounds": arguments.rounds, "ngram": arguments.ngram},
        "table_samples": len(model.exit_table.records.tokens),
        "training": json.loads(training.read_text()) if training.is_file() else None,
        "backbone_difference": difference,
        "exit_layers": model.config.exit_layers,
        "exit_accuracies": exits,
        "policies": result_rows,
        "predictors": reports,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"policies_{re.sub('[^a-z0-9_]', '_', arguments.name.lower())}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

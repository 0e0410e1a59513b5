"""Constant depth on a BERT-base shape with random weights: how much of the saved layers becomes saved time.

python -m bench.depth --tokenizer runs/ag_news --texts ag_news/test.jsonl --samples 128
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from bench.environment import RESULTS, environment
from bench.rivals import HuggingFaceSorted
from geep_triton import Engine, MultiExitBert, MultiExitBertConfig
from geep_triton.data import read_rows

DEPTHS = (1, 2, 3, 6, 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    model = MultiExitBert(MultiExitBertConfig(num_labels=4, pooling="mean")).eval()
    rows = read_rows(arguments.texts)[: arguments.samples]

    full = Engine(model, tokenizer, truncation=True)
    rival = HuggingFaceSorted(model, tokenizer, full.token_budget)
    difference = rival.check_same_backbone(model, rows[0]["text"])
    engines: dict[str, Any] = {"huggingface, length-sorted": rival, "full": full}
    engines |= {f"constant:{depth}": Engine(model, tokenizer, f"constant:{depth}", truncation=True) for depth in DEPTHS}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    layers = {}
    for name, engine in engines.items():
        layers[name] = engine.predict(rows[:8]).mean_layers
    for _ in range(arguments.rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.predict(rows)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    depth = model.config.num_hidden_layers
    result = {
        "environment": environment(),
        "shape": {"layers": depth, "hidden_size": model.config.hidden_size},
        "settings": {"token_budget": full.token_budget, "rounds": arguments.rounds, "samples": len(rows)},
        "backbone_difference": difference,
        "policies": [
            {
                "policy": name,
                "mean_layers": layers[name],
                "samples_per_second": len(rows) / median[name],
                "speed_up": median["full"] / median[name],
                "share_of_bound": median["full"] / median[name] / (depth / layers[name]),
                "seconds": seconds[name],
            }
            for name in engines
        ],
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "depth_bert_base_shape.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

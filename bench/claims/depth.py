"""Measure how much of the saved layers becomes saved time: each depth beside full depth, in turns.

    python -m bench.claims.depth --model runs/ag_news --texts ag_news/test.jsonl --name ag_news
    python -m bench.claims.depth --base-shape --tokenizer runs/ag_news --texts ag_news/test.jsonl --samples 128 --name base

Each policy takes turns with full depth alone, so that a machine that slows down affects both. The ratio is that of the two
medians. Inputs are texts, or with --token-ids rows of ids that were tokenized before.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.cells import Cell, declared, run_missing
from bench.environment import RESULTS
from bench.pipeline.rivals_dense import DenseBert, DenseRival
from bench.rows import Found, found
from bench.timing import quiet_garbage_collector, rate
from geep_triton import Engine, MultiExitBert, MultiExitBertConfig
from geep_triton.files.rows import read_rows
from geep_triton.timing import in_turns

RIVAL = "huggingface, length-sorted"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="a trained MultiExitBert with an exit table")
    model.add_argument("--base-shape", action="store_true", help="12 layers of width 768 with random weights")
    parser.add_argument("--tokenizer", help="default: the model's")
    parser.add_argument("--texts", required=True)
    parser.add_argument("--name", required=True, help="of the case")
    parser.add_argument("--policies", nargs="+", help="default: Hugging Face, early exits, and what an exit table can do")
    parser.add_argument("--token-ids", action="store_true", help="tokenize before, as datasets' map does; without Hugging Face")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS / "depth.jsonl")
    return parser.parse_args()


def measured(arguments: argparse.Namespace) -> list[Found]:
    """Each policy beside full depth."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.model)
    if arguments.base_shape:
        model = MultiExitBert(MultiExitBertConfig(num_labels=4, pooling="mean")).eval()
    else:
        model = MultiExitBert.from_pretrained(arguments.model)
    rows = read_rows(arguments.texts)[: arguments.samples]
    layers = model.config.num_hidden_layers
    early = [layer for layer in model.config.exit_layers if layer < layers and (layers < 12 or layer in (1, 2, 3, 6, 9))]

    full = Engine(model, tokenizer, "full", truncation=True, max_length=128)
    rival = DenseRival(DenseBert(model, layers), model, tokenizer, layers, full.token_budget, 128)
    counts = [len(ids) for ids in tokenizer([row["text"] for row in rows])["input_ids"]]
    short = [row for row, count in zip(rows, counts, strict=True) if count <= 128]  # nothing is cut
    lengths = torch.tensor([count for count in counts if count <= 128])
    policies: dict[str, Any] = {} if arguments.token_ids else {RIVAL: rival}
    policies |= {form: full.with_policy(form) for form in (f"constant:{layer}" for layer in early)}
    if model.exit_table is not None:
        policies |= {form: full.with_policy(form) for form in ("predicted:mean", "predicted:0.9")}
    if arguments.policies:
        policies = {form: rival if form == RIVAL else full.with_policy(form) for form in arguments.policies}
    if arguments.token_ids:
        short = [{"input_ids": ids} for ids in tokenizer([row["text"] for row in short])["input_ids"]]
    results, difference = [], float((full.predict(short).logits - rival.predict(short).logits).abs().max())
    with quiet_garbage_collector():
        for name, engine in tqdm(policies.items(), unit="policy"):
            answered = engine.predict(short)
            mean_layers, of_a_token = answered.mean_layers, float(np.average(answered.layers_run, weights=lengths))
            calls = {"full depth": partial(full.predict, short), "policy": partial(engine.predict, short)}
            full_seconds, seconds = in_turns(calls, arguments.rounds).values()
            speed_up = statistics.median(full_seconds) / statistics.median(seconds)
            results.append(
                found(
                    name,
                    {
                        "mean_layers": mean_layers,
                        "samples_per_second": rate(len(short), seconds),
                        "full_samples_per_second": rate(len(short), full_seconds),
                        "speed_up": speed_up,
                        "share_of_bound": speed_up / (layers / mean_layers),
                        "mean_layers_of_a_token": of_a_token,
                        "share_of_token_bound": speed_up / (layers / of_a_token),
                        "seconds": seconds,
                        "full_seconds": full_seconds,
                    },
                )
            )
    shape = {"layers": layers, "hidden_size": model.config.hidden_size}
    facts = {"shape": shape, "token_budget": full.token_budget, "samples": len(short), "difference": difference}
    return [found("", facts), *results]


def main() -> None:
    arguments = parse_arguments()
    run_missing("depth", [Cell(arguments.name, declared(arguments), lambda _: measured(arguments))], arguments.output)


if __name__ == "__main__":
    main()

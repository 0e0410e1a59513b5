"""What each family of policies reaches under a promise: calibrated on some texts, measured on others.

    python -m bench.promises --model runs/sst2 --name sst2 --dev sst2/dev.jsonl --test sst2/test.jsonl --train sst2/train.jsonl

Calibration texts are the dev rows and the first third of the test rows; everything is reported on the rest of the test rows.
The exit table's learned values come from training texts, without their labels. Speed is the median of interleaved rounds,
at each token budget beside full depth in the same run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.environment import RESULTS, environment
from bench.policies import targets
from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.data import read_rows
from geep_triton.engine.policies import Threshold, parse_policy
from geep_triton.engine.simulate import simulate
from geep_triton.engine.timing import in_turns
from geep_triton.evaluation.measure import quiet_garbage_collector


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--name", required=True, help="of the data set; names the result file")
    parser.add_argument("--dev", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--train", required=True, help="texts for the exit table; labels are not used")
    parser.add_argument("--table-samples", type=int, default=20000)
    parser.add_argument("--ngram", type=int, default=1)
    parser.add_argument("--agreements", type=float, nargs="+", default=[0.99, 0.98, 0.95])
    parser.add_argument("--token-budgets", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed-samples", type=int, default=600)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def speeds(engines: dict[str, Engine], rows: list[dict[str, Any]], rounds: int) -> dict[str, float]:
    """Samples a second, median of interleaved rounds."""
    for engine in engines.values():
        engine.predict(rows[:64])
    with quiet_garbage_collector():
        seconds = in_turns({name: partial(engine.predict, rows) for name, engine in engines.items()}, rounds)
    return {name: len(rows) / statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    arguments = parse_arguments()
    settings = {"truncation": True, "max_length": arguments.max_length}
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = MultiExitBert.from_pretrained(arguments.model)
    required = ("text", "label")
    dev, test = (read_rows(path, required=required) for path in (arguments.dev, arguments.test))
    calibration, held_out = dev + test[: len(test) // 3], test[len(test) // 3 :]
    texts = read_rows(arguments.train, required=required)[: arguments.table_samples]
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.3, ngram=arguments.ngram, learn_agreement=True, **settings)
    engine = Engine(model, tokenizer, "full", progress=True, **settings)
    tokens, logits = engine.exit_logits(held_out)
    labels, answers = targets(held_out, model.config.label2id), logits.argmax(-1)
    layers, depth = torch.tensor(model.config.exit_layers), model.config.num_hidden_layers

    step = max(1, len(held_out) // arguments.speed_samples)
    timed = held_out[::step][: arguments.speed_samples]
    rows = []
    for agreement in arguments.agreements:
        found = engine.calibrate(calibration, agreement=agreement, rounds=1, speed_samples=256, save=False)
        forms = [candidate.policy for candidate in found.candidates]
        # The same thresholds with a batch that shrinks, to see what pooling is worth.
        plain = [form for form in forms if isinstance(parse_policy(form), Threshold)]
        forms += [f"{form},pooling=never" for form in plain]
        measured = {
            budget: speeds(
                {form: Engine(model, tokenizer, form, token_budget=budget, **settings) for form in forms},
                timed,
                arguments.rounds,
            )
            for budget in tqdm(arguments.token_budgets, desc=f"agreement {agreement}")
        }
        for form in forms:
            exits = simulate(model, parse_policy(form), tokens, logits)
            given = answers.gather(1, exits[:, None])[:, 0]
            mean_layers = float(layers[exits].double().mean())
            rows.append({
                "promise": agreement,
                "policy": form,
                "chosen": form == found.chosen.policy,
                "agreement": float((given == answers[:, -1]).double().mean()),
                "accuracy": float((given == labels).double().mean()),
                "mean_layers": mean_layers,
                "speed": {
                    str(budget): {
                        "samples_per_second": by_form[form],
                        "speed_up": by_form[form] / by_form["full"],
                        "share_of_bound": by_form[form] / by_form["full"] / (depth / mean_layers),
                    }
                    for budget, by_form in measured.items()
                },
            })  # fmt: skip
    result = {
        "environment": environment(),
        "data": {"name": arguments.name, "calibration": len(calibration), "test": len(held_out), "table": len(texts)},
        "settings": {"rounds": arguments.rounds, "speed_samples": len(timed), "ngram": arguments.ngram, "confidence": 0.95},
        "num_layers": depth,
        "policies": rows,
    }
    name = re.sub("[^a-z0-9_]", "_", arguments.name.lower())
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"promises_{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

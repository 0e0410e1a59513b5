"""Whether promises on scores, label sets and classes are kept: on held-out texts, and by 200 calibrations at random.

    python -m bench.answers.promises --work WORK --e5 E5

Reads the models and records that `bench.answers.train` left in WORK. No layer runs, and nothing is timed: the family with the
fewest mean layers is taken. `bench.answers.clock` measures what `calibrate` itself chooses.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from bench.answers.command import parser_of, run_trained
from bench.answers.promised import PROMISED, Promised
from bench.answers.replay import CONFIDENCE, Draws, Replay, from_a_population, splits
from bench.answers.tasks import Trained
from bench.answers.training import RECORD, load_record
from bench.environment import RESULTS
from bench.rows import Found, found
from geep_triton import MultiExitBert
from geep_triton.engine.predictions import EveryExit
from geep_triton.policies.text import format_policy
from geep_triton.promises.guarantees import binomial_interval
from geep_triton.promises.terms import read_terms

OUTPUT = RESULTS / "answers" / "promises"
DRAWS = 200
SCORE_COST = 0.05  # of a text at an exit, in layers: about what an engine measures


def measured(model: MultiExitBert, record: EveryExit, wanted: tuple[Promised, ...], draws: int) -> list[Found]:
    """For each promise: what one calibration on a random half reaches on the other, and how often many are broken."""
    size = len(record.tokens) // 2
    order = torch.randperm(len(record.tokens), generator=torch.Generator().manual_seed(0))
    results = []
    for one in wanted:
        model.exit_config.decision, model.exit_config.tolerance = (
            one.comparison.get(name) for name in ("decision", "tolerance")
        )
        replay = Replay(model, record, read_terms(one.promises, None, model), SCORE_COST)
        chosen = replay.calibrated(order[:size])
        kept = replay.kept(chosen.policy, order[size:])
        least = min(range(len(kept)), key=lambda index: kept[index] - replay.terms[index].value)
        held_out = {
            "family": chosen.family,
            "policy": format_policy(chosen.policy),
            "promised": replay.terms[least].value,
            "kept": kept[least],  # of several promises the one that is nearest to being broken
            "every_promise_kept": not replay.is_broken(chosen.policy, order[size:]),
            "mean_layers": replay.mean_layers(chosen.policy, order[size:]),
        }
        results.append(found("held out", held_out, promise=one.name))
        for name, draw in (("splits", splits), ("population", from_a_population)):
            results.append(found(name, summary(draw(replay, draws, size)), promise=one.name))
    return [found("", {"texts": len(record.tokens), "num_layers": model.config.num_hidden_layers}), *results]


def summary(draws: Draws) -> dict[str, Any]:
    """How many were broken, with the 95 % interval of their share, and what was chosen."""
    count, broken = len(draws.broken), sum(draws.broken)
    low, high = binomial_interval(broken, count, CONFIDENCE)
    return {
        "draws": count,
        "broken": broken,
        "share_broken_low": low,
        "share_broken_high": high,
        "mean_layers": sum(draws.mean_layers) / count,
        "families": dict(Counter(draws.families)),
    }


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()

    def run(cell: Trained, folder: Path) -> list[Found]:
        model = MultiExitBert.from_pretrained(folder / "model")
        return measured(model, load_record(folder / RECORD), PROMISED[cell.task.name], arguments.draws)

    run_trained("answers promises", arguments, PROMISED, run, {"draws": arguments.draws})


if __name__ == "__main__":
    main()

"""Ranking with exits: promises by many calibrations on recorded exits; and reranking by the wall clock beside full depth.

    python -m bench.answers.ranking promises --work WORK --e5 E5      # no layer runs
    python -m bench.answers.ranking clock --work WORK --e5 E5         # nothing else should run on the machine

Reads the models and records of wikiqa that `bench.answers.train` left in WORK.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer

from bench.answers.clock import speed_up
from bench.answers.command import parser_of, run_trained
from bench.answers.data import CANDIDATES, groups
from bench.answers.promised import RANKED, SAME_FIRST, TOP_K
from bench.answers.promises import DRAWS, SCORE_COST, summary
from bench.answers.replay import CONFIDENCE, Draws
from bench.answers.tasks import WIKIQA, Trained
from bench.answers.training import RECORD, load_record, settings_of
from bench.environment import RESULTS
from bench.rows import Found, found
from geep_triton import Engine, MultiExitBert
from geep_triton.engine.ranking import Ranking
from geep_triton.policies.ranking import RankPolicy
from geep_triton.promises.rank_record import RankRecord
from geep_triton.promises.ranking import calibrate_ranking, search
from geep_triton.tokens.columns import Row

OUTPUTS = {"promises": RESULTS / "answers" / "promises", "clock": RESULTS / "answers" / "ranking"}
PROMISE = ("same_top_k", SAME_FIRST)
QUERIES = 200  # to calibrate on, and as many others that are measured
MANY = 100  # candidates of each query, by the wall clock
FIRST = 10  # of them are wanted
CHOOSING = 20  # queries on which `calibrate_ranking` measures speed
Groups = list[tuple[str, list[str]]]


def record_of(logits: torch.Tensor, layers: list[int], candidates: int = CANDIDATES) -> RankRecord:
    """The record of queries with as many candidates each: logits [N, E, 1]."""
    return RankRecord.of(logits[:, :, 0], [candidates] * (len(logits) // candidates), layers)


def boldest(record: RankRecord) -> RankPolicy | None:
    """The boldest ranking that is shown to keep the promise by these queries; None: full depth."""
    policies, _, index = search(record, TOP_K, PROMISE, CONFIDENCE, SCORE_COST)
    return None if index is None else policies[index]


def judged(record: RankRecord, policy: RankPolicy | None) -> tuple[float, float]:
    """The share of queries that keep their first candidates, and the layers that a candidate runs on average."""
    if policy is None:
        return 1.0, float(record.layers[-1])
    exits = record.simulate(policy)
    return 1 - float(record.loses(exits, TOP_K).double().mean()), float(exits.double().mean())


def simulated(record: RankRecord, draws: int) -> list[Found]:
    """What one calibration on a random half of the queries reaches on the others, and how often many are broken."""
    queries = len(record.offsets) - 1
    half = queries // 2

    def shuffled(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.randperm(queries, generator=torch.Generator().manual_seed(seed))
        return order[:half], order[half:]

    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(queries, (half,), generator=torch.Generator().manual_seed(seed)), torch.arange(queries)

    ours, others = shuffled(0)
    policy = boldest(record.select(ours))
    kept, mean_layers = judged(record.select(others), policy)
    held_out = {
        "family": "full" if policy is None else "margins",
        "policy": str(policy),
        "promised": SAME_FIRST,
        "kept": kept,
        "every_promise_kept": kept >= SAME_FIRST,
        "mean_layers": mean_layers,
    }
    results = [found("held out", held_out, promise=RANKED.name)]
    for name, draw in (("splits", shuffled), ("population", drawn)):
        results.append(found(name, summary(many(record, draw, draws)), promise=RANKED.name))
    return [found("", {"texts": len(record.logits), "queries": queries, "num_layers": record.layers[-1]}), *results]


def many(record: RankRecord, draw: Callable[[int], tuple[torch.Tensor, torch.Tensor]], count: int) -> Draws:
    """Calibrations on the first queries of each draw, judged by the second ones."""
    draws = Draws([], [], [])
    for seed in range(count):
        ours, others = draw(seed)
        policy = boldest(record.select(ours))
        kept, mean_layers = judged(record.select(others), policy)
        draws.broken.append(kept < SAME_FIRST - 1e-9)
        draws.mean_layers.append(mean_layers)
        draws.families.append("full" if policy is None else "margins")
    return draws


class Ranks:
    """`predict` that ranks all groups, so that it is timed as any engine is."""

    def __init__(self, engine: Engine, top_k: int) -> None:
        self.engine, self.top_k = engine, top_k

    def predict(self, groups: Groups) -> list[Ranking]:
        """The rankings of all groups."""
        return list(self.engine.rank_many(groups, self.top_k))


def reranked(engine: Engine, rows: list[list[Row]], top_k: int = FIRST, rounds: int = 3) -> list[Found]:
    """Calibrate on a half of the queries, and measure on the others, beside full depth in batches sorted by length.

    Args:
        engine: at full depth.
        rows: those of each query.
        top_k: how many of each query's candidates are wanted.
        rounds: of the wall clock.
    """
    pairs: Groups = [(group[0]["text"], [row["text_pair"] for row in group]) for group in rows]
    half = len(pairs) // 2
    exits, full = engine.with_policy("full"), engine.with_policy("full")
    found_ranking = calibrate_ranking(
        exits, pairs[:half], top_k=top_k, same_top_k=SAME_FIRST, speed_queries=CHOOSING, save=False
    )
    ours, whole = Ranks(exits, top_k), Ranks(full, top_k)
    given, wanted = ours.predict(pairs[half:]), whole.predict(pairs[half:])
    same = [set(one.order.tolist()) == set(other.order.tolist()) for one, other in zip(given, wanted, strict=True)]
    relevant = [[row["label"] == "1" for row in group] for group in rows[half:]]
    measured = {
        "promised": SAME_FIRST,
        "kept": sum(same) / len(same),
        "mean_layers": sum(one.mean_layers for one in given) / len(given),
        "mrr": mean_reciprocal_rank(given, relevant),
        "full_mrr": mean_reciprocal_rank(wanted, relevant),
        "policy": str(found_ranking.chosen.ranking),
        **speed_up(whole, ours, pairs[half:], rounds),
    }
    facts = {
        "queries": len(pairs) - half,
        "candidates": len(rows[0]),
        "top_k": top_k,
        "num_layers": engine.model.config.num_hidden_layers,
    }
    return [found("", facts), found("calibrated", measured)]


def mean_reciprocal_rank(rankings: list[Ranking], relevant: list[list[bool]]) -> float:
    """Over the queries that have a relevant candidate; one that is not among the first counts as 0."""
    found_ranks = []
    for ranking, flags in zip(rankings, relevant, strict=True):
        if any(flags):
            places = [place for place, index in enumerate(ranking.order.tolist(), start=1) if flags[index]]
            found_ranks.append(1 / places[0] if places else 0.0)
    return sum(found_ranks) / len(found_ranks)


def main() -> None:
    parser = parser_of(__doc__, None)
    parser.add_argument("what", choices=OUTPUTS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()

    def simulate(cell: Trained, folder: Path) -> list[Found]:
        record = load_record(folder / RECORD)
        layers = MultiExitBert.from_pretrained(folder / "model").config.exit_layers
        return simulated(record_of(record.logits, layers), arguments.draws)

    def rerank(cell: Trained, folder: Path) -> list[Found]:
        model, tokenizer = MultiExitBert.from_pretrained(folder / "model"), AutoTokenizer.from_pretrained(folder / "model")
        return reranked(Engine(model, tokenizer, "full", **settings_of(cell.task)), groups(WIKIQA, 2 * QUERIES, MANY))

    run = {"promises": simulate, "clock": rerank}[arguments.what]
    settings = {"promises": {"draws": arguments.draws}, "clock": {"threads": arguments.threads}}[arguments.what]
    output = arguments.output or OUTPUTS[arguments.what]
    run_trained(f"answers ranking {arguments.what}", arguments, (WIKIQA.name,), run, settings, output)


if __name__ == "__main__":
    main()

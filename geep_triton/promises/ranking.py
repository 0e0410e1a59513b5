"""Calibration of rankings: margins under which queries keep the full model's best candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from geep_triton.answers import check_kind_of
from geep_triton.checks import check_int, check_kind, check_number, shorten
from geep_triton.engine.engine import Engine
from geep_triton.engine.groups import Groups, RankInputs, naming_pairs, pairs_of, read_groups
from geep_triton.engine.ranking import Ranking
from geep_triton.policies.ranking import RankPolicy
from geep_triton.policies.text import format_policy
from geep_triton.promises.guarantees import (
    bets_needed,
    betting_p_value,
    binomial_p_value,
    boldest_safe,
    samples_needed,
    warn_of_repeated,
)
from geep_triton.promises.rank_margins import settings
from geep_triton.promises.rank_record import RankRecord
from geep_triton.promises.terms import CannotPromise
from geep_triton.timing import rates

SEED = 0
PROMISES = {"same_top_k": (0.5, 0.9999), "max_ndcg_drop": (0.0001, 0.5), "max_mrr_drop": (0.0001, 0.5)}  # and their ranges


@dataclass(frozen=True)
class RankSetting:
    """One setting of margins and its figures on the queries that judge.

    Attributes:
        ranking: short form of the policy; None: full depth.
        same_top_k: the share of queries that get the full model's best candidates, in its order.
        drop: the mean of how much nDCG or MRR drops, where a gain counts as 0; None where the promise is another.
        p_value: of "the promise is broken"; 0 for full depth.
        mean_layers: how many layers a candidate runs on average.
        queries_per_second: by the wall clock of this machine; None where it was not measured.
        speed_up: how many times as fast as full depth in the same run.
    """

    ranking: str | None
    same_top_k: float
    drop: float | None
    p_value: float
    mean_layers: float
    queries_per_second: float | None = None
    speed_up: float | None = None


@dataclass(frozen=True)
class RankCalibration:
    """What `calibrate_ranking` found.

    Attributes:
        promise: its name ("same_top_k", "max_ndcg_drop" or "max_mrr_drop") and its value.
        top_k: of how many candidates it is.
        confidence: with which it holds for queries like those of the calibration.
        queries: how many there were; a half of them judged.
        dtype: in which the engine ran; the promise holds in no other.
        device: kind of device on which it ran, "cpu" or "cuda"; below float32 each rounds in its own way.
        max_length: the most tokens that the engine let a pair have.
        truncation: whether it cut longer pairs.
        chosen: the setting that was taken.
        full: full depth, measured.
        tried: all settings, from cautious to bold.
    """

    promise: tuple[str, float]
    top_k: int
    confidence: float
    queries: int
    dtype: str
    device: str
    max_length: int
    truncation: bool
    chosen: RankSetting
    full: RankSetting
    tried: tuple[RankSetting, ...] = field(repr=False)  # dozens

    def to_dict(self) -> dict[str, Any]:
        """As it is saved in the model's `exit_config.ranking_calibration`, without the settings that were not taken."""
        return {name: value for name, value in asdict(self).items() if name != "tried"} | {"promise": list(self.promise)}


def calibrate_ranking(
    engine: Engine,
    groups: RankInputs,
    relevances: Sequence[Sequence[float]] | None = None,
    *,
    top_k: int,
    same_top_k: float | None = None,
    max_ndcg_drop: float | None = None,
    max_mrr_drop: float | None = None,
    confidence: float = 0.95,
    rounds: int = 3,
    speed_queries: int = 100,
    save: bool = True,
) -> RankCalibration:
    """Find the boldest margins under which rankings keep a promise, and let candidates leave by them if that is faster here.

    The unit of a promise is a query: it holds with `confidence` for queries, with candidates, like the given ones. Margins are
    learned on a half of the queries. On the other half they are tested from cautious to bold up to the first that is not shown
    to be safe (fixed-sequence Learn-then-Test, Angelopoulos et al. 2021): by a binomial test for "same_top_k", by betting
    (Waudby-Smith and Ramdas 2020) for drops. A query keeps the full model's best candidates or not as a set and in order alike,
    since those that come first all reach the last layer. Candidates whose full score is that of rank k stand for each other.

    Args:
        engine: it gets the ranking that was found. Its policy says that no layer is skipped.
        groups: (query, candidates) tuples; the model was not trained on them.
        relevances: for each query a number for each candidate, at least 0; only drops need them. A query without a relevant
            candidate drops nothing.
        top_k: how many candidates are wanted. `Engine.rank` with a higher `top_k` runs at full depth. With a lower one
            "same_top_k" holds too, but nDCG and MRR may drop more.
        same_top_k: the share of queries that must get the full model's `top_k` best, e.g. .95.
        max_ndcg_drop: by how much nDCG at `top_k` (linear gains) may drop on average, e.g. .01. A query where it rises counts
            as 0.
        max_mrr_drop: the same for the reciprocal rank of the first relevant candidate.
        confidence: of the promise.
        rounds: speed is the median of so many interleaved rounds.
        speed_queries: speed is measured on so many queries.
        save: keep the ranking in `model.exit_config`, so that `save_pretrained` saves it and `Engine(...)` uses it.

    Raises:
        ValueError: there is not exactly one promise, or it is out of range; the queries are too few (the error says how many it
            takes); relevances are missing or do not fit; the model gives no single score or skips layers; and whatever
            `predict` raises.
        TypeError: an argument has another type.
    """
    check_kind("engine", engine, Engine)
    check_kind_of(engine.model.config, ("score",), "calibrate_ranking")
    promises = {"same_top_k": same_top_k, "max_ndcg_drop": max_ndcg_drop, "max_mrr_drop": max_mrr_drop}
    given = [(name, value) for name, value in promises.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"calibrate_ranking needs exactly one of {', '.join(promises)}, got {len(given)}")
    check_number(given[0][0], given[0][1], *PROMISES[given[0][0]])
    check_number("confidence", confidence, 0.5, 0.9999)
    check_int("top_k", top_k, 1, 2**31 - 1)
    check_int("rounds", rounds, 1)
    check_int("speed_queries", speed_queries, 1)
    if engine.policy.skip_on(engine.model).mode != "never":
        raise ValueError("candidates cannot leave early where layers are skipped: give the engine a policy with '+skip:never'")
    read = list(read_groups(groups))
    record = _record(engine, read, relevances, given[0], confidence)
    result = _find(engine, read, record, top_k, given[0], confidence, rounds, speed_queries)
    engine.ranking = result.chosen.ranking
    if save:
        served = engine.model.exit_config
        served.ranking, served.ranking_calibration = result.chosen.ranking, result.to_dict()
        if len(engine.model.gates) and served.policy is None:
            served.policy = format_policy(engine.policy)  # it says that no layer is skipped, without which nobody may leave
    return result


def queries_needed(promise: tuple[str, float], confidence: float) -> int:
    """How many queries a calibration takes at least: a half of them judges, and it must be able to show the promise."""
    name, value = promise
    if name == "same_top_k":
        return 2 * samples_needed(round(1 - value, 12), confidence)
    return 2 * bets_needed(betting_p_value, value, confidence)


def _record(
    engine: Engine,
    groups: list[tuple[str, list[str]]],
    relevances: Sequence[Sequence[float]] | None,
    promise: tuple[str, float],
    confidence: float,
) -> RankRecord:
    """Every exit's scores. CannotPromise where the queries are too few, ValueError where relevances do not fit."""
    name, value = promise
    if len(groups) < (needed := queries_needed(promise, confidence)):
        raise CannotPromise(
            f"{len(groups)} queries are too few to promise {name}={value:g}: at least {needed} are needed even if no ranking "
            "differs"
        )
    warn_of_repeated(len({(query, *candidates) for query, candidates in groups}), len(groups), "queries", "query")
    sizes = [len(candidates) for _, candidates in groups]
    if relevances is None and name != "same_top_k":
        raise ValueError(f"{name} needs relevances; same_top_k needs none")
    known = None if relevances is None else _read_relevances(relevances, sizes)
    if not any(sizes):
        raise ValueError("groups: no query has a candidate")
    read = Groups([candidates for _, candidates in groups], None, 0)
    with naming_pairs(read):
        logits = engine.every_exit(pairs_of([query for query, _ in groups], read)).logits[:, :, 0]
    return RankRecord.of(logits, sizes, engine.model.config.exit_layers, known)


def _read_relevances(relevances: Sequence[Sequence[float]], sizes: list[int]) -> torch.Tensor:
    """[N] float64. ValueError unless there is a number from 0 for each candidate."""
    try:
        rows = [torch.as_tensor(row, dtype=torch.float64).reshape(-1) for row in relevances]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"relevances must be a list of numbers for each query, got {shorten(relevances)}") from error
    if [len(row) for row in rows] != sizes:
        wrong = [number for number, (row, size) in enumerate(zip(rows, sizes, strict=False)) if len(row) != size]
        told = (
            f"query {wrong[0]} has {len(rows[wrong[0]])} for {sizes[wrong[0]]}"
            if wrong
            else f"{len(rows)} for {len(sizes)} queries"
        )
        raise ValueError(f"relevances must be one per candidate of each query, got {told}")
    values = torch.cat(rows)
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError("relevances must be finite and at least 0")
    return values


def _find(
    engine: Engine,
    groups: list[tuple[str, list[str]]],
    record: RankRecord,
    top_k: int,
    promise: tuple[str, float],
    confidence: float,
    rounds: int,
    speed_queries: int,
) -> RankCalibration:
    """The boldest setting that is safe, if it is faster than full depth. This changes nothing of the engine."""
    costs, (full_tokens, full_seconds) = engine.layer_costs, engine.layer_costs.points[-1]
    stop_cost = costs.stop_layers + costs.move * full_tokens / full_seconds
    policies, tried, boldest = search(record, top_k, promise, confidence, stop_cost)
    drop = None if promise[0] == "same_top_k" else 0.0
    full = RankSetting(None, 1.0, drop, 0.0, float(engine.model.config.num_hidden_layers))
    timed = [groups[one] for one in _order(len(groups)).flip(0)[:speed_queries].tolist()]  # to which nothing was fitted
    wanted: dict[str, RankPolicy | None] = {"full": None}
    if boldest is not None:
        wanted["boldest"] = policies[boldest]
    speeds = speeds_of(engine, wanted, timed, top_k, rounds)
    full = replace(full, queries_per_second=speeds["full"], speed_up=1.0)
    chosen = full
    if boldest is not None:
        speed_up = speeds["boldest"] / speeds["full"]
        tried[boldest] = replace(tried[boldest], queries_per_second=speeds["boldest"], speed_up=speed_up)
        chosen = tried[boldest] if speed_up > 1 else full
    return RankCalibration(
        promise=promise,
        top_k=top_k,
        confidence=confidence,
        queries=len(groups),
        dtype=engine.dtype,
        device=engine.model.device.type,
        max_length=engine.max_length,
        truncation=engine.truncation,
        chosen=chosen,
        full=full,
        tried=tuple(tried),
    )


def search(
    record: RankRecord, top_k: int, promise: tuple[str, float], confidence: float, stop_cost: float
) -> tuple[list[RankPolicy], list[RankSetting], int | None]:
    """Learn settings on a half of the queries and judge them on the other half.

    Args:
        record: of all queries.
        top_k, promise, confidence: see `calibrate_ranking`.
        stop_cost: see `geep_triton.promises.rank_margins.settings`.

    Returns:
        The policies from cautious to bold, their figures, and the index of the boldest that is safe (None: none is).
    """
    order = _order(len(record.offsets) - 1)
    half = len(order) // 2
    policies = settings(record.select(order[:half]), top_k, stop_cost)
    judging = record.select(order[half:])
    tried = [judge(judging, policy, top_k, promise, confidence) for policy in policies]
    return policies, tried, boldest_safe([setting.p_value for setting in tried], confidence)


def _order(queries: int) -> torch.Tensor:
    return torch.randperm(queries, generator=torch.Generator().manual_seed(SEED))


def judge(record: RankRecord, policy: RankPolicy, top_k: int, promise: tuple[str, float], confidence: float) -> RankSetting:
    """A policy's figures on recorded scores, in random order, and the p-value of "the promise is broken"."""
    name, value = promise
    exits = record.simulate(policy)
    loses = record.loses(exits, top_k)
    drop = None
    if name == "same_top_k":
        p_value = binomial_p_value(int(loses.sum()), len(loses), round(1 - value, 12))
    else:
        losses = drops(record, exits, top_k, name)
        drop, p_value = float(losses.mean()), betting_p_value(losses, value, confidence)
    mean_layers = float(exits.double().mean()) if len(exits) else math.nan
    return RankSetting(str(policy), 1 - float(loses.double().mean()), drop, p_value, mean_layers)


def drops(record: RankRecord, exit_layers: torch.Tensor, top_k: int, name: str) -> torch.Tensor:
    """[Q] float64, how much nDCG or MRR of each query is lower than with the full model, at least 0."""
    measure: Callable[[torch.Tensor, int], torch.Tensor] = record.ndcg if name == "max_ndcg_drop" else record.mrr
    full = torch.full_like(exit_layers, record.layers[-1])
    return (measure(full, top_k) - measure(exit_layers, top_k)).clamp(min=0)


def speeds_of(
    engine: Engine, policies: dict[str, RankPolicy | None], groups: list[tuple[str, list[str]]], top_k: int, rounds: int
) -> dict[str, float]:
    """Queries a second of each policy: the median of interleaved rounds after a warm-up."""
    calls: dict[str, Callable[[], object]] = {}
    for name, policy in policies.items():
        other = engine.with_policy(engine.policy)
        other.ranking, other.progress = policy, False
        _ranked(other, groups[:5], top_k)
        calls[name] = partial(_ranked, other, groups, top_k)
    return rates(calls, len(groups), rounds)


def _ranked(engine: Engine, groups: list[tuple[str, list[str]]], top_k: int) -> list[Ranking]:
    return list(engine.rank_many(groups, top_k))

"""Ranks candidates of many queries: those that cannot reach the first places leave early, the others stay in dense batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic

import torch
from tqdm.auto import tqdm

from geep_triton.answers import Score
from geep_triton.engine.batch import Batch
from geep_triton.engine.batching import schedule
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.flight import Run, fly
from geep_triton.engine.groups import Groups
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.pools import Pools
from geep_triton.engine.ranking import Ranking, order_of
from geep_triton.engine.standings import Standings
from geep_triton.policies.ranking import RankPolicy
from geep_triton.policies.skip import Skip
from geep_triton.runners.base import Runner, StatesT
from geep_triton.tokens.ragged import Tokens, to_device

ROUND_BATCHES = 16  # of a full token budget


@dataclass(frozen=True, eq=False)
class Scored:
    """The candidates of some queries, scored.

    Attributes:
        begin: number of the first pair in the window.
        logits: [N] float32 on the host, each from the exit where the candidate left.
        exit_layers: [N] int64.
        invalid: layer of an early exit -> how many scores were not finite there.
    """

    begin: int
    logits: torch.Tensor
    exit_layers: torch.Tensor
    invalid: Mapping[int, int]


class Ranker(Generic[StatesT]):
    """Scores windows of whole groups.

    A window runs in rounds of whole groups. In a round all candidates run to an exit, then those that cannot reach the first
    places leave, and the others go on together. So the states of a round are held while its groups are compared: those of
    about `ROUND_BATCHES` full batches, or of one query's candidates where they are more, for each round in flight.

    Args:
        runner: runs the layers.
        policy: who leaves early; None: nobody.
        skip: how samples skip layers.
        token_budget: tokens of a dense batch, padding included.
        batch_cost: see `geep_triton.engine.batching.schedule`.
        in_flight: how many rounds run by turns, while the host waits for the decisions of one.
        costs: they decide whether survivors are joined and whether few skip; None: they are joined, and nobody can skip.

    Raises:
        ValueError: the model does not give one score; or there is a policy, and samples skip layers, so that some would have no
            score at an exit.
    """

    def __init__(
        self,
        runner: Runner[StatesT],
        policy: RankPolicy | None,
        skip: Skip,
        token_budget: int,
        batch_cost: int,
        in_flight: int,
        costs: LayerCosts | None,
    ) -> None:
        answers = runner.model.answers
        if not isinstance(answers, Score):
            raise ValueError(f"to rank needs a model of one score (num_labels=1), got one of {len(answers.id2label)} labels")
        self.answers = answers
        if policy is not None and skip.mode != "never":
            raise ValueError(
                f"candidates cannot leave early where layers are skipped (by {skip.mode}): give the engine a policy with "
                "'+skip:never', or set ranking = None"
            )
        self.runner, self.policy, self.skip, self.costs = runner, policy, skip, costs
        self.token_budget, self.batch_cost, self.in_flight = token_budget, batch_cost, in_flight

    def rankings(
        self,
        windows: Iterator[Groups],
        running: Callable[[], AbstractContextManager[None]],
        top_k: int | None,
        return_documents: bool,
        progress: bool,
    ) -> Iterator[Ranking]:
        """The rankings of all queries, in their order, window by window.

        Args:
            windows: of whole groups.
            running: makes the context in which layers run.
            top_k, return_documents: see `geep_triton.engine.engine.Engine.rank_many`.
            progress: show a progress bar.

        Raises:
            ValueError: a text cannot be read, or a score is not finite.
        """
        with tqdm(unit="query", disable=not progress) as bar:
            for groups in windows:
                logits, exits = self.score(groups, running())
                sizes = [len(texts) for texts in groups.candidates]
                bar.update(len(sizes))  # now: who takes one ranking alone never comes back
                each = zip(groups.candidates, logits.split(sizes), exits.split(sizes), groups.truncated, strict=True)
                for texts, of_query, depths, truncated in each:
                    order = order_of(of_query, depths)[:top_k]
                    yield Ranking(order, of_query, depths, self.answers, texts if return_documents else None, truncated)

    def score(self, groups: Groups, running: AbstractContextManager[None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N] float32 and exit layers [N] int64 of a window's pairs.

        Args:
            groups: a window.
            running: the context in which layers run.

        Raises:
            ValueError: scores are not finite.
        """
        if groups.tokens is None:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        rounds = iter(self._rounds(groups))
        with running:
            found = list(fly(lambda alone: next(rounds, None), self.in_flight))
        found.sort(key=lambda scored: scored.begin)
        for scored in found:
            for layer, count in scored.invalid.items():
                if count:
                    raise ValueError(f"{count} candidates got scores that are NaN or infinite at the exit of layer {layer}")
        logits = torch.cat([scored.logits for scored in found])
        if not (finite := logits.isfinite()).all():
            raise ValueError(f"{groups.place(int(finite.int().argmin()))} got a score that is NaN or infinite")
        return logits, torch.cat([scored.exit_layers for scored in found])

    def _rounds(self, groups: Groups) -> Iterator[Run[Scored]]:
        """The window's rounds, each of whole groups."""
        tokens, bounds = groups.tokens, groups.bounds
        if tokens is None:
            return
        start = 0
        for index in range(1, len(bounds)):
            held = int(tokens.offsets[bounds[index]] - tokens.offsets[bounds[start]])
            last = index == len(bounds) - 1
            if last or held >= ROUND_BATCHES * self.token_budget:
                if bounds[start] < bounds[index]:
                    part = tokens.select(torch.arange(bounds[start], bounds[index]))
                    inner = [bound - bounds[start] for bound in bounds[start : index + 1]]
                    yield self._round(part, torch.tensor(inner), bounds[start])
                start = index

    def _round(self, tokens: Tokens, offsets: torch.Tensor, begin: int) -> Run[Scored]:
        """Run the pairs of some queries from exit to exit, and who is left to the last layer.

        Args:
            tokens: of N pairs.
            offsets: [Q + 1] int64, where each query's pairs begin.
            begin: number of the first pair in the window.
        """
        layers = WindowLayers(self.runner, tokens, self.skip, self.costs if self.skip.mode == "gates" else None)
        standings = Standings(offsets, layers.last, self.runner.model.device)
        top_k, margins = (1, {}) if self.policy is None else (self.policy.top_k, self.policy.margins)
        stops = [*margins, layers.last]
        exits = torch.full((len(tokens),), stops[0])
        batches = layers.embed(schedule(exits, tokens.lengths, self.token_budget, layers.groups, self.batch_cost))
        for stop, next_stop in pairwise(stops):
            waiting: deque[Batch[StatesT]] = deque()
            for batch in batches:
                batch, _ = yield from layers.run_to(stop, batch)
                standings.put(batch.rows, layers.exit_logits(stop, batch.states))
                waiting.append(replace(batch, stop=next_stop))
            yield from standings.compare(stop, top_k, margins[stop])
            batches = self._joined(waiting, standings.left)
        for batch in batches:
            answer = yield from layers.answer(batch, "student")
            standings.put(answer.rows, answer.logits)
        logits, invalid = yield from standings.final()
        yield Scored(begin, logits, standings.exit_layers, dict(zip(margins, invalid, strict=True)))

    def _joined(self, waiting: deque[Batch[StatesT]], stay: torch.Tensor) -> Iterator[Batch[StatesT]]:
        """Dense batches of those who stay; `stay` [N] bool. Batches with nobody left hold their states no longer."""
        pools = Pools(self.runner, self.token_budget, self.batch_cost, self.costs)
        alone = []
        while waiting:
            batch = waiting.popleft()
            stays = stay[batch.rows]
            if not stays.any():
                continue
            if not stays.all():
                order = to_device(stays.nonzero()[:, 0], self.runner.model.device)
                batch = batch.take(self.runner, stays, order)
            if not pools.hold(batch):
                alone.append(batch)
        scheduled = iter(alone)
        while (dense := pools.next_batch(scheduled, alone=True)) is not None:
            yield dense

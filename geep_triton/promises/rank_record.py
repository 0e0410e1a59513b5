"""Every exit's scores of the candidates of some queries, and what a ranking that leaves early would have made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geep_triton.engine.standings import Standings
from geep_triton.policies.ranking import RankPolicy


@dataclass(frozen=True, eq=False)
class RankRecord:
    """Every exit's scores of N candidates of Q queries.

    Attributes:
        logits: [N, E] float32.
        offsets: [Q + 1] int64, where each query's candidates begin.
        layers: the layers of the E exits.
        relevances: [N] float64, how relevant each candidate is; None: not known.
    """

    logits: torch.Tensor
    offsets: torch.Tensor
    layers: tuple[int, ...]
    relevances: torch.Tensor | None = None

    @property
    def query(self) -> torch.Tensor:
        """[N] int64, the number of each candidate's query."""
        return torch.repeat_interleave(self.offsets.diff())

    def select(self, queries: torch.Tensor) -> RankRecord:
        """The same of the queries [M] int64, in that order."""
        parts = [torch.arange(int(self.offsets[one]), int(self.offsets[one + 1])) for one in queries.tolist()]
        rows = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        sizes = self.offsets.diff()[queries]
        relevances = None if self.relevances is None else self.relevances[rows]
        return RankRecord(self.logits[rows], torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), self.layers, relevances)

    def simulate(self, policy: RankPolicy) -> torch.Tensor:
        """[N] int64, the layer after which each candidate would leave. It is compared as the engine does."""
        standings = Standings(self.offsets, self.layers[-1], self.logits.device)
        for layer, margin in policy.margins.items():
            rows = standings.left.nonzero()[:, 0]
            standings.put(rows, self.logits[rows, self.layers.index(layer), None])
            for _ in standings.compare(layer, policy.top_k, margin):
                pass  # nothing is on its way from a device
        return standings.exit_layers

    def ranks(self, exit_layers: torch.Tensor, exit_: int = -1) -> torch.Tensor:
        """[N] int64, each candidate's place in its query, from 0: who left later first, then by the scores of an exit."""
        order = self.logits[:, exit_].argsort(descending=True, stable=True)
        order = order[exit_layers[order].argsort(descending=True, stable=True)]
        order = order[self.query[order].argsort(stable=True)]
        places = torch.arange(len(order)) - self.offsets[:-1][self.query]
        return torch.empty_like(order).index_copy_(0, order, places)

    def worst_of_best(self, exit_: int, top_k: int) -> torch.Tensor:
        """[Q] float32, the `top_k`-th best score of each query at an exit; -inf where there are fewer candidates."""
        ranks = self.ranks(torch.zeros_like(self.query), exit_)
        found = torch.full((len(self.offsets) - 1,), -torch.inf)
        at = ranks == top_k - 1
        found[self.query[at]] = self.logits[at, exit_]
        return found

    def loses(self, exit_layers: torch.Tensor, top_k: int) -> torch.Tensor:
        """[Q] bool, which queries do not get the full model's `top_k` best.

        They come in the full model's order where they are the same, since all of them reached the last layer. Candidates with
        the full model's `top_k`-th score stand for each other.
        """
        worst, full, kept = self.worst_of_best(-1, top_k)[self.query], self.logits[:, -1], exit_layers == self.layers[-1]
        queries, sizes = len(self.offsets) - 1, self.offsets.diff()
        better_left = torch.bincount(self.query[(full > worst) & ~kept], minlength=queries)
        as_good = torch.bincount(self.query[(full >= worst) & kept], minlength=queries)
        return (better_left > 0) | (as_good < sizes.clamp(max=top_k))

    def ndcg(self, exit_layers: torch.Tensor, top_k: int) -> torch.Tensor:
        """[Q] float64, nDCG at `top_k` with linear gains (Järvelin and Kekäläinen 2002); 0 where nothing is relevant."""
        relevances = self._known_relevances()
        gains = self._discounted(relevances, self.ranks(exit_layers), top_k)
        ideal_order = relevances.argsort(descending=True, stable=True)
        ideal_order = ideal_order[self.query[ideal_order].argsort(stable=True)]
        places = torch.arange(len(ideal_order)) - self.offsets[:-1][self.query]
        ideal = self._discounted(relevances[ideal_order], places, top_k)
        return torch.where(ideal > 0, gains / ideal.clamp(min=1e-12), 0.0)

    def mrr(self, exit_layers: torch.Tensor, top_k: int) -> torch.Tensor:
        """[Q] float64, 1 over the place of the first relevant candidate; 0 where none is among the `top_k` first."""
        ranks = self.ranks(exit_layers)
        values = torch.where((self._known_relevances() > 0) & (ranks < top_k), 1.0 / (ranks + 1).double(), 0.0)
        return torch.zeros(len(self.offsets) - 1, dtype=torch.float64).scatter_reduce(0, self.query, values, "amax")

    def _discounted(self, gains: torch.Tensor, ranks: torch.Tensor, top_k: int) -> torch.Tensor:
        values = torch.where(ranks < top_k, gains / (ranks + 2).double().log2(), 0.0)
        return torch.zeros(len(self.offsets) - 1, dtype=torch.float64).index_add_(0, self.query, values)

    def _known_relevances(self) -> torch.Tensor:
        if self.relevances is None:
            raise ValueError("nDCG and MRR need relevances")
        return self.relevances

    @classmethod
    def of(
        cls, logits: torch.Tensor, sizes: Sequence[int], layers: Sequence[int], relevances: torch.Tensor | None = None
    ) -> RankRecord:
        """Make one of logits [N, E] of queries with so many candidates each."""
        counts = torch.tensor([0, *sizes])
        return cls(logits, counts.cumsum(0), tuple(layers), relevances)

"""Forecasts of agreement from an exit's logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.plans.nets import Inputs, Nets, fit


@dataclass(frozen=True, eq=False)
class Forecasts:
    """A net for each early exit, which reads the exit's logits.

    Attributes:
        nets: E - 1 of them.
    """

    nets: Nets

    def agreement(self, index: int, logits: torch.Tensor) -> torch.Tensor:
        """[N, E - index], the probability that this exit and each later one give the last exit's answer; 1 for the last.

        Args:
            index: of an early exit.
            logits: [N, C] of that exit.
        """
        early = self.nets.narrow.first.shape[0]
        found = self.nets.probabilities(Inputs(logits[:, None].expand(-1, early, -1)))[:, index, index:]
        return torch.cat([found, found.new_ones(len(found), 1)], 1)


def later(early: int) -> torch.Tensor:
    """[E - 1, E - 1] bool, the exits that each early exit forecasts: itself and those after it."""
    return torch.ones(early, early, dtype=torch.bool).triu()


def learn_forecasts(logits: torch.Tensor, agrees: torch.Tensor, seed: int = 0) -> Forecasts:
    """Learn them without labels.

    Args:
        logits: [N, E, C] of every exit.
        agrees: [N, E] bool, whether each exit gives the last exit's answer.
        seed: of weights, batches and the texts that are held out.
    """
    early = logits.shape[1] - 1
    return Forecasts(fit(Inputs(logits[:, :-1]), agrees[:, :-1], later(early), seed))

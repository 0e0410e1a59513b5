"""Replays the exits of one model on another: by a policy that knows them, or by thresholds that give the same number
of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton import MultiExitBert
from geep_triton.policies.leave import Leave
from geep_triton.policies.policy import Policy
from geep_triton.tokens.ragged import Tokens

SPREAD = 2.0  # standard deviation of a random model's logits

# Exits of 12 layers: name -> layer -> share of the samples.
DISTRIBUTIONS: dict[str, dict[int, float]] = {
    "all-12": {12: 1.0},
    "mean-4.2": {1: 0.15, 2: 0.2, 3: 0.2, 4: 0.15, 5: 0.05, 6: 0.05, 8: 0.1, 10: 0.05, 12: 0.05},
    "bimodal": {2: 0.6, 12: 0.4},
}


@dataclass(frozen=True, eq=False)
class Recorded:
    """Each sample starts at the exit that was recorded of it: a start whose predictor is known beforehand.

    Args:
        exits: a sample's token ids -> the layer of its exit.
    """

    exits: Mapping[tuple[int, ...], int] = field(repr=False)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Every recorded layer must be an exit."""
        unknown = set(self.exits.values()) - set(model.config.exit_layers)
        if unknown:
            raise ValueError(f"recorded exits {sorted(unknown)} are none of this model's: {model.config.exit_layers}")

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The recorded exits."""
        rows = tokens.ids.split(tokens.lengths.tolist())
        return torch.tensor([self.exits[tuple(row.tolist())] for row in rows])


def replay(tokens: Tokens, exits: torch.Tensor, leave: Leave | None = None) -> Policy:
    """Samples start at their recorded exits [N], and are answered there or leave from there on; of samples with the same tokens
    the last one counts.
    """
    rows = tokens.ids.split(tokens.lengths.tolist())
    return Policy(Recorded({tuple(row.tolist()): layer for row, layer in zip(rows, exits.tolist(), strict=True)}), leave)


def drawn(distribution: Mapping[int, float], samples: int, depth: int, seed: int = 0) -> torch.Tensor:
    """[N] exits in random order, as many of each as the distribution over 12 layers says, scaled to `depth` layers."""
    layers = torch.tensor([max(1, round(layer * depth / 12)) for layer in distribution])
    bounds = torch.tensor(list(distribution.values())).cumsum(0) * samples
    exits = layers[torch.searchsorted(bounds.contiguous(), torch.arange(samples) + 0.5).clamp(max=len(layers) - 1)]
    return exits[torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]


def thresholds_for(uncertainty: torch.Tensor, exits: torch.Tensor, layers: list[int]) -> dict[int, float]:
    """Layer -> threshold, so that of samples with these uncertainties as many leave at each exit as in `exits`.

    Args:
        uncertainty: [N, E - 1] at the early exits.
        exits: [N] layers, whose counts are wanted.
        layers: the E exits.
    """
    wanted = torch.bincount(exits, minlength=layers[-1] + 1)
    left, found = torch.ones(len(uncertainty), dtype=torch.bool), {}
    for at, layer in enumerate(layers[:-1]):
        values, count = uncertainty[left, at].sort().values, int(wanted[layer])
        if count == 0:
            found[layer] = 0.0
        elif count >= len(values):
            found[layer] = 1.0
        else:
            found[layer] = float((values[count - 1] + values[count]) / 2)
        left &= uncertainty[:, at] > found[layer]
    return found


def spread_heads(model: MultiExitBert, logits: torch.Tensor) -> None:
    """Make random exits differ from sample to sample: shift and stretch their logits [N, E, C] to mean 0 and a fixed spread."""
    with torch.no_grad():
        for at, layer in enumerate(model.config.exit_layers):
            classifier, given = model.heads[str(layer)].classifier, logits[:, at]
            scale = SPREAD / float((given - given.mean(0)).std().clamp(min=1e-6))
            classifier.bias.copy_((classifier.bias - given.mean(0).to(classifier.bias)) * scale)
            classifier.weight.mul_(scale)

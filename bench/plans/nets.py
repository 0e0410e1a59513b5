"""Small nets that tell before or after an early layer which exits will agree with the last. They learn without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

HELD_OUT = 1 / 8
DECAY = 1e-3
PATIENCE = 5


@dataclass(frozen=True, eq=False)
class Inputs:
    """What K nets read of N texts.

    Attributes:
        narrow: [N, K, F] float32, a few values.
        wide: [N, K, H] states, which most of the weights are of; None: not read.
    """

    narrow: torch.Tensor
    wide: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.narrow)

    def select(self, rows: torch.Tensor) -> Inputs:
        """The same of some texts."""
        return Inputs(self.narrow[rows], None if self.wide is None else self.wide[rows].float())


@dataclass(frozen=True)
class Training:
    """How nets are trained.

    Attributes:
        hidden: width of the hidden layer.
        dropout: of the inputs.
        rate: learning rate of AdamW.
        batch: texts of a step.
        epochs: at most.
    """

    hidden: int
    dropout: float
    rate: float
    batch: int
    epochs: int


NARROW = Training(hidden=16, dropout=0.0, rate=1.5e-2, batch=128, epochs=60)
WIDE = Training(hidden=32, dropout=0.5, rate=1e-3, batch=256, epochs=20)


class Layers(torch.nn.Module):
    """K nets at once, with one hidden layer of ReLU each: [N, K, F] -> [N, K, O]."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, inputs: torch.Tensor, outputs: int, settings: Training) -> None:
        super().__init__()
        (_, nets, features), hidden = inputs.shape, settings.hidden
        self.register_buffer("mean", inputs.float().mean(0))
        self.register_buffer("scale", inputs.float().std(0) + 1e-4)
        self.dropout = settings.dropout
        self.first = torch.nn.Parameter(torch.empty(nets, features, hidden).uniform_(-1, 1) / features**0.5)
        self.first_bias = torch.nn.Parameter(torch.zeros(nets, 1, hidden))
        self.second = torch.nn.Parameter(torch.empty(nets, hidden, outputs).uniform_(-1, 1) / hidden**0.5)
        self.second_bias = torch.nn.Parameter(torch.zeros(nets, 1, outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scores."""
        standard = F.dropout((inputs - self.mean) / self.scale, self.dropout, self.training).transpose(0, 1)
        hidden = torch.relu(torch.baddbmm(self.first_bias, standard, self.first))
        return torch.baddbmm(self.second_bias, hidden, self.second).transpose(0, 1)


class Nets(torch.nn.Module):
    """K nets that read `Inputs`. States add to what the few values say."""

    def __init__(self, narrow: Layers, wide: Layers | None) -> None:
        super().__init__()
        self.narrow, self.wide = narrow, wide

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """[N, K, O] scores."""
        scores = self.narrow(inputs.narrow)
        return scores if self.wide is None or inputs.wide is None else scores + self.wide(inputs.wide)

    @torch.inference_mode()
    def probabilities(self, inputs: Inputs) -> torch.Tensor:
        """[N, K, O], in batches."""
        parts = torch.arange(len(inputs)).split(1024)
        return torch.cat([self(inputs.select(rows)).sigmoid() for rows in parts])


def later(early: int) -> torch.Tensor:
    """[E - 1, E - 1] bool, the exits that each early exit forecasts: itself and those after it."""
    return torch.ones(early, early, dtype=torch.bool).triu()


def losses(scores: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[K], the mean cross-entropy of each net over the outputs that are wanted of it.

    Args:
        scores: [N, K, O].
        targets: [N, O].
        wanted: [K, O] bool.
    """
    every = F.binary_cross_entropy_with_logits(scores, targets[:, None].expand_as(scores), reduction="none")
    return (every.mean(0) * wanted).sum(1) / wanted.sum(1)


def fit(inputs: Inputs, targets: torch.Tensor, wanted: torch.Tensor, seed: int = 0) -> Nets:
    """Learn K nets beside each other: first from the few values, then what the states add to them.

    Args:
        inputs: of N texts.
        targets: [N, O] bool.
        wanted: [K, O] bool, the outputs that each net learns.
        seed: of weights, batches and the texts that are held out.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        order = torch.randperm(len(inputs))
        held_out, training = order.tensor_split([max(1, int(HELD_OUT * len(inputs)))])
        narrow = Layers(inputs.narrow[training], targets.shape[1], NARROW)
        with torch.no_grad():
            narrow.second_bias.add_(torch.logit(targets[training].float().mean(0).clamp(0.01, 0.99)))
        scores = torch.zeros(len(inputs), *wanted.shape)
        train(narrow, NARROW, inputs.narrow, scores, targets.float(), wanted, training, held_out)
        if inputs.wide is None:
            return Nets(narrow, None).eval()
        with torch.no_grad():
            scores = narrow(inputs.narrow)
        wide = Layers(inputs.wide[training], targets.shape[1], WIDE)
        torch.nn.init.zeros_(wide.second)
        train(wide, WIDE, inputs.wide, scores, targets.float(), wanted, training, held_out)
        return Nets(narrow, wide).eval()


def train(
    nets: Layers,
    settings: Training,
    values: torch.Tensor,
    scores: torch.Tensor,
    targets: torch.Tensor,
    wanted: torch.Tensor,
    training: torch.Tensor,
    held_out: torch.Tensor,
) -> None:
    """Train nets. Each keeps the weights with which it forecast held-out texts best, which may be those it began with.

    Args:
        nets: K of them.
        settings: of the training.
        values: [N, K, F], what they read.
        scores: [N, K, O], to which they add.
        targets, wanted: see `losses`.
        training, held_out: rows of the texts.
    """
    optimizer = torch.optim.AdamW(nets.parameters(), settings.rate, weight_decay=DECAY)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return losses(nets(values[rows].float()) + scores[rows], targets[rows], wanted)

    def judged() -> torch.Tensor:
        nets.eval()
        with torch.no_grad():
            return loss(held_out)

    best, worse = judged(), 0
    kept = {name: value.detach().clone() for name, value in nets.named_parameters()}
    for _ in range(settings.epochs):
        nets.train()
        for rows in training[torch.randperm(len(training))].split(settings.batch):
            optimizer.zero_grad()
            loss(rows).sum().backward()
            optimizer.step()
        found = judged()
        better = found < best - 1e-5
        best = torch.where(better, found, best)
        for name, value in nets.named_parameters():
            kept[name][better] = value.detach()[better]
        worse = 0 if bool(better.any()) else worse + 1
        if worse == PATIENCE:
            break
    nets.load_state_dict(kept, strict=False)
    nets.eval()

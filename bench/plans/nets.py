"""Small nets that tell before or after an early layer which exits will agree with the last. They learn without labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

HIDDEN, WIDE_HIDDEN = 16, 32
HELD_OUT = 1 / 8
BATCH, EPOCHS, PATIENCE = 128, 60, 5
RATE, DECAY = 4e-3, 1e-3
WIDE_RATE, WIDE_DECAY, WIDE_DROPOUT = 1e-3, 1e-2, 0.5


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


class Layers(torch.nn.Module):
    """K nets at once, with one hidden layer of ReLU each: [N, K, F] -> [N, K, O]."""

    def __init__(self, inputs: torch.Tensor, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        _, nets, features = inputs.shape
        self.register_buffer("mean", inputs.float().mean(0))
        self.register_buffer("scale", inputs.float().std(0) + 1e-4)
        self.dropout = dropout
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
    """K nets that read `Inputs`. States only add to what the few values say, and begin with nothing."""

    def __init__(self, inputs: Inputs, outputs: int) -> None:
        super().__init__()
        self.narrow = Layers(inputs.narrow, HIDDEN, outputs, 0.0)
        self.wide = None if inputs.wide is None else Layers(inputs.wide, WIDE_HIDDEN, outputs, WIDE_DROPOUT)
        if self.wide is not None:
            torch.nn.init.zeros_(self.wide.second)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """[N, K, O] scores."""
        scores = self.narrow(inputs.narrow)
        return scores if self.wide is None or inputs.wide is None else scores + self.wide(inputs.wide)

    def groups(self) -> Iterator[dict[str, object]]:
        """Parameters, as an optimizer takes them."""
        yield {"params": self.narrow.parameters(), "lr": RATE, "weight_decay": DECAY}
        if self.wide is not None:
            yield {"params": self.wide.parameters(), "lr": WIDE_RATE, "weight_decay": WIDE_DECAY}

    @torch.inference_mode()
    def probabilities(self, inputs: Inputs) -> torch.Tensor:
        """[N, K, O], in batches."""
        self.eval()
        parts = torch.arange(len(inputs)).split(1024)
        return torch.cat([self(inputs.select(rows)).sigmoid() for rows in parts])


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
    """Learn K nets beside each other. Each keeps the weights with which it forecast held-out texts best.

    Args:
        inputs: of N texts.
        targets: [N, O] bool.
        wanted: [K, O] bool, the outputs that each net learns.
        seed: of weights, batches and the texts that are held out.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    count = max(1, int(HELD_OUT * len(inputs)))
    held_out, training = order[:count], order[count:]
    wishes = targets.float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = Nets(inputs.select(training), targets.shape[1])
        rate = wishes[training].mean(0).clamp(0.01, 0.99)
        with torch.no_grad():
            nets.narrow.second_bias += torch.logit(rate)
        optimizer = torch.optim.AdamW(nets.groups())
        judging, best = inputs.select(held_out), torch.full((len(wanted),), torch.inf)
        kept, worse = {name: value.detach().clone() for name, value in nets.named_parameters()}, 0
        for _ in range(EPOCHS):
            nets.train()
            for rows in training[torch.randperm(len(training), generator=generator)].split(BATCH):
                optimizer.zero_grad()
                losses(nets(inputs.select(rows)), wishes[rows], wanted).sum().backward()
                optimizer.step()
            nets.eval()
            with torch.no_grad():
                loss = losses(nets(judging), wishes[held_out], wanted)
            better = loss < best - 1e-5
            best = torch.where(better, loss, best)
            for name, value in nets.named_parameters():
                kept[name][better] = value.detach()[better]
            worse = 0 if bool(better.any()) else worse + 1
            if worse == PATIENCE:
                break
        nets.load_state_dict(kept, strict=False)
    return nets.eval()

"""Forecasts of agreement from answers: a small net for each early exit, learned without labels (*our addition*)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from geep_triton.checks import check_int, check_number, check_tensor
from geep_triton.ops.forecast import ForecastNet, forecast
from geep_triton.table.allocate import price_for

UNITS = 16  # of each net
HELD_OUT = 0.25  # of the texts: they end the training, and later choose exits and prices
FEWEST_HELD_OUT, MOST_HELD_OUT = 10, 2000  # their answers are kept in the table's file
CERTAIN = 30.0  # the score of the last exit, whose sigmoid is 1 in float32
PATIENCE = 5  # epochs in which no net has a better loss
LEAST_DEVIATION = 1e-4  # of an input, as a part of its mean
LEAST_GAIN = 1e-5  # of a better loss


@dataclass(frozen=True, eq=False, repr=False)
class Forecasts:
    """A net for each of the E - 1 early exits. From the answer there it forecasts which exits give the last exit's answer.

    Net i speaks of the exits i to E - 1. The last of them is certain. Columns before i are 0.

    Attributes:
        hidden_weight: [E - 1, 2 C, U] float32.
        hidden_bias: [E - 1, U] float32.
        weight: [E - 1, U, E] float32.
        bias: [E - 1, E] float32.
        held_out: [M, E, C] float32, the answers of all exits to texts that no net was fitted to; 0 at an exit whose layer the
            text skipped.
        held_out_agrees: [M, E] bool, whether they are the last exit's.
        held_out_skipped: [M, E] bool, at which exits a text skipped the layer. It cannot leave there by its answer.
    """

    hidden_weight: torch.Tensor
    hidden_bias: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    held_out: torch.Tensor
    held_out_agrees: torch.Tensor
    held_out_skipped: torch.Tensor

    def __repr__(self) -> str:
        held_out, exits, classes = self.held_out.shape
        return f"Forecasts({exits} exits, {classes} logits, {held_out} held-out texts)"

    def net(self, exit_: int, device: str | torch.device = "cpu") -> ForecastNet:
        """The net of the early exit of index `exit_`, cached per device."""
        device = torch.device(device)
        if (exit_, device) not in self._nets:
            parts = self.hidden_weight[exit_], self.hidden_bias[exit_], self.weight[exit_, :, exit_:], self.bias[exit_, exit_:]
            self._nets[exit_, device] = ForecastNet(*(part.contiguous().to(device) for part in parts))
        return self._nets[exit_, device]

    @cached_property
    def _nets(self) -> dict[tuple[int, torch.device], ForecastNet]:
        return {}

    def agreement(self, exit_: int, logits: torch.Tensor) -> torch.Tensor:
        """How likely each exit from `exit_` on gives the last exit's answer, by the answers [N, C] at exit `exit_`.

        Returns:
            [N, E - exit_] float32. The first column is of the exit itself, and the last one is 1. A sample whose logits are not
            finite has 0 everywhere.
        """
        return forecast(logits, self.net(exit_, logits.device))

    @cached_property
    def held_out_agreement(self) -> torch.Tensor:
        """[E - 1, M, E] float32, what each net forecasts of the held-out texts: -infinity for exits before its own, and for its
        own exit where a text skipped the layer.
        """
        found = torch.full((len(self.bias), *self.held_out_agrees.shape), -torch.inf)
        for exit_ in range(len(found)):
            found[exit_, :, exit_:] = self.agreement(exit_, self.held_out[:, exit_])
            found[exit_, :, exit_].masked_fill_(self.held_out_skipped[:, exit_], -torch.inf)
        return found

    def price_for(
        self, exit_: int, layers: Sequence[int], mean_depth: float | None = None, agreement: float | None = None
    ) -> float:
        """The price of a layer that keeps a budget on the held-out texts, where exits are planned by the exit of index `exit_`.

        It is searched once for each budget.

        Args:
            exit_: index of an early exit.
            layers: of all E exits.
            mean_depth, agreement: the budget, one of them; see `geep_triton.table.allocate.price_for`.

        Raises:
            ValueError: the budget is out of range.
        """
        asked = exit_, mean_depth, agreement
        if asked not in self._prices:
            expected, agrees = self.held_out_agreement[exit_][:, exit_:], self.held_out_agrees[:, exit_:]
            self._prices[asked] = price_for(expected, agrees, tuple(layers[exit_:]), mean_depth, agreement)
        return self._prices[asked]

    @cached_property
    def _prices(self) -> dict[tuple[int, float | None, float | None], float]:
        return {}


@torch.inference_mode(False)
@torch.enable_grad()
def learn_forecasts(
    logits: torch.Tensor,
    agrees: torch.Tensor,
    skipped: torch.Tensor | None = None,
    *,
    epochs: int = 60,
    learning_rate: float = 1e-2,
    batch_size: int = 128,
    seed: int = 0,
) -> Forecasts:
    """Fit the nets to recorded answers, by cross entropy with whether each exit gave the last exit's answer.

    A fourth of the texts is held out, at most 2,000. The training ends where no net has improved on them for 5 epochs. Each net
    keeps the weights with which it was best.

    Args:
        logits: [N, E, C], the answers of every exit to N texts.
        agrees: [N, E] bool, whether they are the last exit's.
        skipped: [N, E] bool, at which exits a text skipped the layer. Its answer there counts as unknown, all logits 0. None:
            none did.
        epochs: the most passes over the texts.
        learning_rate: of Adam.
        batch_size: texts per step.
        seed: of the held-out texts, the first weights and the order.

    Raises:
        ValueError: there are fewer than 2 exits or 20 texts, shapes differ, logits are not finite, a setting is out of range,
            or the learning rate is so high that the loss is not finite.
        TypeError: an argument has another type.
    """
    check_tensor("logits", logits, 3)
    count, exits, classes = logits.shape
    _check(logits, agrees, skipped)
    check_int("epochs", epochs, 1)
    check_int("batch_size", batch_size, 1)
    check_number("learning_rate", learning_rate, 0.0)
    generator = torch.Generator().manual_seed(seed)
    logits = logits.detach().clone().float()
    skipped = torch.zeros_like(agrees) if skipped is None else skipped
    logits[skipped] = 0.0
    order = torch.randperm(count, generator=generator)
    split = min(max(FEWEST_HELD_OUT, round(HELD_OUT * count)), MOST_HELD_OUT)
    held_out, training = order[:split], order[split:]

    # Nets see standardized inputs. Afterwards the scale goes into their weights.
    seen = logits[:, :-1]
    seen = torch.cat([seen, seen.softmax(-1)], -1)
    mean, scale = (values.float() for values in _standard(seen[training].double()))
    parts = _first_weights(exits, 2 * classes, agrees[training], generator)
    optimizer = torch.optim.AdamW(parts, learning_rate, weight_decay=1e-3)
    standard = ((seen - mean) / scale).transpose(0, 1)  # [E - 1, N, 2 C]
    targets = agrees[:, :-1].float().expand(exits - 1, -1, -1)
    spoken_of = torch.ones(exits - 1, exits - 1).triu()[:, None]  # net i has nothing to say of exits before i

    def loss_of(rows: torch.Tensor) -> torch.Tensor:  # of each net
        v, a, w, b = parts
        hidden = torch.baddbmm(a[:, None], standard[:, rows], v).relu()
        losses = F.binary_cross_entropy_with_logits(torch.baddbmm(b[:, None], hidden, w), targets[:, rows], reduction="none")
        return (losses * spoken_of).sum((1, 2)) / (spoken_of.sum((1, 2)) * len(rows))

    best, worse = torch.full((exits - 1,), torch.inf), 0
    kept = [part.detach().clone() for part in parts]
    for _ in range(epochs):
        for rows in training[torch.randperm(len(training), generator=generator)].split(batch_size):
            optimizer.zero_grad()
            loss_of(rows).sum().backward()
            optimizer.step()
        with torch.no_grad():
            losses = loss_of(held_out)
        better = losses < best - LEAST_GAIN
        best = torch.where(better, losses, best)
        for part, value in zip(kept, parts, strict=True):
            part[better] = value.detach()[better]
        worse = 0 if bool(better.any()) else worse + 1
        if worse == PATIENCE:
            break
    if not bool(best.isfinite().all()):
        raise ValueError(
            f"the loss of the held-out texts is not finite: learning_rate {learning_rate:g} is too high, or logits as large as "
            f"{float(logits.abs().max()):.3g} are"
        )
    v, a, w, b = kept
    hidden_weight = v / scale[:, :, None]
    last = torch.full((exits - 1, 1), CERTAIN)
    return Forecasts(
        hidden_weight=hidden_weight,
        hidden_bias=a - (mean[:, None] @ hidden_weight)[:, 0],
        weight=F.pad(w * spoken_of, (0, 1)),
        bias=torch.cat([b * spoken_of[:, 0], last], 1),
        held_out=logits[held_out],
        held_out_agrees=agrees[held_out],
        held_out_skipped=skipped[held_out],
    )


def _standard(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale [E - 1, 2 C] of inputs [N, E - 1, 2 C].

    The scale of what hardly varies is its size, and 1 of what is always 0: stretched, a text that differs would mean anything.
    """
    mean, deviation = seen.mean(0), seen.std(0)
    size = mean.abs()
    return mean, torch.where(deviation > LEAST_DEVIATION * size, deviation, torch.where(size > 0, size, 1.0))


def _check(logits: torch.Tensor, agrees: torch.Tensor, skipped: torch.Tensor | None) -> None:
    count, exits, classes = logits.shape
    if classes < 1:
        raise ValueError("logits must have at least 1 column for each exit, got 0")
    if exits < 2:
        raise ValueError(f"forecasts need at least 2 exits, got {exits}")
    if count < 2 * FEWEST_HELD_OUT:
        raise ValueError(f"forecasts need at least {2 * FEWEST_HELD_OUT} texts to learn from, got {count}")
    for name, flags in (("agrees", agrees), ("skipped", skipped)):
        if flags is not None:
            check_tensor(name, flags, 2, torch.bool)
            if flags.shape != logits.shape[:2]:
                raise ValueError(f"{name} must have shape {tuple(logits.shape[:2])}, got {tuple(flags.shape)}")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits of recorded answers must be finite")


def _first_weights(
    exits: int, inputs: int, agrees: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random weights of all nets, which forecast each exit's share of agreement at first."""

    def random(rows: int, columns: int) -> torch.Tensor:
        bound = rows**-0.5
        return torch.empty(exits - 1, rows, columns).uniform_(-bound, bound, generator=generator).requires_grad_()

    rate = agrees[:, :-1].float().mean(0).clamp(0.01, 0.99)
    bias = (rate / (1 - rate)).log().repeat(exits - 1, 1).requires_grad_()
    first = torch.zeros(exits - 1, UNITS, requires_grad=True)
    return random(inputs, UNITS), first, random(UNITS, exits - 1), bias

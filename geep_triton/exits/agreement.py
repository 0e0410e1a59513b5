"""Learned values for the exit table: how likely each exit already gives the last exit's answer, from a text's n-grams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from geep_triton.ops.ngrams import ngram_keys
from geep_triton.outputs import Tokens

LENGTH_BUCKETS = 20
HELD_OUT = 0.1


@dataclass(frozen=True, eq=False)
class AgreementValues:
    """A bag-of-n-grams model: logit of "exit k agrees" = mean over the text's keys of weights[key, k] + length_bias[bucket, k].

    Attributes:
        weights: [S + 1, E] float32, a row for each key of the table, the last for unseen keys.
        length_bias: [20, E] float32, by length bucket.
    """

    weights: torch.Tensor
    length_bias: torch.Tensor


def length_bucket(lengths: torch.Tensor) -> torch.Tensor:
    """[N] token counts -> [N] int64 in 0..19: half powers of two."""
    return (2 * lengths.clamp(min=1).double().log2()).long().clamp(max=LENGTH_BUCKETS - 1)


def fit_agreement(
    keys: torch.Tensor,
    tokens: Tokens,
    special: torch.Tensor,
    ngram: int,
    agrees: torch.Tensor,
    epochs: int = 30,
    learning_rate: float = 0.05,
    batch_size: int = 1024,
    seed: int = 0,
) -> AgreementValues:
    """Train the values on unlabelled texts, stopping when a tenth of them that is held out gets no better.

    Args:
        keys: [S] int64, ascending, of the table.
        tokens: N samples.
        special: [T] bool, where a token never counts.
        ngram: highest order of the table's keys.
        agrees: [N, E] bool, whether each exit gave the last exit's answer.
        epochs: at most.
        learning_rate, batch_size, seed: of the training; batches are smaller where there are few texts.

    Raises:
        ValueError: fewer than 20 samples.
    """
    samples, exits = agrees.shape
    if samples < 20:
        raise ValueError(f"fit_agreement needs at least 20 texts, got {samples}")
    found, owners = ngram_keys(tokens.ids, tokens.offsets, special, ngram)
    rows = torch.searchsorted(keys, found).clamp_(max=max(0, keys.numel() - 1))
    rows = rows[order := owners.argsort(stable=True)]
    if not bool((keys[rows] == found[order]).all()):
        raise ValueError("keys must hold every n-gram of the texts")
    counts = torch.bincount(owners, minlength=samples)
    bags = Tokens(rows, F.pad(counts.cumsum(0), (1, 0)))
    buckets, wanted = length_bucket(tokens.lengths), agrees.float()

    batch_size = min(batch_size, max(32, samples // 20))  # few texts need more steps an epoch
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(samples, generator=generator)
    held_out, training = shuffled[: max(1, int(HELD_OUT * samples))], shuffled[max(1, int(HELD_OUT * samples)) :]
    rate = wanted[training].mean(0).clamp(0.01, 0.99)
    weights = torch.zeros(keys.numel() + 1, exits, requires_grad=True)
    length_bias = (rate / (1 - rate)).log().repeat(LENGTH_BUCKETS, 1).requires_grad_()
    optimizer = torch.optim.Adam([weights, length_bias], learning_rate)

    def loss_of(part: torch.Tensor) -> torch.Tensor:
        chosen = bags.select(part)
        logits = F.embedding_bag(chosen.ids, weights, chosen.offsets[:-1], mode="mean") + length_bias[buckets[part]]
        return F.binary_cross_entropy_with_logits(logits, wanted[part])

    best, kept, worse = float("inf"), (weights, length_bias), 0
    for _ in range(epochs):
        for part in training[torch.randperm(len(training), generator=generator)].split(batch_size):
            optimizer.zero_grad()
            loss_of(part).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(loss_of(held_out))
        worse = 0 if loss < best else worse + 1
        if loss < best:
            best, kept = loss, (weights.detach().clone(), length_bias.detach().clone())
        elif worse == 2:
            break
    return AgreementValues(*(tensor.detach() for tensor in kept))


def allocate(agreement: torch.Tensor, layers: tuple[int, ...], price: float) -> torch.Tensor:
    """The exit that is worth most: agreement less `price` for every layer.

    Where the tokens tell nothing, all samples get one depth: so this never loses to a constant depth by design.

    Args:
        agreement: [N, E], probability that each exit gives the last one's answer.
        layers: the exits' layers.
        price: of a layer, in agreement.

    Returns:
        [N] int64, the shallowest of the best layers.
    """
    numbers = torch.tensor(layers)
    return numbers[(agreement - price * numbers).argmax(-1)]


def price_for(
    agreement: torch.Tensor, layers: tuple[int, ...], mean_depth: float | None = None, expected_agreement: float | None = None
) -> float:
    """The price at which `allocate` keeps a budget: mean layers at most so many, or mean agreement at least so much.

    Args:
        agreement: [N, E] of texts like those to come.
        layers: the exits' layers.
        mean_depth, expected_agreement: one of them.
    """
    if (mean_depth is None) == (expected_agreement is None):
        raise ValueError("price_for needs exactly one of mean_depth and expected_agreement")
    numbers = torch.tensor(layers)

    def keeps(price: float) -> bool:
        chosen = allocate(agreement, layers, price)
        if mean_depth is not None:
            return float(chosen.double().mean()) <= mean_depth
        index = torch.searchsorted(numbers, chosen)
        return float(agreement.gather(1, index[:, None]).mean()) >= expected_agreement

    low, high = 0.0, 1.0  # at 1 a layer costs more than any agreement is worth
    for _ in range(50):
        middle = (low + high) / 2
        if keeps(middle) == (mean_depth is not None):
            high = middle
        else:
            low = middle
    return high if mean_depth is not None else low

"""Learned values of the exit table: a bag-of-n-grams model that predicts where a text may leave (*our addition*)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from geep_triton.checks import check_choice, check_int, check_number
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.table.paths import common_paths
from geep_triton.table.records import first_sure_exit
from geep_triton.tokens.ragged import Tokens

if TYPE_CHECKING:
    from geep_triton.table.exit_table import ExitTable

LEARNED = ("agreement", "exits", "skips")
FEWEST_TEXTS = 20  # needed for learning
LENGTH_BUCKETS = 20
HELD_OUT = 0.1
MOST_PATHS = 8  # samples of one path run together, so few paths keep batches dense


@dataclass(frozen=True, eq=False)
class LearnedValues:
    """A bag-of-n-grams model: the score of column k is (mean over the text's keys of weights[key, k]) + length_bias[bucket, k].

    The K columns are the exits for "agreement" and "exits", and all layers for "skips".

    Attributes:
        weights: [S + 1, K] float32, one row per key of the table; the last row is for unseen keys.
        length_bias: [20, K] float32, by length bucket.
        held_out: [M, K] float32, scores of texts that were held out from the training.
        held_out_targets: [M, K] bool, the targets of these texts.
        paths: [P, K] bool, the most common sets of skipped layers, most frequent first. Only for "skips", else None.
    """

    weights: torch.Tensor
    length_bias: torch.Tensor
    held_out: torch.Tensor
    held_out_targets: torch.Tensor
    paths: torch.Tensor | None = None


def learn(table: ExitTable, what: str, *, most_paths: int | None = None, **training: Any) -> LearnedValues:
    """Learn values from a table's records in addition to its counts.

    Args:
        table: a table with its records.
        what: "agreement" (the probability that each exit already gives the last exit's answer), "exits" (the exit that the
            threshold takes) or "skips" (the layers that a text skips, and the most common paths).
        most_paths: number of paths to keep, only for "skips". None: 8.
        **training: epochs, learning_rate, batch_size and seed, as in `fit_values`.

    Raises:
        ValueError: the name is unknown, the table has no records or they lack these values, or there are fewer than 20 texts.
        TypeError: a setting has another type.
    """
    check_choice("what", what, LEARNED)
    if most_paths is not None:
        check_int("most_paths", most_paths, 1)
        if what != "skips":
            raise ValueError(f"most_paths is only for 'skips', got most_paths={most_paths} with {what!r}")
    records, targets = table.need_records(), _targets(table, what)
    special = torch.isin(records.tokens.ids, torch.tensor(table.special_ids, dtype=torch.int64))
    values = fit_values(table.keys, records.tokens, special, table.settings.ngram, targets, what == "exits", **training)
    return values if what != "skips" else replace(values, paths=common_paths(targets, most_paths or MOST_PATHS))


def _targets(table: ExitTable, what: str) -> torch.Tensor:
    """[N, K] bool, the targets of each text."""
    records = table.need_records()
    if what == "exits":
        exits = first_sure_exit(records.uncertainty, table.settings.threshold)
        return F.one_hot(exits, len(table.exit_layers)).bool()
    if what == "skips":
        if records.skipped is None:
            raise ValueError("records.skipped: this table's records are of a model without skip gates")
        return records.skipped
    if records.agrees is None:
        raise ValueError("records.agrees: this table's records have no agreement: build it again from texts")
    return records.agrees


def length_bucket(lengths: torch.Tensor) -> torch.Tensor:
    """[N] token counts -> [N] int64 in 0..19. Two buckets cover one power of two."""
    return (2 * lengths.clamp(min=1).double().log2()).long().clamp(max=LENGTH_BUCKETS - 1)


@torch.inference_mode(False)
@torch.enable_grad()
def fit_values(
    keys: torch.Tensor,
    tokens: Tokens,
    special: torch.Tensor,
    ngram: int,
    targets: torch.Tensor,
    one_exit: bool,
    epochs: int = 30,
    learning_rate: float = 0.05,
    batch_size: int = 1024,
    seed: int = 0,
) -> LearnedValues:
    """Train the values on unlabelled texts. A tenth of them is held out, and training stops when the loss on these no longer
    improves.

    Args:
        keys: [S] int64, the ascending keys of the table.
        tokens: N samples.
        special: [T] bool, whether a token is special and is not counted.
        ngram: highest order of the table's n-grams.
        targets: [N, E] bool, the targets of each exit.
        one_exit: if True, each sample has exactly one True target, and a softmax of the scores gives probabilities. Else a
            sigmoid per exit does.
        epochs: maximum number of epochs.
        learning_rate: learning rate of Adam.
        batch_size: samples per step. Batches are smaller if there are few texts.
        seed: seed of the split and of the batches.

    Raises:
        ValueError: there are fewer than 20 samples, `keys` lacks some of the texts' n-grams, or the loss is not finite.
        TypeError: a setting has another type.
    """
    check_int("epochs", epochs, 1)
    check_number("learning_rate", learning_rate, 1e-12, 1e12)
    check_int("batch_size", batch_size, 1)
    check_int("seed", seed, -(2**63), 2**63 - 1)
    samples, exits = targets.shape
    if samples < FEWEST_TEXTS:
        raise ValueError(f"learned values need at least {FEWEST_TEXTS} texts, got {samples}")
    bags = _bags(keys, tokens, special, ngram)
    buckets, wanted = length_bucket(tokens.lengths), targets.float()

    batch_size = min(batch_size, max(32, samples // 20))  # few texts need more steps per epoch
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(samples, generator=generator)
    count = max(1, int(HELD_OUT * samples))
    held_out, training = shuffled[:count], shuffled[count:]
    rate = wanted[training].mean(0).clamp(0.01, 0.99)
    start = rate.log() if one_exit else (rate / (1 - rate)).log()
    weights = torch.zeros(keys.numel() + 1, exits, requires_grad=True)
    length_bias = start.repeat(LENGTH_BUCKETS, 1).requires_grad_()
    optimizer = torch.optim.Adam([weights, length_bias], learning_rate)
    loss_of = F.cross_entropy if one_exit else F.binary_cross_entropy_with_logits

    def scores(part: torch.Tensor) -> torch.Tensor:
        chosen = bags.select(part)
        return F.embedding_bag(chosen.ids, weights, chosen.offsets[:-1], mode="mean") + length_bias[buckets[part]]

    best, kept, worse = float("inf"), None, 0
    for _ in range(epochs):
        for part in training[torch.randperm(len(training), generator=generator)].split(batch_size):
            optimizer.zero_grad()
            loss_of(scores(part), wanted[part]).backward()
            optimizer.step()
        with torch.no_grad():
            judged = scores(held_out)
            loss = float(loss_of(judged, wanted[held_out]))
        if loss < best:
            best, worse = loss, 0
            kept = LearnedValues(weights.detach().clone(), length_bias.detach().clone(), judged, targets[held_out])
        else:
            worse += 1
            if worse == 2:
                break
    if kept is None:
        raise ValueError(f"learning_rate {learning_rate:g} is too high: the loss of the held-out texts is not finite")
    return kept


def _bags(keys: torch.Tensor, tokens: Tokens, special: torch.Tensor, ngram: int) -> Tokens:
    """The keys of each sample as row numbers of the table."""
    found, owners = ngram_keys(tokens.ids, tokens.offsets, special, ngram)
    rows = torch.searchsorted(keys, found).clamp_(max=max(0, keys.numel() - 1))
    rows = rows[order := owners.argsort(stable=True)]
    if not bool((keys[rows] == found[order]).all()):
        raise ValueError("keys must include every n-gram of the texts")
    counts = torch.bincount(owners, minlength=len(tokens))
    return Tokens(rows, F.pad(counts.cumsum(0), (1, 0)))

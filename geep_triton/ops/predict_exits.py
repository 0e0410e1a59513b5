"""Predicts each sample's exit from its tokens, before any layer runs (GEEP, Li et al., doi 10.1007/s11704-022-2341-9).

The hash table is the paper's. The reduction over a sample's keys and the statistics that give its exit are *our
reconstruction*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.checks import check_choice, check_kind, check_number, check_tensor, shorten
from geep_triton.ops.dispatch import implementation
from geep_triton.ops.hash_table import MAX_LOAD, HashTable, insert_add, lookup
from geep_triton.ops.reference.predict_exits import exit_at

REDUCTIONS = ("mean", "naive_bayes")
STATISTICS = ("argmax", "mean")


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores over E exits for token ids and n-grams, in a layout for lookup.

    Attributes:
        uncounted: [V] bool, ids that are never counted.
        unigrams: [V + 1, W] float32, the scores of each id, indexed by the id. The last row is for unseen keys. W is E rounded
            up to a power of two of at least 4, so that rows fill whole memory sectors.
        slots: [capacity] int64, keys of longer n-grams; see `HashTable`.
        ngrams: [capacity + 1, W] float32, their scores. The last row is for unseen keys.
        prior: [W] float32, the distribution of a sample without keys. With `log_space` the evidence of the keys is added to it.
        probes: length of the longest search in `slots`, in buckets.
        layers: [E] int64, the layers of the exits, ascending.
        ngram: highest order of the n-grams that are counted.
        log_space: if True, scores are ln P(e|key) - ln prior(e) and are summed (naive Bayes). Else they are averaged.
    """

    uncounted: torch.Tensor
    unigrams: torch.Tensor
    slots: torch.Tensor
    ngrams: torch.Tensor
    prior: torch.Tensor
    probes: int
    layers: torch.Tensor
    ngram: int
    log_space: bool

    @classmethod
    def build(
        cls,
        keys: torch.Tensor,
        scores: torch.Tensor,
        layers: tuple[int, ...],
        uncounted_ids: tuple[int, ...],
        vocab_size: int,
        ngram: int,
        reduction: str,
        device: str | torch.device = "cpu",
    ) -> ScoreTable:
        """Build the layout on `device`.

        Args:
            keys: [S] int64, distinct keys of `ngram_keys`.
            scores: [S + 1, E], P(e|key). The last row is the prior.
            layers: the layers of the exits, ascending.
            uncounted_ids: token ids that are never counted.
            vocab_size: V.
            ngram: highest order of the n-grams.
            reduction: "mean" or "naive_bayes".
            device: device of the layout.

        Raises:
            ValueError: the reduction is unknown.
        """
        check_choice("reduction", reduction, REDUCTIONS)
        if reduction == "naive_bayes":
            # An exit that no sample took has probability 0. The lower bound keeps its logarithm finite.
            scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
            scores[:-1] -= scores[-1]
        padded = scores.new_zeros(scores.shape[0], max(4, 1 << (len(layers) - 1).bit_length()))
        padded[:, : len(layers)] = scores
        keys, padded = keys.to(device), padded.to(device)
        rows, prior = padded[:-1], padded[-1]
        unseen = torch.zeros_like(prior) if reduction == "naive_bayes" else prior
        single = (keys >= 0) & (keys < vocab_size)
        unigrams = unseen.repeat(vocab_size + 1, 1)
        unigrams[keys[single]] = rows[single]

        longer = keys[keys < 0]
        capacity = max(4, 1 << (int(longer.numel() / MAX_LOAD) - 1).bit_length())
        table = insert_add(HashTable.empty(1, capacity, device), longer, torch.zeros_like(longer))
        ngrams = unseen.repeat(table.capacity + 1, 1)
        ngrams[lookup(table.slots, table.probes, longer)] = rows[keys < 0]
        uncounted = torch.zeros(vocab_size, dtype=torch.bool)
        uncounted[torch.tensor(uncounted_ids, dtype=torch.int64)] = True
        return cls(
            uncounted=uncounted.to(device),
            unigrams=unigrams,
            slots=table.slots,
            ngrams=ngrams,
            prior=prior,
            probes=table.probes,
            layers=torch.tensor(layers, device=device),
            ngram=ngram,
            log_space=reduction == "naive_bayes",
        )


@dataclass(frozen=True, eq=False)
class PredictedExits:
    """The result of `predict_exits`, on the table's device.

    Attributes:
        probabilities: [N, E] float32, P(e|x); rows sum to 1.
        exits: [N] int64, layers.
        histogram: [E] int32, samples per exit.
    """

    probabilities: torch.Tensor
    exits: torch.Tensor
    histogram: torch.Tensor


def predict_exits(
    table: ScoreTable,
    ids: torch.Tensor,
    offsets: torch.Tensor,
    statistic: str | float = "argmax",
    *,
    backend: str | None = None,
) -> PredictedExits:
    """The distribution over exits, and one exit, for each sample of a window.

    P(e|x) is the mean of P(e|key) over the sample's tokens and n-grams. With `table.log_space` it is naive Bayes, P(e|x) ~
    prior(e) * prod P(e|key) / prior(e). An unseen key counts as the prior, and a sample without keys gets the prior. These
    rules are *our reconstruction*.

    Args:
        table: a table on the device of `ids`.
        ids: [T] int64, the token ids of all samples in sequence. An id outside the vocabulary counts as unseen.
        offsets: [N + 1] int64; sample i is ids[offsets[i]:offsets[i + 1]]. They must run from 0 to T. This is not checked on a
            GPU, because the check would wait for the device.
        statistic: "argmax" (the shallowest of the most probable exits), "mean" (the first exit at or beyond the expected
            layer), or a quantile q in (0, 1] (the first exit by which a share q of the probability has left).
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Raises:
        ValueError: a shape or the statistic does not fit.
        TypeError: an argument has another type or dtype.
    """
    check_kind("table", table, ScoreTable)
    check_tensor("ids", ids, 1, torch.int64)
    check_tensor("offsets", offsets, 1, torch.int64)
    check_statistic(statistic)
    if offsets.numel() == 0 or (offsets.device.type == "cpu" and (int(offsets[0]), int(offsets[-1])) != (0, ids.numel())):
        raise ValueError(f"offsets must run from 0 to the number of ids ({ids.numel()}), got {offsets[:1]}..{offsets[-1:]}")
    if offsets.device.type == "cpu" and bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must not decrease, got {shorten(offsets.tolist())}")
    op = implementation("predict_exits", ids.device, backend)
    return PredictedExits(*op.predict_exits(ids, offsets, **vars(table), statistic=statistic))


def choose_exits(probabilities: torch.Tensor, layers: torch.Tensor, statistic: str | float = "argmax") -> PredictedExits:
    """One exit of each sample from a given distribution; see `predict_exits`.

    Args:
        probabilities: [N, E].
        layers: [E] int64, the layers of the exits, ascending.
        statistic: "argmax", "mean", or a quantile in (0, 1].

    Raises:
        ValueError: the statistic is unknown.
        TypeError: the statistic is neither a string nor a number.
    """
    check_statistic(statistic)
    index = exit_at(probabilities, layers, statistic)
    return PredictedExits(probabilities, layers[index], torch.bincount(index, minlength=layers.numel()).int())


def check_statistic(statistic: str | float) -> None:
    """Check that `statistic` is "argmax", "mean" or a quantile in (0, 1].

    Raises:
        ValueError: it is not.
        TypeError: it is neither a string nor a number.
    """
    if isinstance(statistic, str):
        if statistic not in STATISTICS:
            raise ValueError(f"unknown statistic {shorten(statistic)}; known: argmax, mean, or a quantile such as 0.9")
        return
    check_number("statistic (a quantile)", statistic, 0.0, 1.0)
    if statistic == 0:
        raise ValueError("statistic (a quantile) must be above 0")

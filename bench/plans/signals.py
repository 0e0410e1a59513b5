"""What policies read of recorded texts. Whatever is learned is learned from texts without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from bench.plans.nets import Inputs, Nets, fit, later
from bench.plans.record import Part
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.forecasts import Forecasts, learn_forecasts
from geep_triton.table.learned import LearnedValues, fit_values, length_bucket
from geep_triton.table.records import ExitRecords, TableSettings
from geep_triton.tokens.ragged import Tokens

NGRAM = 2
FOLDS = 4
TABLE_THRESHOLD = 0.3  # of entropy: the exits that a table without learned values counts
COUNTED = ("mean", "naive_bayes", "idf")  # ways to combine the counts of a text's n-grams
STATES, TABLE, BOTH = "states", "table", "both"


class Texts:
    """Recorded texts, and what follows from their record alone.

    Args:
        part: the record.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.logits, self.tokens = part.logits, part.tokens
        self.samples, self.num_layers, self.classes = part.logits.shape
        self.early = self.num_layers - 1

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """[N, L, C]."""
        return self.logits.softmax(-1)

    @cached_property
    def predictions(self) -> torch.Tensor:
        """[N, L] int64, the class that each exit gives."""
        return self.logits.argmax(-1)

    @cached_property
    def agrees(self) -> torch.Tensor:
        """[N, L] bool, whether each exit gives the last exit's answer."""
        return self.predictions == self.predictions[:, -1:]

    @cached_property
    def every_entropy(self) -> torch.Tensor:
        """[N, L], normalized entropy."""
        logs = self.logits.log_softmax(-1)
        return -(self.probabilities * logs).sum(-1) / math.log(self.classes)

    @property
    def entropy(self) -> torch.Tensor:
        """[N, L - 1], of the early exits."""
        return self.every_entropy[:, :-1]

    @cached_property
    def margin(self) -> torch.Tensor:
        """[N, L - 1], low where the first class is far more probable than the second."""
        first, second = self.probabilities[:, :-1].topk(2).values.unbind(-1)
        return 1 - first + second

    def streak(self, weights: torch.Tensor) -> torch.Tensor:
        """[N, L - 1], minus the summed confidence of the exits that agreed in a row (BEEM).

        Args:
            weights: [L], of the exits.
        """
        confidence = self.probabilities.amax(-1) * weights
        total, found = torch.zeros(self.samples), []
        for index in range(self.early):
            goes_on = index > 0 and self.predictions[:, index] == self.predictions[:, index - 1]
            total = torch.where(torch.as_tensor(goes_on), total, 0) + confidence[:, index]
            found.append(-total)
        return torch.stack(found, 1)


def class_means(texts: Texts) -> torch.Tensor:
    """[L - 1, C, H], after each early layer the mean state of the texts to which the last exit gives a class."""
    states = texts.part.means[:, 1:-1].float()
    of_class = [texts.predictions[:, -1] == index for index in range(texts.classes)]
    return torch.stack([states[rows].mean(0) if bool(rows.any()) else states.mean(0) for rows in of_class], 1)


def harmonic_distance(texts: Texts, means: torch.Tensor) -> torch.Tensor:
    """[N, L - 1], the harmonic mean of entropy and of the ratio of the distances to the two nearest class means (DE3)."""
    distances = torch.cdist(texts.part.means[:, 1:-1].float().transpose(0, 1), means)  # [L - 1, N, C]
    nearest = distances.topk(2, largest=False).values
    ratio = (nearest[..., 0] / nearest[..., 1].clamp_min(1e-6)).T
    return 2 * texts.entropy * ratio / (texts.entropy + ratio).clamp_min(1e-6)


class Isotonic:
    """P(an early exit disagrees | its entropy), by isotonic regression.

    Args:
        texts: they teach it.
    """

    def __init__(self, texts: Texts) -> None:
        from sklearn.isotonic import IsotonicRegression

        self.fits = [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
                texts.entropy[:, index].numpy(), (~texts.agrees[:, index]).float().numpy()
            )
            for index in range(texts.early)
        ]

    def risk(self, texts: Texts) -> torch.Tensor:
        """[N, L - 1]. Of texts with the same risk, that of lower entropy is a little lower."""
        found = [torch.from_numpy(fit.predict(texts.entropy[:, at].numpy())).float() for at, fit in enumerate(self.fits)]
        return torch.stack(found, 1) + 1e-6 * texts.entropy


class Bag:
    """The learned values of an exit table: which exits agree, from a text's n-grams.

    Args:
        texts: they teach it.
    """

    def __init__(self, texts: Texts) -> None:
        self.special = special_ids(texts.tokens)
        found, _ = self._keys(texts.tokens)
        self.keys = found.unique()
        special = torch.isin(texts.tokens.ids, self.special)
        self.values: LearnedValues = fit_values(self.keys, texts.tokens, special, NGRAM, texts.agrees, False)

    def _keys(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        return ngram_keys(tokens.ids, tokens.offsets, torch.isin(tokens.ids, self.special), NGRAM)

    def scores(self, tokens: Tokens) -> torch.Tensor:
        """[N, L - 1], before the sigmoid."""
        keys, owners = self._keys(tokens)
        mean = weighted_mean(self.values.weights, self.keys, keys, owners, len(tokens))
        return (mean + self.values.length_bias[length_bucket(tokens.lengths)])[:, :-1]

    @staticmethod
    def cross_fitted(texts: Texts) -> torch.Tensor:
        """[N, L - 1], the scores of the texts by bags that were learned from other folds of them."""
        found, fold = torch.empty(texts.samples, texts.early), torch.arange(texts.samples) % FOLDS
        for number in range(FOLDS):
            own, others = ((fold == number).nonzero()[:, 0], (fold != number).nonzero()[:, 0])
            found[own] = Bag(Texts(texts.part.select(others))).scores(texts.tokens.select(own))
        return found


def special_ids(tokens: Tokens) -> torch.Tensor:
    """The ids with which every text begins and ends."""
    return torch.stack([tokens.ids[0], tokens.ids[-1]]).unique()


def weighted_mean(
    scores: torch.Tensor,
    known: torch.Tensor,
    keys: torch.Tensor,
    owners: torch.Tensor,
    samples: int,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """[N, K], the mean of the scores of each text's keys.

    Args:
        scores: [S + 1, K], the last row for unknown keys.
        known: [S] ascending.
        keys, owners: [M], the keys and the texts that they are in.
        samples: N.
        weights: [S + 1] of the keys; None: all alike.
    """
    rows = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    rows = torch.where(known[rows] == keys, rows, len(known))
    of_key = torch.ones(len(keys)) if weights is None else weights[rows]
    total = torch.zeros(samples, scores.shape[1]).index_add_(0, owners, scores[rows] * of_key[:, None])
    count = torch.zeros(samples).index_add_(0, owners, of_key)
    return total / count.clamp(min=1e-6)[:, None]


class Counts:
    """Exit tables that only count, by which texts are sent to an exit before the first layer.

    Args:
        texts: they are counted.
    """

    def __init__(self, texts: Texts) -> None:
        records = ExitRecords(texts.tokens, texts.every_entropy.clone(), texts.agrees)
        special = tuple(special_ids(texts.tokens).tolist())
        layers, vocabulary = tuple(range(1, texts.num_layers + 1)), int(texts.tokens.ids.max()) + 1
        settings = TableSettings(TABLE_THRESHOLD, NGRAM)
        self.table = ExitTable.from_records(records, layers, settings, vocabulary, "", special)
        self.special = torch.tensor(special)
        keys, owners = self._keys(texts.tokens)
        pairs = torch.stack([torch.searchsorted(self.table.keys, keys), owners]).unique(dim=1)
        texts_with = torch.bincount(pairs[0], minlength=len(self.table.keys)).float()
        self.rarity = torch.cat([(texts.samples / texts_with.clamp(min=1)).log() + 1e-3, torch.tensor([0.0])])

    def _keys(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        return ngram_keys(tokens.ids, tokens.offsets, torch.isin(tokens.ids, self.special), NGRAM)

    def probabilities(self, tokens: Tokens, how: str) -> torch.Tensor:
        """[N, L], P(the threshold takes this exit), by a way of `COUNTED`."""
        if how != "idf":
            return self.table.rebuild(reduction=how).predict(tokens).probabilities
        return weighted_mean(self.table.scores, self.table.keys, *self._keys(tokens), len(tokens), self.rarity)


@dataclass(frozen=True, eq=False)
class Learned:
    """All that was learned from texts of the table.

    Attributes:
        forecasts: from logits.
        extended: nets after early layers that also read states or the bag's scores, by what they read.
        ahead: nets that forecast before the first layer, by what they read.
        bag, counts, isotonic: see there.
        means: see `class_means`.
        agreement: [L], the share of texts on which each exit agrees with the last.
    """

    forecasts: Forecasts
    extended: dict[str, Nets]
    ahead: dict[str, Nets]
    bag: Bag
    counts: Counts
    isotonic: Isotonic
    means: torch.Tensor
    agreement: torch.Tensor


def extended_inputs(texts: Texts, scores: torch.Tensor, what: str) -> Inputs:
    """What the nets after each early layer read: logits, and the states or the bag's scores [N, L - 1]."""
    if what == STATES:
        return Inputs(texts.logits[:, :-1], texts.part.means[:, 1:-1])
    return Inputs(torch.cat([texts.logits[:, :-1], scores[:, None].expand(-1, texts.early, -1)], 2))


def ahead_inputs(texts: Texts, scores: torch.Tensor, what: str) -> Inputs:
    """What the net before the first layer reads: the length, mean embeddings, the bag's scores [N, L - 1]."""
    length = texts.tokens.lengths.float().log()[:, None, None]
    narrow = length if what == STATES else torch.cat([length, scores[:, None]], 2)
    return Inputs(narrow, None if what == TABLE else texts.part.means[:, :1])


def learn(texts: Texts, seed: int = 0) -> Learned:
    """Learn all of it."""
    bag, crossed = Bag(texts), Bag.cross_fitted(texts)
    targets, every = texts.agrees[:, :-1], torch.ones(1, texts.early, dtype=torch.bool)
    wanted = later(texts.early)
    return Learned(
        learn_forecasts(texts.logits, texts.agrees, seed=seed),
        {what: fit(extended_inputs(texts, crossed, what), targets, wanted, seed) for what in (STATES, TABLE)},
        {what: fit(ahead_inputs(texts, crossed, what), targets, every, seed) for what in (STATES, BOTH)},
        bag,
        Counts(texts),
        Isotonic(texts),
        class_means(texts),
        texts.agrees.float().mean(0),
    )


class Signals:
    """What policies read of some texts.

    Args:
        texts: they were not learned from.
        learned: from others.
    """

    def __init__(self, texts: Texts, learned: Learned) -> None:
        self.texts, self.learned = texts, learned
        bag = learned.bag.scores(texts.tokens)
        self.forecasts = {"": self._forecasts()}
        for what, nets in learned.extended.items():
            self.forecasts[what] = complete(nets.probabilities(extended_inputs(texts, bag, what)))
        self.ahead = {TABLE: certain(bag.sigmoid())} | {
            what: certain(nets.probabilities(ahead_inputs(texts, bag, what))[:, 0]) for what, nets in learned.ahead.items()
        }
        self.scores = {
            "entropy": texts.entropy,
            "margin": texts.margin,
            "isotonic": learned.isotonic.risk(texts),
            "streak": texts.streak(torch.ones(texts.num_layers)),
            "weighted streak": texts.streak(learned.agreement / learned.agreement.mean()),
            "distance": harmonic_distance(texts, learned.means),
        } | {f"risk {what}".strip(): 1 - forecast.diagonal(dim1=1, dim2=2) for what, forecast in self.forecasts.items()}
        self.counted = {how: learned.counts.probabilities(texts.tokens, how) for how in COUNTED}

    def _forecasts(self) -> torch.Tensor:
        found = torch.zeros(self.texts.samples, self.texts.early, self.texts.num_layers)
        for index in range(self.texts.early):
            found[:, index, index:] = self.learned.forecasts.agreement(index, self.texts.logits[:, index])
        return found


def certain(agreement: torch.Tensor) -> torch.Tensor:
    """[..., L], the agreement [..., L - 1] of early exits, and that of the last one, which is 1."""
    return F.pad(agreement, (0, 1), value=1.0)


def complete(agreement: torch.Tensor) -> torch.Tensor:
    """[N, L - 1, L] of [N, L - 1, L - 1], with zeros for exits that lie before the one that forecasts."""
    return certain(agreement * later(agreement.shape[1]))


def spaced(num_layers: int, parts: Sequence[int] = (1, 2)) -> tuple[int, ...]:
    """Indices of the exits nearest to a third and two thirds of the layers."""
    return tuple(sorted({max(0, round(part * num_layers / 3) - 1) for part in parts}))

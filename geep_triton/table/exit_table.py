"""The exit table, learned from unlabelled text. It maps tokens to the exits at which samples with these tokens left."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch

from geep_triton.checks import check_choice, check_kind, shorten
from geep_triton.ops.hash_table import HashTable, insert_add
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.ops.predict_exits import PredictedExits, ScoreTable, choose_exits, predict_exits
from geep_triton.saving import reading, replacing, saved_digests
from geep_triton.table.allocate import DEFAULT_AGREEMENT, allocate, price_for
from geep_triton.table.files import forecast_tensors, learned_tensors, read_table, save_table
from geep_triton.table.forecasts import Forecasts, learn_forecasts
from geep_triton.table.learned import LEARNED, LearnedValues, learn, length_bucket
from geep_triton.table.records import AGREEMENT, TABLE_CRITERIA, ExitRecords, TableSettings, first_sure_exit, skipped_at
from geep_triton.tokens.ragged import Tokens, to_device

VALUES = ("counts", "learned")
FORECASTS = "forecasts"
LEARNABLE = (*LEARNED, FORECASTS)
OTHER_WEIGHTS = (
    "The exit table was built with other weights than the model's, or in another dtype: build it again if the weights were "
    "trained since."
)
COMPATIBLE = ("exit_layers", "criterion", "vocab_size", "fingerprint", "special_ids", "settings")


@dataclass(frozen=True, eq=False, repr=False)
class ExitTable:
    """Predicts each sample's exit from its tokens, before any layer runs (GEEP, Li et al., doi 10.1007/s11704-022-2341-9).

    The paper predicts exits from the distribution of tokens over exit layers, with a hash table. The smoothing, averaging and
    statistics that give its exit are *our reconstruction*. The learned values are our addition.

    `geep_triton.build_exit_table` and `ExitTable.from_records` make a table. It is immutable: `rebuild` and `merge` return new
    tables.

    Attributes:
        keys: [S] int64, distinct and ascending: token ids, and hashes of longer n-grams.
        counts: [S, E] int64, the number of occurrences of each key in samples that left at each exit.
        exit_counts: [E] int64, the number of samples that left at each exit.
        exit_layers: the layers of the E exits, ascending.
        settings: threshold, n-gram order, smoothing, reduction.
        criterion: the uncertainty that is compared with the threshold, or "agreement"; see `build_exit_table`.
        vocab_size: size of the model's vocabulary.
        fingerprint: fingerprint of the tokenizer.
        special_ids: token ids that are never counted.
        text_hashes: [N] int64, ascending: `Tokens.hashes` of the texts that the table was built from. None: unknown.
        records: the samples behind the counts. None: they were dropped or not saved.
        save_records: whether the table's file has the records, including token ids. For a loaded table: whether it had.
        learned: learned values (see `learn`) by name: "agreement", "exits", "skips".
        forecasts: what was learned as "forecasts", which reads the answers of exits and no tokens. None: it was not learned.
        weights: digests of the model's weights that the table was built or saved with, in each dtype. None: unknown.
        answers_by: how the answers to its texts were made and compared; see `ExitConfig.answers_by`. None: unknown.
    """

    keys: torch.Tensor
    counts: torch.Tensor
    exit_counts: torch.Tensor
    exit_layers: tuple[int, ...]
    settings: TableSettings
    criterion: str
    vocab_size: int
    fingerprint: str
    special_ids: tuple[int, ...]
    text_hashes: torch.Tensor | None = None
    records: ExitRecords | None = None
    save_records: bool = False
    learned: Mapping[str, LearnedValues] = field(default_factory=dict)
    weights: tuple[str, ...] | None = None
    answers_by: str | None = None
    forecasts: Forecasts | None = None

    @classmethod
    def from_records(
        cls,
        records: ExitRecords,
        exit_layers: Sequence[int],
        settings: TableSettings,
        vocab_size: int,
        fingerprint: str,
        special_ids: Sequence[int],
        criterion: str = "normalized_entropy",
        device: str | torch.device = "cpu",
    ) -> ExitTable:
        """Count where each sample leaves: at the first exit that is sure enough, else at the last.

        Args:
            records: the N samples with the uncertainty of each exit.
            exit_layers: the layers of the exits, ascending.
            settings: threshold, n-gram order, smoothing, reduction.
            vocab_size: size of the model's vocabulary.
            fingerprint: fingerprint of the tokenizer.
            special_ids: token ids that are never counted.
            criterion: the uncertainty that is compared with the threshold.
            device: device that counts n-grams. The table itself stays on the host.

        Raises:
            ValueError: there are no samples, an uncertainty is NaN, ids are outside the vocabulary, or shapes do not fit.
        """
        check_choice("criterion", criterion, TABLE_CRITERIA)
        records.check(len(exit_layers))
        for name, values in (("records.tokens", records.tokens.ids), ("special_ids", torch.tensor(special_ids))):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < vocab_size:
                raise ValueError(
                    f"{name} must be ids between 0 and {vocab_size - 1}, got {int(values.min())}..{int(values.max())}"
                )
        exits = first_sure_exit(records.uncertainty, settings.threshold)
        ids, offsets = records.tokens.ids.to(device), records.tokens.offsets.to(device)
        special = torch.isin(ids, torch.tensor(special_ids, dtype=torch.int64, device=device))
        keys, samples = ngram_keys(ids, offsets, special, settings.ngram)
        # Most keys occur once. A capacity for all of them, up to a limit, avoids growing the table.
        capacity = 1 << min(max(keys.numel().bit_length(), 10), 20)
        table = insert_add(HashTable.empty(len(exit_layers), capacity, device), keys, exits.to(device)[samples])
        table_keys, counts = table.items()
        return cls(
            keys=table_keys.cpu(),
            counts=counts.cpu(),
            exit_counts=torch.bincount(exits, minlength=len(exit_layers)),
            exit_layers=tuple(exit_layers),
            settings=settings,
            criterion=criterion,
            vocab_size=vocab_size,
            fingerprint=fingerprint,
            special_ids=tuple(special_ids),
            text_hashes=records.tokens.hashes().sort().values,
            records=records,
        )

    def rebuild(self, *, device: str | torch.device = "cpu", **settings: Any) -> ExitTable:
        """The table for other settings (threshold, ngram, smoothing, reduction), without running the model again.

        Learned values are kept unless `ngram` changes. Those of "exits" are also dropped if `threshold` changes. Forecasts are
        kept.

        Args:
            device: device that counts n-grams.
            **settings: new values of threshold, ngram, smoothing, reduction.

        Raises:
            ValueError: the table has no records and the new settings need them (threshold, ngram); or there is a threshold for
                the criterion "agreement", which takes none.
        """
        if self.criterion == AGREEMENT and settings.get("threshold", self.settings.threshold) != self.settings.threshold:
            raise ValueError(f"criterion {AGREEMENT!r} takes no threshold, got {shorten(settings['threshold'])}")
        changed = replace(self.settings, **settings)
        if (changed.threshold, changed.ngram) == (self.settings.threshold, self.settings.ngram):
            return replace(self, settings=changed)
        records = self.need_records()
        rebuilt = ExitTable.from_records(
            records, self.exit_layers, changed, self.vocab_size, self.fingerprint, self.special_ids, self.criterion, device
        )
        # Only "exits" depends on the threshold. The keys change only with the order of n-grams.
        kept = {name: values for name, values in self.learned.items() if name != "exits"}
        kept = kept if changed.ngram == self.settings.ngram else {}
        return replace(
            rebuilt,
            weights=self.weights,
            answers_by=self.answers_by,
            save_records=self.save_records,
            learned=kept,
            forecasts=self.forecasts,
        )

    def learn(self, what: str, **training: Any) -> ExitTable:
        """The table with learned values in addition to its counts.

        Args:
            what: "agreement" (the probability that each exit already gives the last exit's answer), "exits" (the exit that the
                threshold takes) or "skips" (the layers that a text skips, and the most common paths); or "forecasts" (from the
                answer at an exit, the probability that it and each deeper exit gives the last exit's answer).
            **training: epochs, learning_rate, batch_size and seed; for "skips" also most_paths. See
                `geep_triton.table.learned.learn` and `geep_triton.table.forecasts.learn_forecasts`.

        Raises:
            ValueError: the name is unknown, the table has no records or they lack these values, or there are fewer than 20
                texts.
        """
        check_choice("what", what, LEARNABLE)
        if what == FORECASTS:
            return replace(self, forecasts=_forecasts_of(self.need_records(), self.exit_layers, **training))
        return replace(self, learned={**self.learned, what: learn(self, what, **training)})

    def need_records(self) -> ExitRecords:
        """The records.

        Raises:
            ValueError: the table has none.
        """
        if self.records is None:
            raise ValueError(
                "records: this table has no records of its texts (its file has them only if the table was built "
                "with save_records=True): build it again from texts"
            )
        return self.records

    def fits_weights(self, digest: str | None) -> bool:
        """Whether the table was built or saved with weights of this digest, as far as is known."""
        return self.weights is None or digest in self.weights

    def of_weights(self, digest: str) -> ExitTable:
        """The table, which goes with weights of this digest, too."""
        known = self.weights or ()
        return self if digest in known else replace(self, weights=(*known, digest))

    def without_records(self) -> ExitTable:
        """A smaller table with the same predictions that cannot be rebuilt."""
        return replace(self, records=None, save_records=False)

    def predicts_as(self, other: ExitTable) -> bool:
        """Whether this is the same table. The records may be missing in one of them."""
        return all(getattr(self, name) is getattr(other, name) for name in PREDICT)

    def digest(self) -> str:
        """A hash of everything that decides predictions. Saving, loading and dropping the records do not change it."""
        found = hashlib.sha256()
        # The names are those in the file, so that the digests of saved models stay valid.
        parts = {name: getattr(self, name) for name in PREDICT if name not in ("learned", FORECASTS)} | {"paths": None}
        parts |= learned_tensors(self.learned) | forecast_tensors(self.forecasts)
        for name, value in parts.items():
            found.update(name.encode())
            found.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
        return found.hexdigest()[:16]

    def merge(self, other: ExitTable) -> ExitTable:
        """The table of both corpora, equal to one that was built from both at once. Values have to be learned again.

        Raises:
            ValueError: the tables differ in settings, exits, criterion, vocabulary or tokenizer.
            TypeError: `other` is not an `ExitTable`.
        """
        check_kind("other", other, ExitTable)
        for name in COMPATIBLE:
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"tables to merge must have the same {name}, got {getattr(self, name)!r} and {getattr(other, name)!r}"
                )
        keys, rows = torch.unique(torch.cat([self.keys, other.keys]), return_inverse=True)
        counts = torch.zeros(keys.numel(), len(self.exit_layers), dtype=torch.int64)
        counts.index_add_(0, rows, torch.cat([self.counts, other.counts]))
        text_hashes = records = None
        weights = tuple(digest for digest in self.weights or () if digest in (other.weights or ())) or None
        # Answers of two models are not of one kind, nor are those at two temperatures.
        alike = weights is not None and self.answers_by == other.answers_by
        of_one_kind = ("logits",) if alike else ()
        if self.text_hashes is not None and other.text_hashes is not None:
            text_hashes = torch.cat([self.text_hashes, other.text_hashes]).sort().values
        if self.records is not None and other.records is not None:
            records = ExitRecords(
                Tokens.concatenate([self.records.tokens, other.records.tokens]),
                torch.cat([self.records.uncertainty, other.records.uncertainty]),
                *(
                    None if None in (parts := (getattr(self.records, name), getattr(other.records, name))) else torch.cat(parts)
                    for name in ("agrees", "skipped", *of_one_kind)
                ),
            )
        return replace(
            self,
            keys=keys,
            counts=counts,
            exit_counts=self.exit_counts + other.exit_counts,
            text_hashes=text_hashes,
            records=records,
            save_records=self.save_records and other.save_records,
            learned={},
            forecasts=None,
            weights=weights,
            answers_by=self.answers_by if alike else None,
        )

    def __repr__(self) -> str:
        texts, learned = int(self.exit_counts.sum()), [*self.learned, *([FORECASTS] if self.forecasts is not None else [])]
        return f"ExitTable({len(self.keys)} keys, {texts} texts, exit_layers={self.exit_layers}, learned={learned})"

    @cached_property
    def scores(self) -> torch.Tensor:
        """[S + 1, E] float32: P(e|key), smoothed towards the prior. The last row is the prior, for unseen keys."""
        prior = self.exit_counts.double() / self.exit_counts.sum()
        weight = self.settings.smoothing
        counts = self.counts.double()
        smoothed = (counts + weight * prior) / (counts.sum(1, keepdim=True) + weight)
        return torch.cat([smoothed, prior[None]]).float()

    def score_table(self, device: str | torch.device = "cpu") -> ScoreTable:
        """The scores in a layout for lookup on `device`, cached per device."""
        return self._laid_out("counts", self.scores, self.settings.reduction, torch.device(device))

    def _laid_out(self, name: str, scores: torch.Tensor, reduction: str, device: torch.device) -> ScoreTable:
        if (name, device) not in self._score_tables:
            if not scores.isfinite().all():
                # NaN loses or wins comparisons silently, so every text would go to one exit.
                raise ValueError(f"exit_table: its scores ({name}) are NaN or infinite: build it again")
            # Only the scores of learned values are used, because their columns may be layers without an exit.
            layers = self.exit_layers if name == "counts" else tuple(range(1, scores.shape[1] + 1))
            self._score_tables[name, device] = ScoreTable.build(
                self.keys, scores, layers, self.special_ids, self.vocab_size, self.settings.ngram, reduction, device
            )
        return self._score_tables[name, device]

    @cached_property
    def _score_tables(self) -> dict[tuple[str, torch.device], ScoreTable]:
        return {}

    def predict(
        self,
        tokens: Tokens,
        statistic: str | float = "argmax",
        device: str | torch.device = "cpu",
        values: str = "counts",
    ) -> PredictedExits:
        """P(e|x) and the exit layer of each sample. See `geep_triton.ops.predict_exits.predict_exits`.

        Args:
            tokens: samples on the host.
            statistic: "argmax", "mean", or a quantile in (0, 1].
            device: device of the lookup and of the result.
            values: "counts", or "learned" if the table has learned "exits" (see `learn`).

        Returns:
            Probabilities [N, E] float32 and exit layers [N] int64.

        Raises:
            ValueError: the table has no such learned values, or `statistic` or `values` is unknown.
        """
        check_choice("values", values, VALUES)
        if values == "counts":
            return predict_exits(self.score_table(device), *_ids_on(device, tokens), statistic)
        probabilities = self._learned_scores("exits", tokens, device).softmax(-1)
        return choose_exits(probabilities, torch.tensor(self.exit_layers, device=device), statistic)

    def predict_agreement(self, tokens: Tokens, device: str | torch.device = "cpu") -> torch.Tensor:
        """The probability that each exit gives the last exit's answer: [N, E] float32 on the host. It is 1 for the last exit.

        Args:
            tokens: samples on the host.
            device: device of the lookup.

        Raises:
            ValueError: the table has no learned agreement.
        """
        return _as_agreement(self._learned_scores("agreement", tokens, device).cpu())

    def predict_skips(self, tokens: Tokens, device: str | torch.device = "cpu") -> torch.Tensor:
        """The probability that each sample skips each layer: [N, L] float32 on the host.

        Args:
            tokens: samples on the host.
            device: device of the lookup.

        Raises:
            ValueError: the table has no learned skips.
        """
        return self._learned_scores("skips", tokens, device).sigmoid().cpu()

    @property
    def decides_by(self) -> str:
        """The basis of `decide`: "agreement" if the table has learned it, else "counts"."""
        return "agreement" if "agreement" in self.learned else "counts"

    def decide(self, tokens: Tokens, device: str | torch.device = "cpu") -> torch.Tensor:
        """The layer at which each sample leaves by default: [N] int64 on the host.

        A table with learned agreement allocates by it. The price is the one at which 98 % of the held-out texts got the last
        exit's answer. This share is observed, not promised. Any other table takes the most likely exit by its counts.

        Args:
            tokens: samples on the host.
            device: device of the lookup.
        """
        if self.decides_by == "counts":
            return self.predict(tokens, device=device).exits.cpu()
        return allocate(self.predict_agreement(tokens, device), self.exit_layers, self._default_price)

    @cached_property
    def _default_price(self) -> float:
        return self.price_for(agreement=DEFAULT_AGREEMENT)

    def price_for(self, mean_depth: float | None = None, agreement: float | None = None) -> float:
        """The price of a layer that keeps a budget on the texts that were held out when "agreement" was learned. See
        `allocate`.

        Args:
            mean_depth: maximum of the mean depth, in layers.
            agreement: minimum share of texts that get the last exit's answer, 0..1. It is observed on the held-out texts, not
                promised: use `geep_triton.calibrate` for a promise.

        Raises:
            ValueError: the table has no learned agreement, or not exactly one budget is given.
        """
        values = self._values("agreement")
        probabilities = _as_agreement(values.held_out)
        return price_for(probabilities, values.held_out_targets, self.exit_layers, mean_depth, agreement)

    def _values(self, name: str) -> LearnedValues:
        if name not in self.learned:
            raise ValueError(f"exit_table has no learned values of {name!r}: {self.how_to_learn(name)}")
        return self.learned[name]

    def how_to_learn(self, name: str) -> str:
        """The code that a user writes to get the learned values `name`. It uses the records if there are any."""
        if self.records is None or (name == FORECASTS and self.records.logits is None):
            known = (*self.learned, *([FORECASTS] if self.forecasts is not None else []))
            return f"model.exit_table = build_exit_table(model, tokenizer, texts, ..., learn={(*known, name)!r})"
        return f"model.exit_table = model.exit_table.learn({name!r})"

    def _learned_scores(self, name: str, tokens: Tokens, device: str | torch.device) -> torch.Tensor:
        values = self._values(name)
        table = self._laid_out(name, values.weights, "mean", torch.device(device))
        evidence = predict_exits(table, *_ids_on(device, tokens)).probabilities
        return evidence + to_device(values.length_bias[length_bucket(tokens.lengths)], torch.device(device))

    def check_fits(self, vocab_size: int, exit_layers: Sequence[int], fingerprint: str | None = None) -> None:
        """Check that the table was built for this vocabulary, these exits and this tokenizer.

        Args:
            vocab_size: size of the model's vocabulary.
            exit_layers: layers of the model's exits.
            fingerprint: fingerprint of the tokenizer. None: not checked.

        Raises:
            ValueError: it was not.
        """
        if self.vocab_size != vocab_size:
            raise ValueError(
                f"exit_table was built for a vocabulary of {self.vocab_size}, the model has {vocab_size}: build it again"
            )
        if self.exit_layers != tuple(exit_layers):
            raise ValueError(
                f"exit_table was built for exits at {list(self.exit_layers)}, the model has {list(exit_layers)}: build it again"
            )
        if fingerprint is not None and self.fingerprint != fingerprint:
            raise ValueError("exit_table was built with another tokenizer: build it again with this one")

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `exit_table.safetensors` into a folder. An existing file is replaced only when the new one is complete.

        The records, which include the token ids of texts, are left out unless `save_records`.

        Args:
            directory: folder to save to.

        Raises:
            ValueError: the folder has a model with other weights than this table was built with, or the table has values that
                are NaN, infinite or of wrong shapes.
            OSError: writing fails.
        """
        digests = saved_digests(directory)
        if digests and self.digest() != digests.get("exit_table") and not set(self.weights or ()) & set(digests.values()):
            raise ValueError(
                f"{directory} has a model with other weights than this exit table was built with: to save them together "
                "anyway, load the model, set model.exit_table and save the model"
            )
        with replacing(directory) as new:
            save_table(self, new)

    @classmethod
    def load(cls, path: str | os.PathLike) -> ExitTable:
        """Read a table from its file or from the folder of the file.

        Args:
            path: the file or the folder.

        Raises:
            ValueError: there is no such file, it is damaged, it is not an exit table of this version, or it has values that
                building a table cannot give.
        """
        with reading(path):
            return cls(**read_table(path))


# The fields in PREDICT decide what a table predicts.
ORIGIN = ("text_hashes", "records", "save_records", "weights", "answers_by")
PREDICT = tuple(field.name for field in fields(ExitTable) if field.name not in ORIGIN)


def _ids_on(device: str | torch.device, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and offsets on a device. The host does not wait for the copy."""
    check_kind("tokens", tokens, Tokens)
    device = torch.device(device)
    return to_device(tokens.ids, device), to_device(tokens.offsets, device)


def _forecasts_of(records: ExitRecords, exit_layers: Sequence[int], **training: Any) -> Forecasts:
    """Learn forecasts from records. ValueError if they have no answers."""
    if records.logits is None or records.agrees is None:
        raise ValueError("records.logits: this table's records have no answers of the exits: build it again from texts")
    skipped = None if records.skipped is None else skipped_at(records.skipped, exit_layers)
    return learn_forecasts(records.logits, records.agrees, skipped, **training)


def _as_agreement(scores: torch.Tensor) -> torch.Tensor:
    """[N, E] scores -> probabilities. The last exit always agrees with itself."""
    result = scores.sigmoid()
    result[:, -1] = 1.0
    return result

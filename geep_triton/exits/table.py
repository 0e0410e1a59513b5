"""The exit table: tokens -> where samples with them left, learned from unlabelled text."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from geep_triton.checks import check_choice, check_int, check_kind, check_number, check_tensor
from geep_triton.exits.agreement import price_for
from geep_triton.exits.learned import LearnedValues, fit_values, length_bucket
from geep_triton.exits.paths import common_paths
from geep_triton.exits.table_file import LEARNED, TABLE_FILE, holds_table, read_table, write_table
from geep_triton.ops.exit_scores import CRITERIA
from geep_triton.ops.hash_table import HashTable, insert_add
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.ops.predict_exits import REDUCTIONS, PredictedExits, ScoreTable, choose_exits, predict_exits
from geep_triton.outputs import Tokens, to_device
from geep_triton.reference.ngrams import MAX_NGRAM
from geep_triton.saving import Replacement, reading, replacing, saved_digests

VALUES = ("counts", "learned")
OTHER_WEIGHTS = (
    "The exit table was built with other weights than the model's, or in another dtype: build it again if they were trained "
    "since."
)
COMPATIBLE = ("exit_layers", "criterion", "vocab_size", "fingerprint", "special_ids")


@dataclass(frozen=True, eq=False)
class ExitRecords:
    """What one run of every exit over a corpus leaves behind: enough to rebuild a table for any threshold.

    Attributes:
        tokens: the samples.
        uncertainty: [N, E] float32, the criterion's value at each exit; low is sure.
        agrees: [N, E] bool, whether each exit gives the last exit's answer; None where that was not recorded.
        skipped: [N, L] bool, the layers each sample skipped; None of a model without skip gates.
    """

    tokens: Tokens
    uncertainty: torch.Tensor
    agrees: torch.Tensor | None = None
    skipped: torch.Tensor | None = None


@dataclass(frozen=True)
class TableSettings:
    """How a table is made of records, and how it predicts.

    Attributes:
        threshold: uncertainty at or under which a sample leaves, 0..1.
        ngram: highest order of the n-grams counted, up to 16; 1 counts tokens only, 2 also pairs of neighbours.
        smoothing: pseudo-count a of the prior: P(e|v) = (count[v,e] + a prior[e]) / (sum_e count[v,e] + a).
        reduction: how keys make a sample's distribution: "mean" or "naive_bayes".
    """

    threshold: float
    ngram: int = 2
    smoothing: float = 1.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_int("ngram", self.ngram, 1)
        check_int("ngram", self.ngram, 1, MAX_NGRAM)
        check_number("smoothing", self.smoothing, 0.0, sys.float_info.max)
        check_choice("reduction", self.reduction, REDUCTIONS)


@dataclass(frozen=True, eq=False)
class ExitTable:
    """Predicts each sample's exit from its tokens, before any layer runs (GEEP, Li et al., doi 10.1007/s11704-022-2341-9).

    Made by `geep_triton.build_exit_table`, or `ExitTable.from_records`. Immutable: `rebuild` and `merge` return new tables.

    Attributes:
        keys: [S] int64, distinct and ascending: token ids, and hashes of longer n-grams.
        counts: [S, E] int64, how many samples' tokens with this key left at each exit.
        exit_counts: [E] int64, how many samples left at each exit.
        exit_layers: the E exits' layers, ascending.
        settings: threshold, n-gram order, smoothing, reduction.
        criterion: what the threshold is compared with.
        vocab_size: of the model.
        fingerprint: of the tokenizer.
        special_ids: ids that never count.
        text_hashes: [N] int64, ascending: `Tokens.hashes` of the texts it was built from; None: not known.
        records: the samples behind the counts, or None where they were dropped or not saved.
        save_records: whether its file holds the records, token ids among them; of a table that was loaded, whether it did.
        agreement: learned values of agreeing with the last exit (`with_agreement`), or None.
        exit_values: learned values of the exit itself (`with_exit_values`), or None.
        skip_values: learned values of skipping each layer (`with_skip_values`), or None.
        paths: [K, L] bool, the commonest sets of skipped layers, most frequent first; None without `skip_values`.
        weights: digest of the model's weights that it was built or saved with; None: not known.
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
    agreement: LearnedValues | None = None
    exit_values: LearnedValues | None = None
    skip_values: LearnedValues | None = None
    paths: torch.Tensor | None = None
    weights: str | None = None

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

        N-grams are counted on `device`; the table itself stays on the host.

        Raises:
            ValueError: no samples, NaN among the uncertainties, ids outside the vocabulary, or shapes that do not fit.
        """
        check_choice("criterion", criterion, CRITERIA)
        check_tensor("records.uncertainty", records.uncertainty, 2)
        if not len(records.tokens):
            raise ValueError("records: an exit table needs at least one sample")
        if records.uncertainty.shape != (len(records.tokens), len(exit_layers)):
            raise ValueError(
                f"records.uncertainty must have shape {(len(records.tokens), len(exit_layers))}, "
                f"got {tuple(records.uncertainty.shape)}"
            )
        if records.agrees is not None and records.agrees.shape != records.uncertainty.shape:
            raise ValueError(
                f"records.agrees must have shape {tuple(records.uncertainty.shape)}, got {tuple(records.agrees.shape)}"
            )
        if (records.uncertainty.isnan() | records.uncertainty.isneginf()).any():
            raise ValueError("records.uncertainty holds NaN or -infinity: the model that made it gives NaN logits")
        for name, values in (("records.tokens", records.tokens.ids), ("special_ids", torch.tensor(special_ids))):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < vocab_size:
                raise ValueError(
                    f"{name} must be ids between 0 and {vocab_size - 1}, got {int(values.min())}..{int(values.max())}"
                )
        exits = first_sure_exit(records.uncertainty, settings.threshold)
        ids, offsets = records.tokens.ids.to(device), records.tokens.offsets.to(device)
        special = torch.isin(ids, torch.tensor(special_ids, dtype=torch.int64, device=device))
        keys, samples = ngram_keys(ids, offsets, special, settings.ngram)
        # Most keys come once: a table for all of them, up to a size, need not grow.
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

    def rebuild(self, *, device: str | torch.device = "cpu", **settings: float | int | str) -> ExitTable:
        """The table for other settings (threshold, ngram, smoothing, reduction), without running the model again.

        Learned values are kept, but for another `ngram`, and those of the exit for another `threshold`. N-grams are counted
        on `device`.

        Raises:
            ValueError: the table is without its records and the new settings need them (threshold, ngram).
        """
        changed = replace(self.settings, **settings)
        if (changed.threshold, changed.ngram) == (self.settings.threshold, self.settings.ngram):
            return replace(self, settings=changed)
        records = self._kept_records()
        rebuilt = ExitTable.from_records(
            records, self.exit_layers, changed, self.vocab_size, self.fingerprint, self.special_ids, self.criterion, device
        )
        # These do not depend on the threshold, and the keys are the same unless the order of n-grams changes.
        kept = ("agreement", "skip_values", "paths") if changed.ngram == self.settings.ngram else ()
        return replace(rebuilt, **{name: getattr(self, name) for name in ("weights", "save_records", *kept)})

    def with_agreement(self, **training: float | int) -> ExitTable:
        """The table with learned values: for each exit, how likely it already gives the last exit's answer.

        Args:
            **training: epochs, learning_rate, batch_size, seed of `geep_triton.exits.learned.fit_values`.

        Raises:
            ValueError: the table is without its records, or they hold no agreement.
        """
        if (agrees := self._kept_records().agrees) is None:
            raise ValueError("records.agrees: this table's records hold no agreement; build it again from texts")
        return replace(self, agreement=self._learn(agrees, one_exit=False, **training))

    def with_exit_values(self, **training: float | int) -> ExitTable:
        """The table with learned values of the exit that the threshold takes, beside its counts; arguments as above.

        Raises:
            ValueError: the table is without its records.
        """
        exits = first_sure_exit(self._kept_records().uncertainty, self.settings.threshold)
        taken = torch.nn.functional.one_hot(exits, len(self.exit_layers)).bool()
        return replace(self, exit_values=self._learn(taken, one_exit=True, **training))

    def with_skip_values(self, most_paths: int = 8, **training: float | int) -> ExitTable:
        """The table with learned values of which layers a text skips, and the commonest paths; further arguments as above.

        Args:
            most_paths: so many are kept; samples of one path run together, so few of them keep batches dense.

        Raises:
            ValueError: the table is without its records, or they are of a model without skip gates.
        """
        check_int("most_paths", most_paths, 1)
        if (skipped := self._kept_records().skipped) is None:
            raise ValueError("records.skipped: this table's records are of a model without skip gates")
        values = self._learn(skipped, one_exit=False, **training)
        return replace(self, skip_values=values, paths=common_paths(skipped, most_paths))

    def _learn(self, targets: torch.Tensor, one_exit: bool, **training: float | int) -> LearnedValues:
        tokens = self.records.tokens
        special = torch.isin(tokens.ids, torch.tensor(self.special_ids, dtype=torch.int64))
        return fit_values(self.keys, tokens, special, self.settings.ngram, targets, one_exit, **training)

    def _kept_records(self) -> ExitRecords:
        if self.records is None:
            raise ValueError(
                "records: this table is without the records of its texts (a file holds them only where the table was built "
                "with save_records=True); build it again from texts"
            )
        return self.records

    def without_records(self) -> ExitTable:
        """A smaller table that predicts the same but cannot be rebuilt."""
        return replace(self, records=None, save_records=False)

    def predicts_as(self, other: ExitTable) -> bool:
        """Whether this is the same table, with its records or without them."""
        return all(getattr(self, name) is getattr(other, name) for name in PREDICT)

    def digest(self) -> str:
        """A hash of all that predicts: the same for this table saved and loaded, with its records or without them."""
        found = hashlib.sha256()
        parts = {name: getattr(self, name) for name in PREDICT}
        for name in LEARNED:
            values = parts.pop(name)
            parts |= {} if values is None else {f"{name}.{field.name}": getattr(values, field.name) for field in fields(values)}
        for name, value in parts.items():
            found.update(name.encode())
            found.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
        return found.hexdigest()[:16]

    def merge(self, other: ExitTable) -> ExitTable:
        """One table of both corpora, equal to one built from both at once; learned values are to be learned again.

        Raises:
            ValueError: the tables differ in settings, exits, criterion, vocabulary or tokenizer.
        """
        check_kind("other", other, ExitTable)
        for name in (*COMPATIBLE, "settings"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"tables to merge must have the same {name}, got {getattr(self, name)!r} and {getattr(other, name)!r}"
                )
        keys, rows = torch.unique(torch.cat([self.keys, other.keys]), return_inverse=True)
        counts = torch.zeros(keys.numel(), len(self.exit_layers), dtype=torch.int64)
        counts.index_add_(0, rows, torch.cat([self.counts, other.counts]))
        text_hashes = records = None
        if self.text_hashes is not None and other.text_hashes is not None:
            text_hashes = torch.cat([self.text_hashes, other.text_hashes]).sort().values
        if self.records is not None and other.records is not None:
            records = ExitRecords(
                Tokens.concatenate([self.records.tokens, other.records.tokens]),
                torch.cat([self.records.uncertainty, other.records.uncertainty]),
                *(
                    None if None in (parts := (getattr(self.records, name), getattr(other.records, name))) else torch.cat(parts)
                    for name in ("agrees", "skipped")
                ),
            )
        merged = {"keys": keys, "counts": counts, "exit_counts": self.exit_counts + other.exit_counts}
        merged["weights"] = self.weights if self.weights == other.weights else None
        merged |= {"text_hashes": text_hashes, "records": records, "save_records": self.save_records and other.save_records}
        return replace(self, **merged, paths=None, **dict.fromkeys(LEARNED))

    @cached_property
    def scores(self) -> torch.Tensor:
        """[S + 1, E] float32: P(e|key) smoothed towards the prior; the last row is the prior, for unseen keys."""
        prior = self.exit_counts.double() / self.exit_counts.sum()
        weight = self.settings.smoothing
        counts = self.counts.double()
        smoothed = (counts + weight * prior) / (counts.sum(1, keepdim=True) + weight)
        return torch.cat([smoothed, prior[None]]).float()

    def score_table(self, device: str | torch.device = "cpu") -> ScoreTable:
        """The scores laid out for lookup on `device`; made once per device."""
        return self._laid_out("exits", self.scores, self.settings.reduction, torch.device(device))

    def _laid_out(self, name: str, scores: torch.Tensor, reduction: str, device: torch.device) -> ScoreTable:
        if (name, device) not in self._score_tables:
            if not scores.isfinite().all():
                # In a comparison NaN loses or wins without a word: every text would go to one exit.
                raise ValueError(f"exit_table: its scores ({name}) are NaN or infinite: build it again")
            # Values of skipping are of every layer, all others of the exits.
            layers = tuple(range(1, scores.shape[1] + 1)) if name == "skip_values" else self.exit_layers
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
        decision: str | float = "argmax",
        device: str | torch.device = "cpu",
        values: str = "counts",
    ) -> PredictedExits:
        """P(e|x) and the exit layer of each sample; see `geep_triton.ops.predict_exits.predict_exits`.

        Args:
            tokens: on the host.
            decision: "argmax", "mean", or a quantile in (0, 1].
            device: where to look up; the result is there.
            values: "counts", or "learned" where the table has them (`with_exit_values`).

        Raises:
            ValueError: the table has no learned values.
        """
        check_choice("values", values, VALUES)
        if values == "counts":
            return predict_exits(self.score_table(device), *_ids_on(device, tokens), decision)
        probabilities = self._learned_scores("exit_values", tokens, device).softmax(-1)
        return choose_exits(probabilities, torch.tensor(self.exit_layers, device=device), decision)

    def predict_agreement(self, tokens: Tokens, device: str | torch.device = "cpu") -> torch.Tensor:
        """[N, E] float32 on the host: how likely each exit gives the last exit's answer, which itself surely does.

        Raises:
            ValueError: the table has no learned values.
        """
        return _as_agreement(self._learned_scores("agreement", tokens, device).cpu())

    def predict_skips(self, tokens: Tokens, device: str | torch.device = "cpu") -> torch.Tensor:
        """[N, L] float32 on the host: how likely each sample skips each layer.

        Raises:
            ValueError: the table has no learned values.
        """
        return self._learned_scores("skip_values", tokens, device).sigmoid().cpu()

    def price_for(self, mean_depth: float | None = None, agreement: float | None = None) -> float:
        """The price of a layer that keeps a budget on the texts held out when `with_agreement` learned; see `allocate`.

        Args:
            mean_depth: layers that a text may take on average.
            agreement: share of texts that shall get the last exit's answer. Observed on the held-out texts, not promised:
                that is what `Engine.calibrate` does.

        Raises:
            ValueError: the table has no learned values, or not exactly one budget.
        """
        values = self._values("agreement")
        return price_for(
            _as_agreement(values.held_out), values.held_out_targets, self.exit_layers, mean_depth, agreement
        )  # fmt: skip

    def _values(self, name: str) -> LearnedValues:
        values = getattr(self, name)
        if values is None:
            raise ValueError(f"exit_table has no learned values: {self.how_to_learn(name)}")
        return values

    def how_to_learn(self, name: str) -> str:
        """What a user writes to have the learned values `name`: from the records, where there are some."""
        if self.records is None:
            return f"model.exit_table = build_exit_table(model, ..., {LEARNED[name]}=True)"
        return f"model.exit_table = model.exit_table.with_{name}()"

    def _learned_scores(self, name: str, tokens: Tokens, device: str | torch.device) -> torch.Tensor:
        values = self._values(name)
        table = self._laid_out(name, values.weights, "mean", torch.device(device))
        evidence = predict_exits(table, *_ids_on(device, tokens)).probabilities
        return evidence + to_device(values.length_bias[length_bucket(tokens.lengths)], torch.device(device))

    def check_fits(self, vocab_size: int, exit_layers: Sequence[int], fingerprint: str | None = None) -> None:
        """Raise ValueError unless the table was built for this vocabulary, these exits and this tokenizer."""
        if self.vocab_size != vocab_size:
            raise ValueError(
                f"exit_table was built for a vocabulary of {self.vocab_size}, the model has {vocab_size}: build it again"
            )
        if self.exit_layers != tuple(exit_layers):
            raise ValueError(
                f"exit_table was built for exits at {list(self.exit_layers)}, the model has {list(exit_layers)}: build it again"
            )
        if fingerprint is not None and self.fingerprint != fingerprint:
            raise ValueError("exit_table was built with another tokenizer; build it again with this one")

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `exit_table.safetensors` into a folder, replacing one that is there only once it is whole.

        The records, which hold the token ids of texts, are left out unless `save_records`.

        Raises:
            ValueError: the folder holds a model, of other weights than this table was built with; values that are NaN,
                infinite or of other shapes than those of a table that was built.
        """
        digests = saved_digests(directory)
        if digests and self.digest() != digests.get("exit_table") and self.weights not in digests.values():
            raise ValueError(
                f"{directory} holds a model of other weights than this exit table was built with: to save them together "
                "all the same, load the model, set model.exit_table and save the model"
            )
        with replacing(directory) as new:
            save_table(self, new)

    def contents(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What its file holds: header and tensors."""
        tensors = {"keys": self.keys, "counts": self.counts, "exit_counts": self.exit_counts}
        if self.text_hashes is not None:
            tensors["text_hashes"] = self.text_hashes
        if self.save_records and self.records is not None:
            tokens = self.records.tokens
            tensors |= {
                "records.ids": tokens.ids.int(),
                "records.offsets": tokens.offsets,
                "records.uncertainty": self.records.uncertainty.float(),
            }
            if tokens.type_ids is not None:
                tensors["records.type_ids"] = tokens.type_ids.to(torch.int8)
            if self.records.agrees is not None:
                tensors["records.agrees"] = self.records.agrees
            if self.records.skipped is not None:
                tensors["records.skipped"] = self.records.skipped
        if self.paths is not None:
            tensors["paths"] = self.paths
        for name in LEARNED:
            values = getattr(self, name)
            tensors |= {} if values is None else {f"{name}.{key}": tensor for key, tensor in vars(values).items()}
        header = {name: getattr(self, name) for name in COMPATIBLE} | {"settings": vars(self.settings)}
        header |= {} if self.weights is None else {"weights": self.weights}
        return header, tensors

    @classmethod
    def load(cls, path: str | os.PathLike) -> ExitTable:
        """Read a table from its file or the folder that holds it.

        Raises:
            ValueError: no such file, damaged, not an exit table of this version, or one that could not have been built.
        """
        with reading(path):
            header, tensors = read_table(path)
        try:
            settings = TableSettings(**header["settings"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged exit table: {error}") from error
        records, text_hashes = _load_records(tensors), tensors.get("text_hashes")
        if records is not None and text_hashes is None:  # a file of an earlier version
            text_hashes = records.tokens.hashes().sort().values
        return cls(
            keys=tensors["keys"],
            counts=tensors["counts"],
            exit_counts=tensors["exit_counts"],
            exit_layers=tuple(header["exit_layers"]),
            settings=settings,
            criterion=header["criterion"],
            vocab_size=header["vocab_size"],
            fingerprint=header["fingerprint"],
            special_ids=tuple(header["special_ids"]),
            text_hashes=text_hashes,
            records=records,
            save_records=records is not None,
            paths=tensors.get("paths"),
            weights=header.get("weights"),
            **{name: _load_learned(tensors, name) for name in LEARNED},
        )


# All that decides what a table predicts.
ORIGIN = ("text_hashes", "records", "save_records", "weights")
PREDICT = tuple(field.name for field in fields(ExitTable) if field.name not in ORIGIN)


def save_table(table: ExitTable | None, new: Replacement) -> None:
    """Make a folder hold this table; None removes one that an earlier model left there."""
    if table is None:
        new.remove.add(TABLE_FILE)
    elif not holds_table(new.folder, *(contents := table.contents())):
        write_table(new.path / TABLE_FILE, *contents)


def first_sure_exit(uncertainty: torch.Tensor, threshold: float) -> torch.Tensor:
    """[N, E] -> [N] int64, index of the first exit whose uncertainty is at or under `threshold`, else of the last."""
    sure = uncertainty <= threshold
    sure[:, -1] = True
    return sure.int().argmax(-1)


def _load_records(tensors: dict[str, torch.Tensor]) -> ExitRecords | None:
    if "records.ids" not in tensors:
        return None
    type_ids = tensors.get("records.type_ids")
    tokens = Tokens(tensors["records.ids"].long(), tensors["records.offsets"], None if type_ids is None else type_ids.long())
    return ExitRecords(tokens, tensors["records.uncertainty"], tensors.get("records.agrees"), tensors.get("records.skipped"))


def _load_learned(tensors: dict[str, torch.Tensor], name: str) -> LearnedValues | None:
    found = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
    return LearnedValues(**found) if found else None


def _ids_on(device: str | torch.device, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and offsets on a device, without the host waiting for it."""
    check_kind("tokens", tokens, Tokens)
    device = torch.device(device)
    return to_device(tokens.ids, device), to_device(tokens.offsets, device)


def _as_agreement(scores: torch.Tensor) -> torch.Tensor:
    """[N, E] scores to probabilities; the last exit surely agrees with itself."""
    result = scores.sigmoid()
    result[:, -1] = 1.0
    return result

"""Building an exit table from texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_bool, check_choice, check_kind, shorten
from geep_triton.engine.engine import Engine
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.ops.exit_scores import check_criterion
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint, uncounted_ids
from geep_triton.table.learned import FEWEST_TEXTS, LEARNED
from geep_triton.table.records import ExitRecords, TableSettings
from geep_triton.tokens.samples import Inputs


def build_exit_table(
    model: MultiExitBert,
    tokenizer: PreTrainedTokenizerBase,
    texts: Inputs,
    threshold: float,
    *,
    ngram: int = 2,
    smoothing: float = 1.0,
    reduction: str = "mean",
    criterion: str = "normalized_entropy",
    learn: Sequence[str] | None = None,
    save_records: bool = False,
    progress: bool = True,
    **engine: Any,
) -> ExitTable:
    """Run every exit once on unlabelled texts, and count for each token where the samples that hold it leave.

    Args:
        model: the model whose exits the table shall predict.
        tokenizer: the model's own.
        texts: whatever `Engine.predict` takes; labels are not needed.
        threshold: a sample leaves where its uncertainty is at most this, 0..1; `ExitTable.rebuild` changes it later for free.
        ngram, smoothing, reduction: see `TableSettings`.
        criterion: see `geep_triton.ops.exit_scores.score_exits`.
        learn: what the table learns beside the counts (see `ExitTable.learn`), some of "agreement" (how likely each exit gives
            the last exit's answer), "exits" (which exit the threshold takes) and "skips" (which layers the model's gates skip,
            for a policy with "+skip:planned"). None: the agreement, where there are the 20 texts that learning needs; a
            table that has learned it decides by it (`ExitTable.decide`). (): nothing.
        save_records: the table's file shall hold what was counted, with the token ids of the texts. Then a loaded table can be
            rebuilt and can learn. Otherwise the file holds only a hash of each text, by which `calibrate` knows them.
        progress: show a progress bar.
        **engine: further arguments of `Engine` (max_length, truncation, columns, ...).

    Returns:
        The table. Assign it to `model.exit_table` to use it and to save it with the model.

    Raises:
        ValueError: the model is a regression model; skips shall be learned of a model without gates; settings are out of range;
            and whatever `Engine.predict` raises.
    """
    check_kind("model", model, MultiExitBert)
    check_bool("save_records", save_records)
    settings = TableSettings(threshold, ngram, smoothing, reduction)
    if learn is not None:
        _check_learn(learn, model)
    check_criterion(threshold, criterion)
    if model.config.num_labels < 2:
        raise ValueError("build_exit_table needs at least two classes: a regression model (num_labels=1) has no uncertainty")
    # At full depth samples skip by the gates: from this a table learns skips.
    record = Engine(model, tokenizer, "full", progress=progress, **engine).every_exit(texts)
    answers = record.logits.argmax(-1)
    uncertainty = record.uncertainty(model.config.exit_layers, criterion)
    records = ExitRecords(record.tokens, uncertainty, answers == answers[:, -1:], record.skipped)
    built = ExitTable.from_records(
        records,
        model.config.exit_layers,
        settings,
        model.config.vocab_size,
        tokenizer_fingerprint(tokenizer),
        [index for index in uncounted_ids(tokenizer) if index < model.config.vocab_size],  # others never come
        criterion,
        model.device,
    )
    table = replace(built, weights=model.weights_digest(), save_records=save_records)
    if learn is None:
        learn = ("agreement",) if len(record.tokens) >= FEWEST_TEXTS else ()
    for what in learn:
        table = table.learn(what)
    return table


def _check_learn(learn: Sequence[str], model: MultiExitBert) -> None:
    if isinstance(learn, str) or not isinstance(learn, Sequence):
        raise TypeError(f"learn must be a list of some of {', '.join(LEARNED)}, got {shorten(learn)}")
    for what in learn:
        check_choice("learn", what, LEARNED)
    if "skips" in learn and not len(model.gates):
        raise ValueError(f"learn={list(learn)}: {NO_GATES}")

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


def build_exit_table(
    model: MultiExitBert,
    tokenizer: PreTrainedTokenizerBase,
    texts: Any,
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
    """Run every exit once over unlabelled texts and count, per token, where the samples that hold it leave.

    Args:
        model, tokenizer: whose exits to predict.
        texts: whatever `Engine.predict` takes; labels are not needed.
        threshold: uncertainty at or under which a sample leaves, 0..1; `ExitTable.rebuild` changes it later for free.
        ngram, smoothing, reduction: see `TableSettings`.
        criterion: see `geep_triton.ops.exit_scores.score_exits`.
        learn: what to learn beside the counts (see `ExitTable.learn`), some of "agreement" (how likely each exit gives the
            last one's answer), "exits" (which exit the threshold takes) and "skips" (which layers the model's gates skip,
            for a policy with "+skip:planned"). None: the agreement, where there are the 20 texts that learning needs; a
            table that has it decides by it (`ExitTable.decide`). (): nothing.
        save_records: the table's file shall hold what it was counted from, the texts' token ids among it, so that it can be
            rebuilt and learned from once it is loaded; else only a hash of each text, by which `calibrate` knows them.
        progress: show a progress bar.
        **engine: further arguments of `Engine` (max_length, truncation, text_column, ...).

    Returns:
        The table; assign it to `model.exit_table` to use it and to save it with the model.

    Raises:
        ValueError: a regression model, skips of a model without gates, settings out of range, and all that `Engine.predict`
            raises.
    """
    check_kind("model", model, MultiExitBert)
    check_bool("save_records", save_records)
    settings = TableSettings(threshold, ngram, smoothing, reduction)
    if learn is not None:
        _check_learn(learn, model)
    check_criterion(threshold, criterion)
    if model.config.num_labels < 2:
        raise ValueError("build_exit_table needs at least two classes: a regression model (num_labels=1) has no uncertainty")
    # At full depth samples skip by the gates, which is what a table learns of skipping.
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

"""Building an exit table from texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.answers import Score, check_kind_of, kind_of
from geep_triton.checks import check_bool, check_choice, check_kind, shorten
from geep_triton.engine.engine import Engine
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.ops.exit_scores import CLASS_CRITERIA, check_criterion
from geep_triton.table.exit_table import FORECASTS, LEARNABLE, ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint, uncounted_ids
from geep_triton.table.learned import FEWEST_TEXTS
from geep_triton.table.records import AGREEMENT, ExitRecords, TableSettings
from geep_triton.tokens.samples import Inputs


def build_exit_table(
    model: MultiExitBert,
    tokenizer: PreTrainedTokenizerBase,
    texts: Inputs,
    threshold: float | None = None,
    *,
    ngram: int = 2,
    smoothing: float = 1.0,
    reduction: str = "mean",
    criterion: str | None = None,
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
        threshold: for classes: a sample leaves where its uncertainty is at most this, 0..1; `ExitTable.rebuild` changes it
            later for free.
        ngram, smoothing, reduction: see `TableSettings`.
        criterion: see `geep_triton.ops.exit_scores.score_exits`; or "agreement", which needs no threshold: a sample leaves at
            the first exit from which on every exit gives the last one's answer, as `model.answers` compares them. None:
            "normalized_entropy" for classes, else "agreement".
        learn: what the table learns beside the counts (see `ExitTable.learn`), some of "agreement" (how likely each exit gives
            the last exit's answer), "exits" (which exit the threshold takes), "skips" (which layers the model's gates skip,
            for a policy with "+skip:planned") and "forecasts" (from the answer at an exit, how likely it and each deeper exit
            gives the last exit's answer: for policies "risk" and "planned"). None: agreement and, where there are several
            exits, forecasts, if there are the 20 texts that learning needs; a table that has learned agreement decides by it
            (`ExitTable.decide`). (): nothing.
        save_records: the table's file shall hold what was counted, with the token ids of the texts. Then a loaded table can be
            rebuilt and can learn. Otherwise the file holds of the texts only a hash of each, by which `calibrate` knows them,
            and, where it learned forecasts, the logits of at most 2,000 of them.
        progress: show a progress bar.
        **engine: further arguments of `Engine` (max_length, truncation, columns, ...).

    Returns:
        The table. Assign it to `model.exit_table` to use it and to save it with the model.

    Raises:
        ValueError: the threshold is missing, or has no use; scores have no decision or tolerance to compare them by; skips
            shall be learned of a model without gates; settings are out of range; and whatever `Engine.predict` raises.
    """
    check_kind("model", model, MultiExitBert)
    check_bool("save_records", save_records)
    criterion, threshold = _check_threshold(model, criterion, threshold)
    settings = TableSettings(threshold, ngram, smoothing, reduction)
    if learn is not None:
        _check_learn(learn, model)
    # At full depth samples skip by the gates: from this a table learns skips.
    record = Engine(model, tokenizer, "full", progress=progress, **engine).every_exit(texts)
    agrees = model.answers.agree(record.logits, record.logits[:, -1:])
    if criterion == AGREEMENT:
        agrees_from_here = agrees.int().flip(1).cummin(1).values.flip(1).bool()
        uncertainty = (~agrees_from_here).float().masked_fill(~record.scored(model.config.exit_layers), torch.inf)
    else:
        uncertainty = record.uncertainty(model.config.exit_layers, criterion)
    records = ExitRecords(record.tokens, uncertainty, agrees, record.skipped, record.logits)
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
    weights, answers_by = (model.weights_digest(),), model.exit_config.answers_by
    table = replace(built, weights=weights, answers_by=answers_by, save_records=save_records)
    if learn is None:
        several = (FORECASTS,) if len(table.exit_layers) > 1 else ()
        learn = ("agreement", *several) if len(record.tokens) >= FEWEST_TEXTS else ()
    for what in learn:
        table = table.learn(what)
    return table


def _check_threshold(model: MultiExitBert, criterion: str | None, threshold: float | None) -> tuple[str, float]:
    """The criterion and its threshold. ValueError where they do not go together or do not fit the model's answers."""
    if criterion is None:
        criterion = "normalized_entropy" if kind_of(model.config) == "classes" else AGREEMENT
    if criterion != AGREEMENT:
        check_kind_of(model.config, ("classes",), f"criterion {criterion!r}")
        if threshold is None:
            raise ValueError(f"criterion {criterion!r} needs a threshold, 0..1")
        check_choice("criterion", criterion, CLASS_CRITERIA)
        check_criterion(threshold, criterion)
        return criterion, threshold
    if threshold is not None:
        raise ValueError(f"criterion {AGREEMENT!r} takes no threshold, got {shorten(threshold)}")
    if isinstance(model.answers, Score):
        model.answers.check_comparable()
    return criterion, 0.5  # uncertainties are 0 or 1


def _check_learn(learn: Sequence[str], model: MultiExitBert) -> None:
    if isinstance(learn, str) or not isinstance(learn, Sequence):
        raise TypeError(f"learn must be a list of some of {', '.join(LEARNABLE)}, got {shorten(learn)}")
    for what in learn:
        check_choice("learn", what, LEARNABLE)
    if FORECASTS in learn and len(model.config.exit_layers) == 1:
        raise ValueError(f"learn={list(learn)}: forecasts need several exits, the model has one")
    if "skips" in learn and not len(model.gates):
        raise ValueError(f"learn={list(learn)}: {NO_GATES}")

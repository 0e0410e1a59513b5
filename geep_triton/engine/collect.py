"""Building an exit table from texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_bool, check_kind
from geep_triton.engine.engine import Engine
from geep_triton.exits.fingerprint import tokenizer_fingerprint, uncounted_ids
from geep_triton.exits.table import ExitRecords, ExitTable, TableSettings
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.ops.exit_scores import score_exits
from geep_triton.outputs import EveryExit
from geep_triton.tensor_files import tensors_digest


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
    learn_agreement: bool = False,
    learn_exits: bool = False,
    learn_skips: bool = False,
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
        learn_agreement: also learn how likely each exit gives the last one's answer; see `ExitTable.with_agreement`.
        learn_exits: also learn values of the exit itself; see `ExitTable.with_exit_values`.
        learn_skips: also learn which layers the model's gates skip, for `Engine(skipping="planned")`; see
            `ExitTable.with_skip_values`.
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
    flags = {"learn_agreement": learn_agreement, "learn_exits": learn_exits, "learn_skips": learn_skips}
    for name, value in (flags | {"save_records": save_records}).items():
        check_bool(name, value)
    settings = TableSettings(threshold, ngram, smoothing, reduction)
    if learn_skips and not len(model.gates):
        raise ValueError(f"learn_skips: {NO_GATES}")
    skipping = "gates" if len(model.gates) else "never"  # what gates do is what a table learns of skipping
    uncertainties, parts = [], []
    for part in Engine(model, tokenizer, "full", skipping=skipping, progress=progress, **engine).every_exit_windows(texts):
        uncertainty = score_exits(part.logits.flatten(0, 1), threshold, criterion).uncertainty.view(part.logits.shape[:2])
        if part.skipped is not None:
            # Nobody leaves after a layer that it skipped.
            uncertainty[part.skipped[:, [layer - 1 for layer in model.config.exit_layers]]] = torch.inf
        uncertainties.append(uncertainty)
        parts.append(part)
    record = EveryExit.concatenate(parts)
    answers = record.logits.argmax(-1)
    records = ExitRecords(record.tokens, torch.cat(uncertainties), answers == answers[:, -1:], record.skipped)
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
    table = replace(built, weights=tensors_digest(model.state_dict()), save_records=save_records)
    table = table.with_agreement() if learn_agreement else table
    table = table.with_exit_values() if learn_exits else table
    return table.with_skip_values() if learn_skips else table

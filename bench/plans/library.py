"""A recorded model as a user of the library has it: with an exit table, learned from the recorded table texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.plans.record import FILE, JUDGE, TABLE, Part, load_parts
from geep_triton import MultiExitBert
from geep_triton.engine.predictions import EveryExit
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint, uncounted_ids
from geep_triton.table.records import ExitRecords, TableSettings

THRESHOLD = 0.3  # of the table


class Loaded(NamedTuple):
    """A model with its exit table, its tokenizer, and every exit's answers to the judge texts."""

    model: MultiExitBert
    tokenizer: PreTrainedTokenizerBase
    record: EveryExit


def load(folder: Path) -> Loaded:
    """What `bench.plans.train` and `bench.plans.record` left in a folder."""
    model, tokenizer = MultiExitBert.from_pretrained(folder / "model"), AutoTokenizer.from_pretrained(folder / "model")
    parts = load_parts(folder / FILE)
    model.exit_table = table_of(model, tokenizer, parts[TABLE])
    return Loaded(model, tokenizer, EveryExit(parts[JUDGE].tokens, parts[JUDGE].logits))


def table_of(model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, part: Part) -> ExitTable:
    """The exit table that `build_exit_table` would make of the recorded table texts."""
    agrees = model.answers.agree(part.logits, part.logits[:, -1:])
    uncertainty = EveryExit(part.tokens, part.logits).uncertainty(model.config.exit_layers)
    table = ExitTable.from_records(
        ExitRecords(part.tokens, uncertainty, agrees, logits=part.logits),
        model.config.exit_layers,
        TableSettings(THRESHOLD),
        model.config.vocab_size,
        tokenizer_fingerprint(tokenizer),
        uncounted_ids(tokenizer),
    )
    return replace(table, weights=(model.weights_digest(),)).learn("agreement").learn("exits").learn("forecasts")

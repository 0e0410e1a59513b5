"""Makes a folder of fine-tuned models that share a backbone, for `bench.gpu.inputs.load_inputs`.

    python -m bench.gpu.tuned DEST --backbone E5 --models RUNS/sst2 RUNS/yelp_stars

`bench.plans.saved` leaves such models, each beside a file of texts that it was not made from. What training has changed in the
backbone is rounded to four bits, so that a model of twelve layers takes about 15 MB. The command prints how many answers that
changes. Of an exit table only the tokens of the texts are carried.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase, logging

from bench.gpu.inputs import (
    CHANGES,
    HEADS,
    MOST_BYTES,
    OPTIONS,
    WORDS,
    Carried,
    answers_of,
    end_folder,
    load_inputs,
    put_model,
    spread,
    start_folder,
)
from bench.gpu.packing import BLOCK, CODES, SCALES, nearest_four_bits, pack
from geep_triton import ExitTable, MultiExitBert
from geep_triton.files.rows import read_rows
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.samples import iter_samples


def make_tuned(folder: Path, backbone: Path, models: Sequence[Path], most_rows: int, most_bytes: int = MOST_BYTES) -> None:
    """Fill a folder with one backbone, and for each model what training has changed in it.

    Args:
        folder: a new or empty folder.
        backbone: the folder of the BERT that the models were fine-tuned from.
        models: folders of saved models with an exit table, each beside a file FOLDER.jsonl of texts with labels.
        most_rows: of each file.
        most_bytes: the largest size of the folder.

    Raises:
        ValueError: the folder holds something, two models have one name, a model has no exit table or has temperatures, or the
            folder would be larger than `most_bytes`.
    """
    names = [path.name for path in models]
    if len({*names}) < len(names):
        raise ValueError(f"models must have different names, got {', '.join(names)}")
    start_folder(folder)
    rows = {path.name: spread(read_rows(path.with_suffix(".jsonl"), required=("text", "label")), most_rows) for path in models}
    puts = {path.name: partial(_put_changes, saved=path, rows=rows[path.name]) for path in models}
    put_model(folder, backbone.name, backbone, rows, puts)
    end_folder(folder, [backbone.name], rows, most_bytes)


def _put_changes(folder: Path, carried: Carried, saved: Path, rows: Sequence[Row]) -> None:
    """Write a model's configuration, its heads, its changes and its exit table."""
    model = MultiExitBert.from_pretrained(saved)
    if model.exit_table is None:
        raise ValueError(f"{saved} has no exit table")
    if model.exit_config.temperatures is not None:
        raise ValueError(f"{saved} has temperatures of exits, which are not carried")
    folder.mkdir()
    changes = {name: weight - carried.weights[name] for name, weight in model.bert.state_dict().items()}
    changes[WORDS] = changes[WORDS][carried.kept]
    save_file(packed_changes(changes), folder / CHANGES)
    save_file(pack(model.heads.state_dict()), folder / HEADS)
    # Its weights are not quite those that it was built with.
    replace(of_texts(model.exit_table, carried.tokenizer, rows), weights=None).save_pretrained(folder)
    shutil.copyfile(saved / "config.json", folder / "config.json")


def packed_changes(changes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices rounded to four bits, for `bench.gpu.packing.unpack`, and other changes as float16."""
    packed = {}
    for name, change in changes.items():
        if change.ndim == 2 and not change.shape[1] % BLOCK:
            packed[name + CODES], packed[name + SCALES] = nearest_four_bits(change.float())
        else:
            packed[name] = change.half()
    return packed


def of_texts(table: ExitTable, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> ExitTable:
    """The table without the keys that no row has, so that it predicts the same for these rows."""
    tokens = Encoder(tokenizer, **OPTIONS)(list(iter_samples(rows)))
    special = torch.isin(tokens.ids, torch.tensor(table.special_ids, dtype=torch.int64))
    keys, _ = ngram_keys(tokens.ids, tokens.offsets, special, table.settings.ngram)
    kept = torch.isin(table.keys, keys)
    and_unseen = torch.cat([kept, torch.tensor([True])])
    learned = {name: replace(values, weights=values.weights[and_unseen]) for name, values in table.learned.items()}
    return replace(table, keys=table.keys[kept], counts=table.counts[kept], learned=learned).without_records()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DEST", help="new or empty")
    parser.add_argument("--backbone", type=Path, required=True, metavar="FOLDER", help="that all models were fine-tuned from")
    parser.add_argument("--models", type=Path, nargs="+", required=True, metavar="FOLDER", help="each beside FOLDER.jsonl")
    parser.add_argument("--most-rows", type=int, default=1600)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    make_tuned(arguments.folder, arguments.backbone, arguments.models, arguments.most_rows)
    for path, given in zip(arguments.models, load_inputs(arguments.folder), strict=True):
        tokenizer = AutoTokenizer.from_pretrained(path)
        before = answers_of(MultiExitBert.from_pretrained(path), tokenizer, given.rows).logits.argmax(-1)
        after = answers_of(given.model, given.tokenizer, given.rows).logits.argmax(-1)
        same = (before == after).double().mean(0).tolist()
        print(
            f"{given.name}, share of answers as before, of each exit:", " ".join(f"{share:.4f}" for share in same), flush=True
        )


if __name__ == "__main__":
    main()

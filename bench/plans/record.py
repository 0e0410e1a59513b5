"""Record every exit, and the mean state after every layer, of the models of `bench.plans`.

    GEEP_DATA=../shared/data python -m bench.plans.record --work WORK --e5 E5

Of each model that is trained, its folder in WORK gets a file with two parts: "table" texts without labels, from which plans and
forecasts are learned, and "judge" texts, which calibrate and judge. A run may be killed at any time and started again. It then
goes on with the first model that has no file.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bench.answers.data import recorded_rows, split, training_rows
from bench.answers.tasks import Task, Trained
from bench.answers.training import RECORD as TRAINED
from bench.answers.training import folder_of
from bench.cells import locked
from bench.plans.command import cells_of, parser_of
from geep_triton import MultiExitBert
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens

FILE = "plans.safetensors"
TABLE_TEXTS = 8_000  # at most
# Most rows of sst2's training split are phrases (median 7 words), and those of dev and test are sentences (median 18). A table
# is made from texts like those that are served, so only its longer rows are taken.
FEWEST_WORDS = {"sst2": 10}
BATCH_TOKENS = 4_096
TABLE, JUDGE = "table", "judge"


@dataclass(frozen=True, eq=False)
class Part:
    """What was recorded of N texts on a model of L layers with C classes.

    Attributes:
        ids, offsets, type_ids: of their tokens.
        logits: [N, L, C] float32, of the exit after each layer.
        means: [N, L + 1, H] float16, the mean state of a text's tokens: of the embeddings, then after each layer.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    type_ids: torch.Tensor
    logits: torch.Tensor
    means: torch.Tensor

    @property
    def tokens(self) -> Tokens:
        """The texts."""
        return Tokens(self.ids, self.offsets, self.type_ids)

    def select(self, rows: torch.Tensor) -> Part:
        """The same of the texts `rows` [M] int64, in that order."""
        tokens = self.tokens.select(rows)
        segments = torch.zeros_like(tokens.ids) if tokens.type_ids is None else tokens.type_ids
        return Part(tokens.ids, tokens.offsets, segments, self.logits[rows], self.means[rows])


def content(row: Row) -> tuple[str, str | None]:
    """The texts of a row."""
    return row["text"], row.get("text_pair")


def parts_of(task: Task, limit: int | None = None) -> dict[str, list[Row]]:
    """The rows of both parts. No text of theirs was trained on, and no judge text is among those of the table.

    Args:
        task: of `bench.plans.tasks`.
        limit: at most so many rows of each part, to try it out.
    """
    trained = set(map(content, training_rows(task)))
    judge = [row for row in recorded_rows(task) if content(row) not in trained]
    taken = trained | set(map(content, judge))
    fewest = FEWEST_WORDS.get(task.name, 0)
    rest = [row for row in split(task, "train") if content(row) not in taken and len(row["text"].split()) >= fewest]
    random.Random(0).shuffle(rest)
    rest += [row for row in split(task, "dev", "test") if content(row) not in taken]
    return {TABLE: rest[: min(TABLE_TEXTS, limit or TABLE_TEXTS)], JUDGE: judge[:limit]}


def batches(lengths: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows in batches of about `BATCH_TOKENS` tokens, the longest texts first."""
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        end = start + max(1, BATCH_TOKENS // int(lengths[order[start]]))
        yield order[start:end]
        start = end


def padded(flat: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[B, S] of values that lie one sample after the other; zeros where a sample is shorter."""
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(lengths.tolist())), batch_first=True)


@torch.inference_mode()
def recorded(model: MultiExitBert, encoder: Encoder, rows: Sequence[Row]) -> Part:
    """Run every exit on these rows."""
    model.eval()
    tokens = encoder(list(map(content, rows)))
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    logits = torch.empty(len(tokens), layers, model.config.num_labels)
    means = torch.empty(len(tokens), layers + 1, width, dtype=torch.float16)
    for order in batches(tokens.lengths):
        batch = tokens.select(order)
        mask = padded(torch.ones_like(batch.ids), batch.lengths)
        segments = None if batch.type_ids is None else padded(batch.type_ids, batch.lengths)
        found = model(padded(batch.ids, batch.lengths), mask, segments, output_exit_logits=True, output_hidden_states=True)
        logits[order] = torch.stack(list(found.exit_logits), 1)
        for layer, states in enumerate(found.hidden_states):
            means[order, layer] = ((states * mask[..., None]).sum(1) / batch.lengths[:, None]).half()
    type_ids = torch.zeros_like(tokens.ids) if tokens.type_ids is None else tokens.type_ids
    return Part(tokens.ids, tokens.offsets, type_ids, logits, means)


def save_parts(parts: dict[str, Part], path: Path) -> None:
    """Write both parts, all or nothing."""
    tensors = {
        f"{name}.{field.name}": getattr(part, field.name).contiguous() for name, part in parts.items() for field in fields(Part)
    }
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def load_parts(path: Path) -> dict[str, Part]:
    """What `save_parts` wrote."""
    tensors: dict[str, Any] = load_file(path)
    return {name: Part(*(tensors[f"{name}.{field.name}"] for field in fields(Part))) for name in (TABLE, JUDGE)}


def recorded_cells(arguments: argparse.Namespace) -> list[Trained]:
    """Of the cells that were asked for, those whose exits are recorded."""
    limit = arguments.limit_samples
    return [cell for cell in cells_of(arguments) if (folder_of(cell, arguments.work, limit) / FILE).is_file()]


def record(cell: Trained, folder: Path, limit: int | None) -> None:
    """Record a trained model."""
    model = MultiExitBert.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    encoder = Encoder(tokenizer, cell.task.max_length, truncation=True)
    rows = parts_of(cell.task, limit)
    save_parts({name: recorded(model, encoder, of_part) for name, of_part in rows.items()}, folder / FILE)


def main() -> None:
    arguments = parser_of(__doc__, None).parse_args()
    torch.set_num_threads(arguments.threads)
    deadline = time.monotonic() + 60 * arguments.budget_minutes
    for cell in cells_of(arguments):
        folder = folder_of(cell, arguments.work, arguments.limit_samples)
        path = folder / FILE
        with locked(str(path.resolve()), wait=False) as mine:
            if not mine or path.is_file() or not (folder / TRAINED).is_file():
                print(f"{cell.name}: {'another run is at it' if not mine else 'recorded' if path.is_file() else 'not trained'}")
                continue
            if time.monotonic() > deadline:
                print("out of time; start it again to go on")
                return
            start = time.monotonic()
            record(cell, folder, arguments.limit_samples)
            print(f"{cell.name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

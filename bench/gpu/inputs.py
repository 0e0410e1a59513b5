"""Makes and loads the small folder that goes to a machine with a GPU: models with trained exits, and texts.

    python -m bench.gpu.inputs DEST --data DATA_FOLDER [--e5 FOLDER]

The folder holds MiniLM in half precision, 800 test rows of each set, and for each set an exit table and exits that were trained
on the frozen pretrained layers. `load_inputs` restores all of it and needs neither a network nor the package of MiniLM.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase, logging

from bench.gpu.packing import pack, unpack
from bench.shapes import pretrained_folder
from geep_triton import Engine, ExitTable, MultiExitBert, MultiExitBertConfig
from geep_triton.engine.predictions import EveryExit
from geep_triton.files.rows import read_rows
from geep_triton.modeling.heads import pool
from geep_triton.ops.exit_scores import score_exits
from geep_triton.table.fingerprint import tokenizer_fingerprint, uncounted_ids
from geep_triton.table.records import ExitRecords, TableSettings
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import iter_samples
from geep_triton.training.dataset import TextDataset, label_names

SETS = ("sst2", "ag_news", "yelp_stars")
MOST_BYTES = 50_000_000
CONTENTS, BACKBONE, HEADS = "inputs.json", "backbone.safetensors", "heads.safetensors"
CHANGES = "changes.safetensors"  # to the backbone, of a set for which it was fine-tuned
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
WORDS = "embeddings.word_embeddings.weight"
KEPT = "kept_ids"  # which rows of the word embeddings are stored
COLUMNS = ("text", "text_pair", "label")
OPTIONS = {"max_length": 128, "truncation": True}
TABLE = TableSettings(threshold=0.3, ngram=2)
BATCH = 64
ITERATIONS = 200
DECAY = 1e-2  # of squared weights, on features of variance one; with less, exits of few rows are too sure of themselves


@dataclass(frozen=True, eq=False)
class GivenModel:
    """A model with trained exits and texts of its task.

    Attributes:
        name: the names of model and set, as "minilm sst2".
        model: a model in float32 on the CPU, in evaluation mode, with an exit table. Words that are neither special nor in
            `rows` have embeddings of zeros.
        tokenizer: the tokenizer of the model.
        rows: rows with columns text, label and perhaps text_pair.
        tuned: whether its layers were trained with the exits, not the exits alone.
    """

    name: str
    model: MultiExitBert
    tokenizer: PreTrainedTokenizerBase
    rows: list[Row]
    tuned: bool


def load_inputs(folder: Path) -> list[GivenModel]:
    """All models that `make_inputs` or `bench.gpu.tuned.make_tuned` left in a folder, each with the rows of its set.

    Raises:
        ValueError: a file is missing or does not have the size that it was made with.
    """
    contents = folder / CONTENTS
    if not contents.is_file():
        raise ValueError(f"{contents} is missing: make the folder by python -m bench.gpu.inputs or bench.gpu.tuned")
    made = json.loads(contents.read_text(encoding="utf-8"))
    for name, size in made["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            raise ValueError(f"{folder / name} is {'missing' if found is None else f'of {found} bytes'}, expected {size} bytes")
    given = []
    for name in made["models"]:
        with tempfile.TemporaryDirectory() as there:
            unpacked = Path(there)
            shutil.unpack_archive(folder / f"{name}.zip", unpacked)
            tokenizer = AutoTokenizer.from_pretrained(unpacked)
            backbone = load_file(unpacked / BACKBONE)
            for data_set in made["sets"]:
                rows = read_rows(folder / f"{data_set}.jsonl", required=("text", "label"))
                tuned = (unpacked / data_set / CHANGES).is_file()
                given.append(GivenModel(f"{name} {data_set}", _load(unpacked / data_set, backbone), tokenizer, rows, tuned))
    return given


def _load(folder: Path, backbone: Mapping[str, torch.Tensor]) -> MultiExitBert:
    """The model of one set, made from the stored backbone."""
    model = MultiExitBert(MultiExitBertConfig.from_pretrained(folder)).eval()
    weights = unpack({name: stored for name, stored in backbone.items() if name != KEPT})
    if (folder / CHANGES).is_file():
        weights = changed(weights, unpack(load_file(folder / CHANGES)))
    words = torch.zeros_like(model.bert.embeddings.word_embeddings.weight)
    words[backbone[KEPT].long()] = weights[WORDS]
    model.bert.load_state_dict({**weights, WORDS: words})
    model.heads.load_state_dict(unpack(load_file(folder / HEADS)))
    model.exit_table = ExitTable.load(folder)
    return model


def changed(weights: Mapping[str, torch.Tensor], changes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the same names and shapes with their changes added."""
    return {name: weight + changes[name] for name, weight in weights.items()}


def make_inputs(
    folder: Path,
    data: Path,
    sources: Mapping[str, Path],
    sets: Sequence[str] = SETS,
    train_rows: int = 3000,
    test_rows: int = 800,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Fill a folder for `load_inputs`, and print sizes and seconds.

    Args:
        folder: a new or empty folder.
        data: a folder with SET/train.jsonl and SET/test.jsonl of each set, with columns text, label and perhaps text_pair.
        sources: name of a model -> the folder of a BERT with its tokenizer.
        sets: the names of data sets.
        train_rows, test_rows: the largest number of rows of each set. They are spread over the file.
        most_bytes: the largest size of the folder.

    Raises:
        ValueError: the folder holds something, a data file is missing, or the folder would be larger than `most_bytes`.
    """
    start_folder(folder)
    train, test = (
        {name: spread(read_rows(data / name / f"{split}.jsonl", required=("text", "label")), rows) for name in sets}
        for split, rows in (("train", train_rows), ("test", test_rows))
    )
    for name, source in sources.items():
        puts = {of: partial(_put_exits, source=source, rows=train[of]) for of in sets}
        put_model(folder, name, source, test, puts)
        print(f"{name}: {_check_size(folder, most_bytes) / 1e6:.1f} MB so far", flush=True)
    end_folder(folder, list(sources), test, most_bytes)


def start_folder(folder: Path) -> None:
    """Make the folder. ValueError if it holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"folder must be new or empty, got {folder}, which holds {sorted(folder.iterdir())[0].name}")
    folder.mkdir(parents=True, exist_ok=True)


def end_folder(folder: Path, models: Sequence[str], test: Mapping[str, Sequence[Row]], most_bytes: int) -> None:
    """Write the rows of each set, and what the folder holds. ValueError if that is more than `most_bytes`."""
    for name, rows in test.items():
        lines = (json.dumps({key: row[key] for key in COLUMNS if key in row}, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    contents = {"models": list(models), "sets": list(test), "files": files}
    (folder / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    print(f"{folder}: {_check_size(folder, most_bytes) / 1e6:.1f} MB")


def spread(rows: list[Row], size: int) -> list[Row]:
    """At most `size` rows, at even distances."""
    size = min(size, len(rows))
    return [rows[index * len(rows) // size] for index in range(size)]


def _check_size(folder: Path, most_bytes: int) -> int:
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > most_bytes:
        raise ValueError(f"{folder} holds {size} bytes, more than the {most_bytes} allowed: fewer models, sets or rows")
    return size


@dataclass(frozen=True, eq=False)
class Carried:
    """A backbone that is carried.

    Attributes:
        weights: as they will be unpacked, with all words.
        kept: [K] int64, the words of the rows, and special ones. Other words are not carried.
        tokenizer: its tokenizer.
    """

    weights: dict[str, torch.Tensor]
    kept: torch.Tensor
    tokenizer: PreTrainedTokenizerBase


PutSet = Callable[[Path, Carried], None]  # fills the folder of a set


def put_model(folder: Path, name: str, source: Path, test: Mapping[str, Sequence[Row]], puts: Mapping[str, PutSet]) -> None:
    """Put an archive of a model into the folder: its tokenizer, its layers and, for each set, what makes it answer.

    Args:
        folder: of all models.
        name: of the model.
        source: the folder of a BERT with its tokenizer.
        test: rows of each set.
        puts: what puts a set's part.
    """
    with tempfile.TemporaryDirectory() as there:
        work = Path(there) / name
        work.mkdir()
        for file in ("config.json", *TOKENIZER_FILES):
            if (source / file).is_file():
                shutil.copyfile(source / file, work / file)
        tokenizer = AutoTokenizer.from_pretrained(work)
        packed = pack(BertModel.from_pretrained(source, add_pooling_layer=False, dtype=torch.float32).state_dict())
        texts = list(iter_samples(row for rows in test.values() for row in rows))
        ids = Encoder(tokenizer, max_length=sys.maxsize)(texts).ids
        kept = torch.cat([ids, torch.tensor(tokenizer.all_special_ids)]).unique()
        stored = {name: weight[kept] if name.startswith(WORDS) else weight for name, weight in packed.items()}
        save_file({**stored, KEPT: kept.int()}, work / BACKBONE)
        carried = Carried(unpack(packed), kept, tokenizer)
        for data_set, put in puts.items():
            start = time.perf_counter()
            put(work / data_set, carried)
            print(f"{name} {data_set}: {time.perf_counter() - start:.0f} s", flush=True)
        shutil.make_archive(str(folder / name), "zip", work)


def _put_exits(folder: Path, carried: Carried, source: Path, rows: Sequence[Row]) -> None:
    """Write a configuration, exits that are trained on the weights that will be carried, and their table."""
    names = label_names(rows)
    ids: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = MultiExitBert.from_pretrained(
        source, num_labels=len(names), head="linear", pooling="mean", dtype=torch.float32, **ids
    ).eval()
    model.bert.load_state_dict(carried.weights)
    tokenizer = carried.tokenizer
    found = TextDataset(rows, Encoder(tokenizer, **OPTIONS), model.config.label2id)
    features = mean_states(model, found.tokens, tokenizer.pad_token_id)
    for layer, states in zip(model.config.exit_layers, features, strict=True):
        weight, bias = fit_linear(states, torch.tensor(found.labels), len(names))
        model.heads[str(layer)].classifier.load_state_dict({"weight": weight, "bias": bias})
    heads = pack(model.heads.state_dict())
    model.heads.load_state_dict(unpack(heads))  # the table is of what will run
    model.config.save_pretrained(folder)
    save_file(heads, folder / HEADS)
    exit_table(model, tokenizer, found.tokens, features).save_pretrained(folder)


@torch.no_grad()
def exit_table(model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, features: torch.Tensor) -> ExitTable:
    """The table that `build_exit_table` makes, from the features of `mean_states` instead of another run of the layers."""
    layers = model.config.exit_layers
    logits = torch.stack([model.heads[str(layer)].classifier(part) for layer, part in zip(layers, features, strict=True)], 1)
    uncertainty = score_exits(logits.flatten(0, 1), TABLE.threshold).uncertainty.view(logits.shape[:2])
    return ExitTable.from_records(
        ExitRecords(tokens, uncertainty),
        layers,
        TABLE,
        model.config.vocab_size,
        tokenizer_fingerprint(tokenizer),
        uncounted_ids(tokenizer),
    ).without_records()


@torch.no_grad()
def mean_states(model: MultiExitBert, tokens: Tokens, pad_id: int) -> torch.Tensor:
    """The mean state [E, N, H] float32 of a sample's tokens after the layer of each exit."""
    layers = model.config.exit_layers
    features = torch.empty(len(layers), len(tokens), model.config.hidden_size)
    for rows in tokens.lengths.argsort().split(BATCH):
        ids, mask, type_ids = tokens.padded(rows, pad_id)
        states = model(ids, mask, type_ids, output_hidden_states=True).hidden_states
        features[:, rows] = torch.stack([pool(states[layer], mask, "mean") for layer in layers])
    return features


def fit_linear(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression of labels [N] int64 on features [N, H]: weight [C, H], bias [C]."""
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    scaled = (features - mean) / deviation
    weight, bias = (torch.zeros(*shape, requires_grad=True) for shape in ((classes, features.shape[1]), (classes,)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(scaled, weight, bias), labels) + DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight = weight.detach() / deviation
    return weight, bias.detach() - weight @ mean


def answers_of(model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> EveryExit:
    """Every exit's answers."""
    return Engine(model, tokenizer, "full", **OPTIONS).every_exit(rows)


def accuracies(given: GivenModel) -> list[float]:
    """The accuracy of each exit on the rows, from shallow to deep."""
    logits = answers_of(given.model, given.tokenizer, given.rows).logits
    labels = torch.tensor([given.model.config.label2id[str(row["label"])] for row in given.rows])
    return (logits.argmax(-1) == labels[:, None]).double().mean(0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DEST", help="new or empty")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="of SET/train.jsonl and SET/test.jsonl")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a BERT with its tokenizer; default: MiniLM's package")
    parser.add_argument("--e5", type=Path, metavar="FOLDER", help="also this one, of twelve layers")
    parser.add_argument("--train-rows", type=int, default=3000)
    parser.add_argument("--test-rows", type=int, default=800)
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # that fresh exits are untrained goes without saying
    logging.disable_progress_bar()
    sources = {"minilm": arguments.model or pretrained_folder()}
    if arguments.e5 is not None:
        sources["e5"] = arguments.e5
    start = time.perf_counter()
    make_inputs(arguments.folder, arguments.data, sources, arguments.sets, arguments.train_rows, arguments.test_rows)
    for given in load_inputs(arguments.folder):
        print(f"{given.name}, accuracy of each exit:", " ".join(f"{share:.3f}" for share in accuracies(given)), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

"""Trains the model of a cell step by step, and records every exit's answers on its tuning and test rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, TrainingArguments

from bench.cells import locked
from bench.claims import sets
from bench.claims.arms import START, Step
from bench.claims.design import BATCH_SIZE, DIFFICULTY_FOLDS, HEAD_LEARNING_RATE, HEADS, LEARNING_RATE, Cell
from bench.claims.records import Record, answers_of, load_record, save_record
from bench.claims.rows import Rows, rows_of
from bench.training import declared, digest, timed, total, train, training_arguments, write_json
from geep_triton import Engine, MultiExitBert
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.difficulty import cross_review, full_model_teacher, remembered, within_classes
from geep_triton.training.recipes import get_recipe

SAVE_STEPS = 100
PARTS = ("tune", "test")


class Runner:
    """Trains cells.

    Args:
        work: folder for checkpoints, trained models and records.
        backbone: folder of the pretrained model.
        deadline: of `time.monotonic()`, after which a training stops.
        limit: at most so many rows of each part, to try it out.
    """

    def __init__(self, work: Path, backbone: Path, deadline: float, limit: int | None = None) -> None:
        self.work = work
        self.backbone = backbone
        self.deadline = deadline
        self.limit = limit
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(backbone)

    def folder_of(self, cell: Cell) -> Path:
        """Where a cell's model and records are."""
        return self.work / f"{cell.name}.{digest(declared(cell, self.limit))}"

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and record a cell, or go on with it.

        Returns:
            What the training took, and what each exit answers on the test rows.

        Raises:
            OutOfTime: at the deadline. Call again to go on.
        """
        folder, rows = self.folder_of(cell), rows_of(cell.data_set, self.limit)
        spent = self.trained(cell, rows)
        files = {part: folder / f"{part}.safetensors" for part in PARTS}
        if not all(path.is_file() for path in files.values()):
            model = MultiExitBert.from_pretrained(folder / "model").eval()
            for part, path in files.items():
                save_record(self.record(cell, model, getattr(rows, part)), path)
        records = {part: load_record(path) for part, path in files.items()}
        if not kept(cell):
            shutil.rmtree(folder / "model", ignore_errors=True)
        return {
            "samples": {"train": len(rows.train), "tune": len(rows.tune), "test": len(rows.test)},
            "training": spent,
            "exit_layers": list(cell.arm.exit_layers),
            "tune": answers_of(cell.data_set.metric, records["tune"], rows.tune).by_exit,
            **answers_of(cell.data_set.metric, records["test"], rows.test).metrics(),
        }

    def trained(self, cell: Cell, rows: Rows) -> dict[str, Any]:
        """Train the cell's model, unless it is there. Returns the seconds of its steps and of its difficulties."""
        folder = self.folder_of(cell)
        done = folder / "training.json"
        with locked(str(folder.resolve())):
            if done.is_file():
                return json.loads(done.read_text())
            steps = [self.step(cell, number, rows) for number in range(len(cell.arm.steps))]
            last = folder / f"step{len(steps)}" / "model"
            if last.is_dir():  # a kill may have come between the next lines
                last.rename(folder / "model")
            spent = {**total(steps), "steps": [one["cpu_seconds"] for one in steps], "difficulty": total(self.reviewed(cell))}
            write_json(done, spent)
            for other in folder.glob("step*"):
                shutil.rmtree(other)
        return spent

    def step(self, cell: Cell, number: int, rows: Rows) -> dict[str, float]:
        """Train one step of a cell, unless it is there. Returns the seconds that it took."""
        step, folder = cell.arm.steps[number], self.folder_of(cell) / f"step{number + 1}"
        if (folder / "spent.json").is_file():
            return json.loads((folder / "spent.json").read_text())
        before = folder.with_name(f"step{number}") / "model"
        model = self.fresh(cell, rows) if number == 0 else MultiExitBert.from_pretrained(before)
        frozen_words(model)
        if step.separate:
            separate_exits(model)
        train_set, changes = self.dataset(cell, model, rows.train), dict[str, Any]()
        if step.curriculum is not None:
            changes = {"curriculum": step.curriculum, "difficulty": self.difficulty(cell, rows, train_set)}
        if step.best:
            changes["eval_dataset"] = self.dataset(cell, model, rows.tune)
        _, spent = train(
            folder / "model",
            self.deadline,
            self.tokenizer,
            arguments(folder / "checkpoints", step, cell.seed),
            model=model,
            train_dataset=train_set,
            recipe=get_recipe(step.recipe, **step.settings),
            head_learning_rate=HEAD_LEARNING_RATE,
            gate_learning_rate=HEAD_LEARNING_RATE if len(model.gates) else None,
            **changes,
        )
        write_json(folder / "spent.json", spent)
        shutil.rmtree(folder / "checkpoints")
        return spent

    def fresh(self, cell: Cell, rows: Rows) -> MultiExitBert:
        """The pretrained model, or that of the data set it starts from, with new heads and gates that follow from the seed."""
        torch.manual_seed(cell.seed)
        names = label_names([*rows.train, *rows.tune, *rows.test])
        model = MultiExitBert.from_pretrained(
            self.backbone,
            num_hidden_layers=cell.arm.layers,
            exit_layers=list(cell.arm.exit_layers),
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            **HEADS,
            **cell.arm.model,
        )
        if cell.data_set.start is not None:
            first = Cell(sets.SETS[cell.data_set.start], START, cell.seed)
            self.trained(first, rows_of(first.data_set, self.limit))
            started = MultiExitBert.from_pretrained(self.folder_of(first) / "model")
            model.bert.load_state_dict(started.bert.state_dict())
        return model

    def dataset(self, cell: Cell, model: MultiExitBert, rows: Sequence[Row]) -> TextDataset:
        """Rows as the model takes them."""
        encoder = Encoder(self.tokenizer, cell.data_set.max_length, truncation=True)
        return TextDataset(list(rows), encoder, model.config.label2id, progress=False)

    def record(self, cell: Cell, model: MultiExitBert, rows: list[Row]) -> Record:
        """What every exit of a trained model answers to these rows."""
        policy = "full+skip:gates" if len(model.gates) else "full"
        settings = {"max_length": cell.data_set.max_length, "truncation": True, "runner": "onednn", "progress": False}
        found = Engine(model, self.tokenizer, policy, **settings).every_exit(rows)
        labels = torch.tensor([model.config.label2id[str(row["label"])] for row in rows])
        return Record(found.logits, found.tokens.lengths, labels, found.skipped)

    def difficulty(self, cell: Cell, rows: Rows, train_set: TextDataset) -> torch.Tensor:
        """Difficulty within each class, by the cross review that the cells of a data set and a seed share."""
        folder, labels = self.review_folder(cell), torch.tensor(train_set.labels)
        review = Cell(cell.data_set, START, cell.seed)
        teach = full_model_teacher(
            lambda: frozen_words(self.fresh(review, rows)),
            arguments(folder / "teacher", START.steps[0], cell.seed, save_strategy="no"),
            DataCollatorWithPadding(self.tokenizer),
            train_set,
        )
        with locked(str(folder.resolve())):
            teach = remembered(timed(teach, folder, self.deadline), folder)
            difficulty = cross_review(labels, train_set, teach, DIFFICULTY_FOLDS, cell.seed)
            return within_classes(difficulty, labels, cell.seed)

    def review_folder(self, cell: Cell) -> Path:
        """Where the cross review of a data set and a seed is."""
        folder = self.folder_of(Cell(cell.data_set, START, cell.seed))
        return folder.with_name(f"{folder.name}.review")

    def reviewed(self, cell: Cell) -> list[dict[str, float]]:
        """The seconds that each teacher of the cell's difficulties took."""
        if all(step.curriculum is None for step in cell.arm.steps):
            return []
        return [json.loads(path.read_text()) for path in sorted(self.review_folder(cell).glob("spent_*.json"))]


def arguments(folder: Path, step: Step, seed: int, **changes: Any) -> TrainingArguments:
    """Of the training of a step."""
    strategy: dict[str, Any] = {"save_steps": SAVE_STEPS, "save_total_limit": 1}
    if step.best:
        strategy = {
            "save_strategy": "epoch",
            "eval_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": "accuracy",
            "save_total_limit": 2,  # with one, a training that is stopped keeps the best and loses what came after
        }
    return training_arguments(folder, step.epochs, BATCH_SIZE, LEARNING_RATE, seed, **{**strategy, **changes})


def kept(cell: Cell) -> bool:
    """Whether the model stays after its exits are recorded: those that are timed, and those that others start from."""
    timed_arms = ("geep", "exits", "smartbert")
    return cell.arm == START or (cell.seed == 1 and cell.arm.name.split("-")[0] in timed_arms)


def frozen_words(model: MultiExitBert) -> MultiExitBert:
    """Freeze the word embeddings, half of the weights, which a few thousand rows can hardly improve."""
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    return model


def separate_exits(model: MultiExitBert) -> None:
    """Let no gradient pass an exit, so that each layer learns from the next exit alone (SWEET, Rotem et al. 2023)."""
    for layer in model.config.exit_layers[:-1]:
        model.bert.encoder.layer[layer].register_forward_pre_hook(detach_states)


def detach_states(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A hook: the states that a layer gets, cut off from the layers below."""
    return (arguments[0].detach(), *arguments[1:])

"""One cell of the grid: it trains, evaluates every exit on the test set, and measures the time."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from bench.cells import OutOfTime, locked
from bench.claims.data import fresh_model, rows_of, source, tokenizer_of
from bench.claims.grid import DIFFICULTY_FOLDS, HEAD_LEARNING_RATE, TRAINING, Cell
from bench.claims.metrics import CLASS_METRICS, area_over_depth, per_exit, ranking
from geep_triton import Engine, MultiExitTrainer
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.dataset import TextDataset
from geep_triton.training.difficulty import Teach, cross_review, full_model_teacher, remembered
from geep_triton.training.recipes import get_recipe

SAVE_STEPS = 200


def now() -> dict[str, float]:
    """Seconds on the wall, and of all this process's threads, which a machine shared with others falsifies less."""
    return {"wall_seconds": time.monotonic(), "cpu_seconds": time.process_time()}


def since(start: dict[str, float]) -> dict[str, float]:
    """Seconds that passed."""
    return {name: value - start[name] for name, value in now().items()}


def total(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Seconds of several stretches."""
    spent = list(parts)
    return {name: sum(part[name] for part in spent) for name in now()}


class Declares(Protocol):
    """A cell that says what its result follows from."""

    def declaration(self) -> dict[str, Any]:
        """All but the rows' source and a trial's limit."""


class Clock(TrainerCallback, ExportableState):
    """Counts a training's seconds over all its parts, and stops it at a deadline with a checkpoint to go on from."""

    def __init__(self, deadline: float, checkpoint: Path | None) -> None:
        self.deadline = deadline
        self.before = total([])
        if checkpoint is not None:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            self.before = state["stateful_callbacks"]["Clock"]["attributes"]["spent"]
        self.start = now()

    @property
    def spent(self) -> dict[str, float]:
        return total([self.before, since(self.start)])

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() > self.deadline:
            control.should_save = control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"spent": self.spent}}


def digest(declaration: dict[str, Any]) -> str:
    """Tells one declaration from another."""
    return hashlib.sha256(json.dumps(declaration, sort_keys=True).encode()).hexdigest()[:8]


def training_arguments(
    folder: Path, epochs: float, batch_size: int, learning_rate: float, seed: int, **changes: Any
) -> TrainingArguments:
    """What all trainings of the experiments have in common."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        report_to=[],
        logging_steps=50,
        disable_tqdm=True,
        **{"per_device_eval_batch_size": 128, **TRAINING, **changes},
    )


def train(
    folder: Path, deadline: float, tokenizer: PreTrainedTokenizerBase, arguments: TrainingArguments, **changes: Any
) -> tuple[MultiExitTrainer, dict[str, float]]:
    """Train to the end, from the last whole checkpoint where there is one, and save model and tokenizer.

    Args:
        folder: for the model; the arguments' folder is for its checkpoints.
        deadline: of `time.monotonic()`.
        tokenizer: of the model.
        arguments: of the training.
        **changes: further arguments of `MultiExitTrainer`.

    Returns:
        The trainer, and the seconds it took.

    Raises:
        OutOfTime: at the deadline; call again to go on.
    """
    checkpoint = last_whole_checkpoint(Path(str(arguments.output_dir)))
    clock = Clock(deadline, checkpoint)
    trainer = MultiExitTrainer(args=arguments, data_collator=DataCollatorWithPadding(tokenizer), callbacks=[clock], **changes)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    spent = clock.spent
    if trainer.state.global_step < trainer.state.max_steps:
        raise OutOfTime
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return trainer, spent


def declared(cell: Declares, limit: int | None) -> dict[str, Any]:
    """All that the result of a cell follows from, the rows' source and a trial's limit among it."""
    return cell.declaration() | {"source": source()} | ({} if limit is None else {"limit": limit})


def run_cell(cell: Cell, cache: Path, deadline: float, limit: int | None = None) -> dict[str, Any]:
    """Train and judge a cell, or go on with it.

    Args:
        cell: to run.
        cache: folder for checkpoints, trained models and difficulties.
        deadline: of `time.monotonic()`, after which the training stops.
        limit: at most as many samples, to try the grid out.

    Returns:
        Metrics of its method.

    Raises:
        OutOfTime: at the deadline; call again to go on.
    """
    folder = cache / f"{cell.name}.{digest(declared(cell, limit))}"
    train_rows, test_rows = rows_of(cell.data_set, limit)
    tokenizer = tokenizer_of(cell.data_set)
    recipe = get_recipe(cell.method.recipe, **cell.method.settings)
    model = fresh_model(cell.data_set, tokenizer, train_rows, cell.seed)
    train_set = TextDataset(train_rows, Encoder(tokenizer, cell.data_set.max_length, truncation=True), model.config.label2id)
    difficulty, review = None, total([])
    if cell.method.curriculum is not None:
        difficulty, review = difficulty_of(cell, cache, deadline, limit, tokenizer, train_rows, train_set)

    arguments = training_arguments(
        folder / "checkpoints",
        cell.data_set.epochs * cell.method.epochs,
        cell.data_set.batch_size,
        cell.data_set.learning_rate,
        cell.seed,
        save_steps=SAVE_STEPS,
        save_total_limit=1,
    )
    trainer, spent = train(
        folder / "model",
        deadline,
        tokenizer,
        arguments,
        model=model,
        train_dataset=train_set,
        recipe=recipe,
        head_learning_rate=HEAD_LEARNING_RATE,
        curriculum=cell.method.curriculum,
        difficulty=difficulty,
    )

    engine = Engine(model.eval(), tokenizer, "full", max_length=cell.data_set.max_length, truncation=True)
    logits = engine.every_exit(test_rows).logits
    labels = torch.tensor([model.config.label2id[str(row["label"])] for row in test_rows])
    shutil.rmtree(folder / "checkpoints")
    return {
        "samples": {"train": len(train_rows), "test": len(test_rows)},
        "steps": trainer.state.max_steps,
        "training": spent,
        "difficulty": review,
        "exit_layers": model.config.exit_layers,
        **judged(cell.data_set.metric, logits, labels, test_rows, model.config.exit_layers),
    }


def judged(metric: str, logits: torch.Tensor, labels: torch.Tensor, rows: list[Row], exit_layers: list[int]) -> dict[str, Any]:
    """Metrics per exit, and each exit's scores of single samples (or questions), on which intervals are built."""
    metrics = {name: per_exit(name, logits, labels) for name in CLASS_METRICS}
    scores = (logits.argmax(-1) == labels[:, None]).int().T.tolist()
    if metric == "map":
        questions = [row["text"] for row in rows]
        margins = logits.log_softmax(-1)[..., 1]
        rankings = [ranking(margins[:, k], labels, questions) for k in range(logits.shape[1])]
        metrics |= {
            "map": [one.mean_average_precision for one in rankings],
            "mrr": [one.mean_reciprocal_rank for one in rankings],
        }
        scores = [[round(value, 4) for value in one.average_precisions] for one in rankings]
    return {
        "metrics": metrics,
        "area": area_over_depth(metrics[metric], exit_layers),
        "scores": [" ".join(f"{value:g}" for value in one) if metric == "map" else "".join(map(str, one)) for one in scores],
    }


def difficulty_of(
    cell: Cell,
    cache: Path,
    deadline: float,
    limit: int | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    train_set: TextDataset,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Difficulty by cross review, which the cells of a data set and a seed share, and the seconds it took."""
    shared = {name: value for name, value in declared(cell, limit).items() if name != "method"}
    folder = cache / f"{cell.data_set.name}.difficulty.{cell.seed}.{digest(shared)}"
    teach = full_model_teacher(
        lambda: fresh_model(cell.data_set, tokenizer, rows, cell.seed),
        training_arguments(
            folder / "teacher",
            cell.data_set.epochs,
            cell.data_set.batch_size,
            cell.data_set.learning_rate,
            cell.seed,
            save_strategy="no",
        ),
        DataCollatorWithPadding(tokenizer),
        train_set,
    )
    with locked(str(folder.resolve())):
        labels = torch.tensor(train_set.labels)
        teach = remembered(timed(teach, folder, deadline), folder)
        difficulty = cross_review(labels, train_set, teach, DIFFICULTY_FOLDS, cell.seed)
        reviews = [json.loads(path.read_text()) for path in sorted(folder.glob("spent_*.json"))]
    return difficulty, total(reviews)


def timed(teach: Teach, folder: Path, deadline: float) -> Teach:
    """`teach` that stops at the deadline, and leaves the seconds that each teacher took in a file of its own."""

    def measure(part: Dataset) -> torch.Tensor:
        if time.monotonic() > deadline:
            raise OutOfTime
        start = now()
        answers = teach(part)
        write_json(folder / f"spent_{len(list(folder.glob('answers_*.json')))}.json", since(start))
        return answers

    return measure


def write_json(path: Path, content: dict[str, Any]) -> None:
    """All or nothing: a kill leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)

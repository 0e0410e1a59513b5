"""Trainings of experiments: they stop at a deadline, go on later, and count their seconds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from bench.cells import OutOfTime
from geep_triton import MultiExitTrainer
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.difficulty import Teach

HEAD_LEARNING_RATE = 1e-3
TRAINING = {"warmup_steps": 0.06, "train_sampling_strategy": "group_by_length", "bf16": True}


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
        """All but a trial's limit."""


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

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A stop ends an epoch, too. Its weights may not be taken for the best epoch's."""
        if control.should_training_stop and state.epoch % 1:
            control.should_evaluate = False

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
    """All that the result of a cell follows from, a trial's limit among it."""
    return cell.declaration() | ({} if limit is None else {"limit": limit})


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

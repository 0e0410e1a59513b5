"""Checkpoints: whether they are complete, and which recipe trained them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from geep_triton.exit_config import EXIT_CONFIG_FILE, read_exit_config
from geep_triton.modeling.weights import check_digest, index_name, weight_files, weights_name
from geep_triton.saving import saved_config, saved_digests
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.stages import Recipe

logger = logging.get_logger(__name__)

FOR_RESUMING = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
# Adapters, and weights that each process saves a part of.
OTHER_WEIGHTS = ("adapter_model*", "pytorch_model*", "global_step*", "*.distcp")


class RecipeRecord(TrainerCallback, ExportableState):
    """Stores the recipe, its settings and the curriculum in the trainer_state.json of each checkpoint.

    Args:
        name: name of the recipe.
        settings: settings of the recipe.
        curriculum: text of the curriculum, or None. Checkpoints of version 0.1 do not have it.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], curriculum: str | None = None) -> None:
        self.name = name
        self.settings = settings
        self.curriculum = curriculum

    @classmethod
    def of(cls, recipe: Recipe, curriculum: Callable[[float], float] | None) -> RecipeRecord:
        """The record of a training."""
        if curriculum is None or isinstance(curriculum, Curriculum):
            text = None if curriculum is None else repr(curriculum)
        else:
            text = getattr(curriculum, "__qualname__", type(curriculum).__qualname__)
        return cls(recipe.name, dict(recipe.settings), text)

    def state(self) -> dict[str, Any]:
        """The state that transformers writes."""
        return {"args": dict(vars(self)), "attributes": {}}

    def __str__(self) -> str:
        return f"{self.name!r} with settings {self.settings}" + (f" and {self.curriculum}" if self.curriculum else "")


def check_same_steps(recipe: Recipe, curriculum: Callable[[float], float] | None, checkpoint: Path, max_steps: int) -> None:
    """Check that the number of steps is unchanged if the recipe's stages or the curriculum are shares of it.

    Raises:
        ValueError: the training of `checkpoint` had another number of steps.
    """
    before = (_read_state(checkpoint) or {}).get("max_steps", max_steps)
    moves = curriculum is not None or (len(recipe.stages) > 1 and not recipe.alternating)
    if before != max_steps and moves:
        raise ValueError(
            f"{checkpoint} belongs to a training of {before} steps, but this training has {max_steps}: the stages of recipe "
            f"{recipe.name!r} or the curriculum would shift. Resume with the same epochs and batches, or start anew from the "
            "saved model"
        )


def checkpoint_of(resume_from_checkpoint: str | bool | None, output_dir: str | os.PathLike) -> Path | None:
    """The checkpoint that transformers' Trainer would resume from, or None.

    Raises:
        ValueError: there is no checkpoint, or it is damaged. The error names it and the newest complete checkpoint.
    """
    if not resume_from_checkpoint:
        return None
    if resume_from_checkpoint is True:
        found = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
        if found is None:
            raise ValueError(f"{output_dir} has no checkpoint to resume from: leave out resume_from_checkpoint")
    else:
        found = resume_from_checkpoint
    if (why := damage_of(Path(found))) is not None:
        whole = last_whole_checkpoint(Path(found).parent)
        others = "" if whole is None else f": resume from {whole} with resume_from_checkpoint={str(whole)!r}"
        raise ValueError(f"{found} is not a complete checkpoint ({why}){others}")
    return Path(found)


def check_same_recipe(record: RecipeRecord, checkpoint: Path) -> None:
    """Check that a checkpoint was trained by the same recipe, settings and curriculum. A checkpoint without a record passes.

    Raises:
        ValueError: they differ.
    """
    found = (_read_state(checkpoint) or {}).get("stateful_callbacks", {}).get(RecipeRecord.__name__)
    if found is None:
        return
    before, now = RecipeRecord(**found["args"]), RecipeRecord(**json.loads(json.dumps(record.state()["args"])))
    if vars(before) != vars(now):
        raise ValueError(
            f"{checkpoint} was trained by recipe {before}, but this training uses {now}: resume with the same, or start anew "
            "in another folder"
        )


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of transformers' Trainer, or None. A warning names newer ones and their damage."""
    found = ((path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*"))
    numbered = [(int(number), path) for number, path in found if number.isdecimal()]  # a copy named by hand has another name
    checkpoints = [path for _, path in sorted(numbered, reverse=True)]
    for checkpoint in checkpoints:
        if (why := damage_of(checkpoint)) is None:
            return checkpoint
        logger.warning(f"{checkpoint} is skipped, because it is not a complete checkpoint ({why}).")
    return None


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint of transformers' Trainer. None if its files show no damage.

    The Trainer writes `trainer_state.json` last. A checkpoint without a readable one was interrupted while it was written.
    """
    if not checkpoint.is_dir():
        return "no such folder"
    if _read_state(checkpoint) is None:
        return "its trainer_state.json is missing or damaged: its saving was interrupted"
    files = {path.name: path for path in checkpoint.iterdir()}
    find = files.get
    if "config.json" in files and not saved_config(checkpoint):
        return "its config.json is damaged or cut off"
    if whole := [name for name in FOR_RESUMING if list(checkpoint.glob(name))]:  # else only weights were saved
        missing = [name for name in FOR_RESUMING if name not in whole]
        if missing and not any(list(checkpoint.glob(pattern)) for pattern in OTHER_WEIGHTS):
            return f"{missing[0]} is missing, so the training could not continue as it was"
    try:
        if EXIT_CONFIG_FILE in files:
            read_exit_config(files[EXIT_CONFIG_FILE])
        if find(weights_name(None)) or find(index_name(None)):
            check_digest(checkpoint, saved_digests(checkpoint), None, weight_files(checkpoint, find, None))
        elif not any(path for pattern in OTHER_WEIGHTS for path in checkpoint.glob(pattern)):
            return f"it has no weights: expected {weights_name(None)} or its index"
    except ValueError as error:
        return str(error)
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
        try:
            with ZipFile(path) as file:
                intact = file.testzip() is None
        except (BadZipFile, OSError):
            intact = False
        if not intact:
            return f"{path.name} is damaged or cut off"
    return None


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None

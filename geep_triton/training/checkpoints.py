"""Checkpoints: where a killed training can go on, and by which recipe it was trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from geep_triton.training.stages import Recipe


class RecipeRecord(TrainerCallback, ExportableState):
    """Has each checkpoint's trainer_state.json say which recipe, with which settings, it was trained by."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.settings = settings

    def state(self) -> dict[str, Any]:
        """What transformers writes."""
        return {"args": {"name": self.name, "settings": self.settings}, "attributes": {}}


def check_same_steps(recipe: Recipe, checkpoint: Path, max_steps: int) -> None:
    """Raise ValueError where the training to go on with was `checkpoint`'s of another number of steps, and the recipe's stages
    or curriculum are shares of them.
    """
    before = (_read_state(checkpoint) or {}).get("max_steps", max_steps)
    if before != max_steps and (len(recipe.stages) > 1 or recipe.curriculum is not None) and not recipe.alternating:
        raise ValueError(
            f"{checkpoint} stands in a training of {before} steps, now it is to have {max_steps}: stages and curriculum of "
            f"recipe {recipe.name!r} would move. Go on with the same epochs and batches, or start anew from the saved model"
        )


def checkpoint_of(resume_from_checkpoint: str | bool | None, output_dir: str | os.PathLike) -> Path | None:
    """The checkpoint that transformers' Trainer would go on from, or None."""
    if not resume_from_checkpoint:
        return None
    found = get_last_checkpoint(output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
    return None if found is None else Path(found)


def check_same_recipe(recipe: Recipe, checkpoint: Path) -> None:
    """Raise ValueError where the checkpoint was trained by another recipe, or with other settings; one without a record
    passes.
    """
    record = (_read_state(checkpoint) or {}).get("stateful_callbacks", {}).get(RecipeRecord.__name__)
    if record is None:
        return
    before = record["args"]
    now = json.loads(json.dumps({"name": recipe.name, "settings": dict(recipe.settings)}))
    if before != now:
        raise ValueError(
            f"{checkpoint} was trained by recipe {before['name']!r} with settings {before['settings']}, now it is "
            f"{now['name']!r} with {now['settings']}: go on with the same, or start anew in another folder"
        )


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of transformers' Trainer that was written to its end, or None.

    The Trainer writes `trainer_state.json` last, so a checkpoint without a readable one was cut off by a kill.
    """
    checkpoints = sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in checkpoints if _read_state(path) is not None), None)


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

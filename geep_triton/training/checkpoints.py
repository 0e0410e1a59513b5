"""Finding where a killed training can go on."""

from __future__ import annotations

import json
from pathlib import Path


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of transformers' Trainer that was written to its end, or None.

    The Trainer writes `trainer_state.json` last, so a checkpoint without a readable one was cut off by a kill.
    """
    checkpoints = sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in checkpoints if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True

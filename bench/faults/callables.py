"""Everything that a user can call, with right arguments, and for each argument the values that it must refuse.

The losses, samplers and layers that only the trainer and the engine call are not here, nor what opens figures.
"""

from __future__ import annotations

from pathlib import Path

from bench.faults.call_data import data_targets, judging_targets
from bench.faults.call_engine import engine_targets
from bench.faults.call_model import model_targets, table_targets
from bench.faults.call_ops import ops_targets
from bench.faults.material import make_engine
from bench.faults.target import Target


def targets(folder: Path) -> list[Target]:
    """All targets, which work on small models."""
    engine = make_engine()
    engine.save_pretrained(folder / "model")
    return [
        *engine_targets(engine),
        *model_targets(engine, folder),
        *table_targets(engine),
        *ops_targets(engine),
        *data_targets(engine),
        *judging_targets(),
    ]

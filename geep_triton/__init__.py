"""Multi-exit BERT: every sample runs only the layers it needs, every batch stays dense."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForSequenceClassification

from geep_triton.config import MultiExitBertConfig
from geep_triton.modeling.model import MultiExitBert

if TYPE_CHECKING:
    from geep_triton.batching import schedule as schedule
    from geep_triton.engine.calibrate import Calibration as Calibration
    from geep_triton.engine.collect import build_exit_table as build_exit_table
    from geep_triton.engine.engine import Engine as Engine
    from geep_triton.exits.table import ExitTable as ExitTable
    from geep_triton.outputs import Predictions as Predictions
    from geep_triton.training.trainer import MultiExitTrainer as MultiExitTrainer

__version__ = "0.1.0"

# Imported on first use: the trainer alone would double the time that `import geep_triton` takes.
_LAZY = {
    "Calibration": "geep_triton.engine.calibrate",
    "Engine": "geep_triton.engine.engine",
    "ExitTable": "geep_triton.exits.table",
    "MultiExitTrainer": "geep_triton.training.trainer",
    "Predictions": "geep_triton.outputs",
    "build_exit_table": "geep_triton.engine.collect",
    "schedule": "geep_triton.batching",
}

__all__ = ["MultiExitBert", "MultiExitBertConfig", "__version__", *_LAZY]

AutoConfig.register(MultiExitBertConfig.model_type, MultiExitBertConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MultiExitBertConfig, MultiExitBert, exist_ok=True)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'geep_triton' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)

"""Multi-exit BERT: every sample runs only the layers it needs, every batch stays dense."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForSequenceClassification

from geep_triton.compat import name_text_classifiers
from geep_triton.config import MultiExitBertConfig as MultiExitBertConfig
from geep_triton.engine.served_model import ServedMultiExitBert
from geep_triton.modeling.model import MultiExitBert as MultiExitBert
from geep_triton.version import __version__

if TYPE_CHECKING:
    from geep_triton.cross_encoder import CrossEncoder as CrossEncoder
    from geep_triton.engine.build_exit_table import build_exit_table as build_exit_table
    from geep_triton.engine.engine import Engine as Engine
    from geep_triton.engine.predictions import Predictions as Predictions
    from geep_triton.engine.quantize import quantize as quantize
    from geep_triton.explanations import explain as explain
    from geep_triton.from_fine_tuned import give_exits as give_exits
    from geep_triton.policies.policy import Policy as Policy
    from geep_triton.promises.audit import audit as audit
    from geep_triton.promises.calibrate import calibrate as calibrate
    from geep_triton.promises.ranking import calibrate_ranking as calibrate_ranking
    from geep_triton.table.exit_table import ExitTable as ExitTable
    from geep_triton.training.trainer import MultiExitTrainer as MultiExitTrainer

# Imported on first use: the trainer alone would double the time that `import geep_triton` takes.
_LAZY = {
    "CrossEncoder": "geep_triton.cross_encoder",
    "Engine": "geep_triton.engine.engine",
    "ExitTable": "geep_triton.table.exit_table",
    "MultiExitTrainer": "geep_triton.training.trainer",
    "Policy": "geep_triton.policies.policy",
    "Predictions": "geep_triton.engine.predictions",
    "audit": "geep_triton.promises.audit",
    "build_exit_table": "geep_triton.engine.build_exit_table",
    "calibrate": "geep_triton.promises.calibrate",
    "calibrate_ranking": "geep_triton.promises.ranking",
    "explain": "geep_triton.explanations",
    "give_exits": "geep_triton.from_fine_tuned",
    "quantize": "geep_triton.engine.quantize",
}

__all__ = ["MultiExitBert", "MultiExitBertConfig", "__version__", *_LAZY]

AutoConfig.register(MultiExitBertConfig.model_type, MultiExitBertConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MultiExitBertConfig, ServedMultiExitBert, exist_ok=True)
name_text_classifiers(MultiExitBertConfig.model_type, (MultiExitBert.__name__, ServedMultiExitBert.__name__))


if not TYPE_CHECKING:  # where it would give any name a type

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module 'geep_triton' has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY})

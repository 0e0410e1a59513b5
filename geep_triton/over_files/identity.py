"""What an engine's answers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from geep_triton.engine.engine import Engine
from geep_triton.policies.text import describe
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.version import __version__

# Fields of a config.json that say where or by what it was saved, and change no answer. Weights and dtype are told apart.
NO_SETTINGS = ("_name_or_path", "architectures", "digests", "dtype", "transformers_version")


def identity_of(engine: Engine) -> dict[str, Any]:
    """Everything that an engine's answers depend on, in JSON values; digests where it is large."""
    model = engine.model
    return {
        "weights": model.weights_digest(),
        "config": _config_digest(model.config.to_dict()),
        "exit_table": None if model.exit_table is None else model.exit_table.digest(),
        "tokenizer": tokenizer_fingerprint(engine.tokenizer),
        "exit_config": model.exit_config.digest(),
        "policy": describe(engine.policy),
        "ranking": None if engine.ranking is None else str(engine.ranking),
        "runner": engine.runner.name,
        "dtype": engine.dtype,
        "device": model.device.type,
        "token_budget": engine.token_budget,
        "max_length": engine.max_length,
        "truncation": engine.truncation,
        "versions": {
            "geep_triton": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _config_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a configuration: names of labels, sizes and kinds of the parts, none of which weights show."""
    settings = {name: value for name, value in values.items() if name not in NO_SETTINGS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

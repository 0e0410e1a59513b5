"""An engine that answers from recorded logits, and what it promises by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.predictions import EveryExit
from geep_triton.policies.text import parse_policy
from geep_triton.promises.calibrate import find_policy
from geep_triton.promises.calibration import Calibration
from geep_triton.promises.simulate import simulate

CONFIDENCE = 0.9


class RecordedEngine:
    """What `calibrate` asks of an engine, answered from recorded exits; a policy's speed is what its layers allow."""

    layer_costs = LayerCosts(((1, 1.0),), 0.0, score=0.05)
    runner = SimpleNamespace(name="torch", dtype="float32")
    policy, dtype, max_length, truncation, progress = parse_policy("full"), "float32", 128, False, False

    def __init__(self, model, tokens, logits):
        self.model, self.tokens, self.logits = model, tokens, logits

    def every_exit(self, rows):
        rows = torch.tensor(rows)
        return EveryExit(self.tokens.select(rows), self.logits[rows])


def policy_found(*arguments: Any, **settings: Any) -> Calibration:
    """What `find_policy` calibrates."""
    return find_policy(*arguments, **settings).calibration


def simulated(runs, rows, rounds, progress=False):
    """Samples a second where a layer takes one, and nothing else takes time."""
    exits = {name: simulate(engine.model, policy, engine.tokens, engine.logits) for name, (engine, policy) in runs.items()}
    return {name: 1 / float((index + 1).double().mean()) for name, index in exits.items()}

"""Costs by which skipping pays or not, and sharp answers."""

from __future__ import annotations

import torch

from geep_triton.engine.costs import LayerCosts

SKIPS = LayerCosts(((1, 0.001), (1000, 1.0)), move=0.0)  # a layer costs what its tokens are: leaving any out pays
BLENDS = LayerCosts(((1000, 1.0), (2000, 1.0)), move=1.0)  # it never does


def sharp(model):
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    return model


def with_costs(engine, costs=None):
    costs = costs or SKIPS  # measuring it each time would take long
    engine.__dict__["layer_costs"] = costs
    return engine

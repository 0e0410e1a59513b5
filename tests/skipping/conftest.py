"""Tiny models that skip layers."""

from __future__ import annotations

import pytest
import torch

from geep_triton import MultiExitBert
from tests.skipping.models import sharp
from tests.test_gates import gated


@pytest.fixture
def skipper(tokenizer, texts) -> MultiExitBert:
    """A model whose gates and exits really choose: at each gate about half of the samples skip."""
    model = sharp(gated(skip_layers=[1, 2, 4]))
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        for index, gate in enumerate(model.gates.values()):
            gate.output.bias -= model(**inputs, output_gates=True).gates[index].logit().median() + 1e-3
    return model

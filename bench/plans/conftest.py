"""Records of a model that was never trained."""

from __future__ import annotations

import pytest
import torch

from bench.plans.record import JUDGE, TABLE, Part
from geep_triton.tokens.ragged import Tokens

LAYERS, CLASSES, WIDTH = 4, 3, 6


def part_of(samples: int, seed: int) -> Part:
    """Exits that come nearer to the last one's answers, and are surer where they are right."""
    generator = torch.Generator().manual_seed(seed)
    full = 2 * torch.randn(samples, 1, CLASSES, generator=generator)
    away = torch.linspace(1.2, 0, LAYERS)[None, :, None] * torch.randn(samples, LAYERS, CLASSES, generator=generator)
    means = torch.randn(samples, LAYERS + 1, WIDTH, generator=generator)
    lists = [[1, *torch.randint(5, 30, (3 + row % 4,), generator=generator).tolist(), 2] for row in range(samples)]
    tokens = Tokens.from_lists(lists)
    return Part(tokens.ids, tokens.offsets, torch.zeros_like(tokens.ids), full + away, means.half())


@pytest.fixture(scope="session")
def parts() -> dict[str, Part]:
    """Both parts of a record."""
    return {TABLE: part_of(600, 0), JUDGE: part_of(400, 1)}

"""Trainings that stop at a deadline."""

from __future__ import annotations

import pytest
import torch

from bench.cells import OutOfTime
from bench.training import timed
from geep_triton.training.difficulty import remembered


def test_teachers_answers_are_kept(tmp_path):
    asked = []

    def teach(fold):
        asked.append(fold)
        return torch.tensor([0, 1])

    first = remembered(timed(teach, tmp_path, float("inf")), tmp_path)
    assert [first(fold).tolist() for fold in "ab"] == [[0, 1]] * 2
    again = remembered(timed(teach, tmp_path, 0.0), tmp_path)
    assert [again(fold).tolist() for fold in "ab"] == [[0, 1]] * 2
    assert asked == ["a", "b"]
    with pytest.raises(OutOfTime):
        again("c")
    assert len(list(tmp_path.glob("spent_*.json"))) == 2

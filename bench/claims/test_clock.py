"""The wall clock of models that stayed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.claims import arms
from bench.claims.clock import main
from bench.claims.design import B, Cell, D
from bench.claims.runs import Runner
from bench.claims.test_runs import TINY, backbone, data
from bench.rows import read, records

__all__ = ["backbone", "data"]


def test_what_stayed_is_timed(data, backbone, monkeypatch, tmp_path):
    """GEEP's model, at every threshold; of B nothing is there."""
    monkeypatch.setattr("bench.claims.clock.D", replace(D, data_sets=(TINY,)))
    monkeypatch.setattr("bench.claims.clock.B", replace(B, data_sets=(TINY,)))
    Runner(data / "work", backbone, float("inf")).run(Cell(TINY, arms.GEEP, 1))
    line = [
        "clock",
        "--work",
        data / "work",
        "--backbone",
        backbone,
        "--costs",
        tmp_path / "costs",
        "--output",
        tmp_path / "clock",
    ]
    monkeypatch.setattr("sys.argv", list(map(str, line)))
    main()
    found = {one["system"]: one for one in records(read(tmp_path / "clock"))}
    assert found["full"]["speed_up"] == 1
    assert {"geep 0.05", "geep 1"} < set(found)
    assert found["geep 1"]["speed_up"] == pytest.approx(found["geep 1"]["texts_per_second"] / found["full"]["texts_per_second"])

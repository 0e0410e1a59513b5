"""The wall clock of models that stayed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.claims import arms
from bench.claims.clock import main
from bench.claims.costs import main as costs
from bench.claims.design import A, B, Cell, D
from bench.claims.runs import Runner
from bench.claims.test_runs import TINY, backbone, data
from bench.rows import read, records

__all__ = ["backbone", "data"]


@pytest.fixture
def run(data, backbone, monkeypatch, tmp_path):
    """Runs a command on a data set of B and D, and returns what it found by system."""
    for module in ("clock", "costs", "saving"):
        monkeypatch.setattr(f"bench.claims.{module}.D", replace(D, data_sets=(TINY,)))
        monkeypatch.setattr(f"bench.claims.{module}.B", replace(B, data_sets=(TINY,), seeds=1))
    monkeypatch.setattr("bench.claims.command.shape_of", lambda _: "e5")
    monkeypatch.setattr("bench.claims.costs.A", replace(A, data_sets=()))
    monkeypatch.setattr("bench.claims.costs.SETS", {"tiny": TINY})

    def command(main, name: str, *options: object) -> dict:
        line = ["run", "--work", data / "work", "--backbone", backbone, "--output", tmp_path / name, *options]
        monkeypatch.setattr("sys.argv", list(map(str, line)))
        main()
        return {one["system"]: one for one in records(read(tmp_path / name)) if one["system"]}

    return command


def test_what_stayed_is_timed(data, backbone, run, tmp_path):
    """GEEP's model at every threshold, and exits beside skips at the thresholds that save so much."""
    runner = Runner(data / "work", backbone, float("inf"))
    for arm in (arms.GEEP, arms.EXITS, arms.SKIPPING[3]):
        runner.run(Cell(TINY, arm, 1))
    assert {arms.EXITS.name, arms.SKIPPING[3].name} < set(run(costs, "costs"))
    found = run(main, "clock", "--costs", tmp_path / "costs")
    assert found["full"]["speed_up"] == 1
    assert {"geep 0.05", "geep 1", "exits 2x", "exits 3x", "smartbert-mean-0.05 2x"} < set(found)
    assert all(one["texts_per_second"] > 0 for one in found.values())

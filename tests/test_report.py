"""README's figures are the result files'."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from bench import report_pipeline
from bench.environment import ROOT
from bench.report import pages, with_tables
from bench.report_policies import spread


def test_pages_show_the_result_files():
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m bench.report"


def test_spread():
    assert spread([0.5, 0.5]) == "0.500"
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 (1.0-3.0)"


def test_markers_are_required():
    with pytest.raises(ValueError, match="must hold the lines"):
        with_tables("# nothing", "tables")


def test_constraints_satisfy_the_project():
    pinned = dict(
        re.match(r"([\w-]+)==([\d.]+)$", line).groups()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    for requirement in importlib.metadata.requires("geep-triton"):
        name, minimum = re.match(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", requirement).groups()
        if minimum is None:
            continue
        numbers = [tuple(map(int, version.split("."))) for version in (pinned[name], minimum)]
        assert numbers[0] >= numbers[1], requirement


def test_ci_runs_the_readmes_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(line for line in readme.splitlines() if "-m pytest" in line)
    assert first.startswith("python3 -m venv")
    assert first in readme.split("```bash")[2]
    assert Path(ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_pipelines_page_shows_every_kind_of_cell(tmp_path):
    shares = ("share_of_bound", "share_of_bound_of_a_token", "share_of_rival_bound", "share_of_rival_bound_of_a_token")
    row = dict.fromkeys(shares, 0.5) | {"system": "ours, full", "kind": "ours", "mean_layers": 6.0, "agreement": 1.0}
    row |= {"samples_per_second": 10.0, "speed_up": 1.0, "mean_layers_of_a_token": 6.0, "seconds": [0.4] * 3}
    rival = row | {"system": "huggingface, length-sorted", "kind": "full", "samples_per_second": 20.0}
    early = row | {"system": "ours, threshold:0.3", "mean_layers_of_a_token": 3.0}
    memory, more_memory = {"before": 100.0, "peak": 200.0}, {"before": 100.0, "peak": 350.0}
    cells = {
        "throughput.cpu.minilm.sst2.float32": {
            "texts": {"samples": 4, "tokens": 40, "longest": 12},
            "layers": 6,
            "width": 384,
            "systems": [
                row,
                rival,
                early,
                row | {"system": "ours, threshold:0,pooling=never", "seconds": [0.5, 0.404, 0.4]},
            ],
            "missing": {"onnxruntime": "not installed"},
            "compile_seconds": 12.0,
            "stages": {"full": {"layers": 3.0, "heads": 1.0}, "threshold:0.3": {"layers": 1.7, "heads": 0.8}},
        },
        "latency.cpu.base.sst2.int8": {
            "rate_of_load_1": 5.0,
            "samples": 4,
            "latencies": [{"system": "ours, full", "load": 0.3, "p50": 0.2, "p99": 0.4}],
        },
        "memory.cpu.base.sst2.int8": {"megabytes": {"huggingface, length-sorted": memory, "ours, full": more_memory}},
        "overhead.cpu.base.sst2.int8": {
            "samples": 4,
            "heads": [{"head": "linear", "overhead": 0.015, "flops": 0.001, "ratios": [1.02, 1.01]}],
        },
        "pays.cpu.base.sst2.int8": {
            "samples": 4,
            "points": [
                {"tokens": 1, "exits": "6.5", "share": 0.5, "speed_up": 1.2},
                {"tokens": 1, "exits": "nobody leaves", "share": 1.0, "speed_up": 0.9},
            ],
        },
        "scaling.cpu.length": {
            "axis": "length",
            "points": [{"size": 16, "samples": 8, "seconds": 2.0, "megabytes_grown": 3.0}],
        },
        "matrix.cpu.base.32.1024.float32": {
            "systems": [row],
            "launches": {"ours, full": {"kernels": 7, "waits": 1}},
            "share_of_gemm_rate": {"ours, full": 0.25},
            "ceilings": {"flops_per_second": 2e12, "copied_bytes_per_second": 3e9},
        },
    }
    environment = {"gpu": None, "cpu": "a CPU", "threads": 2, "torch": "2.13", "date": "2026-01-01"}
    (tmp_path / "pipeline").mkdir()
    for name, content in cells.items():
        result = {"cell": name, "environment": environment, "declaration": {"rounds": 5, "seconds": 60}} | content
        (tmp_path / "pipeline" / f"{name}.json").write_text(json.dumps(result))
    page = report_pipeline.page(tmp_path)
    for text in (
        "a CPU, 2 threads",
        "Not yet measured on a GPU",
        "| one sample | 1.20x at 50% | 0.90x at 100% | 50% |",
        "| minilm, sst2, float32, threshold:0.3 | 50% (50%) | 50% (50%) | +1.0% * |  |",
        "| base, sst2, int8, full |  |  |  | 2.50x |",
        "which 1 of 1 cells do not have",
        "(3 rounds; 2026-01-01; older benchmark)",
        "(2 rounds; 2026-01-01; older benchmark)",
        "(up to 5 rounds; 2026-01-01; older benchmark)",
        "](results/pipeline_a_cpu.png)",
        "**base, sst2, int8** (2026-01-01; older benchmark)",
        "| ours, full | 6.00 | 1.000 | - | 10.0 | 1.00x | 50% (50%) | 50% (50%) |",
        "Without onnxruntime: not installed.",
        "layers 75.0%, heads 25.0%",
        "threshold:0.3 spends 20.0% of its time: heads +12.0%, layers +8.0%.",
        "compiled for all in 12 s",
        "| 0.3 | 200.0 | 400.0 |",
        "| ours, full | 250 | 2.50x |",
        "| linear | +1.5% | +0.1% |",
        "| 16 | 8 | 2.00 | 4 | 3 |",
        "2.00 TFLOP/s",
        "ours, full 25.0%",
        "- ours, full: 7, 1",
        "- minilm, sst2, float32, over huggingface, length-sorted: full (mean layers 6.00, 0.50x); ",
    ):
        assert text in page
    report_pipeline.plot([cells["throughput.cpu.minilm.sst2.float32"] | {"cell": "a cell"}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0

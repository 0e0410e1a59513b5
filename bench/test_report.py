"""README's figures match the result files."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement

from bench.environment import ROOT
from bench.report import MOST_LINES, gpu, pages, pipeline, policies, with_tables
from bench.report.tables import lines, spread
from bench.rows import found, rows_of, save
from geep_triton.promises.families import families_of


def test_pages_show_the_result_files():
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m bench.report"
        if path.name != "README.md":
            assert len(text.splitlines()) <= MOST_LINES, path.name
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_spread():
    assert spread([0.5, 0.5]) == "0.500"
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 (1.0-3.0)"


def test_what_is_missing_is_a_dash():
    assert lines(["a", "b"], [[1, None], ["x", float("nan")]]) == "| a | b |\n|---|---|\n| 1 | - |\n| x | - |"


def test_policies_have_the_names_of_today(make_model):
    grid = families_of(make_model(num_labels=3), every=True, learned=("agreement", "exits"))
    assert set(policies.OLD_FAMILIES.values()) <= {family.name for family in grid}
    assert not set(policies.promises()["family"]) & set(policies.OLD_FAMILIES)
    assert gpu.in_todays_form("ours, verified:0.3") == "ours, predicted:0.05+threshold:0.3"
    assert gpu.in_todays_form("huggingface") == "huggingface"


def test_promises_broken_are_those_below_what_was_promised():
    rows = pd.DataFrame({"agreement": [0.9, 0.95, 0.949, 1.0], "promise": [0.95] * 4})
    assert policies.broken(rows) == "2 of 4 (50%)"


def test_markers_are_required(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# nothing")
    with pytest.raises(ValueError, match="must hold the lines"):
        with_tables(page, "tables")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_satisfy_the_project(file):
    lines = (ROOT / file).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for requirement in map(Requirement, importlib.metadata.requires("geep-triton")):
        if requirement.name != "geep-triton" and (file == "constraints.txt" or requirement.name in pinned):
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_ci_runs_the_readmes_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(line for line in readme.splitlines() if "-m pytest" in line)
    assert first.startswith("python3 -m venv")
    assert any(first in block.partition("```")[0] for block in readme.split("```bash")[1:])
    assert Path(ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_pipelines_page_shows_the_cells_that_matter(tmp_path):
    shares = ("share_of_bound", "share_of_bound_of_a_token", "share_of_rival_bound", "share_of_rival_bound_of_a_token")
    row = dict.fromkeys(shares, 0.5) | {
        "mean_layers": 6.0,
        "agreement": 1.0,
        "accuracy": 0.9,
        "speed_up": 1.0,
        "seconds": [0.4] * 3,
    }
    slow, fast = row | {"samples_per_second": 10.0}, row | {"samples_per_second": 20.0}
    cells = {
        "throughput.cpu.minilm.sst2.float32": [
            found("", {"texts": {"samples": 4}, "layers": 6, "width": 384, "compile_seconds": 12.0}),
            found("ours, full", slow, kind="ours"),
            found("huggingface, length-sorted", fast, kind="full"),
            found("deebert, one at a time, threshold:0.3", slow, kind="exits"),
            found("ours, threshold:0.3", slow | {"mean_layers": 3.0, "samples_per_second": 19.0}, kind="ours"),
            found("ours, threshold:0,pooling=never", slow | {"seconds": [0.5, 0.404, 0.4]}, kind="ours"),
            found("onnxruntime", {"missing": "not installed"}),
        ],
        "latency.cpu.base.sst2.int8": [
            found("", {"layers": 12, "replayed_layers": 12}),
            found("torch dynamic int8, length-sorted", {"p50": 0.2, "p99": 0.4}, load=0.6),
            found("ours, full", {"p50": 0.1, "p99": 0.3}, load=0.6),
            found("ours, threshold, replayed", {"p50": 0.05, "p99": 0.3}, load=0.6),
        ],
        "memory.cpu.base.sst2.int8": [
            found("huggingface, length-sorted", {"before": 100.0, "peak": 200.0}),
            found("ours, full", {"before": 100.0, "peak": 350.0}),
        ],
        "pays.cpu.base.sst2.int8": [
            found("6.5", {"share": 0.5, "speed_up": 1.2}, tokens=1),
            found("nobody leaves", {"share": 1.0, "speed_up": 0.9}, tokens=1),
        ],
        "scaling.cpu.length": [found("ours", {"samples": 8, "seconds": 2.0, "megabytes_grown": 3.0}, axis="length", size=16)],
        "skips.cpu.base.32.1024.float32": [
            found(
                "ours, planned",
                {"mean_layers": 6.0, "samples_per_second": 20.0, "speed_up": 1.9, "share_of_bound": 0.95},
                rate=0.5,
            )
        ],
    }
    cells["throughput.cpu.base.sst2.float32"] = cells["throughput.cpu.minilm.sst2.float32"]  # measured before it said whose
    environment = {"gpu": None, "cpu": "a CPU", "threads": 2, "torch": "2.13", "date": "2026-01-01"}
    for name, measured in cells.items():
        save(tmp_path / "pipeline" / "a.jsonl", rows_of("pipeline", name, measured, {"rounds": 5}, environment))
    page = pipeline.page(tmp_path)
    for text in (
        "## a CPU, 2 threads, torch 2.13",
        "has not run there yet",
        "| minilm, sst2, float32 * | 20 | 20 (huggingface) | 10 | 10 | 19 | 0.95x | 1.90x | 3.0 of 6 | 100.0% | 50% | 50% |",
        "| 50% | 50% | +1.0% | 4 | 3 | - | - |",
        "### Rivals\n\nNot measured yet with all rivals.",
        "](pipeline_a_cpu_2_threads.png)",
        "| base, sst2, int8 *, replayed | 200, 400 | 100, 300 | 50, 300 |",
        "| base, sst2, float32 *, doubled | 20 | 20 (huggingface) | 10 | 10 | 19 | 0.95x | 1.90x | 3.0 of 6 | - |",
        "| base, sst2, int8 * | 50% (0.90x) |",
        "| base, sst2, int8 * | 100 | 250 (2.50x) | - | - | - |",
        "| length | 16 | 8 | 4 | 3 |",
        "| 50% | 6.0 | 20 | 1.90x | 95% |",
    ):
        assert text in page, text
    drawn = pd.DataFrame({"case": ["throughput.cpu.base.reviews.int8"], "declaration": [{"models": None}]})
    assert pipeline.whose_exits(drawn) == ", drawn"
    readme = pipeline.readme_table(tmp_path)
    assert "| sst2 | 20 | 20 (huggingface) | 10 | 10 | 19 | 3.0 of 6 | 100.0% |" in readme
    assert "exits do not pay on 1 of 1 data sets" in readme
    assert "Exits are by a threshold of 0.3, not calibrated; 4 texts were timed: too few to check a promise." in readme
    pipeline.plot(pipeline.results(tmp_path), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert "Not yet measured on a CPU" in pipeline.page(tmp_path / "nothing")
    assert "](pipeline_elsewhere.md)" not in page
    assert pipeline.page_elsewhere(tmp_path / "nothing") == f"{pipeline.INTRODUCTION_ELSEWHERE}\n"
    name = "throughput.cpu.minilm.sst2.float32"
    elsewhere = environment | {"cpu": "another CPU"}
    save(tmp_path / "pipeline" / "b.jsonl", rows_of("pipeline", name, cells[name], {"rounds": 5}, elsewhere))
    assert "[Other machines](pipeline_elsewhere.md): another CPU, 2 threads, torch 2.13." in pipeline.page(tmp_path)
    assert "another CPU, 2 threads" not in pipeline.page(tmp_path).replace("): another CPU, 2 threads", "")
    other = pipeline.page_elsewhere(tmp_path)
    assert "## another CPU, 2 threads, torch 2.13" in other
    assert "| minilm, sst2, float32 * | 20 | 20 (huggingface) |" in other
    assert "## a CPU" not in other
    assert "### Rivals" not in other


def test_the_pipelines_page_shows_fresh_texts_and_rivals(tmp_path):
    row = {"mean_layers": 6.0, "accuracy": None, "speed_up": 1.0, "seconds": [0.4] * 5, "agreement": 1.0, "neighbours": 0.02}
    row |= dict.fromkeys(("share_of_bound", "share_of_rival_bound"), 0.5)

    def timed(name, kind, fresh, met, **more):
        return found(name, row | {"samples_per_second": fresh, "again": {"samples_per_second": met}} | more, kind=kind)

    cells = {
        "throughput.cpu.e5.sst2.int8": [
            found(
                "", {"texts": {"samples": 160}, "layers": 12, "shapes": {"distinct": 30, "new": 25}, "rounds": {"wanted": 20}}
            ),
            found("torch dynamic int8, length-sorted", {"missing": "ValueError: probabilities differ"}),
            timed("ctranslate2, length-sorted", "full", 20.0, 21.0),
            timed("openvino, length-sorted", "full", 60.0, 80.0, agreement=0.975),
            timed("deebert, one at a time, threshold:0.3", "exits", 15.0, 15.0, neighbours=None),
            timed("ours, full", "ours", 50.0, 55.0),
            timed("ours, threshold:0.3", "ours", 90.0, 95.0),
            timed("ours, threshold:0,pooling=never", "ours", 45.0, 45.0),
            timed("tf-idf", "ceiling", 9000.0, 9100.0, agreement=0.7, neighbours=0.0),
            timed("CrossEncoder, torch", "speed only", 19.0, 19.0, agreement=None, neighbours=None),
            found("zentorch", {"missing": "zentorch not installed"}),
        ],
        "segments.cpu.e5.sst2.int8": [
            timed("openvino, length-sorted", "full", 61.0, 81.0),
            timed("ours, full", "ours", 50.0, 55.0),
            timed("ours, threshold:0.3", "ours", 90.0, 95.0),
            timed("ours, full, openvino, grid", "ours", 40.0, 45.0),
            timed("ours, threshold:0.3, openvino, grid", "ours", 70.0, 75.0),
        ],
        "growth.cpu.e5.sst2.int8": [
            found("", {"windows": [20, 200]}),
            found("ours, full", {"before": 100.0, "after_20": 300.0, "after_200": 310.4, "grown": 10.4}),
            found("onnxruntime", {"missing": "no"}),
        ],
    }
    environment = {"gpu": None, "cpu": "a CPU", "threads": 2, "torch": "2.13", "date": "2026-01-01"}
    declaration = {"version": pipeline.VERSION, "models": "e5/sst2"}
    for name, measured in cells.items():
        save(tmp_path / "pipeline" / "a.jsonl", rows_of("pipeline", name, measured, declaration, environment))
    page = pipeline.page(tmp_path)
    for text in (
        "| e5, sst2, int8 | - | 60 (openvino) | 15 | 50 | **90** |",
        "| 160 | 5 of 20 | 80, 55, 95 | 30, 25 |",
        "| cell | ours, full | ctranslate2 | openvino | tf-idf | CrossEncoder, torch |",
        "| e5, sst2, int8 | 50 (100.0%, 0.02) | 20 (100.0%, 0.02) | 60 (97.5%, 0.02) | 9000 (70.0%, 0) | 19 |",
        "- zentorch, int8: zentorch not installed",
        "- torch dynamic int8, length-sorted, int8: ValueError: probabilities differ",
        "| e5, sst2, int8 | our own | - | 50 | 90 | 55, 95 | 6.0 |",
        "| e5, sst2, int8 | openvino, grid | 61 | 40 | 70 | 45, 75 | 6.0 |",
        "grew from 20 to 200 windows",
        "| e5, sst2, int8 | +10 (310) |",
    ):
        assert text in page, text

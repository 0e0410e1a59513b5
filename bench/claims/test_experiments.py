"""The grid of experiments: its declaration, a run that is stopped and resumed, and the report's use of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.cells import OutOfTime, has_result
from bench.claims import verdicts
from bench.claims.data import draw, rows_of, with_an_answer
from bench.claims.experiments import OUTPUT, main
from bench.claims.grid import CLAIMS, DATA_SETS, METHODS, Cell, Claim, DataSet, Method, cells
from bench.claims.pooling import sign_flip
from bench.claims.training import declared, judged, run_cell, timed
from bench.report import experiments as report
from bench.rows import found, save
from bench.rows import rows_of as result_rows
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.difficulty import remembered
from geep_triton.training.recipes import get_recipe

TINY = DataSet("tiny", train=20, test=10, epochs=1, max_length=16, model="random", batch_size=8)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A GEEP_DATA of 24 rows whose label is their first character."""
    folder = tmp_path / "data"
    for name in ("tiny", "book_review_zh"):
        (folder / name).mkdir(parents=True)
        rows = [{"text": f"{'好坏'[i % 2]} 书 {'的了'[i % 3 % 2]}", "label": str(i % 2)} for i in range(24)]
        for split in ("train", "test"):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    (folder / "vocab").mkdir()
    (folder / "vocab" / "bert-base-chinese.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n好\n坏\n书\n的\n了\n")
    monkeypatch.setenv("GEEP_DATA", str(folder))
    return folder


def test_the_declaration_holds_together():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    for method in METHODS:
        get_recipe(method.recipe, **method.settings)
    runs = {(cell.data_set.name, cell.method.name) for cell in cells([1])}
    for claim in CLAIMS:
        assert claim.reading in report.READINGS
        assert {(data_set, name) for data_set in claim.data_sets for name in (claim.method, claim.baseline)} <= runs
    required = {"sst2", "ag_news", "rte", "snli", "wikiqa", "book_review_zh"}
    assert {name for name, method in runs if method == "geep"} >= required
    assert len(list(cells([1, 2]))) == 2 * len(runs)


def test_subsets_are_always_the_same(data):
    first, second = rows_of(TINY), rows_of(TINY)
    assert first == second
    assert [len(rows) for rows in first] == [20, 10]
    assert [len(rows) for rows in rows_of(TINY, limit=4)] == [4, 4]
    rows = [{"text": "a", "label": "0"}, {"text": "b", "label": "0"}, {"text": "a", "label": "1"}]
    assert with_an_answer(rows) == [rows[0], rows[2]]
    questions = [{"text": f"q{i // 3}", "label": str(int(i % 3 == 0))} for i in range(30)]
    drawn = draw(questions, 7, whole_questions=True)
    assert len(drawn) == 9
    assert {row["text"] for row in drawn} == {row["text"] for row in drawn if row["label"] == "1"}


def test_no_data(monkeypatch):
    monkeypatch.setenv("GEEP_DATA", "/nowhere")
    with pytest.raises(ValueError, match="GEEP_DATA must name the folder of the data sets, .* got '/nowhere'"):
        rows_of(TINY)
    monkeypatch.delenv("GEEP_DATA")
    with pytest.raises(ValueError, match="tiny is not on the hub: GEEP_DATA must name the folder"):
        rows_of(TINY)


def test_rows_from_the_hub(monkeypatch):
    """The hub is not reached: a data set of its shape stands in."""
    import datasets

    asked = []

    def load_dataset(path, config, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_dict({"premise": ["a", "b", "c"], "hypothesis": ["d"] * 3, "label": [0, -1, 2]})

    monkeypatch.delenv("GEEP_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, test = rows_of(next(one for one in DATA_SETS if one.name == "snli"))
    assert asked == [("stanfordnlp/snli", None, "train"), ("stanfordnlp/snli", None, "test")]
    expected = [{"text": "a", "text_pair": "d", "label": 0}, {"text": "c", "text_pair": "d", "label": 2}]
    assert train == test == expected


def test_a_stopped_cell_goes_on_to_the_same_result(data, tmp_path):
    cell = Cell(TINY, Method("fastbert", "fastbert", epochs=2.0), 1)
    whole = run_cell(cell, tmp_path / "whole", float("inf"))
    assert whole["steps"] == 6
    for _ in range(5):
        with pytest.raises(OutOfTime):
            run_cell(cell, tmp_path / "parts", deadline=0.0)  # one step each
    parts = run_cell(cell, tmp_path / "parts", deadline=0.0)
    for key in ("scores", "metrics", "area", "steps"):
        assert parts[key] == whole[key]
    assert parts["training"]["cpu_seconds"] > 0
    assert not list((tmp_path / "parts").glob("tiny.fastbert*/checkpoints"))
    assert len(list((tmp_path / "parts").glob("tiny.fastbert*/model/model.safetensors"))) == 1


def test_cells_share_their_difficulty(data, tmp_path):
    for name, recipe in (("curriculum", "joint"), ("curriculum-kd", "distillation")):
        method = Method(name, recipe, curriculum=Curriculum())
        result = run_cell(Cell(TINY, method, 1), tmp_path, float("inf"))
        assert result["difficulty"]["wall_seconds"] > 0
    assert len(list(tmp_path.glob("tiny.difficulty.*/answers_*.json"))) == 3


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


def test_runs_only_what_is_missing(data, tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> list[str]:
        command = ["run", "--data-sets", "book_review_zh", "--limit-samples", "8", "--output", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", [*command, "--cache", str(tmp_path / "cache"), *arguments])
        main()
        return [line for line in capsys.readouterr().out.splitlines() if "book_review_zh" in line or "cells" in line]

    assert run("--budget-minutes", "0", "--methods", "joint", "fastbert")[-1] == "0 of 2 cells have results"
    assert run("--methods", "joint")[-1] == "1 of 1 cells have results"
    with pytest.raises(SystemExit):
        run("--output", str(OUTPUT))  # a trial among the results
    path = tmp_path / "out" / "book_review_zh.joint.1.jsonl"
    before = path.stat().st_mtime_ns
    assert run("--methods", "joint") == ["1/1 book_review_zh.joint.1 (done)", "1 of 1 cells have results"]
    assert path.stat().st_mtime_ns == before
    (cell,) = cells([1], ["book_review_zh"], ["joint"])
    assert has_result(path, cell.name, declared(cell, 8))
    assert not has_result(path, cell.name, declared(cell, None))  # a trial is no result
    assert "a trial on 8 samples, without meaning" in report.page(tmp_path / "out")


def fabricate(
    folder: Path,
    name: str,
    method: str,
    seed: int,
    right: torch.Tensor,
    seconds: float = 10.0,
    source: str = "hub",
    gpu: str | None = None,
    **more: object,
) -> None:
    """A result file whose exits are right on the samples that `right` [E, N] says."""
    data_set = next(one for one in DATA_SETS if one.name == name)
    cell = Cell(data_set, next(one for one in METHODS if one.name == method), seed)
    logits = torch.stack([1 - right, right], dim=-1).transpose(0, 1).float()
    labels = torch.ones(right.shape[1], dtype=torch.int64)
    layers = list(range(1, len(right) + 1))
    metrics = {
        "samples": {"train": 5, "test": right.shape[1]},
        "training": {"wall_seconds": 1.0, "cpu_seconds": seconds},
        "difficulty": {"wall_seconds": 0.0, "cpu_seconds": 0.0},
        "exit_layers": layers,
        **judged("accuracy", logits, labels, [], layers),
    }
    environment = {"gpu": gpu, "cpu": "some", "threads": 1, "torch": "2"}
    declaration = cell.declaration() | {"source": source} | more
    rows = result_rows("experiments", cell.name, [found(method, metrics)], declaration, environment)
    save(folder / f"{cell.name}.jsonl", rows)


def test_report_judges_claims(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = (torch.rand(3, 2000, generator=generator) < 0.7).long()
    better = base.clone()
    better[:2, :200] = 1
    for seed in (1, 2):
        fabricate(tmp_path, "sst2", "joint", seed, base)
        fabricate(tmp_path, "sst2", "curriculum-kd", seed, better)
    fabricate(tmp_path, "sst2", "curriculum", 1, base)
    fabricate(tmp_path, "sst2", "geep", 1, base, seconds=5.0)
    fabricate(tmp_path, "sst2", "fastbert", 1, base)
    fabricate(tmp_path, "ag_news", "geep", 1, base, seconds=20.0)
    fabricate(tmp_path, "ag_news", "fastbert", 1, base)
    results = verdicts.read_results(tmp_path)
    by_number = {claim.number: claim for claim in CLAIMS}

    def verdict(number: str, data_set: str = "sst2"):
        return verdicts.judge(by_number[number], data_set, results)

    gain = verdict("2a")
    assert gain.word == "supported"
    assert gain.seeds == (1, 2)
    expected = float((better[:2] - base[:2]).double().mean())
    assert gain.early.estimate == pytest.approx(expected)
    assert gain.early.low < expected < gain.early.high
    worse = Claim("x", "", "joint", "curriculum-kd", "early", ("sst2",))
    assert verdicts.judge(worse, "sst2", results).word == "refuted"
    assert verdict("3a").word == "undecided (1 seed)"  # no difference at all
    assert [verdict(number).word for number in ("1a", "1b")] == ["supported (1 seed)"] * 2
    assert verdict("1b").seconds == (0.5,)
    assert [verdict(number, "ag_news").word for number in ("1a", "1b")] == ["supported (1 seed)", "refuted (1 seed)"]
    for seed, seconds, gpu in ((2, 20.0, None), (3, 1.0, "a GPU")):  # slower on the CPU; against a CPU on a GPU
        fabricate(tmp_path, "sst2", "geep", seed, base, seconds, gpu=gpu)
        fabricate(tmp_path, "sst2", "fastbert", seed, base)
    time = verdicts.judge(by_number["1b"], "sst2", verdicts.read_results(tmp_path))
    assert time.seconds == (0.5, 2.0)
    assert time.word == "undecided"
    no_worse = Claim("y", "", "joint", "curriculum-kd", "no worse", ("sst2",))
    assert verdicts.judge(no_worse, "sst2", results).word == "refuted"
    assert verdict("3b") is None
    page = report.page(tmp_path)
    assert f"| sst2 | {100 * expected:+.1f} (" in page
    assert "Missing: ag_news, rte, snli, wikiqa, book_review_zh, wnli." in page
    assert f"| curriculum-kd | 1 | {100 * expected:+.2f} | 1 of 1 | +0.00 | 0 of 1 | 1.00x |" in page
    assert "Over 2 data sets: early exits +0.0 points, higher on 0; sign-flip p = 1.00." in page
    assert "Missing at seeds 1, 2, 3: sst2.distillation.1, " in page  # in the grid's order
    assert "sst2.distillation.2" in page
    assert "sst2.geep.1," not in page
    report.plot(DATA_SETS[0], results, tmp_path / "sst2.png")
    assert (tmp_path / "sst2.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_an_older_declaration_are_missing(tmp_path):
    right = torch.ones(3, 10, dtype=torch.int64)
    fabricate(tmp_path, "sst2", "joint", 1, right, head_learning_rate=0.5)
    assert verdicts.read_results(tmp_path) == {}
    assert "sst2.joint.1," in report.page(tmp_path)


def test_results_of_several_sources_are_not_mixed(tmp_path):
    for method, source in (("joint", "hub"), ("geep", "GEEP_DATA")):
        fabricate(tmp_path, "sst2", method, 1, torch.ones(3, 10, dtype=torch.int64), source=source)
    with pytest.raises(ValueError, match="results on rows from GEEP_DATA and hub"):
        verdicts.read_results(tmp_path)


def test_data_sets_together():
    """Three differences of one sign: of the 8 ways to flip signs 2 are as far from 0."""
    assert sign_flip([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip([0.1, -0.1]) == 1.0


def test_answers_are_ranked_by_question():
    logits = torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]], [[0.0, 2.0]], [[0.0, 0.0]]])
    rows = [{"text": "a"}, {"text": "a"}, {"text": "b"}, {"text": "b"}]
    result = judged("map", logits, torch.tensor([1, 0, 1, 0]), rows, [1])
    assert result["metrics"]["map"] == result["metrics"]["mrr"] == [0.75]
    assert result["scores"] == ["0.5 1"]
    assert result["area"] == 0.75

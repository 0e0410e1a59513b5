"""Scorer, planner, cut and losses, without Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from geep_triton import Engine
from geep_triton.engine.source import EngineSource
from geep_triton.files.answerer import BadRow
from geep_triton.over_files.predicting import Predicting
from geep_triton.serving.ray import predicting
from geep_triton.serving.ray.crew import Losses
from geep_triton.serving.ray.placing import ActorKind, choose_cut
from geep_triton.serving.ray.planner import LAYERS, WORK, Planner
from geep_triton.serving.ray.pool import one_line
from geep_triton.serving.ray.predicting import predict_files_by_ray
from geep_triton.serving.ray.scorer import Scorer
from tests.conftest import TEXTS

POLICY = "threshold:0.8,regroup=always"


@pytest.mark.parametrize("form", ["arrow", "numpy"])
def test_a_scorer_adds_the_columns_of_geep_predict(saved, form):
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    given = table if form == "arrow" else {name: np.array(table[name].to_pylist()) for name in table.column_names}
    found = Scorer(EngineSource(str(saved), POLICY), prefix="p_")(given)
    expected = Engine.from_pretrained(saved, POLICY).predict(TEXTS)
    columns = found.to_pydict() if form == "arrow" else {name: values.tolist() for name, values in found.items()}
    assert list(columns) == ["id", "text", "p_label", "p_score", "p_exit_layer"]
    assert columns["id"] == list(range(len(TEXTS)))
    assert columns["p_label"] == expected.labels
    assert columns["p_exit_layer"] == expected.exit_layers.tolist()


def test_rows_without_answers_stop_a_scorer_or_stay_empty(saved):
    batch = pa.table({"text": ["good", None, ""]})
    with pytest.raises(BadRow, match=r"row 1 of a batch.*has no text"):
        Scorer(EngineSource(str(saved), POLICY))(batch)
    found = Scorer(EngineSource(str(saved), POLICY), bad_rows="empty")(batch).to_pydict()
    assert [label is None for label in found["label"]] == [False, True, True]
    assert [error is None for error in found["error"]] == [True, False, False]


def test_what_is_wrong_with_a_batch_is_said(saved):
    scorer = Scorer(EngineSource(str(saved), POLICY), predicting=Predicting("body"))
    with pytest.raises(ValueError, match="no column 'body'"):
        scorer(pa.table({"text": ["good"]}))
    with pytest.raises(ValueError, match="a column 'label' already: give the answers a prefix"):
        scorer(pa.table({"body": ["good"], "label": [1]}))
    with pytest.raises(ValueError, match="a column 'expected_work' already"):
        Planner(str(saved))(pa.table({"text": ["good"], "expected_work": [1]}))
    with pytest.raises(TypeError, match="got list"):
        scorer([{"body": "good"}])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown bad_rows 'skip'"):
        Scorer(str(saved), bad_rows="skip")


def test_a_planner_foretells_what_the_table_says(saved):
    found = Planner(str(saved))(pa.table({"text": [*TEXTS, None]}))
    engine = Engine.from_pretrained(saved, POLICY)
    tokens = engine.encode(TEXTS)
    table = engine.model.exit_table
    each = np.array(table.exit_layers)
    expected = [float(row @ each) for row in table.predict(tokens).probabilities.numpy()]
    assert found[LAYERS].to_pylist() == pytest.approx([*expected, 4.0], rel=1e-5)
    assert found[WORK].to_pylist()[:-1] == pytest.approx(
        [depth * length for depth, length in zip(expected, tokens.lengths.tolist(), strict=True)], rel=1e-5
    )


def test_a_planner_counts_the_tokens_that_run(saved):
    found = Planner(str(saved), max_length=3)(pa.table({"text": TEXTS}))
    np.testing.assert_allclose(found[WORK].to_numpy(), 3 * found[LAYERS].to_numpy(), rtol=1e-5)
    with pytest.raises(ValueError, match="max_length"):
        Planner(str(saved), max_length=10**6)


def test_a_planner_needs_a_table(fine_tuned, saved):
    with pytest.raises(ValueError, match="a model with exits"):
        Planner(str(fine_tuned))


@pytest.mark.parametrize(
    ("share", "cut", "shallow"),
    [(0.0, 1.0, 0), (0.15, 1.0, 2), (0.3, 1.0, 2), (0.5, 2.0, 3), (0.7, 2.0, 3), (1.0, 4.0, 4)],
)
def test_the_cut_gives_each_kind_its_share_of_the_work(share, cut, shallow):
    layers, work = np.array([4.0, 1.0, 2.0, 1.0]), np.array([8.0, 2.0, 6.0, 2.0])
    found = choose_cut(layers, work, share)
    assert (layers <= found).sum() == shallow
    assert found == pytest.approx(cut)


def test_a_cut_of_nothing_and_odd_kinds_are_refused():
    with pytest.raises(ValueError, match="at least one text"):
        choose_cut(np.array([]), np.array([]), 0.5)
    with pytest.raises(ValueError, match="share must be between 0"):
        choose_cut(np.array([1.0]), np.array([1.0]), 1.5)
    with pytest.raises(ValueError, match="actors must be at least 1"):
        ActorKind(EngineSource("m"), actors=0)
    with pytest.raises(ValueError, match="speed must be above 0"):
        ActorKind(EngineSource("m"), speed=0)


@pytest.mark.parametrize(
    ("inputs", "actors", "reason"), [("nothing", None, "no such"), ("", None, "no files"), ("", 0, "actors")]
)
def test_what_needs_no_cluster_is_refused_before_one_starts(inputs, actors, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "connected", lambda address: pytest.fail("it was"))
    with pytest.raises(ValueError, match=reason):
        predict_files_by_ray(EngineSource("m"), [tmp_path / inputs], tmp_path / "out", address="local", actors=actors)


def test_actors_are_lost_one_after_another_only_where_none_got_further():
    losses = Losses()
    assert [losses.after(rows) for rows in (0, 0, 16, 16, 0, 32, 32, 32, 32)] == [1, 2, 1, 2, 3, 1, 2, 3, 4]


@pytest.mark.parametrize("reason", ["The actor died because its node has died.", "The actor is dead because it was killed."])
def test_why_an_actor_died_is_told_before_the_numbers_that_ray_gives_it(reason):
    text = f"The actor died unexpectedly before finishing this task.\n\tactor_id: 0f\nip: 127.0.0.1\n{reason}"
    assert one_line(RuntimeError(text)) == reason
    assert one_line(RuntimeError("The node has no\nmemory")) == "The node has no memory"

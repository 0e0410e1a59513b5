"""Calibrations on recorded exits choose as the library's test does, and the page shows what they reach."""

from __future__ import annotations

import pytest
import torch

from bench.answers.tasks import MINILM, Trained
from bench.environment import environment
from bench.plans.outcomes import by_threshold
from bench.plans.promised import CONFIDENCE, Losses, boldest, from_population, halves, measured, most_failures
from bench.plans.record import JUDGE, load_parts, save_parts
from bench.plans.signals import Texts
from bench.plans.tasks import TASKS
from bench.report import MOST_LINES, plans
from bench.rows import rows_of, save
from geep_triton.promises.guarantees import binomial_p_value, boldest_safe


@pytest.mark.parametrize("risk", [0.01, 0.02, 0.05])
def test_the_boldest_is_that_of_the_library(risk):
    generator = torch.Generator().manual_seed(0)
    failures = torch.randint(0, 40, (12, 50), generator=generator)
    failures[:6] = failures[:6].sort(0).values
    failures[:, :25] //= 8
    found = boldest(failures, 1000, risk, CONFIDENCE)
    expected = [
        boldest_safe([binomial_p_value(count, 1000, risk) for count in column], CONFIDENCE) for column in failures.T.tolist()
    ]
    assert found.tolist() == [-1 if index is None else index for index in expected]
    assert len(set(found.tolist())) > 2


def test_most_failures_are_at_the_edge_of_the_test():
    most = most_failures(1000, 0.02, 0.95)
    assert binomial_p_value(most, 1000, 0.02) <= 0.05 < binomial_p_value(most + 1, 1000, 0.02)
    assert most_failures(50, 0.01, 0.95) == -1


def test_draws():
    drawn = halves(11, 3)
    assert drawn.calibrating.sum(0).tolist() == [5.0] * 3
    assert bool((drawn.calibrating + drawn.judging == 1).all())
    population = from_population(11, 3)
    assert population.calibrating.sum(0).tolist() == [5.0] * 3
    assert bool((population.judging == 1).all())


def test_figures_of_a_calibration_by_hand(parts):
    """One split, recomputed text by text."""
    texts, promise = Texts(parts[JUDGE]), 0.9
    outcome = by_threshold(texts.entropy, (0, 2), torch.linspace(0, 0.6, 30))
    drawn = halves(400, 1)
    rows, others = drawn.calibrating[:, 0].bool(), drawn.judging[:, 0].bool()
    judged = Losses(outcome, texts.agrees, drawn).judged(promise)
    wrong = ~texts.agrees[torch.arange(400), outcome.exits.long()]
    p_values = [binomial_p_value(int(of[rows].sum()), 200, 1 - promise) for of in wrong]
    index = boldest_safe(p_values, CONFIDENCE)
    assert index is not None
    assert float(judged.means.agreement[0]) == pytest.approx(1 - float(wrong[index, others].double().mean()))
    assert float(judged.means.layers[0]) == pytest.approx(1 + float(outcome.exits[index, others].double().mean()))
    assert float(judged.means.stops[0]) == pytest.approx(float(outcome.stops[index, others].double().mean()))
    assert float(judged.means.unscored[0]) == pytest.approx(float(outcome.unscored[index, others].double().mean()))


def test_where_nothing_is_safe_all_layers_run(parts):
    texts = Texts(parts[JUDGE])
    outcome = by_threshold(texts.entropy, (0,), torch.tensor([1.0]))
    judged = Losses(outcome, texts.agrees, halves(400, 2)).judged(0.99)
    assert judged.none_safe.tolist() == [True, True]
    assert judged.means.layers.tolist() == [4, 4]
    assert judged.means.agreement.tolist() == [1, 1]
    assert judged.means.cost(2.0).tolist() == pytest.approx([4.1, 4.1])


def test_parts_come_back(parts, tmp_path):
    save_parts(parts, tmp_path / "plans.safetensors")
    found = load_parts(tmp_path / "plans.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "plans.safetensors"]
    for name, part in parts.items():
        assert torch.equal(found[name].logits, part.logits)
        assert torch.equal(found[name].means, part.means)
        assert torch.equal(found[name].tokens.ids, part.tokens.ids)


def test_the_page_of_a_small_run(parts, tmp_path):
    cell = Trained(TASKS[0], MINILM, 0)
    settings = {"splits": 8, "fitted_splits": 2, "settings": 160, "learned_share": 0.75}
    rows = rows_of("plans", cell.name, measured(parts, 8, 2), cell.declaration() | settings, environment())
    save(tmp_path / "plans" / "promised" / f"{cell.name}.jsonl", rows)
    page = plans.page(tmp_path)
    assert "Of the 24 models 23 are not measured yet." in page
    assert "| sst2 | minilm | 1 | 600 | 400 |" in page
    found = plans.promised(plans.results("promised", tmp_path, "plans"))
    ratio = found[(found["system"] == "planned") & (found["stop_cost"] == 1.0)]["ratio"].mean()
    assert f"| {ratio:.3f} |" in next(line for line in page.splitlines() if line.startswith("| planned |"))
    assert set(plans.TABULATED) | set(plans.PLAIN) | set(plans.DRAWN) <= set(found["system"])
    assert len(page.splitlines()) <= MOST_LINES
    plans.plot(tmp_path / "plot.png", tmp_path)
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_the_page_without_results(tmp_path):
    assert plans.page(tmp_path).endswith("Not yet measured.\n")
    plans.plot(tmp_path / "plot.png", tmp_path)
    assert not (tmp_path / "plot.png").exists()


def test_the_page_of_all_models_is_short_enough(parts, tmp_path):
    """Every model has the same figures here."""
    settings = {"splits": 4, "fitted_splits": 1, "settings": 160, "learned_share": 0.75}
    rows = measured(parts, 4, 1)
    for task in TASKS:
        for backbone in plans.BACKBONES:
            cell = Trained(task, backbone, 0)
            path = tmp_path / "plans" / "promised" / f"{cell.name}.jsonl"
            save(path, rows_of("plans", cell.name, rows, cell.declaration() | settings, environment()))
    page = plans.page(tmp_path)
    assert len(page.splitlines()) <= MOST_LINES
    assert page.count("e5, *c* = ") == 4

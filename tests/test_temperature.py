"""Temperatures and the calibration error."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from geep_triton import Engine, MultiExitBert
from geep_triton.exit_config import ExitConfig
from geep_triton.promises.temperatures import TemperatureFit, best_temperatures, expected_calibration_error, fit_temperatures


def sampled(temperatures, count=20_000):
    """Labels drawn from softmax(true logits), and logits that are too sharp or too flat by these factors."""
    true = 2 * torch.randn(count, 1, 4)
    labels = true[:, 0].softmax(-1).multinomial(1)[:, 0]
    return true * torch.tensor(temperatures)[:, None], labels


def test_temperatures_are_found():
    logits, labels = sampled([0.5, 1.0, 3.0])
    assert best_temperatures(logits, labels) == pytest.approx([0.5, 1.0, 3.0], rel=0.05)


def test_error_equals_a_loop():
    logits, labels = sampled([2.0], 500)
    confidence, prediction = logits[:, 0].softmax(-1).max(-1)
    expected = 0.0
    for bin_number in range(15):
        inside = (confidence > bin_number / 15) & (confidence <= (bin_number + 1) / 15)
        if inside.any():
            gap = (confidence[inside].mean() - (prediction == labels)[inside].float().mean()).abs()
            expected += float(gap) * int(inside.sum()) / 500
    assert expected_calibration_error(logits[:, 0], labels) == pytest.approx(expected, abs=1e-5)


def test_temperatures_lower_the_error_of_real_exits(real_logits, real_labels):
    """Of MiniLM on sst2's test texts: fitted on one half, judged on the other."""
    logits, labels = real_logits, real_labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    fit, test = order[:910], order[910:]
    temperatures = torch.tensor(best_temperatures(logits[fit], labels[fit]))
    before, after = (
        sum(F.cross_entropy(values[test, layer], labels[test]).item() for layer in range(6))
        for values in (logits, logits / temperatures[:, None])
    )
    assert after < before
    found = TemperatureFit.of(logits, labels, None, None)
    assert sum(found.error_after) < sum(found.error_before)
    assert found.error_before[0] == expected_calibration_error(logits[:, 0], labels)


def test_an_exit_that_is_always_right_stays_finite():
    logits = torch.tensor([[[5.0, 0.0]], [[0.0, 5.0]]])
    assert 0 < best_temperatures(logits, torch.tensor([0, 1]))[0] < 1


def test_the_model_answers_at_its_temperatures(model, tokenizer, texts, tmp_path):
    engine = Engine(model, tokenizer, "full")
    plain = engine.every_exit(texts).logits
    fitted = fit_temperatures(engine, texts, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_0"] * 2)
    found = list(fitted.temperatures)
    assert model.exit_config.temperatures == tuple(found)
    scaled = plain / torch.tensor(found)[:, None]
    torch.testing.assert_close(engine.every_exit(texts).logits, scaled, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = MultiExitBert.from_pretrained(tmp_path)
    torch.testing.assert_close(Engine(again, tokenizer, "full").every_exit(texts).logits, scaled, atol=1e-5, rtol=1e-5)
    # Fitted once more, they are found from the plain logits again.
    again = fit_temperatures(engine, texts, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_0"] * 2)
    assert list(again.temperatures) == pytest.approx(found, rel=1e-3)
    assert again.error_before == pytest.approx(fitted.error_after, abs=1e-3)
    assert MultiExitBert.from_pretrained(tmp_path, exit_layers=[2, 4]).exit_config.temperatures is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["LABEL_0"] * 7 + ["LABEL_9"], "labels must all be names of classes .* got 'LABEL_9'"),
        (["LABEL_0"] * 7, r"labels must be one per text \(8\), got 7"),
    ],
)
def test_labels_are_checked_before_anything_runs(model, tokenizer, texts, labels, message, monkeypatch):
    engine = Engine(model, tokenizer, "full")
    monkeypatch.setattr(engine, "every_exit", lambda inputs: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        fit_temperatures(engine, texts, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 2, 3), torch.zeros(0, dtype=torch.int64), "at least 1"),
        (torch.zeros(4, 2, 3), torch.zeros(3, dtype=torch.int64), r"one per sample \(4, at least 1\), got 3"),
    ],
)
def test_refusals(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        best_temperatures(logits, labels)


@pytest.mark.parametrize("temperatures", [[1.0], [1.0, 0.0, 1.0, 1.0], "warm"])
def test_a_model_refuses_temperatures(model, tmp_path, temperatures):
    model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError), match="temperatures"):
        model.exit_config = ExitConfig(temperatures=temperatures)
    with pytest.raises((ValueError, TypeError), match="temperatures"):
        MultiExitBert.from_pretrained(tmp_path, exit_temperatures=temperatures)


def test_temperatures_count_what_each_exit_is_judged_by():
    """An exit that half of the samples never reach is fitted to the other half."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 2, 3, generator=generator)
    labels = torch.multinomial((logits.mean(1) * 2).softmax(-1), 1, generator=generator)[:, 0]
    counted = torch.ones(400, 2, dtype=torch.bool)
    counted[200:, 0] = False
    found = best_temperatures(logits, labels, counted)
    assert found[0] == pytest.approx(best_temperatures(logits[:200], labels[:200])[0], rel=1e-3)
    assert found[1] == pytest.approx(best_temperatures(logits, labels)[1], rel=1e-3)

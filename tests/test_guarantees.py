"""Guarantees: their statistics against brute force, and on real exits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from geep_triton import build_exit_table
from geep_triton.ops.exit_scores import score_exits
from geep_triton.promises.families import (
    error_shares,
    families_of,
)
from geep_triton.promises.guarantees import (
    betting_p_value,
    binomial_interval,
    binomial_p_value,
    boldest_on_average,
    boldest_safe,
    samples_needed,
    samples_needed_on_average,
)
from geep_triton.table.records import first_sure_exit
from tests.recorded import CONFIDENCE


@pytest.mark.parametrize(("failures", "samples", "risk"), [(0, 10, 0.1), (3, 20, 0.3), (5, 5, 0.5), (99, 1000, 0.1)])
def test_binomial_p_value(failures, samples, risk):
    expected = sum(math.comb(samples, k) * risk**k * (1 - risk) ** (samples - k) for k in range(failures + 1))
    assert binomial_p_value(failures, samples, risk) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("failures", "samples"), [(0, 20), (20, 20), (3, 50)])
def test_binomial_interval_is_clopper_and_pearsons(failures, samples):
    low, high = binomial_interval(failures, samples, 0.95)
    at_least = 1 - sum(math.comb(samples, k) * low**k * (1 - low) ** (samples - k) for k in range(failures))
    at_most = sum(math.comb(samples, k) * high**k * (1 - high) ** (samples - k) for k in range(failures + 1))
    assert at_least == pytest.approx(0.025, abs=1e-6) or failures == 0
    assert at_most == pytest.approx(0.025, abs=1e-6) or failures == samples
    assert low <= failures / samples <= high


def test_samples_needed_is_the_least_that_shows_anything():
    for risk in (0.01, 0.02, 0.1):
        needed = samples_needed(risk, 0.95)
        assert binomial_p_value(0, needed, risk) <= 0.05 < binomial_p_value(0, needed - 1, risk)


def test_the_docs_say_how_many_texts_are_needed(make_model, tokenizer, texts):
    text = " ".join((Path(__file__).parent.parent / "docs" / "promises.md").read_text(encoding="utf-8").split())
    two, score = make_model(num_labels=2), make_model(num_labels=1)
    score.exit_config.decision, score.exit_config.tolerance = 0.0, 1.0
    score.exit_table = build_exit_table(score, tokenizer, texts * 3, learn=("agreement", "exits"), progress=False)

    def needed(model):
        share = max(error_shares(families_of(model)).values())
        return [samples_needed(1 - promised, 1 - 0.05 * share) for promised in (0.99, 0.98, 0.95)]

    ranges = [f"{fewest} to {most}" for fewest, most in zip(needed(two), needed(score), strict=True)]
    assert "at least {} for an agreement of .99, {} for .98, {} for .95".format(*ranges) in text


def test_boldest_safe_stops_at_the_first_failure():
    assert boldest_safe([0.01, 0.04, 0.2, 0.01], 0.95) == 1
    assert boldest_safe([0.2, 0.01], 0.95) is None
    assert boldest_safe([], 0.95) is None


def test_betting_rarely_rejects_what_is_true():
    """Mean loss exactly at the risk: p-values under .1 in at most a tenth of the runs, and the bet wins where it is lower."""
    generator = torch.Generator().manual_seed(0)
    at, below = [], []
    for _ in range(300):
        draws = torch.rand(400, generator=generator)
        at.append(betting_p_value((draws < 0.3).double(), 0.3, 0.9) <= 0.1)
        below.append(betting_p_value((draws < 0.2).double(), 0.3, 0.9) <= 0.1)
    assert sum(at) / 300 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 300)
    assert sum(below) / 300 >= 0.8


@pytest.fixture(scope="module")
def real_exits(real_logits):
    """Uncertainty at the exits [N, E], and whether each agrees with the last."""
    answers = real_logits.argmax(-1)
    uncertainty = score_exits(real_logits.flatten(0, 1), 1.0).uncertainty.view(real_logits.shape[:2])
    return uncertainty, answers == answers[:, -1:]


@pytest.mark.parametrize("agreement", [0.95, 0.98])
def test_the_promise_holds_as_often_as_stated_on_real_exits(real_exits, agreement):
    """200 calibrations on 600 texts drawn from 1,821: at most a tenth choose a threshold whose agreement on all is lower."""
    uncertainty, agrees = real_exits
    grid = torch.logspace(-4, 0, 60).tolist()
    exits = torch.stack([first_sure_exit(uncertainty.clone(), threshold) for threshold in grid])
    differs = ~agrees.gather(1, exits.T).T
    truth = differs.double().mean(1)
    generator, broken, chosen = torch.Generator().manual_seed(0), 0, []
    for _ in range(200):
        drawn = torch.randint(len(uncertainty), (600,), generator=generator)
        failures = differs[:, drawn].sum(1).tolist()
        index = boldest_safe([binomial_p_value(count, 600, 1 - agreement) for count in failures], CONFIDENCE)
        if index is not None:
            chosen.append(index)
            broken += float(truth[index]) > 1 - agreement
    assert broken <= 200 * (1 - CONFIDENCE) + 3 * math.sqrt(200 * CONFIDENCE * (1 - CONFIDENCE))
    assert len(chosen) > 150
    assert exits[max(chosen)].double().mean() < uncertainty.shape[1] - 1  # and it is worth something


def test_conformal_choices_keep_their_agreement_on_average(real_exits):
    uncertainty, agrees = real_exits
    grid = torch.logspace(-4, 0, 60).tolist()
    exits = torch.stack([first_sure_exit(uncertainty.clone(), threshold) for threshold in grid])
    differs = ~agrees.gather(1, exits.T).T
    generator, kept = torch.Generator().manual_seed(0), []
    for _ in range(200):
        order = torch.randperm(len(uncertainty), generator=generator)
        index = boldest_on_average(differs[:, order[:600]], 0.05)
        kept.append(1 - float(differs[index, order[600:]].double().mean()))
    kept = torch.tensor(kept)
    assert 0.95 - 3 * float(kept.std()) / math.sqrt(200) <= float(kept.mean()) < 0.97  # kept, and not by wide


def test_boldest_on_average_counts_a_loss_from_its_first_setting_on():
    losses = torch.zeros(3, 19, dtype=torch.bool)
    assert boldest_on_average(losses, 0.05) == 2
    losses[1, 4] = True  # right again at the boldest setting, which does not count
    assert boldest_on_average(losses, 0.05) == 0
    assert boldest_on_average(losses, 0.1) == 2
    assert boldest_on_average(torch.zeros(3, 18), 0.05) is None
    assert samples_needed_on_average(0.05) == 19

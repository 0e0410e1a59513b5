"""Families of policies: the choice among all of them keeps its promise."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch

from geep_triton import MultiExitBert, build_exit_table
from geep_triton.engine.predictions import EveryExit
from geep_triton.ops.exit_scores import score_exits
from geep_triton.policies.text import format_policy, parse_policy
from geep_triton.promises.families import (
    PLAIN,
    TRIED,
    FitSamples,
    drop_exits_that_do_not_pay,
    error_shares,
    families_of,
    thresholds_at,
)
from geep_triton.promises.judge import Judge
from geep_triton.promises.simulate import simulate
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.records import ExitRecords, TableSettings
from geep_triton.tokens.ragged import Tokens
from tests.conftest import tiny_config
from tests.recorded import CONFIDENCE, RecordedEngine, policy_found, simulated


@pytest.mark.parametrize("method", ["learn-then-test", "conformal"])
@pytest.mark.parametrize("promise", [("agreement", 0.97), ("max_accuracy_drop", 0.03)], ids=lambda promise: promise[0])
def test_the_choice_among_all_families_keeps_its_promise(real_logits, real_labels, monkeypatch, method, promise):
    """200 calibrations on 600 of 1,821 real texts, each choosing among all families: the promise is broken on the others in no
    more of them than stated; by the conformal method it holds on average."""
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 10)
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", simulated)
    monkeypatch.setattr("geep_triton.promises.search.spread", lambda curve: set())
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    tokens = Tokens.from_lists([[5 + row % 5, row] for row in range(len(real_logits))])
    engine, generator, losses, families = (
        RecordedEngine(model, tokens, real_logits),
        torch.Generator().manual_seed(0),
        [],
        set(),
    )
    answers, right = real_logits.argmax(-1), real_logits.argmax(-1) == real_labels[:, None]
    for _ in range(200):
        rows = torch.randperm(len(tokens), generator=generator)
        rows, others = rows[:600], rows[600:]
        labels = real_labels[rows].tolist() if promise[0] == "max_accuracy_drop" else None
        arguments = dict([promise]), method, CONFIDENCE if method == "learn-then-test" else None
        result = policy_found(engine, rows.tolist(), labels, *arguments, rounds=1, speed_samples=1)
        exits = simulate(model, parse_policy(result.chosen.policy), tokens.select(others), real_logits[others])[:, None]
        if labels is None:
            loss = answers[others].gather(1, exits)[:, 0] != answers[others, -1]
        else:
            loss = right[others, -1].long() - right[others].gather(1, exits)[:, 0].long()
        losses.append(float(loss.double().mean()))
        families.add(result.chosen.family)
    losses, risk = torch.tensor(losses), 1 - promise[1] if promise[0] == "agreement" else promise[1]
    assert families - {"full"}
    if method == "conformal":
        assert float(losses.mean()) <= risk + 3 * float(losses.std()) / math.sqrt(200)
    else:
        broken = int((losses > risk + 1e-9).sum())
        assert broken <= 200 * (1 - CONFIDENCE) + 3 * math.sqrt(200 * CONFIDENCE * (1 - CONFIDENCE))


def test_all_families_of_a_table_keep_their_promises_together(real_logits, real_tokens, monkeypatch):
    """A table learned from 621 real texts, 200 calibrations on 500 drawn from the other 1,200: in no more of them than stated
    is there any family whose setting agrees less on the 1,200 than was promised, though only the fastest would be used."""
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", simulated)
    monkeypatch.setattr("geep_triton.promises.search.spread", lambda curve: set())
    tokens, special_ids = real_tokens
    vocabulary = int(tokens.ids.max()) + 1
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2, vocab_size=vocabulary))
    known, others = torch.arange(621), torch.arange(621, len(tokens))
    logits, tokens_of = real_logits[others], tokens.select(others)
    uncertainty = score_exits(real_logits[known].flatten(0, 1), 1.0).uncertainty.view(len(known), -1)
    answers = real_logits.argmax(-1)
    records = ExitRecords(tokens.select(known), uncertainty, answers[known] == answers[known, -1:])
    table = ExitTable.from_records(records, range(1, 7), TableSettings(0.3), vocabulary, "", special_ids)
    model.exit_table = table.learn("agreement", epochs=3).learn("exits", epochs=3)
    engine, answers, generator = RecordedEngine(model, tokens_of, logits), answers[others], torch.Generator().manual_seed(0)
    broken, saving = 0, set()
    for _ in range(200):
        rows = torch.randint(len(others), (500,), generator=generator).tolist()
        arguments = ({"agreement": 0.97}, "learn-then-test", CONFIDENCE)
        result = policy_found(engine, rows, None, *arguments, rounds=1, speed_samples=1)
        truth = []
        for candidate in result.candidates:
            exits = simulate(model, parse_policy(candidate.policy), tokens_of, logits)
            truth.append(float((answers.gather(1, exits[:, None])[:, 0] == answers[:, -1]).double().mean()))
            if candidate.mean_layers < 6:
                saving.add(candidate.family)
        broken += min(truth) < 0.97
    assert broken <= 200 * (1 - CONFIDENCE) + 3 * math.sqrt(200 * CONFIDENCE * (1 - CONFIDENCE))
    assert saving == {family.name for family in families_of(model)}
    assert saving >= {"threshold", "threshold per layer", "allocated+threshold", "constant"}


def test_the_curve_is_measured_in_places(calibrated):
    _, result = calibrated
    measured = [point for point in result.curve if point.samples_per_second is not None]
    assert calibrated[0].model.exit_config.calibration["curve"] == [asdict(point) for point in measured]
    assert 1 <= len(measured) <= 6
    assert {point.mean_layers for point in measured} >= {
        min(point.mean_layers for point in result.curve), max(point.mean_layers for point in result.curve)
    }  # fmt: skip


def test_scoring_is_left_out_where_it_does_not_pay():
    """Exit 1 lets nobody go, exit 2 half, exit 3 nobody more than exit 2."""
    uncertainty = torch.tensor([[0.9, 0.1, 0.1], [0.9, 0.9, 0.9]] * 10)
    fit = FitSamples({}, uncertainty < 0.5, (1, 2, 3, 6), 0.05)
    assert drop_exits_that_do_not_pay(fit, uncertainty, (0.5, 0.4, 0.3)) == {2: 0.4}
    assert drop_exits_that_do_not_pay(fit, torch.full((20, 3), 0.9), (0.5, 0.4, 0.3)).keys() <= {1, 2, 3}


def test_equal_uncertainties_pass_together():
    """A hundred texts as sure as can be, one of them right: no threshold lets the right one alone go."""
    uncertainty, agrees = torch.zeros(100, 1), torch.zeros(100, 1, dtype=torch.bool)
    agrees[0] = True
    assert thresholds_at(uncertainty, agrees, (0.0, 0.99)) == [(None,), (0.0,)]
    fit = FitSamples({}, agrees, (1, 4), 0.05)
    assert drop_exits_that_do_not_pay(fit, uncertainty, (None,)) == {}


def test_figures_of_a_fitted_family_are_of_the_samples_that_judge_it(real_logits):
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    tokens, logits = Tokens.from_lists([[5]] * 100), real_logits[:100]
    judge = Judge(model, EveryExit(tokens, logits), None, torch.randperm(100))
    policy = parse_policy("threshold:0.4")
    exits = simulate(model, policy, tokens, logits)
    answers = logits.argmax(-1)
    agrees = (answers.gather(1, exits[:, None])[:, 0] == answers[:, -1])[judge.order]
    for rows in (slice(None), slice(50, None)):
        assert judge(policy, "threshold", rows).candidate.agreement == pytest.approx(float(agrees[rows].double().mean()))


def test_families_are_a_grid_whose_shares_of_the_error_sum_to_one(make_model, tokenizer, texts):
    for labels, exits in ((2, None), (3, None), (3, [2, 4]), (3, [4])):
        model = make_model(num_labels=labels, exit_layers=exits)
        for learned in (None, {"learn": ()}, {"learn": ("agreement",)}, {"learn": ("agreement", "exits")}, {}):
            if learned is not None:
                model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False, **learned)
            tried, grid = families_of(model), families_of(model, every=True)
            names = [family.name for family in tried]
            assert len(set(names)) == len(names)
            assert [family.name for family in grid if family.name in TRIED or family.name == "full"] == names
            shares = error_shares(tried)
            assert sum(shares.values()) == pytest.approx(1)
            assert list(shares) == names
            if exits == [4]:
                assert names == ["full"]
                continue
            plain = sum(share for name, share in shares.items() if name in PLAIN)
            assert plain >= 0.5
            assert min(shares[name] for name in names if name in PLAIN) >= max(shares.values()) - 1e-12
            fit = FitSamples.of(
                EveryExit(Tokens.from_lists([[5]] * 9), torch.randn(9, len(model.config.exit_layers), labels)),
                model.config.exit_layers,
                0.05,
                model.answers,
            )
            for family in grid:
                for policy in family.policies(fit):
                    assert parse_policy(format_policy(policy)) == policy
                    policy.check(model, tokenizer)
    assert {family.name for family in grid} >= {"full"}
    model = make_model(num_labels=3)
    model.exit_table = build_exit_table(
        model, tokenizer, texts * 3, 0.8, progress=False, learn=("agreement", "exits", "forecasts")
    )
    of_scores = {name for name in TRIED if "distance" in name or "steady" in name}
    assert {family.name for family in families_of(model)} == set(TRIED) - of_scores
    assert {family.name for family in families_of(model, every=True)} - set(TRIED) >= {
        "patience", "patience of sure exits", "predicted", "predicted+threshold", "predicted+margin", "allocated+patience"
    }  # fmt: skip

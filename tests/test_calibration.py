"""Promises: their statistics against brute force, on real exits, and through the engine."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from geep_triton import Engine, MultiExitBert, audit, build_exit_table, calibrate
from geep_triton.engine.checks import as_list, label_ids
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.predictions import EveryExit
from geep_triton.ops.exit_scores import score_exits
from geep_triton.policies.policy import OneExitWarning
from geep_triton.policies.text import format_policy, parse_policy
from geep_triton.promises.calibrate import CLEARLY_FASTER, find_policy
from geep_triton.promises.families import (
    PLAIN,
    TRIED,
    FitSamples,
    error_shares,
    families_of,
    thresholds_at,
    worthwhile,
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
from geep_triton.promises.judge import Judge
from geep_triton.promises.simulate import simulate
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.records import ExitRecords, TableSettings, first_sure_exit
from geep_triton.tokens.ragged import Tokens
from tests.conftest import tiny_config

CONFIDENCE = 0.9


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


def test_the_readme_says_how_many_texts_are_needed(make_model, tokenizer, texts):
    text = " ".join((Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").split())
    two, three = make_model(num_labels=2), make_model(num_labels=3)
    three.exit_table = build_exit_table(three, tokenizer, texts * 3, 0.8, learn=("agreement", "exits"), progress=False)

    def needed(model):
        share = max(error_shares(families_of(model)).values())
        return [samples_needed(1 - promised, 1 - 0.05 * share) for promised in (0.99, 0.98, 0.95)]

    ranges = [f"{fewest} to {most}" for fewest, most in zip(needed(two), needed(three), strict=True)]
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


class RecordedEngine:
    """What `calibrate` asks of an engine, answered from recorded exits; a policy's speed is what its layers allow."""

    layer_costs = LayerCosts(((1, 1.0),), 0.0, score=0.05)
    policy, dtype, max_length, truncation, progress = parse_policy("full"), "float32", 128, False, False

    def __init__(self, model, tokens, logits):
        self.model, self.tokens, self.logits = model, tokens, logits

    def every_exit(self, rows):
        rows = torch.tensor(rows)
        return EveryExit(self.tokens.select(rows), self.logits[rows])


@pytest.mark.parametrize("method", ["learn-then-test", "conformal"])
@pytest.mark.parametrize("promise", [("agreement", 0.97), ("max_accuracy_drop", 0.03)], ids=lambda promise: promise[0])
def test_the_choice_among_all_families_keeps_its_promise(real_logits, real_labels, monkeypatch, method, promise):
    """200 calibrations on 600 of 1,821 real texts, each choosing among all families: the promise is broken on the others in no
    more of them than stated; by the conformal method it holds on average."""
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 10)
    monkeypatch.setattr("geep_triton.promises.calibrate._measure", simulated)
    monkeypatch.setattr("geep_triton.promises.calibrate._with_speeds", lambda engine, curve, *_: curve)
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
        arguments = promise, method, CONFIDENCE if method == "learn-then-test" else None
        result = find_policy(engine, rows.tolist(), labels, *arguments, rounds=1, speed_samples=1)
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
    monkeypatch.setattr("geep_triton.promises.calibrate._measure", simulated)
    monkeypatch.setattr("geep_triton.promises.calibrate._with_speeds", lambda engine, curve, *_: curve)
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
        arguments = (("agreement", 0.97), "learn-then-test", CONFIDENCE)
        result = find_policy(engine, rows, None, *arguments, rounds=1, speed_samples=1)
        truth = []
        for candidate in result.candidates:
            exits = simulate(model, parse_policy(candidate.policy), tokens_of, logits)
            truth.append(float((answers.gather(1, exits[:, None])[:, 0] == answers[:, -1]).double().mean()))
            if candidate.mean_layers < 6:
                saving.add(candidate.family)
        broken += min(truth) < 0.97
    assert broken <= 200 * (1 - CONFIDENCE) + 3 * math.sqrt(200 * CONFIDENCE * (1 - CONFIDENCE))
    assert saving == set(TRIED) - {"margin"}  # which two classes do not have


def test_calibrate_keeps_the_promise_and_is_used_from_then_on(calibrated, tokenizer, many, tmp_path):
    engine, result = calibrated
    full = engine.with_policy("full").predict(many)
    agreement = float((engine.predict(many).label_ids == full.label_ids).double().mean())
    assert agreement >= 0.8
    fitted = "per layer" in result.chosen.family  # then half of the texts judged
    assert agreement == pytest.approx(result.chosen.agreement, abs=0.05 if fitted else 1e-9)
    assert result.promise == ("agreement", 0.8)
    assert result.samples == 400
    names = {candidate.family for candidate in result.candidates}
    assert {"full", "threshold", "predicted+threshold"} <= names
    full = result.candidates[0].mean_layers
    saving = [candidate for candidate in result.candidates[1:] if candidate.mean_layers < full]

    def speed(candidate):
        return candidate.samples_per_second / (CLEARLY_FASTER if candidate.family == "constant" else 1)

    fastest = max([result.candidates[0], *saving], key=speed)
    assert result.chosen == fastest
    # It is saved with the model.
    engine.model.save_pretrained(tmp_path)
    again = MultiExitBert.from_pretrained(tmp_path)
    assert again.exit_config.calibration["chosen"]["policy"] == result.chosen.policy
    assert Engine(again, tokenizer).policy == engine.policy


def test_the_conformal_method_sets_the_chosen_family_on_texts_that_did_not_choose_it(model, tokenizer, many):
    engine = Engine(model, tokenizer)
    result = calibrate(engine, many, agreement=0.8, method="conformal", rounds=1, speed_samples=50)
    assert (result.method, result.confidence) == ("conformal", None)
    assert result.chosen.agreement >= 0.7
    assert result.chosen.samples_per_second > 0
    with pytest.raises(ValueError, match="takes no confidence, got 0.9"):
        calibrate(engine, many, agreement=0.8, method="conformal", confidence=0.9)
    with pytest.raises(ValueError, match="method 'conformal' are for agreement and max_accuracy_drop, got speedup"):
        calibrate(engine, many, speedup=2.0, method="conformal")
    with pytest.raises(ValueError, match="unknown method 'magic'; known: conformal, learn-then-test"):
        calibrate(engine, many, agreement=0.8, method="magic")
    with pytest.raises(ValueError, match="10 texts are too few to promise agreement=0.9: at least 18 are needed"):
        calibrate(engine, many[:10], agreement=0.9, method="conformal")
    calibrate(engine, many[:18], agreement=0.9, method="conformal", rounds=1, speed_samples=5)


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
    fit = FitSamples(uncertainty, uncertainty < 0.5, (1, 2, 3, 6), 0.05)
    assert worthwhile(fit, (0.5, 0.4, 0.3)) == {2: 0.4}
    assert worthwhile(replace(fit, uncertainty=torch.full((20, 3), 0.9)), (0.5, 0.4, 0.3)).keys() <= {1, 2, 3}


def test_equal_uncertainties_pass_together():
    """A hundred texts as sure as can be, one of them right: no threshold lets the right one alone go."""
    uncertainty, agrees = torch.zeros(100, 1), torch.zeros(100, 1, dtype=torch.bool)
    agrees[0] = True
    assert thresholds_at(uncertainty, agrees, 0.0) == (None,)
    assert thresholds_at(uncertainty, agrees, 0.99) == (0.0,)
    fit = FitSamples(uncertainty, agrees, (1, 4), 0.05)
    assert worthwhile(fit, (None,)) == {}


def simulated(engine, policies, rows, rounds):
    """Samples a second where a layer takes one, and nothing else takes time."""
    exits = {name: simulate(engine.model, policy, engine.tokens, engine.logits) for name, policy in policies.items()}
    return {name: 1 / float((index + 1).double().mean()) for name, index in exits.items()}


def test_a_speed_up_and_an_accuracy_on_real_exits(real_logits, monkeypatch):
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    monkeypatch.setattr("geep_triton.promises.calibrate._measure", simulated)
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    engine = RecordedEngine(model, Tokens.from_lists([[5, row] for row in range(len(real_logits))]), real_logits)
    rows, settings = list(range(1200)), {"rounds": 1, "speed_samples": 10}
    fast = find_policy(engine, rows, None, ("speedup", 2.0), "learn-then-test", None, **settings)
    assert fast.chosen.speed_up >= 2.0
    assert fast.chosen.agreement > 0.97
    labels = real_logits[:1200, -1].argmax(-1).tolist()
    for method in ("learn-then-test", "conformal"):
        right = find_policy(engine, rows, labels, ("max_accuracy_drop", 0.05), method, None, **settings)
        assert right.chosen.accuracy >= 0.95
        assert right.chosen.speed_up > 1.5


def test_a_policy_that_was_held_up_once_is_measured_again(real_logits, monkeypatch):
    """Else the search for a speed-up would go on to bolder policies, and choose one that answers worse."""
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    engine = RecordedEngine(model, Tokens.from_lists([[5, row] for row in range(len(real_logits))]), real_logits)
    calls = []

    def held_up(engine, policies, rows, rounds):
        calls.append(policies)
        slower = 0.7 if len(calls) == 1 else 1.0
        return {name: speed * (1 if name == "full" else slower) for name, speed in simulated(engine, policies, 0, 0).items()}

    chosen = []
    for measure in (simulated, held_up):
        monkeypatch.setattr("geep_triton.promises.calibrate._measure", measure)
        settings = {"rounds": 1, "speed_samples": 10}
        result = find_policy(engine, list(range(1200)), None, ("speedup", 2.0), "learn-then-test", None, **settings)
        chosen.append(result.chosen.policy)
        assert all(candidate.speed_up >= 2.0 for candidate in result.candidates[1:])
        assert not {candidate.family for candidate in result.candidates} & set(result.unsafe)
    assert chosen[0] == chosen[1]


def test_calibration_plot(calibrated, tmp_path):
    pytest.importorskip("matplotlib")
    calibrated[1].plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_calibrate_to_a_depth_and_to_an_accuracy(model, tokenizer, many):
    engine = Engine(model, tokenizer)
    deep = calibrate(engine, many, mean_depth=3.0, rounds=1, speed_samples=50)
    assert deep.chosen.mean_layers <= 3.0
    labels = engine.with_policy("full").predict(many).labels
    accurate = calibrate(engine, many, labels, max_accuracy_drop=0.3, rounds=1, speed_samples=50)
    assert accurate.chosen.accuracy >= 0.7
    with pytest.raises(ValueError, match="no policy is 4 times as fast here"):
        calibrate(engine, many[:60], speedup=4.0, rounds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of agreement, max_accuracy_drop, mean_depth, speedup, got 0"),
        ({"agreement": 0.9, "speedup": 2.0}, "exactly one of .*, got 2"),
        ({"agreement": 1.5}, "agreement must be between"),
        ({"max_accuracy_drop": 0.1}, "max_accuracy_drop needs labels"),
        ({"max_accuracy_drop": 0.1, "labels": ["LABEL_0"]}, r"labels must be one per text \(400\), got 1"),
        (
            {"max_accuracy_drop": 0.1, "labels": ["sad"] * 400},
            r"labels must all be names of classes \(LABEL_0, .*\) or all be their numbers \(0..2\), got 'sad'",
        ),
        ({"mean_depth": 9.0}, "mean_depth must be between 1 and 4"),
        ({"agreement": 0.9, "confidence": 1.0}, "confidence must be between"),
        ({"mean_depth": 2.0, "inputs": ["good"] * 5}, "5 texts are too few to choose a policy by: at least 20"),
        ({"agreement": 0.999}, r"400 texts are too few to promise agreement=0.999: at least \d+ are needed"),
    ],
)
def test_calibrate_refuses(model, tokenizer, many, arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(Engine(model, tokenizer), **{"inputs": many, **arguments})


def test_the_number_it_asks_for_is_enough(model, tokenizer, many):
    engine = Engine(model, tokenizer)
    with pytest.raises(ValueError, match="at least") as error:
        calibrate(engine, many[:10], agreement=0.9)
    needed = int(str(error.value).split("at least ")[1].split()[0])
    calibrate(engine, many[:needed], agreement=0.9, rounds=1, speed_samples=10)


def test_audit_sees_what_the_engine_answers(model, tokenizer, many):
    engine = Engine(model, tokenizer, "threshold:0.95", window=64)
    running = audit(engine, rate=1.0)
    result = engine.predict(many)
    full = engine.with_policy("full").predict(many)
    report = running.report()
    assert report.samples == 400
    assert report.agreement == pytest.approx(float((result.label_ids == full.label_ids).double().mean()))
    assert report.interval[0] <= report.agreement <= report.interval[1]
    assert result.timings["audit"] > 0
    assert engine.with_policy("full").predict(many[:3]).timings.keys() == {"tokenize", "plan", "run", "gather"}


def test_what_costs_are_measured_by_takes_no_confidence(model, tokenizer, many):
    with pytest.raises(
        ValueError, match="are for agreement and max_accuracy_drop, got mean_depth: what a policy costs is measured"
    ):
        calibrate(Engine(model, tokenizer), many, mean_depth=2.0, confidence=0.99)


def test_labels_are_all_names_or_all_numbers():
    stars = {str(star): star - 1 for star in range(1, 6)}
    assert label_ids([1, 5], 2, stars).tolist() == [0, 4]  # names that look like numbers
    assert label_ids([0, 4, 1], 3, stars).tolist() == [0, 4, 1]  # 0 is no name
    assert label_ids(["neg", "pos"], 2, {"neg": 0, "pos": 1}).tolist() == [0, 1]
    with pytest.raises(ValueError, match="labels must all be names of classes"):
        label_ids(["neg", 1], 2, {"neg": 0, "pos": 1})


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


def test_texts_that_the_table_was_built_from_prove_nothing(model, tokenizer, many, tmp_path):
    model.exit_table = build_exit_table(model, tokenizer, many, 0.8, progress=False)
    model.save_pretrained(tmp_path)
    saved = MultiExitBert.from_pretrained(tmp_path)
    assert saved.exit_table.records is None
    for known in (model, saved):
        message = "0 texts are too few to promise agreement=0.8, once 400 that the exit table knows are left out: at least 22"
        with pytest.raises(ValueError, match=message):
            calibrate(Engine(known, tokenizer), many, agreement=0.8)
        with pytest.raises(ValueError, match="too few to choose a policy by, once 400 that the exit table knows are left out"):
            calibrate(Engine(known, tokenizer), many, mean_depth=2.0)


def test_a_calibration_is_of_the_texts_that_the_table_does_not_know(model, tokenizer, many):
    """Few or many of them in whatever places: it finds what it finds without them."""
    distinct = list({tuple(tokenizer(text)["input_ids"]): text for text in many}.values())
    known = set(distinct[::4])
    model.exit_table = build_exit_table(model, tokenizer, sorted(known), 0.8, learn=("agreement",), progress=False)
    others = [text for text in distinct if text not in known]
    labels = {text: index % 3 for index, text in enumerate(distinct)}
    found = []
    for inputs in (distinct, others):
        settings = (("max_accuracy_drop", 0.4), "learn-then-test", None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = find_policy(
                Engine(model, tokenizer), inputs, [labels[text] for text in inputs], *settings, rounds=1, speed_samples=20
            )
        told = [
            str(warning.message)
            for warning in caught
            if "are among those that the exit table was built from" in str(warning.message)
        ]
        assert [text.split(" texts")[0] for text in told] == (
            [f"inputs: {len(known)} of {len(distinct)}"] if inputs is distinct else []
        )
        assert result.samples == len(others)
        by_family = {candidate.family: candidate for candidate in result.candidates}
        found.append({name: (one.policy, one.agreement, one.accuracy, one.mean_layers) for name, one in by_family.items()})
    assert found[0] == found[1]


def test_a_constant_depth_must_be_clearly_faster(real_logits, monkeypatch):
    """It looks at no text, so it is taken only where it gains much, for a promise on answers."""
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    monkeypatch.setattr("geep_triton.promises.calibrate._with_speeds", lambda engine, curve, *_: curve)
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    engine = RecordedEngine(model, Tokens.from_lists([[5, row] for row in range(len(real_logits))]), real_logits)
    for gain, wins in ((0.99 * CLEARLY_FASTER, False), (1.01 * CLEARLY_FASTER, True)):
        speeds = {"constant": gain, "full": 0.5}
        monkeypatch.setattr(
            "geep_triton.promises.calibrate._measure",
            lambda engine, policies, *_, speeds=speeds: {
                name: speeds.get(name.rpartition(" ")[0] or name, 1.0) for name in policies
            },
        )
        result = find_policy(
            engine, list(range(1200)), None, ("agreement", 0.9), "learn-then-test", 0.9, rounds=1, speed_samples=10
        )
        assert {"constant", "threshold"} <= {candidate.family for candidate in result.candidates}
        assert (result.chosen.family == "constant") == wins


def test_families_are_a_grid_whose_shares_of_the_error_sum_to_one(make_model, tokenizer, texts):
    for labels, exits in ((2, None), (3, None), (3, [2, 4]), (3, [4])):
        model = make_model(num_labels=labels, exit_layers=exits)
        for learned in (None, {"learn": ()}, {"learn": ("agreement",)}, {"learn": ("agreement", "exits")}):
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
            )
            for family in grid:
                for policy in family.policies(fit):
                    assert parse_policy(format_policy(policy)) == policy
                    policy.check(model, tokenizer)
    assert {family.name for family in grid} >= {"full"}
    model = make_model(num_labels=3)
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False, learn=("agreement", "exits"))
    assert {family.name for family in families_of(model)} == set(TRIED)
    assert {family.name for family in families_of(model, every=True)} - set(TRIED) >= {
        "patience", "patience of sure exits", "predicted", "predicted+margin", "allocated+patience"
    }  # fmt: skip


def test_a_calibration_does_not_outlive_what_it_was_made_for(calibrated, tokenizer, many, tmp_path):
    engine, _ = calibrated
    engine.model.save_pretrained(tmp_path)
    fewer = MultiExitBert.from_pretrained(tmp_path, exit_layers=[2, 4])
    assert fewer.exit_config.calibration is None
    assert Engine(fewer, tokenizer).policy == Engine(fewer, tokenizer, "full").policy
    engine.model.exit_table = build_exit_table(engine.model, tokenizer, many, 0.8, progress=False)
    assert engine.model.exit_config.policy is None
    assert engine.model.exit_config.calibration is None


def test_a_calibration_serves_only_its_own_dtype(calibrated, tokenizer, many):
    engine, result = calibrated
    assert result.dtype == engine.model.exit_config.calibration["dtype"] == "float32"
    with pytest.raises(ValueError, match="the model was calibrated in float32, and what that promises does not hold in dtype"):
        Engine(engine.model, tokenizer, dtype="int8")
    named = Engine(engine.model, tokenizer, result.chosen.policy, dtype="int8")
    assert audit(named, 0.1).promised is None
    assert calibrate(named, many[:100], mean_depth=3, rounds=1, speed_samples=10).dtype == "int8"
    assert Engine(engine.model, tokenizer, dtype="int8").policy == named.policy
    with pytest.raises(ValueError, match="calibrated in int8"):
        Engine(engine.model, tokenizer)


def test_below_float32_a_calibration_serves_only_its_own_kind_of_device(calibrated, tokenizer, many):
    engine, result = calibrated
    model = engine.model
    assert result.device == model.exit_config.calibration["device"] == "cpu"
    model.exit_config.calibration["device"] = "cuda"
    assert Engine(model, tokenizer).policy == engine.policy  # float32 is near enough the same everywhere
    half = Engine(model, tokenizer, "full", dtype="bfloat16")
    calibrate(half, many, agreement=0.8, rounds=1, speed_samples=20)
    assert Engine(model, tokenizer, dtype="bfloat16").policy == half.policy
    model.exit_config.calibration["device"] = "cuda"
    message = "calibrated in bfloat16 on a device 'cuda', and what that promises does not hold on 'cpu'"
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, dtype="bfloat16")
    del model.exit_config.calibration["device"]  # one that was made before devices were noted
    assert Engine(model, tokenizer, dtype="bfloat16").policy == half.policy


@pytest.mark.parametrize("inputs", ["a text", {"text": ["a", "b"]}, iter(["a"])], ids=["text", "columns", "iterator"])
def test_calibrate_wants_a_list(model, tokenizer, inputs):
    with pytest.raises(TypeError, match="inputs must be a list of texts"):
        calibrate(Engine(model, tokenizer), inputs, agreement=0.8)


def test_an_arrow_table_is_a_list_of_rows():
    arrow = pytest.importorskip("pyarrow")
    rows = [{"text": "a"}, {"text": "b"}]
    assert as_list(arrow.Table.from_pylist(rows)) == rows


def test_labels_that_look_like_ids_are_names():
    assert label_ids([1, "2", 5], 3, {str(star): star - 1 for star in range(1, 6)}).tolist() == [0, 1, 4]


def test_an_audit_warns_of_inputs_that_the_calibration_did_not_see(model, tokenizer, many, monkeypatch):
    """Calibrated on some texts, then served those that a bold policy answers wrong: the whole way through the engine."""
    monkeypatch.setattr(
        "geep_triton.promises.calibrate._measure",
        lambda engine, policies, inputs, rounds: {
            name: 2.0 if name.rpartition(" ")[0] == "threshold" else 1.0 for name in policies
        },
    )
    engine = Engine(model, tokenizer)
    result = calibrate(engine, many, agreement=0.6, rounds=1, speed_samples=20)
    assert result.chosen.agreement < 0.95
    running, words = audit(engine, rate=0.5, seed=0), " ".join(many).split()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", OneExitWarning)
        engine.predict(many)
    assert running.report().holds
    generator = random.Random(1)
    others = [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(1000)]
    differ = engine.predict(others).label_ids != engine.with_policy("full").predict(others).label_ids
    shifted = [text for text, differs in zip(others, differ.tolist(), strict=True) if differs]
    assert len(shifted) > 20
    with pytest.warns(UserWarning, match="fewer than the promised 60.0% do: the inputs are not like"):
        engine.predict(shifted * 10)
    assert not running.report().holds


def test_repeated_texts_are_warned_of(model, tokenizer, many):
    engine = Engine(model, tokenizer)
    with pytest.warns(UserWarning, match="only 100 of 400 texts are distinct"):
        calibrate(engine, many[:100] * 4, mean_depth=3, rounds=1, speed_samples=10)


def test_dropping_a_tables_records_keeps_the_promise(calibrated):
    engine, _ = calibrated
    engine.model.exit_table = engine.model.exit_table.without_records()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert audit(engine).promised == 0.8


def test_audit_takes_the_calibrations_promise(calibrated):
    engine, _ = calibrated
    assert audit(engine.with_policy("threshold:0.5"), 0.1).promised is None
    assert audit(engine, 0.1).promised == 0.8
    assert audit(engine, 0.1, promised=0.5).promised == 0.5
    with pytest.raises(ValueError, match="rate must be above 0"):
        audit(engine, 0.0)

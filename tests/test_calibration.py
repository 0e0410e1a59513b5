"""Calibration and audit through an engine: what is promised, used, saved and refused."""

from __future__ import annotations

import random
import warnings

import pytest

from geep_triton import Engine, MultiExitBert, audit, build_exit_table, calibrate
from geep_triton.engine.checks import as_list, label_ids
from geep_triton.policies.policy import OneExitWarning
from geep_triton.promises.families import CLEARLY_FASTER, FRAGILE, TRIED, least_gain
from geep_triton.tokens.ragged import Tokens
from tests.conftest import tiny_config
from tests.int8 import quantized
from tests.recorded import RecordedEngine, policy_found, simulated


def test_calibrate_keeps_the_promise_and_is_used_from_then_on(calibrated, tokenizer, many, tmp_path):
    engine, result = calibrated
    full = engine.with_policy("full").predict(many)
    agreement = float((engine.predict(many).label_ids == full.label_ids).double().mean())
    assert agreement >= 0.8
    fitted = "per layer" in result.chosen.family  # then half of the texts judged
    assert agreement == pytest.approx(result.chosen.agreement, abs=0.05 if fitted else 1e-9)
    assert result.promise == ("agreement", 0.8)
    assert result.samples == 400
    assert "curve" not in repr(result)  # it would fill the screen
    names = {candidate.family for candidate in result.candidates}
    assert {"full", "threshold", "allocated+threshold"} <= names
    full = result.candidates[0].mean_layers
    saving = [candidate for candidate in result.candidates[1:] if candidate.mean_layers < full]

    def speed(candidate):
        return candidate.samples_per_second / least_gain(candidate.family)

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
    with pytest.raises(ValueError, match="method 'conformal' are for agreement, .*, max_accuracy_drop, got speedup"):
        calibrate(engine, many, speedup=2.0, method="conformal")
    with pytest.raises(ValueError, match="unknown method 'magic'; known: conformal, learn-then-test"):
        calibrate(engine, many, agreement=0.8, method="magic")
    with pytest.raises(ValueError, match="10 texts are too few to promise agreement=0.9: at least 18 are needed"):
        calibrate(engine, many[:10], agreement=0.9, method="conformal")
    calibrate(engine, many[:18], agreement=0.9, method="conformal", rounds=1, speed_samples=5)


def test_a_speed_up_and_an_accuracy_on_real_exits(real_logits, monkeypatch):
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", simulated)
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    engine = RecordedEngine(model, Tokens.from_lists([[5, row] for row in range(len(real_logits))]), real_logits)
    rows, settings = list(range(1200)), {"rounds": 1, "speed_samples": 10}
    fast = policy_found(engine, rows, None, {"speedup": 2.0}, "learn-then-test", None, **settings)
    assert fast.chosen.speed_up >= 2.0
    assert fast.chosen.agreement > 0.97
    labels = real_logits[:1200, -1].argmax(-1).tolist()
    for method in ("learn-then-test", "conformal"):
        right = policy_found(engine, rows, labels, {"max_accuracy_drop": 0.05}, method, None, **settings)
        assert right.chosen.accuracy >= 0.95
        assert right.chosen.speed_up > 1.5


def test_a_policy_that_was_held_up_once_is_measured_again(real_logits, monkeypatch):
    """Else the search for a speed-up would go on to bolder policies, and choose one that answers worse."""
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    engine = RecordedEngine(model, Tokens.from_lists([[5, row] for row in range(len(real_logits))]), real_logits)
    calls = []

    def held_up(runs, rows, rounds, progress):
        calls.append(runs)
        slower = 0.7 if len(calls) == 1 else 1.0
        return {run: speed * (1 if run[1] == "full" else slower) for run, speed in simulated(runs, 0, 0).items()}

    chosen = []
    for measure in (simulated, held_up):
        monkeypatch.setattr("geep_triton.promises.search.speeds_of", measure)
        settings = {"rounds": 1, "speed_samples": 10}
        result = policy_found(engine, list(range(1200)), None, {"speedup": 2.0}, "learn-then-test", None, **settings)
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
        ({}, "exactly one of agreement, .*, mean_depth, speedup, or several of agreement, .*, got none"),
        ({"agreement": 0.9, "speedup": 2.0}, "exactly one of .*, got agreement, speedup"),
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
        ValueError, match="are for agreement, .*, max_accuracy_drop, got mean_depth: what a policy costs is measured"
    ):
        calibrate(Engine(model, tokenizer), many, mean_depth=2.0, confidence=0.99)


def test_labels_are_all_names_or_all_numbers():
    stars = {str(star): star - 1 for star in range(1, 6)}
    assert label_ids([1, 5], 2, stars).tolist() == [0, 4]  # names that look like numbers
    assert label_ids([0, 4, 1], 3, stars).tolist() == [0, 4, 1]  # 0 is no name
    assert label_ids(["neg", "pos"], 2, {"neg": 0, "pos": 1}).tolist() == [0, 1]
    with pytest.raises(ValueError, match="labels must all be names of classes"):
        label_ids(["neg", 1], 2, {"neg": 0, "pos": 1})


def test_texts_that_the_table_was_built_from_prove_nothing(model, tokenizer, many, tmp_path):
    model.exit_table = build_exit_table(model, tokenizer, many, 0.8, progress=False)
    model.save_pretrained(tmp_path)
    saved = MultiExitBert.from_pretrained(tmp_path)
    assert saved.exit_table.records is None
    for known in (model, saved):
        message = "0 texts are too few to promise agreement=0.8, once 400 that the exit table knows are left out: at least 23"
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
        settings = ({"max_accuracy_drop": 0.4}, "learn-then-test", None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = policy_found(
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


@pytest.mark.parametrize("family", ["constant", "threshold per layer"])
def test_a_fragile_family_must_be_clearly_faster(real_logits, monkeypatch, family):
    """It is taken only where it gains much, for a promise on answers."""
    monkeypatch.setattr("geep_triton.promises.families.FRAGILE", (family,))
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    monkeypatch.setattr("geep_triton.promises.search.spread", lambda curve: set())
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))
    engine = RecordedEngine(model, Tokens.from_lists([[5, row] for row in range(len(real_logits))]), real_logits)
    for gain, wins in ((0.99 * CLEARLY_FASTER, False), (1.01 * CLEARLY_FASTER, True)):
        speeds = {family: gain, "full": 0.5}
        monkeypatch.setattr(
            "geep_triton.promises.search.speeds_of",
            lambda runs, *_, speeds=speeds: {run: speeds.get(run[1], 1.0) for run in runs},
        )
        result = policy_found(
            engine, list(range(1200)), None, {"agreement": 0.9}, "learn-then-test", 0.9, rounds=1, speed_samples=10
        )
        assert {family, "threshold"} <= {candidate.family for candidate in result.candidates}
        assert (result.chosen.family == family) == wins


def test_families_that_break_under_other_texts_are_known():
    """Names that `calibrate` tries, so that none is meant in vain."""
    assert set(FRAGILE) <= set(TRIED)
    assert {least_gain(name) for name in FRAGILE} == {CLEARLY_FASTER}
    assert least_gain("threshold") == least_gain("full") == 1


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
    quantized(engine.model, tokenizer, many)
    assert result.dtype == engine.model.exit_config.calibration["dtype"] == "float32"
    with pytest.raises(ValueError, match="the model was calibrated in float32, and what that promises does not hold in dtype"):
        Engine(engine.model, tokenizer, dtype="int8")
    named = Engine(engine.model, tokenizer, result.chosen.policy, dtype="int8")
    assert audit(named, 0.1).promised is None
    assert calibrate(named, many[:100], mean_depth=3, rounds=1, speed_samples=10).dtype == "int8"
    for same in (Engine(engine.model, tokenizer, dtype="int8"), Engine(engine.model, tokenizer)):
        assert (same.policy, same.dtype) == (named.policy, "int8")
    with pytest.raises(ValueError, match="calibrated in int8"):
        Engine(engine.model, tokenizer, dtype="float32")


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
        "geep_triton.promises.search.speeds_of",
        lambda runs, *_: {run: 2.0 if run[1] == "threshold" else 1.0 for run in runs},
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

"""Calibration over dtypes and runners: what is tried, promised against float32, measured, chosen, saved and said."""

from __future__ import annotations

import pytest
import torch

from geep_triton import Engine, MultiExitBert, calibrate
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.predictions import EveryExit
from geep_triton.promises.calibrate import _confidences
from geep_triton.promises.contenders import Contender, Samples, check_dtypes
from geep_triton.promises.families import FULL, families_of
from geep_triton.promises.search import Search, cells_of
from geep_triton.promises.simulate import simulate
from geep_triton.promises.terms import read_terms
from geep_triton.runners.fastest import TIMED, layer_seconds, multiplied_here
from geep_triton.tokens.ragged import Tokens
from tests.conftest import tiny_config
from tests.int8 import quantized
from tests.recorded import RecordedEngine

QUICK = {"rounds": 1, "speed_samples": 20}
BOTH = ("bfloat16", "int8")


def fast_in(dtype):
    """In place of a measurement: full depth in one dtype is fastest, and nothing else gains."""
    return lambda runs, *_: {run: 3.0 if run[:2] == (dtype, FULL) else 1.0 for run in runs}


@pytest.mark.parametrize("dtype", ["float32", *BOTH])
def test_the_fastest_full_depth_that_keeps_the_promise_is_taken(model, tokenizer, many, monkeypatch, tmp_path, dtype):
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", fast_in(dtype))
    engine = Engine(model, tokenizer, "full")
    expected = engine.predict(many).label_ids
    found = calibrate(engine, many, agreement=0.8, dtypes=BOTH, **QUICK)
    assert (found.dtype, found.chosen.dtype, found.chosen.family, found.chosen.policy) == (dtype, dtype, FULL, "full")
    assert [each.dtype for each in found.full_depths] == ["float32", *BOTH]
    assert found.full_depths[0].agreement == found.full_depths[0].speed_up == 1
    assert (engine.runner.name, engine.dtype) == (found.runner, dtype)
    assert (model.int8_layers is not None) == (dtype == "int8")
    agreement = float((engine.predict(many).label_ids == expected).double().mean())
    assert agreement >= 0.8
    assert dtype != "float32" or agreement == 1
    engine.save_pretrained(tmp_path)
    again = Engine.from_pretrained(tmp_path)
    assert (again.dtype, again.runner.name, again.policy) == (dtype, found.runner, engine.policy)
    assert again.promise is not None
    told = "\n".join(again.explain())
    assert f"Layers run in {dtype} by runner “{found.runner}” on cpu." in told
    assert "Full depth answered, timed in turns: float32 " in told
    assert "get the same answer); int8 " in told
    with pytest.raises(ValueError, match=f"calibrated in {dtype}"):
        Engine.from_pretrained(tmp_path, dtype="bfloat16" if dtype == "float32" else "float32")


def test_measured_for_real(model, tokenizer, many):
    engine = Engine(model, tokenizer, "full")
    full = engine.predict(many).label_ids
    found = calibrate(engine, many, agreement=0.9, dtypes="auto", **QUICK)
    assert [each.dtype for each in found.full_depths] == ["float32", *multiplied_here()]
    saving = [each for each in found.candidates if each.family == FULL or each.mean_layers < 4]
    assert found.chosen in saving
    assert found.chosen.samples_per_second >= max(each.samples_per_second for each in saving if each.family == FULL)
    assert set(found.layer_seconds) == {"float32", *multiplied_here()} - {"int8"}
    assert all(seconds.keys() == TIMED.keys() and min(seconds.values()) > 0 for seconds in found.layer_seconds.values())
    assert float((engine.predict(many).label_ids == full).double().mean()) >= 0.88


def test_texts_that_gave_int8_its_scales_do_not_judge_it(model, tokenizer, many, monkeypatch):
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", fast_in("int8"))
    engine = Engine(model, tokenizer, "full")
    found = calibrate(engine, many, agreement=0.8, dtypes=["int8"], **QUICK)
    assert found.breakdown.texts == len(many) - len(many) // 2
    again = calibrate(Engine(model, tokenizer, "full"), many, agreement=0.8, dtypes=["int8"], **QUICK)  # now it has scales
    assert again.breakdown.texts == len(many)
    assert again.breakdown.exits[-1].same == round(again.chosen.agreement * len(many))


def test_a_failed_calibration_leaves_the_model_as_it_was(model, tokenizer, many, monkeypatch):
    def broken(*_):
        raise RuntimeError("the clock stopped")

    monkeypatch.setattr("geep_triton.promises.search.speeds_of", broken)
    engine = Engine(model, tokenizer, "full")
    runner = engine.runner
    with pytest.raises(RuntimeError, match="the clock stopped"):
        calibrate(engine, many, agreement=0.8, dtypes=BOTH, **QUICK)
    assert (model.int8_layers, engine.runner, model.exit_config.calibration) == (None, runner, None)


class Recorded(RecordedEngine):
    """A recorded engine in a dtype, a layer of which takes so many seconds."""

    def __init__(self, model, tokens, logits, dtype, seconds):
        super().__init__(model, tokens, logits)
        self.dtype, self.layer_costs = dtype, LayerCosts(((1, seconds),), 0.0, score=0.05)


def timed(runs, rows, rounds, progress=False):
    """What the layers of `Recorded` allow."""
    speeds = {}
    for run, (engine, policy) in runs.items():
        exits = simulate(engine.model, policy, engine.tokens, engine.logits)
        speeds[run] = 1 / (engine.layer_costs.points[0][1] * float((exits + 1).double().mean()))
    return speeds


@pytest.fixture
def search_of(real_logits, monkeypatch):
    """Searches over real exits in float32, and over the same with other answers in int8, three times as fast."""
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 15)
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", timed)
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))

    def make(wrong: float, promises=None, method="learn-then-test", rows=1200, generator=None):
        rows = torch.randperm(len(real_logits), generator=generator)[:rows] if generator else torch.arange(rows)
        tokens = Tokens.from_lists([[5, row] for row in rows.tolist()])
        logits = real_logits[rows]
        others = torch.where(torch.rand(len(rows), generator=generator)[:, None, None] < wrong, -logits, logits)
        engines = [Recorded(model, tokens, logits, "float32", 1.0), Recorded(model, tokens, others, "int8", 1 / 3)]
        records = [EveryExit(tokens, engine.logits) for engine in engines]
        samples = Samples.shuffled(rows.tolist(), records[0], None)
        promises = promises or {"agreement": 0.95}
        families = families_of(model)
        cells = cells_of(families, ["float32", "int8"])
        confidence = 0.9 if method == "learn-then-test" and "agreement" in promises else None
        confidences = _confidences(families, cells, confidence)
        found = [Contender(engine, record) for engine, record in zip(engines, records, strict=True)]
        return Search(found, samples, cells, confidences, read_terms(promises, None, model), method, 1, 10)

    return make


@pytest.mark.parametrize("method", ["learn-then-test", "conformal"])
def test_a_dtype_that_changes_few_answers_is_taken_and_one_that_changes_many_is_not(search_of, method):
    good = search_of(0.0, method=method).run()
    assert good.chosen.dtype == "int8"
    assert good.chosen.speed_up > 3
    assert good.chosen.agreement >= 0.95
    some = search_of(0.02, method=method).run()
    assert some.chosen.dtype == "int8"
    assert some.full_depths[1].agreement == pytest.approx(0.98, abs=0.01)
    bad = search_of(0.1, method=method).run()
    assert bad.chosen.dtype == "float32"
    assert {each.dtype for each in bad.candidates} == {"float32"}
    assert {"full in int8", "threshold in int8"} <= set(bad.unsafe)
    assert bad.full_depths[1].agreement == pytest.approx(0.9, abs=0.03)


def test_a_dtype_whose_full_depth_fails_spends_no_error_on_policies(search_of):
    search = search_of(0.1)
    cells = [cell for cell in search.policies if cell[0] == "int8"]
    assert len(cells) > 3
    assert [search.choose(cell, search.unfitted[cell], 6.0) for cell in cells] == [None] * len(cells)
    search.judged["int8", FULL] = search_of(0.0).judged["int8", FULL]  # had it passed, each would have been tested
    assert search.choose(("int8", FULL), slice(None), 6.0) == 0


def test_a_promise_over_dtypes_holds_as_often_as_it_says(search_of):
    """A dtype whose full depth is just below the promise is taken in at most the share of calibrations that may err."""
    taken = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        search = search_of(0.06, rows=400, generator=generator)
        taken += search.choose(("int8", FULL), slice(None), 6.0) is not None
    assert taken <= 6  # .05 of 60 are expected at most; 7 or more would come up in 3 % of such trials


def test_a_speed_up_may_come_of_a_dtype(search_of):
    """For a speed-up of 5, samples in int8 leave later than those in float32 must, and so agree more."""
    found = search_of(0.001, promises={"speedup": 5.0}).run()
    assert (found.chosen.dtype, found.chosen.speed_up >= 5.0) == ("int8", True)
    float32 = max((each for each in found.candidates if each.dtype == "float32"), key=lambda each: each.speed_up)
    assert float32.speed_up < 5.0 or float32.agreement < found.chosen.agreement
    slow = search_of(0.3, promises={"speedup": 1.5}).run()
    assert slow.chosen.dtype == "float32"


def test_error_is_shared_over_dtypes():
    model = MultiExitBert(tiny_config())
    families = families_of(model)
    alone, both = (_confidences(families, cells_of(families, dtypes), 0.95) for dtypes in (["float32"], ["float32", "int8"]))
    assert sum(1 - value for value in alone.values()) == pytest.approx(0.05)
    assert both["int8", FULL] == pytest.approx(1 - 0.05 / 2)
    of_policies = [1 - value for (dtype, name), value in both.items() if name != FULL]
    assert sum(of_policies) == pytest.approx(0.05)
    assert both["float32", "threshold"] == pytest.approx(1 - (1 - alone["float32", "threshold"]) / 2)


def test_refused(model, tokenizer, many, tmp_path):
    engine = Engine(model, tokenizer, "full")
    with pytest.raises(ValueError, match="unknown each of dtypes 'int4'; known: bfloat16, float32, int8"):
        check_dtypes(["int4"], engine)
    with pytest.raises(TypeError, match="dtypes must be a list of names, or 'auto', got 'int8'"):
        calibrate(engine, many, agreement=0.8, dtypes="int8")
    with pytest.raises(ValueError, match="compared with a model in float32 that runs in float32, got .* that runs in bfloat16"):
        calibrate(Engine(model, tokenizer, "full", dtype="bfloat16"), many, agreement=0.8, dtypes=BOTH)
    assert check_dtypes(["float32", "int8", "int8"], engine) == ["int8"]
    engine.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the engine converted its model.*Engine\(MultiExitBert.from_pretrained"):
        calibrate(Engine.from_pretrained(tmp_path, "full"), many, agreement=0.8, dtypes=BOTH)
    with pytest.raises(ValueError, match="40 texts are too few to promise agreement=0.95"):
        calibrate(engine, many[:40], agreement=0.95, dtypes=BOTH)
    assert model.int8_layers is None
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="SDPA"):
        calibrate(Engine(model, tokenizer, "full"), many, agreement=0.8, dtypes=["int8"])


def test_auto_takes_the_runner_that_a_calibration_measured(model, tokenizer, many, tmp_path):
    engine = Engine(model, tokenizer, "full")
    calibrate(engine, many, agreement=0.8, dtypes=[], **QUICK)
    seconds = model.exit_config.calibration["layer_seconds"]
    assert seconds.keys() == {"float32"}
    for torch_takes, expected in ((0.5, "torch"), (0.95, "onednn"), (2.0, "onednn")):
        seconds["float32"] = {"onednn": 1.0, "torch": torch_takes}
        engine.save_pretrained(tmp_path)
        assert Engine.from_pretrained(tmp_path).runner.name == expected
        assert Engine.from_pretrained(tmp_path, "full", dtype="bfloat16").runner.name == "onednn"
    model.exit_config.calibration = model.exit_config.calibration | {"layer_seconds": {"float32": {"torch": 1.0}}}
    engine.save_pretrained(tmp_path)
    assert Engine.from_pretrained(tmp_path).runner.name == "onednn"  # runners of another version


@pytest.mark.parametrize("seconds", ["fast", {"float32": 1.0}, {"float32": {"torch": "x"}}, {"float32": {"torch": -1.0}}])
def test_damaged_measurements_are_refused(calibrated, seconds):
    served = calibrated[0].model.exit_config
    with pytest.raises((TypeError, ValueError), match="layer_seconds of calibration"):
        served.calibration = served.calibration | {"layer_seconds": seconds}


def test_another_runner_ends_what_was_measured_and_promised(calibrated, many):
    engine, _ = calibrated
    before, costs, runner = engine.predict(many), engine.layer_costs, engine.runner
    assert engine.promise is not None
    other = engine.with_runner(Engine(engine.model, engine.tokenizer, "full", runner="onednn").runner)
    torch.testing.assert_close(other.predict(many).logits, before.logits, atol=1e-4, rtol=1e-4)
    assert (other.promise, engine.runner) == (None, runner)
    assert engine.promise is not None
    assert engine.layer_costs is costs
    assert other.layer_costs is not costs
    with pytest.raises(TypeError, match="runner must be a name"):
        engine.runner = "onednn"


def test_a_layer_is_timed_by_every_runner(model):
    for dtype in ("float32", "bfloat16"):
        before = [parameter.dtype for parameter in model.parameters()]
        assert layer_seconds(model, dtype).keys() == TIMED.keys()
        assert [parameter.dtype for parameter in model.parameters()] == before


def test_an_engine_explains_itself_without_a_calibration(model, tokenizer, many):
    engine = Engine(model, tokenizer, "threshold:0.5")
    assert engine.explain() == [
        "Texts run under the policy threshold:0.5.",
        "Layers run in float32 by runner “torch” on cpu.",
        "No calibration has chosen this policy.",
    ]
    quantized(model, tokenizer, many)
    assert "in int8 by runner “onednn”" in Engine(model, tokenizer, "full", dtype="int8").explain()[1]

"""Calibration over dtypes and runners: what is tried, promised against float32, measured, chosen, saved and said."""

from __future__ import annotations

import threading

import pytest
import torch

from geep_triton import Engine, MultiExitBert, audit, calibrate, quantize
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.predictions import EveryExit
from geep_triton.promises.calibrate import confidences_of
from geep_triton.promises.contenders import Contender, Samples, check_dtypes
from geep_triton.promises.families import FULL, families_of
from geep_triton.promises.search import Search, cells_of
from geep_triton.promises.simulate import simulate
from geep_triton.promises.terms import CannotPromise, read_terms
from geep_triton.runners.make import multiplied_here
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
    again = Engine.from_pretrained(tmp_path, device="cpu")
    assert (again.dtype, again.runner.name, again.policy) == (dtype, found.runner, engine.policy)
    assert again.promise is not None
    told = "\n".join(again.explain())
    assert f"Layers run in {dtype} by runner “{found.runner}” on cpu." in told
    assert "Full depth answered, timed in turns: float32 " in told
    assert "get the same answer); int8 " in told
    with pytest.raises(ValueError, match=f"calibrated in {dtype}"):
        Engine.from_pretrained(tmp_path, dtype="bfloat16" if dtype == "float32" else "float32", device="cpu")


def test_measured_for_real(model, tokenizer, many):
    engine = Engine(model, tokenizer, "full")
    full = engine.predict(many).label_ids
    found = calibrate(engine, many, agreement=0.9, dtypes="auto", **QUICK)
    assert [each.dtype for each in found.full_depths] == ["float32", *multiplied_here()]
    saving = [each for each in found.candidates if each.family == FULL or each.mean_layers < 4]
    assert found.chosen in saving
    assert found.chosen.samples_per_second >= max(each.samples_per_second for each in saving if each.family == FULL)
    assert set(found.runner_speeds) == {"float32", *multiplied_here()} - {"int8"}
    assert all({"onednn", "torch"} == speeds.keys() and min(speeds.values()) > 0 for speeds in found.runner_speeds.values())
    assert float((engine.predict(many).label_ids == full).double().mean()) >= 0.88


def test_texts_that_gave_int8_its_scales_do_not_judge_it(model, tokenizer, many, monkeypatch, tmp_path):
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", fast_in("int8"))
    engine = Engine(model, tokenizer, "full")
    found = calibrate(engine, many, agreement=0.8, dtypes=["int8"], **QUICK)
    gave = set(model.int8_layers.text_hashes.tolist())
    assert 100 < len(gave) <= 200
    judged = [row for row, one in enumerate(engine.encode(many).hashes().tolist()) if one not in gave]
    assert found.breakdown.texts == len(judged) < 201  # equal texts do not judge either
    model.save_pretrained(tmp_path)
    model = MultiExitBert.from_pretrained(tmp_path)
    again = calibrate(Engine(model, tokenizer, "full", dtype="float32"), many, agreement=0.8, dtypes=["int8"], **QUICK)
    assert (again.breakdown.texts, again.chosen.agreement) == (len(judged), found.chosen.agreement)
    assert again.breakdown.exits[-1].same == round(again.chosen.agreement * len(judged))


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
        confidences = confidences_of(families, ["float32", "int8"], confidence)
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
    """A dtype whose full depth just breaks the promise is taken in at most the share of calibrations that it may err in."""
    taken = 0
    for seed in range(100):
        search = search_of(0.05, rows=400, generator=torch.Generator().manual_seed(seed))
        taken += search.choose(("int8", FULL), slice(None), 6.0) is not None
    assert taken <= 11  # at most .05 of 100 are expected; 12 or more would come up in 1 of 200 such trials


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
    alone, both = (confidences_of(families, dtypes, 0.95) for dtypes in (["float32"], ["float32", "int8"]))
    assert sum(1 - value for value in alone.values()) == pytest.approx(0.05)
    assert both["int8", FULL] == pytest.approx(1 - 0.05 / 2)
    of_policies = [1 - value for (dtype, name), value in both.items() if name != FULL]
    assert sum(of_policies) == pytest.approx(0.05)
    assert both["float32", "threshold"] == pytest.approx(1 - (1 - alone["float32", "threshold"]) / 2)


def test_refused(model, tokenizer, many, tmp_path):
    engine = Engine(model, tokenizer, "full")
    with pytest.raises(ValueError, match="unknown each of dtypes 'int4'; known: bfloat16, float32, int8"):
        check_dtypes(["int4"], engine)
    for given in ("int8", 5, True):
        with pytest.raises(TypeError, match=f"dtypes must be a list of names, or 'auto', got {given!r}"):
            calibrate(engine, many, agreement=0.8, dtypes=given)
    assert check_dtypes([torch.bfloat16], engine) == ["bfloat16"]
    with pytest.raises(ValueError, match="compared with a model in float32 that runs in float32, got .* that runs in bfloat16"):
        calibrate(Engine(model, tokenizer, "full", dtype="bfloat16"), many, agreement=0.8, dtypes=BOTH)
    assert check_dtypes(["float32", "int8", "int8"], engine) == ["int8"]
    engine.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the engine converted its model.*Engine\(MultiExitBert.from_pretrained"):
        calibrate(Engine.from_pretrained(tmp_path, "full", device="cpu"), many, agreement=0.8, dtypes=BOTH)
    with pytest.raises(ValueError, match="40 texts are too few to promise agreement=0.95"):
        calibrate(engine, many[:40], agreement=0.95, dtypes=BOTH)
    assert model.int8_layers is None
    model.exit_config.ranking = "top:2"
    with pytest.raises(ValueError, match="dtypes: the model's ranking was calibrated in one dtype"):
        check_dtypes([], engine)
    model.exit_config.ranking = None
    model.set_attn_implementation("eager")
    engine = Engine(model, tokenizer, "full")
    with pytest.raises(ValueError, match="dtypes: int8 needs layers with SDPA attention, got 'eager'"):
        calibrate(engine, many, agreement=0.8, dtypes=["int8"])
    with pytest.raises(ValueError, match="quantize needs layers with SDPA attention, got 'eager'"):
        quantize(model, tokenizer, many)
    if "int8" in multiplied_here():
        with pytest.warns(UserWarning, match="dtype 'int8' is left out: int8 needs layers with SDPA attention"):
            assert check_dtypes("auto", engine) == [name for name in multiplied_here() if name != "int8"]


def test_int8_waits_for_enough_texts(model, tokenizer, many):
    """Some give scales, and the others must be able to keep the promise."""
    engine = Engine(model, tokenizer, "full")
    said = "50 texts are too few for dtype 'int8': at least 64 are needed, 32 for its scales"
    with pytest.raises(CannotPromise, match=said):
        calibrate(engine, many[:50], agreement=0.8, dtypes=["int8"], **QUICK)
    if "int8" in multiplied_here():
        with pytest.warns(UserWarning, match=f"{said}.* is left out"):
            found = calibrate(engine, many[:50], agreement=0.8, dtypes="auto", **QUICK)
        assert "int8" not in [each.dtype for each in found.full_depths]


def test_auto_takes_the_runner_that_a_calibration_measured(model, tokenizer, many, tmp_path):
    def opened(*arguments, **settings):
        return Engine.from_pretrained(tmp_path, *arguments, device="cpu", **settings).runner.name

    engine = Engine(model, tokenizer, "full")
    calibrate(engine, many, agreement=0.8, dtypes=[], **QUICK)
    speeds = model.exit_config.calibration["runner_speeds"]
    assert {dtype: set(of) for dtype, of in speeds.items()} == {"float32": {"torch", "onednn"}}
    for torch_makes, expected in ((2.0, "torch"), (0.5, "onednn")):
        speeds["float32"] = {"onednn": 1.0, "torch": torch_makes}
        engine.save_pretrained(tmp_path)
        assert opened() == opened("full", dtype="float32") == expected
        assert opened("full", dtype="bfloat16") == "onednn"  # of which nothing was measured
    speeds["float32"] = {"of another version": 3.0, "torch": 1.0}
    engine.save_pretrained(tmp_path)
    assert opened() == "torch"
    assert Engine(model, tokenizer, "full", dtype="bfloat16").runner.name == "onednn"  # it copies weights anyway
    assert Engine(model, tokenizer, "full", dtype="float32").runner.name == "torch"


def test_the_engines_own_runner_takes_part(model, tokenizer, many, monkeypatch):
    tried = []

    def speeds(runs, inputs, rounds, progress):
        tried.append(list(runs))
        return {name: 2.0 if name == "compiled" else 1.0 for name in runs}

    monkeypatch.setattr("geep_triton.promises.contenders.speeds_of", speeds)
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", fast_in("float32"))
    engine = Engine(model, tokenizer, "full", runner="compiled")
    runner = engine.runner
    monkeypatch.setattr("geep_triton.engine.engine.Engine.every_exit", Engine(model, tokenizer, "full").every_exit)
    found = calibrate(engine, many, agreement=0.8, dtypes=[], **QUICK)
    assert tried == [["compiled", "onednn", "torch"]]
    assert (found.runner, engine.runner) == ("compiled", runner)


@pytest.mark.parametrize("speeds", ["fast", {"float32": 1.0}, {"float32": {"torch": "x"}}, {"float32": {"torch": -1.0}}])
def test_damaged_measurements_are_refused(calibrated, speeds):
    served = calibrated[0].model.exit_config
    with pytest.raises((TypeError, ValueError), match="runner_speeds of calibration"):
        served.calibration = served.calibration | {"runner_speeds": speeds}


def test_a_dtype_that_nobody_knows(calibrated, tokenizer):
    model = calibrated[0].model
    with pytest.raises(TypeError, match="dtype of calibration"):
        model.exit_config.calibration = model.exit_config.calibration | {"dtype": 5}
    model.exit_config.calibration = model.exit_config.calibration | {"dtype": "int4"}
    with pytest.raises(ValueError, match="the model's calibration says dtype 'int4', expected one of float32"):
        Engine(model, tokenizer)


def test_the_promise_is_of_the_layers_that_were_judged(model, tokenizer, many, monkeypatch, tmp_path):
    """Scales of other texts may answer otherwise."""
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", fast_in("int8"))
    engine = Engine(model, tokenizer, "full")
    calibrate(engine, many, agreement=0.8, dtypes=["int8"], **QUICK)
    engine.save_pretrained(tmp_path)
    assert Engine.from_pretrained(tmp_path, device="cpu").promise is not None
    model.int8_layers = quantize(model, tokenizer, ["film"] * 40, progress=False)
    with pytest.warns(UserWarning, match="calibrated with int8_layers .*its promise does not hold here"):
        assert Engine(model, tokenizer).promise is None


def test_an_audit_holds_answers_to_the_dtype_that_was_promised(model, tokenizer, many, monkeypatch):
    """Int8 agrees with itself, whatever it does to answers."""
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", fast_in("int8"))
    full, engine = Engine(model, tokenizer, "full", dtype="float32"), Engine(model, tokenizer, "full")
    calibrate(engine, many, agreement=0.8, dtypes=["int8"], **QUICK)
    assert engine.promise.reference == "float32"
    with pytest.warns(
        UserWarning, match="about the answers of all layers in float32, and this audit compares with those in int8"
    ):
        blind = audit(engine, 1.0)
    engine.predict(many)
    assert (blind.report().agreement, blind.promised, blind.report().holds) == (1.0, None, None)
    with pytest.warns(UserWarning, match="the audit that was running ends here"):
        engine.policy = "full"
    calibrate(engine.with_runner(full.runner), many, agreement=0.8, dtypes=["int8"], **QUICK)
    engine = Engine(model, tokenizer)
    sees = audit(engine, 1.0, reference=full)
    differ = engine.predict(many).label_ids != full.predict(many).label_ids
    assert sees.promised == 0.8
    assert sees.report().agreement == pytest.approx(1 - float(differ.double().mean()))
    with pytest.raises(ValueError, match="reference must run the engine's own model"):
        audit(engine, 1.0, reference=Engine(MultiExitBert(tiny_config(num_labels=2)), tokenizer, "full"))


def test_quantize_does_not_touch_an_engine_that_runs(model, tokenizer, many):
    engine, failed, stop = Engine(model, tokenizer, "full"), [], threading.Event()

    def serve():
        while not stop.is_set():
            try:
                engine.predict(many[:50])
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    for _ in range(3):
        quantize(model, tokenizer, many, progress=False)
    stop.set()
    thread.join()
    assert failed == []


def test_weights_that_changed_are_not_covered_up(model, tokenizer, many):
    engine = Engine(model, tokenizer, "full", dtype="bfloat16")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(-1)
    for change in (lambda: engine.with_runner(engine.runner), lambda: setattr(engine, "runner", engine.runner)):
        with pytest.raises(ValueError, match="weights have changed since this engine was made"):
            change()


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


def test_an_engine_explains_only_what_it_keeps(model, tokenizer, many, monkeypatch):
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", fast_in("int8"))
    engine = Engine(model, tokenizer, "full")
    calibrate(engine, many, agreement=0.8, dtypes=["int8"], **QUICK)
    told = engine.explain()
    assert "At least 80 % of texts get the answer that all layers in float32 give." in told
    assert any(line.startswith("“full in int8” answers 3 texts a second") for line in told)
    other = Engine(model, tokenizer, "full", dtype="bfloat16").explain()
    assert other[2:] == ["A calibration has chosen it in int8, and promises nothing in bfloat16."]
    model.exit_config.temperatures = (1.0, 1.0, 1.0, 2.0)
    with pytest.warns(UserWarning, match="exit_temperatures"):
        assert "promises nothing here" in Engine(model, tokenizer).explain()[-1]
    model.exit_config.policy = "threshold:0.9"
    with pytest.warns(UserWarning, match="exit_policy"):
        assert Engine(model, tokenizer).explain()[-1] == "No calibration has chosen this policy."


def test_an_engine_explains_itself_without_a_calibration(model, tokenizer, many):
    engine = Engine(model, tokenizer, "threshold:0.5")
    assert engine.explain() == [
        "Texts run under the policy threshold:0.5.",
        "Layers run in float32 by runner “torch” on cpu.",
        "No calibration has chosen this policy.",
    ]
    quantized(model, tokenizer, many)
    assert "in int8 by runner “onednn”" in Engine(model, tokenizer, "full", dtype="int8").explain()[1]

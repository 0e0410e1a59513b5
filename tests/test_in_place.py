"""Models converted in place: nothing is held twice, and what is saved is what was loaded."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import warnings
import weakref

import pytest
import torch

from geep_triton import Engine, MultiExitBert, build_exit_table, calibrate
from geep_triton.runners.make import make_runner
from tests.int8 import ready


@pytest.mark.parametrize("changes", [{}, {"head": "pooler"}, {"skip_gate": "mean", "skip_gate_bias": 0.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_holds_nothing_twice_and_answers_the_same(make_model, tokenizer, texts, changes, dtype):
    expected = Engine(make_model(**changes).to(dtype), tokenizer, "threshold:0.7", runner="onednn").predict(texts)
    model = make_model(**changes).to(dtype)
    parts = (model.bert.encoder, model.heads)
    weights = [weakref.ref(module.weight) for part in parts for module in part.modules() if isinstance(module, torch.nn.Linear)]
    engine = Engine(model, tokenizer, "threshold:0.7", runner=make_runner(model, in_place=True))
    assert len(weights) > 6 * model.config.num_hidden_layers
    assert not any(weight() is not None for weight in weights)
    assert engine.model is model
    assert (engine.runner.name, engine.dtype) == ("onednn", model.converted.layers)
    got = engine.predict(texts)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.exit_layers, expected.exit_layers)
    again = Engine(model, tokenizer, "full", runner="onednn")
    assert again.runner.parts.layers is model.bert.encoder.layer
    assert again.predict(texts).exit_layers.unique().tolist() == [model.config.num_hidden_layers]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        there = make_model(**changes).to(dtype).bert(**given).last_hidden_state
        got = model.bert(**given).last_hidden_state
    real = given["attention_mask"].bool()
    torch.testing.assert_close(got[real], there[real], atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0)


def with_costs_of(engine, other):
    """The other engine, which makes the same batches: those that it measures itself may have survivors wait elsewhere."""
    other.__dict__["layer_costs"] = engine.layer_costs
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_converted_in_place_is_saved_and_copied_as_it_was(make_model, tokenizer, texts, tmp_path, dtype):
    model = make_model().to(dtype)
    before = copy.deepcopy(model.state_dict())
    engine = Engine(model, tokenizer, "threshold:0.7", runner=make_runner(model, "onednn", in_place=True))
    model.exit_table = build_exit_table(model, tokenizer, texts[:4], 0.7, progress=False)
    calibrate(engine, texts[4:] * 9, mean_depth=3.0)
    expected = engine.predict(texts).logits
    engine.save_pretrained(tmp_path)
    loaded = MultiExitBert.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert loaded.state_dict().keys() == before.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name]), name
    other = with_costs_of(engine, Engine.from_pretrained(tmp_path, device="cpu"))
    assert other.runner.name == "onednn"
    assert torch.equal(other.predict(texts).logits, expected)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again = with_costs_of(engine, Engine(same, tokenizer, engine.policy))
        assert torch.equal(again.predict(texts).logits, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("there", [True, False])
def test_an_engine_that_rounded_its_weights_saves_what_it_loaded(make_model, tokenizer, texts, tmp_path, dtype, there):
    """Over the folder that it was loaded from, and elsewhere; and refuses where that holds other weights by now."""
    model = ready(make_model(), tokenizer, texts, {"dtype": dtype})
    Engine(model, tokenizer, "full").save_pretrained(tmp_path / "a")
    engine = Engine.from_pretrained(tmp_path / "a", dtype=dtype, device="cpu")
    assert engine.model.converted.rounded.dtype == "float32"
    engine.model.exit_table = build_exit_table(engine.model, tokenizer, texts[:4], 0.7, progress=False)
    calibrate(engine, texts[4:] * 9, mean_depth=3.0)
    where = tmp_path / ("a" if there else "b")
    engine.save_pretrained(where)
    again = MultiExitBert.from_pretrained(where)
    assert again.dtype == torch.float32
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    expected = engine.predict(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = with_costs_of(engine, Engine.from_pretrained(where, dtype=dtype, device="cpu"))
        assert torch.equal(other.predict(texts).logits, expected.logits)
    with torch.no_grad():
        model.heads["1"].classifier.bias += 1
    model.save_pretrained(tmp_path / "a")
    if not there:
        with pytest.raises(ValueError, match="does not have the weights of before"):
            engine.save_pretrained(tmp_path / "c")
        assert not (tmp_path / "c" / "config.json").exists()


@pytest.mark.parametrize("runner", ["torch", "onednn"])
def test_a_model_without_digests_is_saved_over_itself(make_model, tokenizer, tmp_path, monkeypatch, runner):
    """Its weights are read again while its folder is being replaced, also after the process went to another folder."""
    before = make_model()
    Engine(before, tokenizer, "full").save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"digests": None}))
    monkeypatch.chdir(tmp_path)
    engine = Engine.from_pretrained("model", "full", runner=runner, dtype="bfloat16", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    engine.save_pretrained(tmp_path / "model")
    after = MultiExitBert.from_pretrained(tmp_path / "model")
    assert after.dtype == torch.float32
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in after.state_dict().items())


def test_exits_that_no_file_has_cannot_be_saved_once_they_are_rounded(fine_tuned, tmp_path):
    """A plain classifier's early exits start at random. It refuses, and does not wait for its own lock."""
    shutil.copytree(fine_tuned, tmp_path / "model")
    engine = Engine.from_pretrained(tmp_path / "model", "full", dtype="bfloat16", device="cpu")
    with pytest.raises(ValueError, match="does not have the weights of before"):
        engine.save_pretrained(tmp_path / "model")


def test_rounded_weights_that_were_edited_are_saved_as_they_are(make_model, tokenizer, texts, tmp_path):
    Engine(make_model(), tokenizer, "full").save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, runner="torch", dtype="bfloat16", device="cpu")
    with pytest.raises(ValueError, match="rounded the model's weights for inference: it cannot be trained"):
        engine.model.train()
    with torch.no_grad():
        engine.model.heads["1"].classifier.bias += 1
    now = copy.deepcopy(engine.model.state_dict())
    engine.save_pretrained(tmp_path)
    again = MultiExitBert.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(value, now[name]) for name, value in again.state_dict().items())


def test_what_cannot_be_done_with_a_model_converted_in_place(make_model, tokenizer, texts):
    model = make_model()
    before = Engine(model, tokenizer, runner=make_runner(model, "onednn", in_place=True)).predict(texts).logits
    for do in (
        model.train,
        lambda: model.load_state_dict(make_model().state_dict()),
        lambda: model.to(torch.bfloat16),
        lambda: model.to("meta"),
        lambda: Engine(model, tokenizer, dtype="bfloat16"),
        lambda: Engine(model, tokenizer, dtype="int8"),
        lambda: Engine(model, tokenizer, runner="compiled"),
    ):
        with pytest.raises(ValueError, match="the model's layers were converted for inference.*; load it again"):
            do()
    assert model.eval() is model
    assert model.to("cpu") is model
    assert torch.equal(Engine(model, tokenizer).predict(texts).logits, before)


@pytest.mark.parametrize("settings", [{}, {"runner": "onednn"}, {"dtype": "int8"}, {"dtype": "bfloat16"}], ids=str)
def test_an_engine_whose_model_is_converted_under_it_says_so(make_model, tokenizer, texts, settings):
    model = ready(make_model(), tokenizer, texts, settings)
    engine = Engine(model, tokenizer, "full", **settings)
    make_runner(model, "onednn", in_place=True)
    with pytest.raises(ValueError, match="weights have changed since this engine was made"):
        engine.predict(texts)


@pytest.mark.parametrize("change", ["hook", "eager"])
def test_auto_converts_nothing_that_would_be_lost(make_model, change):
    model = make_model()
    if change == "hook":
        model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
    else:
        model.set_attn_implementation("eager")
    assert make_runner(model, in_place=True).name == "torch"
    model.train()

"""An engine refuses to answer once its model has other weights, however they came."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

from geep_triton import Engine, audit, calibrate
from geep_triton.engine.weight_watch import WeightWatch
from geep_triton.promises.temperatures import fit_temperatures
from tests.int8 import ready

CHANGED = "weights have changed since this engine"
FORMS = [{}, {"runner": "onednn"}, {"dtype": "int8"}, {"dtype": "bfloat16"}]


def train(parameters) -> None:
    """One step of the optimizer that the Trainer takes by default, which leaves versions as they are."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()


PARTS = {
    "embeddings": lambda model: [model.bert.embeddings.word_embeddings.weight],
    "a layer's query": lambda model: model.bert.encoder.layer[1].attention.self.query.parameters(),
    "a head's dense": lambda model: [model.heads["2"].classifier.weight],
    "gates": lambda model: model.gates.parameters(),
}


@pytest.mark.parametrize("settings", FORMS, ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_trained(make_model, tokenizer, texts, settings, part):
    model = ready(make_model(skip_gate="mean"), tokenizer, texts, settings)
    engine = Engine(model, tokenizer, "full", **settings)
    engine.predict(texts)
    train(PARTS[part](model))
    with pytest.raises(ValueError, match=CHANGED):
        engine.predict(texts)


def test_other_models_may_be_trained(make_model, tokenizer, texts):
    engine, other = Engine(make_model(), tokenizer), make_model()
    train(other.parameters())
    assert len(engine.predict(texts)) == len(texts)


SWAPS = {
    "a head": lambda model: model.heads.__setitem__("2", copy.deepcopy(model.heads["1"])),
    "a classifier": lambda model: setattr(model.heads["2"], "classifier", nn.Linear(16, 3)),
    "a layer": lambda model: model.bert.encoder.layer.__setitem__(1, copy.deepcopy(model.bert.encoder.layer[1])),
    "a bias gone": lambda model: setattr(model.heads["2"].classifier, "bias", None),
    "a wrapped linear": lambda model: setattr(
        model.bert.encoder.layer[0].intermediate, "dense", nn.Sequential(model.bert.encoder.layer[0].intermediate.dense)
    ),
    "a part more": lambda model: model.heads["2"].add_module("more", nn.Linear(2, 2)),
}


@pytest.mark.parametrize("settings", FORMS, ids=str)
@pytest.mark.parametrize("swap", SWAPS)
def test_a_module_that_is_replaced(model, tokenizer, texts, settings, swap):
    engine = Engine(ready(model, tokenizer, texts, settings), tokenizer, "full", **settings)
    SWAPS[swap](model)
    with pytest.raises(ValueError, match=CHANGED):
        engine.predict(texts)


def test_a_resized_vocabulary(model, tokenizer, texts):
    engine = Engine(model, tokenizer, "full")
    model.resize_token_embeddings(60)
    with pytest.raises(ValueError, match=CHANGED):
        engine.predict(texts)


def test_layers_that_the_configuration_no_longer_has(model, tokenizer, texts):
    engine = Engine(model, tokenizer, "full")
    model.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match=r"config.num_hidden_layers must be 4, as the weights have it, got 2"):
        engine.predict(texts)


@pytest.mark.parametrize("call", ["predict", "every_exit"])
def test_a_change_while_a_window_runs(model, tokenizer, many, call):
    """No window is answered half by the old weights and half by the new: they change at the 9th batch."""
    engine = Engine(model, tokenizer, "full", token_budget=64)
    batches = []

    def change(*_) -> None:
        batches.append(1)
        if len(batches) == 9:
            with torch.no_grad():
                model.bert.encoder.layer[0].intermediate.dense.weight.add_(0.1)

    hook = model.bert.encoder.layer[3].register_forward_hook(change)
    with pytest.raises(ValueError, match=CHANGED):
        getattr(engine, call)(many)
    hook.remove()
    assert len(batches) > 9


def test_a_change_while_an_audit_runs(model, tokenizer, texts):
    engine = Engine(model, tokenizer, "constant:1")
    audit(engine, rate=1.0)

    def change(*_) -> None:
        with torch.no_grad():
            model.bert.encoder.layer[0].intermediate.dense.weight.add_(0.1)

    model.bert.encoder.layer[3].register_forward_hook(change)
    with pytest.raises(ValueError, match=CHANGED):
        engine.predict(texts)


@pytest.mark.parametrize("settings", FORMS, ids=str)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))], ids=["copy", "pickle"])
def test_a_copy_watches_its_own_model(model, tokenizer, texts, settings, copied):
    engine = Engine(ready(model, tokenizer, texts, settings), tokenizer, "full", **settings)
    other = copied(engine)
    torch.testing.assert_close(other.predict(texts).logits, engine.predict(texts).logits)
    train([other.model.heads["2"].classifier.weight])
    with pytest.raises(ValueError, match=CHANGED):
        other.predict(texts)
    engine.predict(texts)
    with torch.no_grad():
        model.heads["2"].classifier.weight.mul_(2)
    with pytest.raises(ValueError, match=CHANGED):
        copied(engine).predict(texts)  # what had changed before stays known


def test_a_watch_that_is_gone_leaves_nothing(model):
    gc.collect()
    before = len(_global_optimizer_post_hooks)
    watch = WeightWatch(model)
    assert len(_global_optimizer_post_hooks) == before + 1
    del watch
    gc.collect()
    assert len(_global_optimizer_post_hooks) == before


def test_a_model_that_was_made_for_inference(make_model, tokenizer, texts):
    expected = Engine(make_model(), tokenizer).predict(texts).logits
    with torch.inference_mode():
        model = make_model()
    torch.testing.assert_close(Engine(model, tokenizer).predict(texts).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_several_dtypes(model, tokenizer, dtype):
    model.heads["2"].classifier.to(dtype)
    with pytest.raises(
        ValueError, match=f"weights of heads.2.classifier.weight are {dtype}, others torch.float32, expected one"
    ):
        Engine(model, tokenizer)


def test_weights_below_half_precision(model, tokenizer):
    model.heads["2"].classifier.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="are torch.float8_e4m3fn, expected floating point of 16 to 64 bits"):
        Engine(model, tokenizer)


def test_maps_of_labels_that_are_changed_later(model, tokenizer, texts, many):
    engine = Engine(model, tokenizer, "full")
    model.config.id2label = {0: "LABEL_2", 1: "LABEL_0", 2: "LABEL_1"}
    for call in (
        lambda: engine.predict(texts),
        lambda: calibrate(engine, many, [0] * len(many), max_accuracy_drop=0.5),
        lambda: fit_temperatures(engine, many, [0] * len(many)),
    ):
        with pytest.raises(ValueError, match="label2id must be the inverse of id2label"):
            call()
    model.config.id2label = {0: "a", 1: "b"}
    model.config.label2id = {"a": 0, "b": 1}
    with pytest.raises(ValueError, match="config.num_labels must be 3"):
        engine.predict(texts)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.config.label2id = {"a": 0, "b": 1, "c": 2}
    assert set(engine.predict(texts).labels) <= {"a", "b", "c"}


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_nothing_is_answered_in_training_mode(make_model, tokenizer, many, settings):
    model = ready(make_model(hidden_dropout_prob=0.9, head_dropout=0.9), tokenizer, many, settings)
    engine = Engine(model, tokenizer, "full", **settings)
    assert not any(module.training for module in engine.runner.modules())
    expected = engine.predict(many).logits
    for part in (model, model.heads["2"], model.bert.encoder.layer[1]):
        part.train()
        torch.testing.assert_close(engine.predict(many).logits, expected)


def test_training_mode_that_begins_while_a_window_runs(model, tokenizer, many):
    engine = Engine(model, tokenizer, "full", token_budget=64)
    hook = model.bert.encoder.layer[3].register_forward_hook(lambda *_: model.train() and None)
    with pytest.raises(ValueError, match="set to training mode while the engine ran it"):
        engine.predict(many)
    hook.remove()

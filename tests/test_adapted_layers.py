"""Adapters, hooks and other changes to layers: conversion loses none of them."""

from __future__ import annotations

import pytest
import torch

from geep_triton import Engine
from geep_triton.runners.make import make_runner
from tests.int8 import ready


class Adapted(torch.nn.Linear):
    """As peft's layers: it has the weight and bias of the layer that it adapts, and does more than multiply by them."""

    def forward(self, states):
        return super().forward(states) + 1


CONVERSIONS = [{"name": "onednn"}, {"name": "onednn", "in_place": True}, {"dtype": "int8"}, {"dtype": "int8", "in_place": True}]
CHANGES = {
    "attention.self.value": (Adapted(32, 32), "Adapted, expected Linear"),
    "output.dropout": (torch.nn.Sequential(torch.nn.Dropout()), "Sequential, expected Dropout"),
    "intermediate.intermediate_act_fn": (torch.nn.Sequential(torch.nn.GELU(), Adapted(64, 64)), "Sequential, expected GELU"),
    "attention.adapter": (Adapted(32, 32), "Adapted, expected nothing"),
}


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
@pytest.mark.parametrize("name", CHANGES)
def test_adapters_are_not_lost(make_model, tokenizer, texts, settings, name):
    model, (module, message) = make_model(), CHANGES[name]
    model.bert.encoder.layer[1].set_submodule(name, module)
    with pytest.raises(ValueError, match=f"layer 2, {name} is a {message}.*: merge or remove adapters first"):
        make_runner(model, **settings)
    assert model.converted is None
    Engine(model, tokenizer).predict(texts)


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
@pytest.mark.parametrize("part", ["", "attention.self", "output.dense", "intermediate.intermediate_act_fn"])
def test_hooks_are_not_lost(make_model, tokenizer, texts, settings, part):
    model = make_model()
    module = model.bert.encoder.layer[1].get_submodule(part)
    hook = module.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"layer 2(, )?{part} has forward hooks, which would be lost"):
        make_runner(model, **settings)
    hook.remove()
    module.forward = module.forward  # as accelerate's hooks do
    with pytest.raises(ValueError, match="has forward hooks"):
        make_runner(model, **settings)


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
def test_what_is_around_a_layer_or_in_a_head_is_not_lost(make_model, tokenizer, settings):
    model = make_model()
    model.heads["1"].classifier = Adapted(8, 3)
    with pytest.raises(ValueError, match="head 1, classifier is a Adapted"):
        make_runner(model, **settings)
    model = make_model()
    model.bert.encoder.layer[0] = torch.nn.Sequential(model.bert.encoder.layer[0])
    model.train()
    with pytest.raises(ValueError, match="layer 1 is a Sequential, expected BertLayer"):
        make_runner(model, **settings)


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
def test_layers_and_heads_may_be_shared(make_model, tokenizer, texts, settings):
    model = make_model()
    model.bert.encoder.layer[1], model.heads["2"] = model.bert.encoder.layer[0], model.heads["1"]
    expected = Engine(ready(model, tokenizer, texts, settings), tokenizer).every_exit(texts).logits.softmax(-1)
    got = Engine(model, tokenizer, runner=make_runner(model, **settings)).every_exit(texts).logits.softmax(-1)
    torch.testing.assert_close(got, expected, atol=0.1 if "dtype" in settings else 1e-5, rtol=0)

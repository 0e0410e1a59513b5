"""What the engine refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.policies.leave import Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import FirstExit


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "expected at least one text"),
        ({"text": []}, "expected at least one text"),
        (["good", ""], "sample 1 has an empty text"),
        ([{"body": "good"}], "sample 0: missing column 'text'; columns: 'body'"),
        ([{"input_ids": [2, 500, 3]}], "token id 500, outside the model's vocabulary"),
    ],
)
def test_bad_inputs(model, tokenizer, inputs, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer).predict(inputs)


def test_bad_sample_is_named_across_windows(model, tokenizer, texts):
    with pytest.raises(ValueError, match="sample 17 has an empty text"):
        Engine(model, tokenizer, window=4).predict([*texts, *texts, "good", " "])


def test_nan_weights(model, tokenizer):
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights of bert.encoder.layer.1.output.dense.weight are NaN or infinite"):
        Engine(model, tokenizer)


def test_logits_that_overflow(model, tokenizer, texts):
    with torch.no_grad():
        model.heads["4"].dense.bias.fill_(10.0)
        model.heads["4"].classifier.weight.fill_(3e38)
    with pytest.raises(ValueError, match="sample 0 got logits that are NaN or infinite"):
        Engine(model, tokenizer).predict(texts)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("fast", "unknown policy 'fast'; known: full, constant:LAYER"),
        ("constant", "policy 'constant'.*known"),
        ("constant:9", "layer 9 is not an exit"),
        ("threshold:2", "between 0.0 and 1.0, got 2.0"),
        ("threshold", "needs a threshold"),
        ("predicted", "needs an exit table"),
        ("predicted:median", "unknown statistic 'median'"),
        (Policy(FirstExit(), Sure([0.1])), "one per scored exit"),
    ],
)
def test_bad_policies(model, tokenizer, policy, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, policy)


def test_something_else_than_a_policy(model, tokenizer):
    with pytest.raises(TypeError, match=r"policy must be a policy or its short form, got 0.3; known: full"):
        Engine(model, tokenizer, 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"token_budget": 0}, "token_budget must be at least 1"),
        ({"max_length": 65}, "max_length must be between 3 and 64"),
    ],
)
def test_bad_arguments(model, tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, **arguments)


def test_other_models_and_several_scores(make_model, tokenizer):
    with pytest.raises(TypeError, match="must be a MultiExitBert, got Linear"):
        Engine(torch.nn.Linear(2, 2), tokenizer)
    with pytest.raises(ValueError, match="problem_type regression needs num_labels=1, got 2"):
        Engine(make_model(num_labels=2, problem_type="regression"), tokenizer)


def test_table_of_another_vocabulary_depth_or_tokenizer(model, make_model, tokenizer, texts):
    table = build_exit_table(model, tokenizer, texts, 0.7, progress=False)
    with pytest.raises(ValueError, match="vocabulary of 42, the model has 50"):
        make_model(vocab_size=50).exit_table = table
    with pytest.raises(ValueError, match=r"exits at \[1, 2, 3, 4\], the model has \[1, 4\]"):
        make_model(exit_layers=[1, 4]).exit_table = table
    model.exit_table = dataclasses.replace(table, fingerprint="another")
    with pytest.raises(ValueError, match="another tokenizer"):
        Engine(model, tokenizer, "predicted")
    assert len(Engine(model, tokenizer, "full").predict(texts)) == len(texts)  # needs no table


def test_a_table_of_another_tokenizer_is_refused_also_later(model, tokenizer, texts):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    engine = Engine(model, tokenizer, "predicted")
    engine.predict(texts)
    model.exit_table = dataclasses.replace(model.exit_table, fingerprint="other")
    with pytest.raises(ValueError, match="tokenizer"):
        engine.predict(texts)


def test_a_folder_without_a_tokenizer_is_told_so(model, tokenizer, texts, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model but no tokenizer that loads"):
        Engine.from_pretrained(tmp_path)
    engine = Engine(model, tokenizer, "threshold:0.95")
    engine.save_pretrained(tmp_path)
    again = Engine.from_pretrained(tmp_path, "threshold:0.95").predict(texts)
    torch.testing.assert_close(again.logits, engine.predict(texts).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["prefetch", "truncation", "progress"])
def test_flags_are_true_or_false(model, tokenizer, name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
        Engine(model, tokenizer, **{name: "no"})

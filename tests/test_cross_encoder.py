"""CrossEncoder against what sentence-transformers documents, written out here."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from geep_triton import CrossEncoder, Engine, MultiExitBert, calibrate
from geep_triton.engine.costs import LayerCosts
from tests.conftest import WORDS

IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.fixture
def pairs(texts):
    return [*zip(texts, reversed(texts), strict=True)]


@pytest.fixture
def make_classifier(tokenizer, tmp_path):
    """A fine-tuned BertForSequenceClassification, and its folder with its tokenizer. **config goes into its config.json."""

    def make(num_labels=1, **config):
        torch.manual_seed(1)
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
        values = {**sizes, "vocab_size": len(WORDS), "max_position_embeddings": 64, "initializer_range": 0.3}
        model = BertForSequenceClassification(BertConfig(**values, num_labels=num_labels, **config)).eval()
        model.save_pretrained(tmp_path / "classifier")
        tokenizer.save_pretrained(tmp_path / "classifier")
        return model, tmp_path / "classifier"

    return make


@torch.no_grad()
def reference(model, tokenizer, pairs, activation, max_length=64, softmax=False):
    """Pair by pair: cut to the length, the longer text first; activation; softmax over several labels; one label squeezed."""
    rows = []
    for pair in pairs:
        batch = tokenizer(*pair, truncation="longest_first", max_length=max_length, return_tensors="pt")
        rows.append(activation(model(**batch).logits)[0])
    scores = torch.stack(rows)
    scores = scores[:, 0] if scores.shape[1] == 1 else scores
    return (scores.softmax(1) if softmax and scores.ndim > 1 else scores).numpy()


@pytest.mark.parametrize(
    ("num_labels", "config", "activation"),
    [
        (1, {}, nn.Sigmoid()),
        (3, {}, nn.Identity()),
        (1, {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}, nn.Identity()),
        (1, {"sbert_ce_default_activation_function": IDENTITY}, nn.Identity()),
        (3, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, nn.Sigmoid()),
        (1, {"sentence_transformers": {"version": "4.1.0"}, "problem_type": "regression"}, nn.Sigmoid()),
    ],
)
def test_predict(make_classifier, tokenizer, pairs, num_labels, config, activation):
    model, folder = make_classifier(num_labels, **config)
    encoder = CrossEncoder(folder, device="cpu")
    scores, expected = encoder.predict(pairs), reference(model, tokenizer, pairs, activation)
    assert isinstance(scores, np.ndarray)
    assert (scores.dtype, scores.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert type(encoder.activation_fn) is type(activation)
    for softmax in (True, False):
        found = encoder.predict(pairs, activation_fn=nn.Tanh(), apply_softmax=softmax, batch_size=2)
        np.testing.assert_allclose(found, reference(model, tokenizer, pairs, nn.Tanh(), softmax=softmax), atol=1e-5)
    given = CrossEncoder(folder, num_labels, 64, nn.Tanh(), "cpu", backend="torch", trust_remote_code=False)
    np.testing.assert_allclose(given.predict(pairs), reference(model, tokenizer, pairs, nn.Tanh()), atol=1e-5)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_kinds_of_results_and_of_inputs(make_classifier, pairs, num_labels):
    encoder = CrossEncoder(make_classifier(num_labels)[1], device="cpu")
    expected = encoder.predict(pairs)
    tensor = encoder.predict(pairs, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    listed = encoder.predict(pairs, convert_to_numpy=False)
    assert isinstance(listed, list)
    np.testing.assert_array_equal(torch.stack(listed).numpy(), expected)
    for same in ([list(pair) for pair in pairs], tuple(pairs), np.array(pairs), np.array(pairs, dtype=object)):
        np.testing.assert_array_equal(encoder.predict(same), expected)
    for one in (pairs[0], list(pairs[0]), np.array(pairs[0])):
        score = encoder.predict(one)
        assert np.shape(score) == expected.shape[1:]
        np.testing.assert_allclose(score, expected[0], atol=1e-6)
    assert np.ndim(encoder.predict([pairs[0]])) == expected.ndim
    assert encoder.predict([]).shape == (0,)
    assert encoder.predict([], convert_to_tensor=True).shape == (0,)
    assert encoder.predict([], convert_to_numpy=False) == []
    assert encoder.num_labels == num_labels


def test_long_pairs_are_cut_and_counted(make_classifier, tokenizer, pairs):
    model, folder = make_classifier()
    encoder = CrossEncoder(folder, max_length=12, device="cpu")
    assert encoder.max_length == 12
    expected = reference(model, tokenizer, pairs, nn.Sigmoid(), max_length=12)
    np.testing.assert_allclose(encoder.predict(pairs), expected, atol=1e-5)
    longer = sum(len(tokenizer(*pair)["input_ids"]) > 12 for pair in pairs)
    assert encoder.truncated == longer > 0
    encoder.predict(pairs)
    assert encoder.truncated == 2 * longer
    cut = sum(len(tokenizer(pairs[0][0], text)["input_ids"]) > 12 for _, text in pairs)
    encoder.rank(pairs[0][0], [text for _, text in pairs])
    assert encoder.truncated == 2 * longer + cut
    assert CrossEncoder(folder, device="cpu").max_length == 64


@pytest.mark.parametrize("activation", [None, nn.Identity()])
def test_rank(make_classifier, texts, activation):
    encoder = CrossEncoder(make_classifier()[1], device="cpu")
    query, documents = texts[0], [*texts, texts[2]]
    scores = encoder.predict([(query, document) for document in documents], activation_fn=activation)
    order = sorted(range(len(documents)), key=lambda index: -scores[index])
    found = encoder.rank(query, documents, activation_fn=activation)
    assert [result["corpus_id"] for result in found] == order
    assert all(result.keys() == {"corpus_id", "score"} and type(result["score"]) is float for result in found)
    np.testing.assert_allclose([result["score"] for result in found], scores[order], atol=1e-5)
    best = encoder.rank(query, documents, top_k=3, return_documents=True, activation_fn=activation, batch_size=4)
    assert [(result["corpus_id"], result["text"]) for result in best] == [(index, documents[index]) for index in order[:3]]
    assert len(encoder.rank(query, documents, top_k=100)) == len(documents)
    assert encoder.rank(query, []) == []


def test_exits_count(make_model, tokenizer, pairs, texts, tmp_path):
    """Pairs leave by the saved policy, and documents by the saved ranking."""
    model = make_model(num_labels=1, pooling="mean")
    model.exit_config.policy, model.exit_config.ranking = "constant:2", "top:2,margins=0.0/0.0/0.0,layers=1/2/3"
    Engine(model, tokenizer).save_pretrained(tmp_path)
    encoder = CrossEncoder(tmp_path, device="cpu")
    engine = Engine.from_pretrained(tmp_path, device="cpu", truncation=True)
    np.testing.assert_allclose(encoder.predict(pairs), engine.predict(pairs).logits.sigmoid()[:, 0].numpy(), atol=1e-6)
    assert encoder.engine.predict(pairs).exit_layers.tolist() == [2] * len(pairs)
    ranking = engine.rank(texts[0], texts, 2)
    assert ranking.mean_layers < 4
    found = encoder.rank(texts[0], texts, 2)
    assert [result["corpus_id"] for result in found] == ranking.order.tolist()
    scores = ranking.logits.sigmoid()[ranking.order].tolist()
    assert [result["score"] for result in found] == pytest.approx(scores, abs=1e-6)
    full = CrossEncoder(tmp_path, policy="full", device="cpu")
    expected = Engine(model, tokenizer, "full").predict(pairs).logits.sigmoid()[:, 0].numpy()
    np.testing.assert_allclose(full.predict(pairs), expected, atol=1e-6)


def test_of_an_engine(make_model, tokenizer, pairs):
    engine = Engine(make_model(num_labels=1), tokenizer, "constant:2", truncation=True)
    encoder = CrossEncoder(engine)
    assert encoder.engine is engine
    np.testing.assert_array_equal(encoder.predict(pairs), engine.predict(pairs).logits.sigmoid()[:, 0].numpy())
    with pytest.raises(ValueError, match="max_length, policy: with an engine it is the engine's"):
        CrossEncoder(engine, max_length=5, policy="full")


def test_a_progress_bar_does_not_measure_costs_again(make_model, tokenizer, pairs, texts, monkeypatch):
    model, measured, measure = make_model(num_labels=1), [], LayerCosts.measure
    monkeypatch.setattr(LayerCosts, "measure", lambda *arguments: measured.append(1) or measure(*arguments))
    model.exit_config.ranking = "top:2,margins=0.1,layers=2"
    encoder = CrossEncoder(Engine(model, tokenizer, truncation=True))
    for shown in (False, True, None, True):
        encoder.rank(texts[0], texts, 2, show_progress_bar=shown)
    assert len(measured) == 1


def test_saving_keeps_the_activation(make_classifier, pairs, tmp_path):
    _, folder = make_classifier()
    settings = {"activation_fn": IDENTITY, "prompts": {}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    encoder = CrossEncoder(folder, device="cpu")
    assert type(encoder.activation_fn) is nn.Identity
    encoder.save_pretrained(tmp_path / "saved")
    again = CrossEncoder(tmp_path / "saved", device="cpu")
    assert type(again.activation_fn) is nn.Identity
    np.testing.assert_allclose(again.predict(pairs), encoder.predict(pairs), atol=1e-6)
    assert MultiExitBert.from_pretrained(tmp_path / "saved").config.exit_layers == [3]


def test_code_of_a_checkpoint_is_not_run(make_classifier):
    _, folder = make_classifier(sentence_transformers={"activation_fn": "os.system"})
    with pytest.warns(UserWarning, match=r"activation 'os.system', which is not torch's: pass activation_fn"):
        assert type(CrossEncoder(folder, device="cpu").activation_fn) is nn.Sigmoid
    for file in ("torch.nn.functional.softmax", "torch.nn.Parameter"):
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"activation_fn": file}))
        with pytest.warns(UserWarning, match="which is not torch's"):
            CrossEncoder(folder, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labels": 2}, "num_labels must be 1, as the model's, got 2"),
        ({"max_length": 65}, "max_length must be between 3 and 64, got 65"),
        ({"revision": "main"}, r"revision='main' is not supported: load model and tokenizer yourself"),
        ({"trust_remote_code": True}, "trust_remote_code=True is not supported: no code of a checkpoint is run"),
        ({"backend": "onnx"}, "backend='onnx' is not supported: runner says how layers run"),
        ({"model_kwargs": {"torch_dtype": "bfloat16"}}, "dtype and runner say how layers run"),
        ({"prompts": {"query": "q: "}}, "write prompts into the texts"),
    ],
)
def test_what_a_cross_encoder_refuses(make_classifier, arguments, message):
    folder = make_classifier()[1]
    with pytest.raises(ValueError, match=message):
        CrossEncoder(folder, **{"device": "cpu", **arguments})


def test_damaged_and_unsupported_settings(make_classifier):
    file = make_classifier()[1] / "config_sentence_transformers.json"
    for content, message in (
        (
            '{"default_prompt_name": "query", "prompts": {"query": "q: "}}',
            "saved with a default prompt, which is not supported",
        ),
        ("{", "damaged file, expected JSON"),
        ("[1]", r"damaged file, expected a JSON object, got \[1\]"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            CrossEncoder(file.parent, device="cpu")


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ("a text", {}, TypeError, "inputs must be a pair of texts or a list of pairs, got 'a text'"),
        (3, {}, TypeError, "inputs must be a pair of texts or a list of pairs, got 3"),
        ([("good", "bad", "film")], {}, TypeError, r"inputs must be pairs of texts, got \('good', 'bad', 'film'\) as pair 0"),
        ([("good", "bad"), "film"], {}, TypeError, "got 'film' as pair 1"),
        (["good"], {}, TypeError, r"inputs must be pairs of texts, got \['good'\]$"),
        ([("good", None)], {}, TypeError, "as pair 0"),
        ([("good", "bad"), ("good", " ")], {}, ValueError, "sample 1 has an empty text_pair"),
        ([("good", "bad")], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ([("good", "bad")], {"prompt": "q: "}, ValueError, "prompt='q: ' is not supported: write prompts into the texts"),
        ([("good", "bad")], {"device": ["cpu", "cpu"]}, ValueError, "an engine runs in one process"),
        ([("good", "bad")], {"activation_fn": "sigmoid"}, TypeError, "activation_fn must be a function of the logits"),
        ([("good", "bad")], {"sentences": []}, TypeError, "predict has no argument 'sentences'"),
        ([("good", "bad")], {"show_progress_bar": "yes"}, TypeError, "show_progress_bar must be True or False"),
    ],
)
def test_what_predict_refuses(make_classifier, inputs, options, error, message):
    encoder = CrossEncoder(make_classifier()[1], device="cpu")
    with pytest.raises(error, match=message):
        encoder.predict(inputs, **options)


@pytest.mark.parametrize(
    ("activation", "told"),
    [
        (torch.sum, r"shape \(\)"),
        (lambda logits: None, "None"),
        (lambda logits: logits.numpy(), "array"),
        (lambda logits: logits[:1], r"shape \(1, 1\)"),
        (lambda logits: logits.expand(-1, 2), r"shape \(3, 2\)"),  # whose rows are not the documents' scores
    ],
)
def test_an_activation_gives_a_score_for_each_pair(make_classifier, pairs, activation, told):
    encoder = CrossEncoder(make_classifier()[1])
    for call in (lambda: encoder.predict(pairs[:3], activation_fn=activation),
                 lambda: encoder.rank("good", ["bad", "film", "a"], activation_fn=activation)):  # fmt: skip
        with pytest.raises(TypeError, match=f"activation_fn must make a tensor of 3 scores, one for each pair, got {told}"):
            call()


def test_what_rank_refuses(make_classifier, capsys):
    encoder = CrossEncoder(make_classifier()[1], device="cpu")
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        encoder.rank("good", ["bad"], top_k=0)
    with pytest.raises(ValueError, match="pool=3 is not supported"):
        encoder.rank("good", ["bad"], pool=3)
    capsys.readouterr()  # bars of the saving and loading before
    assert len(encoder.rank("good", ["bad"], convert_to_tensor=True, show_progress_bar=True)) == 1
    assert "1query" in capsys.readouterr().err
    assert not encoder.engine.progress
    with pytest.raises(ValueError, match="num_labels"):
        CrossEncoder(make_classifier(3)[1], device="cpu").rank("good", ["bad"])


def test_what_an_engine_was_calibrated_to_holds_here(make_model, tokenizer, many, tmp_path):
    """An engine refuses longer pairs by default, and this class cuts them: the promise is about others all the same."""
    engine = Engine(make_model(num_labels=1, pooling="mean"), tokenizer)
    calibrate(engine, many, agreement=0.8, tolerance=10.0, rounds=1, speed_samples=20)
    engine.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CrossEncoder(str(tmp_path), device="cpu").engine.promise is not None

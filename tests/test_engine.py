"""The engine: inputs, windows, results in the caller's order."""

from __future__ import annotations

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.checks import BadSample
from geep_triton.engine.predictions import Predictions
from geep_triton.policies.leave import Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, TableExit
from geep_triton.policies.text import parse_policy


def test_result_in_input_order_with_names(model, tokenizer, texts):
    model.config.id2label = {0: "red", 1: "green", 2: "blue"}
    result = Engine(model, tokenizer, "threshold:0.8", token_budget=30).predict(texts)
    assert len(result) == len(texts)
    assert result.labels == [model.config.id2label[int(i)] for i in result.logits.argmax(-1)]
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(len(texts)))
    assert sum(result.histogram.values()) == len(texts)
    assert list(result.histogram) == [1, 2, 3, 4]
    assert result.mean_exit_layer == pytest.approx(result.exit_layers.float().mean())
    assert set(result.timings) == {"tokenize", "plan", "run", "gather"}
    assert result.samples_per_second > 0


@pytest.mark.parametrize("form", ["list", "columns", "rows", "generator", "tokenized", "padded", "text"])
def test_forms_of_input(model, tokenizer, texts, form):
    engine = Engine(model, tokenizer)
    expected = engine.predict(texts).logits
    inputs = {
        "list": texts,
        "columns": {"text": texts},
        "rows": [{"text": text, "label": 0} for text in texts],
        "generator": (text for text in texts),
        "tokenized": [{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]],
        "padded": tokenizer(texts, padding=True, return_tensors="pt"),
        "text": texts[0],
    }[form]
    logits = engine.predict(inputs).logits
    torch.testing.assert_close(logits, expected[:1] if form == "text" else expected)


def test_columns_are_a_name_or_a_pair_of_names(model, tokenizer):
    rows = {"a": ["good soup", "bad"], "b": ["very bad", "soup"], "text": ["x", "y"], "text_pair": ["z", "z"]}
    texts, pairs = Engine(model, tokenizer).predict(rows["a"]), list(zip(rows["a"], rows["b"], strict=True))
    torch.testing.assert_close(Engine(model, tokenizer, columns="a").predict(rows).logits, texts.logits)
    torch.testing.assert_close(Engine(model, tokenizer, columns=("a", "missing")).predict(rows).logits, texts.logits)
    expected = Engine(model, tokenizer).predict(pairs).logits
    for columns in (("a", "b"), ["a", "b"]):
        torch.testing.assert_close(Engine(model, tokenizer, columns=columns).predict(rows).logits, expected)
    with pytest.raises(ValueError, match="missing column 'c'; columns: 'a', 'b', 'text', 'text_pair'"):
        Engine(model, tokenizer, columns="c").predict(rows)
    for wrong in (3, None, [], ["a"], ["a", "b", "c"], ("a", 3), (None, "a"), {"a": "b"}):
        with pytest.raises(TypeError, match=r"columns must be the name of a column or a pair of names .*, got"):
            Engine(model, tokenizer, columns=wrong)


def test_hugging_face_dataset(model, tokenizer, texts):
    datasets = pytest.importorskip("datasets", reason="the package datasets (extra 'dev') is not installed")
    engine = Engine(model, tokenizer, columns="sentence")
    dataset = datasets.Dataset.from_dict({"sentence": texts})
    torch.testing.assert_close(engine.predict(dataset).logits, engine.predict(texts).logits)
    torch.testing.assert_close(engine.predict(dataset.to_pandas()).logits, engine.predict(texts).logits)


def test_windows_stream(model, tokenizer, texts):
    """A stream is read no further than the window being answered."""
    read = []

    def stream():
        for text in texts * 4:
            read.append(text)
            yield text

    engine = Engine(model, tokenizer, window=5)
    windows = engine.predict_windows(stream())
    first = next(windows)
    assert len(first) == 5
    assert len(read) == 5
    rest = list(windows)
    logits = torch.cat([first.logits, *(window.logits for window in rest)])
    torch.testing.assert_close(logits, engine.predict(texts * 4).logits)
    assert [len(window) for window in rest] == [5, 5, 5, 5, 5, 2]


def test_every_exit_answers_as_a_constant_depth_does(model, tokenizer, texts):
    record = Engine(model, tokenizer, token_budget=30, window=3).every_exit(texts)
    assert record.logits.shape == (len(texts), 4, 3)
    assert len(record.tokens) == len(texts)
    for index, layer in enumerate(model.config.exit_layers):
        torch.testing.assert_close(record.logits[:, index], Engine(model, tokenizer, f"constant:{layer}").predict(texts).logits)


def test_table_from_the_engine_agrees_with_the_threshold_policy(model, tokenizer, texts):
    """Where the table lets a sample go is where the threshold does."""
    table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    exits = Engine(model, tokenizer, "threshold:0.8").predict(texts).exit_layers
    assert table.exit_counts.tolist() == [int((exits == layer).sum()) for layer in model.config.exit_layers]


def test_subset_of_exits(make_model, tokenizer, texts):
    model = make_model(exit_layers=[2, 4])
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.7, progress=False)
    for policy in ("threshold:0.7", "predicted"):
        assert set(Engine(model, tokenizer, policy).predict(texts).exit_layers.tolist()) <= {2, 4}


def test_progress_bar(model, tokenizer, texts, capsys):
    Engine(model, tokenizer, progress=True).predict(texts)
    assert f"{len(texts)}/{len(texts)}" in capsys.readouterr().err
    Engine(model, tokenizer).predict(texts)
    assert not capsys.readouterr().err


def test_an_engine_beside_it_cuts_or_refuses(model, tokenizer, texts):
    """Under the same policy and promise; the one that it was made from stays as it was."""
    engine = Engine(model, tokenizer, "threshold:0.8", max_length=8)
    cuts = engine.with_truncation(True)
    expected = Engine(model, tokenizer, "threshold:0.8", max_length=8, truncation=True).predict(texts)
    torch.testing.assert_close(cuts.predict(texts).logits, expected.logits)
    assert cuts.predict(texts).truncated == expected.truncated > 0
    assert (cuts.policy, cuts.runner) == (engine.policy, engine.runner)
    for refuses in (engine, cuts.with_truncation(False)):
        assert not refuses.truncation
        with pytest.raises(BadSample, match="more than the 8 allowed"):
            refuses.predict(texts)
    with pytest.raises(TypeError, match="truncation must be True or False, got 1"):
        engine.with_truncation(1)


def test_truncation_is_counted(model, tokenizer):
    texts = ["good", "bad " * 100]
    with pytest.raises(ValueError, match="sample 1 has 102 tokens, more than the 64 allowed"):
        Engine(model, tokenizer).predict(texts)
    result = Engine(model, tokenizer, truncation=True, window=1).predict([*texts, texts[1]])
    assert result.truncated == 2


def test_regression(make_model, tokenizer, texts):
    model = make_model(num_labels=1)
    for policy in ("full", "constant:2"):
        result = Engine(model, tokenizer, policy).predict(texts)
        assert result.logits.shape == (len(texts), 1)
        assert torch.equal(result.scores, result.logits[:, 0])
        with pytest.raises(ValueError, match="read scores"):
            _ = result.labels
        with pytest.raises(ValueError, match="regression model"):
            _ = result.probabilities
    with pytest.raises(ValueError, match="threshold of uncertainty needs a model of classes, got one of score"):
        Engine(model, tokenizer, "threshold:0.5")
    with pytest.raises(ValueError, match="'agreement' takes no threshold"):
        build_exit_table(model, tokenizer, texts, 0.5, progress=False)


def test_model_thresholds_are_the_default(make_model, tokenizer, texts):
    model = make_model()
    model.exit_config.thresholds = [0.9, 0.7, 0.8]
    own = Engine(model, tokenizer, "threshold").predict(texts).exit_layers
    assert own.tolist() == Engine(model, tokenizer, "threshold:0.9/0.7/0.8").predict(texts).exit_layers.tolist()


def test_layers_run_counts_the_shared_last_layer(model, tokenizer, texts):
    result = Engine(model, tokenizer, "constant:2,answer_head=shared").predict(texts)
    assert (result.mean_exit_layer, result.mean_layers) == (2.0, 3.0)
    result = Engine(model, tokenizer, "constant:2").predict(texts)
    assert (result.mean_exit_layer, result.mean_layers) == (2.0, 2.0)


def test_engine_from_a_folder_takes_a_device(model, tokenizer, texts, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, "constant:2", device="cpu", window=3)
    torch.testing.assert_close(engine.predict(texts).logits, Engine(model, tokenizer, "constant:2").predict(texts).logits)


def test_bfloat16(model, tokenizer, texts):
    full = Engine(model, tokenizer).predict(texts)
    half = Engine(model.to(torch.bfloat16), tokenizer).predict(texts)
    assert half.logits.dtype == torch.float32
    assert float((half.probabilities - full.probabilities).abs().max()) < 0.1


def test_short_forms():
    assert parse_policy("full") == Policy(LastLayer())
    assert parse_policy("constant:3") == Policy(AtLayer(3))
    assert parse_policy("threshold:0.25") == Policy(FirstExit(), Sure(0.25))
    assert parse_policy("predicted:mean") == Policy(TableExit("mean"))
    assert parse_policy("predicted:0.9") == Policy(TableExit(0.9))


def test_an_interrupted_stream_has_lost_nothing_that_was_given_out(model, tokenizer, texts):
    """The windows that were read are whole, and the rest of the inputs gives the rest of the answers."""
    model.exit_config.thresholds = 0.8
    engine = Engine(model, tokenizer, "threshold,regroup=always", window=3)
    whole = engine.predict(texts)
    stream = engine.predict_windows(iter(texts))
    read = [next(stream), next(stream)]
    stream.close()
    done = sum(map(len, read))
    assert 0 < done < len(texts)
    parts = Predictions.concatenate([*read, engine.predict(texts[done:])])
    assert torch.equal(parts.logits, whole.logits)
    assert torch.equal(parts.exit_layers, whole.exit_layers)


@pytest.mark.parametrize("runner", ["torch", "onednn"])
def test_a_model_that_went_on_training_answers_without_dropout(model, tokenizer, texts, runner):
    engine = Engine(model, tokenizer, "threshold:0.95", runner=runner)
    expected = engine.predict(texts)
    model.train()
    got = engine.predict(texts)
    assert torch.equal(got.logits, expected.logits)
    model.heads.train()
    assert torch.equal(engine.every_exit(texts).logits, engine.every_exit(texts).logits)


def test_one_tokenized_text(model, tokenizer, texts):
    engine = Engine(model, tokenizer)
    expected = engine.predict(texts[0])
    for given in (tokenizer(texts[0]), [tokenizer(texts[0])], tokenizer([texts[0]])):
        assert torch.equal(engine.predict(given).logits, expected.logits)


def test_a_text_alone_waits_for_nobody(model, tokenizer, texts):
    together = Engine(model, tokenizer, "threshold:0.95").predict(texts)
    engine = Engine(model, tokenizer, "threshold:0.95")
    alone = [engine.predict(text) for text in texts]
    assert "layer_costs" not in vars(engine)  # which would be measured to weigh waiting
    assert [result.exit_layers.item() for result in alone] == together.exit_layers.tolist()
    torch.testing.assert_close(torch.cat([result.logits for result in alone]), together.logits, atol=1e-5, rtol=0)
    assert len(set(together.exit_layers.tolist())) > 1

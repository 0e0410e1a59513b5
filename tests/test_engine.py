"""The engine: every policy equals answering one sample at a time; inputs, windows and errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.engine.predictions import Predictions
from geep_triton.ops.backend import VARIABLE, has_triton
from geep_triton.ops.exit_scores import score_exits
from geep_triton.policies.leave import Patient, Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, TableAgreement, TableExit
from geep_triton.policies.text import format_policy, parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.tokens.ragged import Tokens

TOLERANCE = 1e-5
PAIRS = ["very", "we liked it again and again", "no", "bad film", "the hotel was cold", "good", "but", "never"]


def one_at_a_time(model, tokenizer, text, pair, policy):
    """(logits, exit layer) of one sample, by the policy's definition."""
    inputs = tokenizer(text, pair, return_tensors="pt")
    tokens = Tokens.from_lists([inputs["input_ids"][0].tolist()])
    with torch.no_grad():
        exits = dict(zip(model.config.exit_layers, model(**inputs, output_exit_logits=True).exit_logits, strict=True))
        first = first_layer(model, tokens, policy.start)
        layer = first if policy.leave is None else LEAVES[type(policy.leave)](exits, policy.leave, first)
        return model(**inputs, exit_layer=layer, answer_head=policy.answer_head).logits[0], layer


def first_layer(model, tokens, start):
    """The layer before which a sample is not looked at."""
    if isinstance(start, TableExit):
        if start.decision is None and start.values == "counts" and model.exit_table.decides_by == "agreement":
            return first_layer(model, tokens, TableAgreement(agreement=0.98))
        return int(model.exit_table.predict(tokens, start.decision or "argmax", values=start.values).exits)
    if isinstance(start, TableAgreement):
        table, price = model.exit_table, start.price
        price = table.price_for(start.mean_depth, start.agreement) if price is None else price
        worth = table.predict_agreement(tokens)[0] - price * torch.tensor(table.exit_layers)
        return table.exit_layers[int(worth.argmax())]
    return {LastLayer: model.config.num_hidden_layers, FirstExit: 1}.get(type(start)) or start.layer


def scored(exits, leave, first):
    """(layer, threshold) of the exits at which a sample is scored."""
    layers = leave.layers or list(exits)[:-1]
    thresholds = leave.threshold if isinstance(leave.threshold, tuple) else [leave.threshold] * len(layers)
    return [(layer, threshold) for layer, threshold in zip(layers, thresholds, strict=True) if layer >= first]


def sure_exit(exits, leave, first):
    for layer, threshold in scored(exits, leave, first):
        uncertainty = float(score_exits(exits[layer], 1.0, leave.criterion, top_k=leave.top_k).uncertainty)
        if uncertainty <= threshold:
            return layer
    return max(exits)


def patient_exit(exits, leave, first):
    streak, previous = 0, None
    for layer, threshold in scored(exits, leave, first):
        answer = int(exits[layer].argmax())
        if threshold is None:
            streak = streak + 1 if answer == previous else 0
        else:
            sure = float(score_exits(exits[layer], 1.0, leave.criterion).uncertainty) <= threshold
            streak = streak + 1 if sure else 0
        previous = answer
        if streak >= leave.patience:
            return layer
    return max(exits)


LEAVES = {Sure: sure_exit, Patient: patient_exit}
ALONE = [
    *("full", "constant:1", "constant:3,answer_head=shared"),
    *("threshold:0.0", "threshold:0.8", "threshold:0.8,regroup=always", "threshold:0.9/0.7/0.8,regroup=never", "threshold:1.0"),
    *("threshold:0.6/0.9,criterion=margin,layers=1/3,regroup=always", "threshold:-2.5,criterion=energy"),
    "threshold:0.9,criterion=top_k_entropy,top_k=2,regroup=always",
    *("patience:1,regroup=always", "patience:2,regroup=never", "patience:2,threshold=0.9,regroup=always"),
    *("predicted", "predicted:mean", "predicted:0.8,answer_head=shared"),
]
# Every start beside every way to leave, with every way to go on among them.
STARTS = ["constant:2", "predicted", "predicted:0.05", "predicted:mean"]
FURTHER_LEAVES = [
    *("threshold:0.8,regroup=always", "threshold:0.75/0.65,layers=2/3,regroup=never", "patience:1"),
    "patience:2,threshold=0.8,regroup=always",
]
PRODUCT = [f"{start}+{leave}" for start in STARTS for leave in FURTHER_LEAVES]
POLICIES = [parse_policy(text) for text in (*ALONE, *PRODUCT)]


@pytest.mark.parametrize("policy", POLICIES, ids=format_policy)
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize(("window", "token_budget", "in_flight"), [(100, 10_000, 1), (100, 40, 1), (100, 40, 3), (3, 24, 2)])
def test_policy_equals_one_sample_at_a_time(model, tokenizer, texts, policy, pairs, window, token_budget, in_flight):
    inputs = list(zip(texts, PAIRS, strict=True)) if pairs else texts
    model.exit_table = build_exit_table(model, tokenizer, inputs, 0.8, ngram=2, progress=False)
    engine = Engine(model, tokenizer, policy, window=window, token_budget=token_budget, in_flight=in_flight)
    result = engine.predict(inputs)
    for index, item in enumerate(inputs):
        text, pair = item if pairs else (item, None)
        logits, layer = one_at_a_time(model, tokenizer, text, pair, policy)
        assert int(result.exit_layers[index]) == layer
        assert float((result.logits[index] - logits).abs().max()) <= TOLERANCE


LEARNED_STARTS = [
    *("predicted", "predicted:mean,values=learned", "allocated:0.05", "allocated:0.01"),
    *("allocated,mean_depth=2.5", "allocated,agreement=0.8"),
]
LEARNED = [*LEARNED_STARTS, *(f"{start}+{leave}" for start in LEARNED_STARTS[:4] for leave in FURTHER_LEAVES)]
LEARNED_POLICIES = [parse_policy(text) for text in (*LEARNED, "allocated:0.05,answer_head=shared")]


@pytest.mark.parametrize("policy", LEARNED_POLICIES, ids=format_policy)
def test_a_policy_by_learned_values_equals_one_sample_at_a_time(model, tokenizer, texts, policy):
    known = [f"{text} {word}" for text in texts for word in ("again", "soup", "bad")]
    model.exit_table = build_exit_table(model, tokenizer, known, 0.8, progress=False, learn=("agreement", "exits"))
    result = Engine(model, tokenizer, policy, window=5, token_budget=40, in_flight=2).predict(texts)
    for index, text in enumerate(texts):
        logits, layer = one_at_a_time(model, tokenizer, text, None, policy)
        assert int(result.exit_layers[index]) == layer
        assert float((result.logits[index] - logits).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("policy", [*POLICIES, *LEARNED_POLICIES], ids=format_policy)
def test_simulation_and_single_samples_give_what_batches_do(model, tokenizer, texts, policy):
    known = [f"{text} {word}" for text in texts for word in ("again", "soup", "bad")]
    model.exit_table = build_exit_table(model, tokenizer, known, 0.8, progress=False, learn=("agreement", "exits"))
    engine = Engine(model, tokenizer, policy, window=5, token_budget=40)
    result, (tokens, logits) = engine.predict(texts), engine.exit_logits(texts)
    exits = simulate(model, engine.policy, tokens, logits)
    assert (exits + 1).tolist() == result.exit_layers.tolist()
    if policy.answer_head == "student":
        torch.testing.assert_close(result.logits, logits[torch.arange(len(texts)), exits], atol=TOLERANCE, rtol=0)
    alone = [engine.predict(text) for text in texts]
    assert [int(answer.exit_layers) for answer in alone] == result.exit_layers.tolist()
    torch.testing.assert_close(torch.cat([answer.logits for answer in alone]), result.logits, atol=TOLERANCE, rtol=0)


def test_the_comparison_above_sees_many_exits(model, tokenizer, texts):
    """Guards the test above: on this model thresholds and tables really split the samples."""
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    same_for_all = {"full", "constant:1", "constant:3,answer_head=shared", "threshold:0.0", "threshold:1.0"}
    same_for_all.add("predicted:mean+patience:1")  # no exit from there on agrees with the one before
    for policy in [policy for policy in POLICIES if format_policy(policy) not in same_for_all]:
        assert torch.unique(Engine(model, tokenizer, policy).predict(texts).exit_layers).numel() >= 2


@pytest.mark.skipif(not has_triton() or torch.cuda.is_available(), reason="needs Triton's interpreter: Triton, and no GPU")
@pytest.mark.parametrize("policy", POLICIES, ids=format_policy)
def test_engine_on_triton_ops_gives_the_same(model, tokenizer, texts, policy, monkeypatch):
    """Building the table, planning, scoring and moving rows all in Triton."""
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, ngram=2, progress=False)
    expected = Engine(model, tokenizer, policy, token_budget=40).predict(texts)
    monkeypatch.setenv(VARIABLE, "triton")
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, ngram=2, progress=False)
    result = Engine(model, tokenizer, policy, token_budget=40).predict(texts)
    assert result.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(result.logits, expected.logits, atol=TOLERANCE, rtol=0)


def test_policies_on_real_weights(minilm, minilm_path):
    from geep_triton import MultiExitBert

    _, tokenizer = minilm
    torch.manual_seed(3)
    model = MultiExitBert.from_pretrained(minilm_path, num_labels=3, pooling="mean")
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(5)
    texts = [
        "A film about rain.",
        "no",
        "What a long, long evening that was, and how little we had to show for it!",
    ] * 3
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.9, progress=False)
    for policy in map(parse_policy, ("full", "constant:2", "threshold:0.9", "predicted", "predicted:0.05+threshold:0.9")):
        result = Engine(model, tokenizer, policy, token_budget=64).predict(texts)
        for index, text in enumerate(texts):
            logits, layer = one_at_a_time(model, tokenizer, text, None, policy)
            assert int(result.exit_layers[index]) == layer
            assert float((result.logits[index] - logits).abs().max()) <= TOLERANCE


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


def test_hugging_face_dataset(model, tokenizer, texts):
    datasets = pytest.importorskip("datasets", reason="the package datasets (extra 'dev') is not installed")
    engine = Engine(model, tokenizer, text_column="sentence")
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


def test_exit_logits_are_every_exits(model, tokenizer, texts):
    tokens, logits = Engine(model, tokenizer, token_budget=30, window=3).exit_logits(texts)
    assert logits.shape == (len(texts), 4, 3)
    assert len(tokens) == len(texts)
    for index, layer in enumerate(model.config.exit_layers):
        torch.testing.assert_close(logits[:, index], Engine(model, tokenizer, f"constant:{layer}").predict(texts).logits)


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
        with pytest.raises(ValueError, match="regression model"):
            _ = result.labels
        with pytest.raises(ValueError, match="regression model"):
            _ = result.probabilities
    with pytest.raises(ValueError, match="need classes.*full or constant depth"):
        Engine(model, tokenizer, "threshold:0.5")
    with pytest.raises(ValueError, match="needs at least two classes"):
        build_exit_table(model, tokenizer, texts, 0.5, progress=False)


def test_model_thresholds_are_the_default(make_model, tokenizer, texts):
    model = make_model()
    model.exit_config.thresholds = [0.9, 0.7, 0.8]
    own = Engine(model, tokenizer, "threshold").predict(texts).exit_layers
    assert own.tolist() == Engine(model, tokenizer, "threshold:0.9/0.7/0.8").predict(texts).exit_layers.tolist()


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
        ("predicted:median", "unknown decision 'median'"),
        (Policy(FirstExit(), Sure([0.1])), "one per scored exit"),
    ],
)
def test_bad_policies(model, tokenizer, policy, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, policy)


def test_something_else_than_a_policy(model, tokenizer):
    with pytest.raises(TypeError, match=r"policy must be a policy or its short form, got 0.3; known: full"):
        Engine(model, tokenizer, 0.3)


def test_layers_run_counts_the_shared_last_layer(model, tokenizer, texts):
    result = Engine(model, tokenizer, "constant:2,answer_head=shared").predict(texts)
    assert (result.mean_exit_layer, result.mean_layers) == (2.0, 3.0)
    result = Engine(model, tokenizer, "constant:2").predict(texts)
    assert (result.mean_exit_layer, result.mean_layers) == (2.0, 2.0)


def test_texts_and_pairs_mixed(model, tokenizer, texts):
    mixed = [(text, pair) if index % 2 else text for index, (text, pair) in enumerate(zip(texts, PAIRS, strict=True))]
    engine = Engine(model, tokenizer)
    logits = engine.predict(mixed).logits
    for index, item in enumerate(mixed):
        torch.testing.assert_close(logits[index], engine.predict([item]).logits[0])


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


def test_other_models_and_multi_label(make_model, tokenizer):
    with pytest.raises(TypeError, match="must be a MultiExitBert, got Linear"):
        Engine(torch.nn.Linear(2, 2), tokenizer)
    with pytest.raises(ValueError, match="multi_label_classification is not supported"):
        Engine(make_model(problem_type="multi_label_classification"), tokenizer)


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


def test_one_tokenized_text(model, tokenizer, texts):
    engine = Engine(model, tokenizer)
    expected = engine.predict(texts[0])
    for given in (tokenizer(texts[0]), [tokenizer(texts[0])], tokenizer([texts[0]])):
        assert torch.equal(engine.predict(given).logits, expected.logits)


@pytest.mark.parametrize("name", ["prefetch", "truncation", "progress"])
def test_flags_are_true_or_false(model, tokenizer, name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
        Engine(model, tokenizer, **{name: "no"})


def test_a_text_alone_waits_for_nobody(model, tokenizer, texts):
    together = Engine(model, tokenizer, "threshold:0.95").predict(texts)
    engine = Engine(model, tokenizer, "threshold:0.95")
    alone = [engine.predict(text) for text in texts]
    assert "layer_costs" not in vars(engine)  # which would be measured to weigh waiting
    assert [result.exit_layers.item() for result in alone] == together.exit_layers.tolist()
    torch.testing.assert_close(torch.cat([result.logits for result in alone]), together.logits, atol=1e-5, rtol=0)
    assert len(set(together.exit_layers.tolist())) > 1

"""Models that transformers' Auto classes load answer by their own policy, in pipelines too."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import warnings

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.engine.served_model import ServedMultiExitBert
from geep_triton.training.requirements import teacher_logits
from tests.conftest import WORDS

POLICIES = [
    *("threshold:0.8", "patience:1", "constant:2", "constant:2,answer_head=shared", "predicted:0.9", "allocated:0.05"),
    *("predicted:0.05+threshold:0.8", "constant:2+threshold:0.8", "full"),
]
GATED = ["full", "threshold:0.8", "full+skip:planned", "threshold:0.8+skip:planned", "full+skip:never"]
CALIBRATION = {
    "promise": ["agreement", 0.8],
    "chosen": {"policy": "threshold:0.8"},
    "dtype": "float32",
    "device": "cpu",
    "max_length": 12,
    "truncation": False,
}


def sharp(model):
    """The model with answers sharp enough that its samples leave at different exits."""
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    return model


def aligned(model):
    """The model with weights that begin where torch lets them begin. In a file they may lie so that last bits differ."""
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


@pytest.fixture
def save(tokenizer, tmp_path):
    """Saves a model with its tokenizer, and gives the folder as transformers' functions take it."""

    def saved(model):
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return saved


@pytest.fixture
def load(save):
    """What AutoModelForSequenceClassification makes of a saved model."""
    return lambda model, **kwargs: AutoModelForSequenceClassification.from_pretrained(save(model), **kwargs)


@pytest.fixture
def batch(tokenizer, texts):
    return tokenizer(texts, padding=True, return_tensors="pt")


def check_as_engine(served, tokenizer, texts, policy=None):
    """The answers and exits of a served model are an engine's, and more than one exit is used where `policy` chooses."""
    expected = Engine(served, tokenizer, policy or served.exit_config.policy, truncation=True).predict(texts)
    with torch.no_grad():
        output = served(**tokenizer(texts, padding=True, return_tensors="pt"))
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits.float(), expected.logits, atol=1e-5, rtol=1e-5)
    return expected


def check_pipeline(folder, texts, expected, **kwargs):
    """A pipeline gives the expected scores of all labels, at several sizes of batches."""
    classify = pipeline("text-classification", model=folder, device="cpu", top_k=None, **kwargs)
    names = classify.model.config.id2label
    for batch_size in (1, 3, 8):
        for row, found in zip(expected, classify(texts, batch_size=batch_size), strict=True):
            scores = {entry["label"]: entry["score"] for entry in found}
            assert scores == pytest.approx({names[index]: float(score) for index, score in enumerate(row)}, abs=1e-5)
    return classify


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pipeline_answers_by_the_policy(model, tokenizer, texts, many, save, policy):
    model.exit_table = build_exit_table(model, tokenizer, many, 0.8, learn=("agreement",), progress=False)
    model.exit_config.policy = policy
    folder = save(model)
    expected = Engine.from_pretrained(folder, device="cpu", runner="torch").predict(texts)
    served = check_pipeline(folder, texts, expected.probabilities).model
    assert len(set(check_as_engine(served, tokenizer, texts).exit_layers.tolist())) > 1 or policy.startswith(
        ("constant:2", "full")
    )


@pytest.mark.parametrize("policy", GATED)
def test_gates_and_planned_paths(make_model, tokenizer, texts, many, save, policy):
    model = sharp(make_model(pooling="mean", skip_gate="mean", skip_gate_bias=0.0))
    model.exit_table = build_exit_table(model, tokenizer, many, 0.8, learn=("skips",), progress=False)
    model.exit_config.policy = policy
    folder = save(model)
    expected = Engine.from_pretrained(folder, device="cpu", runner="torch").predict(texts)
    served = check_pipeline(folder, texts, expected.probabilities).model
    check_as_engine(served, tokenizer, texts)
    assert (expected.skipped is None) == (policy == "full+skip:never")


def test_pairs(model, tokenizer, texts, save):
    model.exit_config.policy = "threshold:0.8"
    pairs = [*zip(texts, reversed(texts), strict=True)]
    expected = Engine(model, tokenizer).predict(pairs)
    assert len(set(expected.exit_layers.tolist())) > 1
    inputs = [{"text": text, "text_pair": other} for text, other in pairs]
    check_pipeline(save(model), inputs, expected.probabilities)


@pytest.mark.parametrize(
    ("problem_type", "decision", "policy"),
    [
        *((None, None, "constant:2"), (None, 0.1, "distance:0.5"), (None, None, "steady:0.5")),
        *(("regression", None, "constant:2"), ("regression", -0.2, "distance:0.5"), ("regression", None, "steady:0.5")),
        *(("multi_label_classification", None, "constant:2"), ("multi_label_classification", 0.4, "distance:0.05")),
    ],
)
def test_scores_and_label_sets(make_model, tokenizer, texts, save, problem_type, decision, policy):
    """As transformers' pipeline reads them: the sigmoid of a score unless it is of a regression, and of each label."""
    labels = 5 if problem_type == "multi_label_classification" else 1
    model = sharp(make_model(num_labels=labels, problem_type=problem_type, pooling="mean"))
    model.exit_config.policy, model.exit_config.decision = policy, decision
    expected = Engine(model, tokenizer).predict(texts)
    assert len(set(expected.exit_layers.tolist())) > 1 or policy == "constant:2"
    folder, logits = save(model), expected.logits
    check_pipeline(folder, texts, logits if problem_type == "regression" else logits.sigmoid())
    check_as_engine(check_pipeline(folder, texts, logits, function_to_apply="none").model, tokenizer, texts)


@pytest.mark.parametrize("num_labels", [1, 4])
def test_options_of_the_pipeline_at_full_depth(tokenizer, texts, save, tmp_path, num_labels):
    """To the bit as with the BertForSequenceClassification that the model was made of."""
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = BertConfig(**sizes, intermediate_size=48, num_labels=num_labels)
    original = tmp_path / "original"
    BertForSequenceClassification(config).save_pretrained(original)
    tokenizer.save_pretrained(original)
    model = MultiExitBert.from_pretrained(original)
    for policy in (None, "full"):
        model.exit_config.policy = policy
        loaded = [aligned(AutoModelForSequenceClassification.from_pretrained(name)) for name in (save(model), original)]
        classify, expected = (pipeline("text-classification", model=one, tokenizer=tokenizer, device="cpu") for one in loaded)
        for options in ({}, {"top_k": None}, {"top_k": 3}, {"top_k": 1}):
            for function in (None, "none", "sigmoid", "softmax"):
                for batch_size in (1, 8):
                    asked = {**options, "function_to_apply": function, "batch_size": batch_size}
                    assert classify(texts, **asked) == expected(texts, **asked), asked
        assert classify(texts[0]) == expected(texts[0])


def test_no_more_layers_run_than_the_policy_says(model, texts, save):
    model.exit_config.policy = "constant:2"
    classify = pipeline("text-classification", model=save(model), device="cpu")
    ran = []
    for number, layer in enumerate(classify.model.bert.encoder.layer, start=1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    classify(texts[0])
    assert ran == [1, 2]
    classify.model.exit_config.policy = None
    classify(texts[0])
    assert ran == [1, 2, 1, 2, 3, 4]


def test_no_warning_and_no_error_is_reported(model, texts, save, caplog):
    model.exit_config.policy = "threshold:0.8"
    model.exit_config.calibration = CALIBRATION | {"max_length": 64}
    folder = save(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline("text-classification", model=folder, device="cpu")(texts)
    assert "not supported" not in caplog.text


def test_a_calibrated_model(calibrated, texts, tmp_path):
    """What `calibrate` saved is served without a warning, with an engine's answers."""
    calibrated[0].save_pretrained(tmp_path)
    expected = Engine.from_pretrained(tmp_path, device="cpu", runner="torch").predict(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pipeline(str(tmp_path), texts, expected.probabilities)


def test_a_changed_policy_counts_at_once(model, tokenizer, texts, load, batch):
    served = load(model)
    for policy, exits in ((None, {4}), ("constant:2", {2}), ("constant:1", {1}), ("full", {4})):
        served.exit_config.policy = policy
        assert set(served(**batch).exit_layers.tolist()) == exits
    served.exit_config.policy, served.exit_config.thresholds = "threshold", 0.8
    check_as_engine(served, tokenizer, texts)
    served.exit_config.temperatures = (0.5, 2.0, 1.0, 1.0)
    check_as_engine(served, tokenizer, texts)
    served.exit_config.policy, served.exit_config.thresholds = "threshold", None
    with pytest.warns(UserWarning, match="needs a threshold"):
        assert set(served(**batch).exit_layers.tolist()) == {4}
    served.exit_config.thresholds = 0.8
    check_as_engine(served, tokenizer, texts)


def test_it_is_a_multi_exit_bert_in_all_else(model, load, batch, tmp_path):
    model.exit_config.policy = "constant:2"
    served = load(model)
    assert isinstance(served, MultiExitBert)
    assert inspect.signature(served.forward) == inspect.signature(model.forward)
    first = served(**batch)
    for other in (copy.deepcopy(served), pickle.loads(pickle.dumps(served)), served.to("cpu")):
        assert type(other) is ServedMultiExitBert
        torch.testing.assert_close(other(**batch).logits, first.logits)
        assert other(**batch).exit_layers.tolist() == [2] * 8
    served.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["MultiExitBert"]
    assert served.config.architectures == ["MultiExitBert"]
    assert type(MultiExitBert.from_pretrained(tmp_path / "again")) is MultiExitBert
    assert set(AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")(**batch).exit_layers.tolist()) == {2}
    logits, exits = served(**batch, return_dict=False)
    torch.testing.assert_close(logits, first.logits)
    assert exits.tolist() == [2] * 8


def test_it_is_the_plain_forward_pass_where_more_is_asked_for(model, load, batch):
    model.exit_config.policy = "constant:2"
    served, labels = load(model), torch.zeros(8, dtype=torch.int64)
    for options in ({"labels": labels}, {"output_exit_logits": True}, {"exit_layer": 4}, {"output_hidden_states": True}):
        found, expected = served(**batch, **options), model(**batch, **options)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found.to_tuple(), expected.to_tuple(), rtol=0, atol=0)
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    assert served(*inputs, labels).exit_layers is None
    assert served(*inputs, output_exit_logits=False, labels=None).exit_layers.tolist() == [2] * 8
    assert served.train()(**batch).exit_layers is None
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        served(**batch, nothing=3)


def test_a_teacher_answers_at_full_depth(model, load, batch):
    model.exit_config.policy = "constant:1"
    torch.testing.assert_close(teacher_logits(load(model), batch), model(**batch).logits, rtol=0, atol=0)


def test_gradients_reach_the_layers_that_answered(model, load, batch):
    model.exit_config.policy = "threshold:0.8"
    served = load(model)
    output = served(**batch)
    output.logits[output.exit_layers == 2].sum().backward()
    assert served.bert.encoder.layer[1].output.dense.weight.grad.abs().sum() > 0
    assert served.bert.encoder.layer[2].output.dense.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_transformers_own_trainer(model, tokenizer, texts, load, tmp_path, labelled):
    """Its predictions are logits alone. With labels they are the full model's, since the loss is of all exits."""
    model.exit_config.policy = "threshold:0.8"
    served = load(model)
    rows = [{**tokenizer(text), **({"labels": 1} if labelled else {})} for text in texts]
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], per_device_eval_batch_size=3, use_cpu=True)
    trainer = Trainer(model=served, args=arguments, data_collator=DataCollatorWithPadding(tokenizer))
    expected = Engine(model, tokenizer, "full" if labelled else None).predict(texts).logits
    torch.testing.assert_close(torch.from_numpy(trainer.predict(rows).predictions), expected, atol=1e-5, rtol=1e-5)
    assert (trainer.evaluate(rows).get("eval_loss") is not None) == labelled


def test_half_precision(model, tokenizer, texts, save):
    """A policy that no calibration chose runs in any dtype."""
    model.exit_config.policy = "constant:2+threshold:0.8,layers=2/3"
    classify = pipeline("text-classification", model=save(model), device="cpu", dtype=torch.bfloat16)
    served = classify.model
    assert served.dtype == torch.bfloat16
    with torch.no_grad():
        output = served(**tokenizer(texts, padding=True, return_tensors="pt"))
    expected = Engine(served, tokenizer, "constant:2+threshold:0.8,layers=2/3").predict(texts)
    assert output.logits.dtype == torch.bfloat16
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits.float(), expected.logits, atol=0.1, rtol=0.1)
    assert len(classify(texts, batch_size=8)) == len(texts)


def test_a_calibration_in_another_dtype(model, save, batch):
    """The promise does not hold, and the engine refuses. Here the full model answers and one warning says so."""
    model.exit_config.policy, model.exit_config.calibration = "threshold:0.8", CALIBRATION
    served = AutoModelForSequenceClassification.from_pretrained(save(model), dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"at full depth.*calibrated in float32.* 'bfloat16'") as told:
        outputs = [served(**batch) for _ in range(2)]
    assert len(told) == 1
    assert set(outputs[0].exit_layers.tolist()) == {4}
    with pytest.warns(UserWarning, match="at most 12 tokens"):
        assert set(served.to(torch.float32)(**batch).exit_layers.tolist()) != {4}


def test_texts_that_are_longer_than_the_calibrations(model, load, batch):
    model.exit_config.policy, model.exit_config.calibration = "threshold:0.8", CALIBRATION
    served = load(model)
    short = {name: values[:2] for name, values in batch.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        served(**short)
    with pytest.warns(UserWarning, match=r"at most 12 tokens \(max_length\): its promise does not hold") as told:
        _ = [served(**batch) for _ in range(2)]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("constant:9", r"layer 9 is not an exit of this model"),
        ("predicted:0.9", r"needs an exit table"),
        ("soon", r"unknown policy"),
        ("threshold:0.8+skip:gates", r"has no skip gates"),
    ],
)
def test_a_policy_that_cannot_run(model, load, batch, policy, message):
    model.exit_config.policy = policy
    served = load(model)
    with pytest.warns(UserWarning, match=f"at full depth, because its policy cannot run here: .*{message}") as told:
        output, _ = (served(**batch) for _ in range(2))
    assert len(told) == 1
    torch.testing.assert_close(output.logits, model(**batch).logits, rtol=0, atol=0)
    assert output.exit_layers.tolist() == [4] * 8


def test_a_promise_of_another_policy(model, load, batch):
    model.exit_config.policy, model.exit_config.calibration = "constant:2", CALIBRATION | {"max_length": 64}
    with pytest.warns(UserWarning, match="calibrated with exit_policy threshold:0.8, now constant:2: its policy is used"):
        assert set(load(model)(**batch).exit_layers.tolist()) == {2}


def test_compiled_and_traced_models_have_one_depth(model, load, batch):
    model.exit_config.policy = "constant:2"
    served = load(model)
    with pytest.warns(UserWarning, match="compiled, traced or exported has one depth"):
        output = torch.compile(served, backend="eager", fullgraph=True)(**batch)
    assert output.exit_layers.tolist() == [4] * 8
    with pytest.warns(UserWarning, match="compiled, traced or exported has one depth"), torch.no_grad():
        exported = torch.export.export(served, (), dict(batch)).module()
    torch.testing.assert_close(exported(**batch).logits, model(**batch).logits)


def test_where_the_padding_is_does_not_matter(model, tokenizer, texts, load):
    model.exit_config.policy = "threshold:0.8"
    served = load(model)
    expected = Engine(model, tokenizer).predict(texts)
    for kind in (torch.int64, torch.int32):
        rows = tokenizer(texts)
        longest = max(map(len, rows["input_ids"]))
        left = {
            name: torch.tensor([[0] * (longest + 2 - len(row)) + row for row in values], dtype=kind)
            for name, values in rows.items()
        }
        output = served(**left)
        torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
        assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    one = tokenizer(texts[0], return_tensors="pt")
    torch.testing.assert_close(served(one["input_ids"]).logits[0], expected.logits[0], atol=1e-5, rtol=1e-5)


def test_bad_input(model, load, batch):
    model.exit_config.policy = "threshold:0.8"
    served = load(model)
    mask = batch["attention_mask"].clone()
    mask[3] = 0
    with pytest.raises(ValueError, match="attention_mask must have a token for each sample, got none for sample 3"):
        served(batch["input_ids"], mask)
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        served(batch["input_ids"], mask[:2])
    with pytest.raises(ValueError, match="input_ids must be between"):
        served(batch["input_ids"] + 100)
    with torch.no_grad():
        served.heads["2"].classifier.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite at the exit of layer 2"):
        served(**batch)

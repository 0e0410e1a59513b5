"""from_pretrained and save_pretrained."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from geep_triton import Engine, MultiExitBert, MultiExitBertConfig, build_exit_table
from tests.conftest import WORDS

SMALL = {
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


@pytest.fixture
def bert_folder(tmp_path):
    torch.manual_seed(1)
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def classifier(tmp_path):
    """A fine-tuned BertForSequenceClassification, and its folder."""
    torch.manual_seed(1)
    labels = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
    reference = BertForSequenceClassification(BertConfig(**SMALL, **labels)).eval()
    reference.save_pretrained(tmp_path / "classifier")
    return reference, tmp_path / "classifier"


def rewrite(folder, change):
    """Apply `change` to the checkpoint's tensors."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def backbone(model):
    return {name: value for name, value in model.state_dict().items() if name.startswith("bert.")}


def test_classifier_keeps_its_full_depth_logits(classifier):
    reference, folder = classifier
    ids = torch.randint(5, 41, (4, 9))
    model = MultiExitBert.from_pretrained(folder, pooling="mean", head="linear")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, atol=1e-6, rtol=0)
    assert (model.config.last_head, model.config.last_pooling, model.config.head) == ("pooler", "cls", "linear")
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [
        *((1, None), (1, "regression"), (1, "multi_label_classification"), (3, None), (3, "single_label_classification")),
        (5, "multi_label_classification"),
    ],
)
def test_every_kind_of_classifier_keeps_its_answers_to_the_bit(tokenizer, texts, tmp_path, num_labels, problem_type):
    """One label, classes and label sets, at full depth: the forward pass with padding, and an engine text by text."""
    config = BertConfig(**{**SMALL, "vocab_size": len(WORDS)}, num_labels=num_labels, problem_type=problem_type)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    models = (BertForSequenceClassification.from_pretrained(tmp_path), MultiExitBert.from_pretrained(tmp_path))
    for weight in (weight for model in models for weight in model.parameters()):
        weight.data = weight.data.clone()  # last bits may depend on where a weight lies in a file
    reference, model = models
    assert (model.config.num_labels, model.config.problem_type) == (num_labels, problem_type)
    with torch.no_grad():
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        assert torch.equal(model(**batch).logits, reference(**batch).logits)
        expected = torch.cat([reference(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    engine = Engine(model, tokenizer, "full", runner="torch")
    assert torch.equal(torch.cat([engine.predict(text).logits for text in texts]), expected)


def test_classifier_round_trip_keeps_them_too(classifier, tmp_path):
    reference, folder = classifier
    MultiExitBert.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    ids = torch.randint(5, 41, (4, 9))
    with torch.no_grad():
        logits = MultiExitBert.from_pretrained(tmp_path / "ours")(ids).logits
        torch.testing.assert_close(logits, reference(ids).logits, atol=1e-6, rtol=0)


def test_other_num_labels_than_the_classifier_raises(classifier):
    with pytest.raises(ValueError, match="shape"):
        MultiExitBert.from_pretrained(classifier[1], num_labels=5)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors,
        lambda tensors: {f"bert.{name}": value for name, value in tensors.items()},
        lambda tensors: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for name, value in tensors.items()
        },
    ],
    ids=["bare", "prefixed", "gamma-beta"],
)
def test_names_of_bert_checkpoints(bert_folder, change):
    expected = {f"bert.{name}": v for name, v in BertModel.from_pretrained(bert_folder).state_dict().items()}
    rewrite(bert_folder, change)
    for name, value in backbone(MultiExitBert.from_pretrained(bert_folder, num_labels=4)).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_pooler_head_takes_the_pretrained_pooler(bert_folder):
    model = MultiExitBert.from_pretrained(bert_folder, head="pooler")
    expected = BertModel.from_pretrained(bert_folder).pooler.dense.weight
    torch.testing.assert_close(model.heads["3"].dense.weight, expected)


def test_sharded_checkpoint(bert_folder, tmp_path):
    BertModel.from_pretrained(bert_folder).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    sharded = backbone(MultiExitBert.from_pretrained(tmp_path / "sharded"))
    for name, value in backbone(MultiExitBert.from_pretrained(bert_folder)).items():
        torch.testing.assert_close(sharded[name], value)


def test_choices_reach_the_configuration(bert_folder):
    model = MultiExitBert.from_pretrained(bert_folder, num_labels=7, exit_layers=[3, 1], head="linear", pooling="mean")
    assert model.config.num_labels == 7
    assert model.config.exit_layers == [1, 3]
    assert list(model.heads) == ["1", "3"]
    assert model.heads["1"].classifier.out_features == 7
    assert not model.training


def test_dtype_and_config_arguments(bert_folder):
    config = MultiExitBertConfig.from_pretrained(bert_folder, exit_layers=[2, 3], num_labels=2)
    model = MultiExitBert.from_pretrained(bert_folder, config=config, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config.exit_layers == [2, 3]


def test_fewer_layers(bert_folder):
    model = MultiExitBert.from_pretrained(bert_folder, num_hidden_layers=2, exit_layers=[1, 2])
    assert list(model.heads) == ["1", "2"]
    assert len(model.bert.encoder.layer) == 2


def test_loading_info(bert_folder):
    _, info = MultiExitBert.from_pretrained(bert_folder, output_loading_info=True)
    assert all(name.startswith("heads.") for name in info["missing_keys"])


def test_pickle_is_refused_unless_allowed(bert_folder):
    torch.save(load_file(bert_folder / "model.safetensors"), bert_folder / "pytorch_model.bin")
    expected = backbone(MultiExitBert.from_pretrained(bert_folder))
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"only the pickle pytorch_model.bin.*Convert it once.*use_safetensors=False"):
        MultiExitBert.from_pretrained(bert_folder)
    for name, value in backbone(MultiExitBert.from_pretrained(bert_folder, use_safetensors=False)).items():
        torch.testing.assert_close(value, expected[name])


def test_no_weights_at_all(bert_folder):
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights: expected model.safetensors"):
        MultiExitBert.from_pretrained(bert_folder)


def test_missing_tensor(bert_folder):
    lost = "encoder.layer.1.output.dense.weight"
    rewrite(bert_folder, lambda tensors: {name: value for name, value in tensors.items() if name != lost})
    with pytest.raises(ValueError, match=rf"1 tensors are missing from the checkpoint: \['bert.{lost}"):
        MultiExitBert.from_pretrained(bert_folder)


def test_missing_head_of_our_own_checkpoint(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {n: v for n, v in tensors.items() if not n.startswith("heads.2.")})
    with pytest.raises(ValueError, match="missing from the checkpoint.*heads.2."):
        MultiExitBert.from_pretrained(tmp_path)


def test_wrong_shape(bert_folder):
    name = "embeddings.word_embeddings.weight"
    rewrite(bert_folder, lambda tensors: {**tensors, name: tensors[name][:-1].contiguous()})
    with pytest.raises(ValueError, match="another shape"):
        MultiExitBert.from_pretrained(bert_folder)


def test_truncated_file(bert_folder):
    path = bert_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged safetensors file"):
        MultiExitBert.from_pretrained(bert_folder)


def test_another_architecture(tmp_path):
    RobertaModel(RobertaConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="bert or multi_exit_bert, got 'roberta'"):
        MultiExitBert.from_pretrained(tmp_path)


def test_exit_layers_out_of_range(bert_folder):
    with pytest.raises(ValueError, match="between 1 and 3, got 9"):
        MultiExitBert.from_pretrained(bert_folder, exit_layers=[9])


def test_unknown_argument(bert_folder):
    with pytest.raises(TypeError, match="exit_layer"):
        MultiExitBert.from_pretrained(bert_folder, exit_layer=2)


def test_subset_and_superset_of_trained_exits(make_model, tmp_path, caplog):
    model = make_model(exit_layers=[2, 4])
    model.exit_config.thresholds = [0.3]
    model.save_pretrained(tmp_path)
    subset = MultiExitBert.from_pretrained(tmp_path, exit_layers=[4])
    assert list(subset.heads) == ["4"]
    torch.testing.assert_close(subset.heads["4"].classifier.weight, model.heads["4"].classifier.weight)
    superset = MultiExitBert.from_pretrained(tmp_path, exit_layers=[1, 2, 4])
    torch.testing.assert_close(superset.heads["2"].classifier.weight, model.heads["2"].classifier.weight)


def test_other_exits_than_the_table_and_thresholds(model, tokenizer, texts, tmp_path):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.exit_config.thresholds = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    other = MultiExitBert.from_pretrained(tmp_path, exit_layers=[2, 4])
    assert other.exit_table is None
    assert other.exit_config.thresholds is None
    same = MultiExitBert.from_pretrained(tmp_path, exit_layers=[1, 2, 3, 4])
    assert same.exit_table is not None
    assert same.exit_config.thresholds == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "cls"}, "trained with pooling='mean', got 'cls'"),
        ({"head": "linear"}, "trained with head='attention', got 'linear'"),
        ({"head_attention_heads": 4}, "trained with head_attention_heads=2, got 4"),
    ],
)
def test_trained_heads_do_not_change_kind(model, tmp_path, change, message):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        MultiExitBert.from_pretrained(tmp_path, **change)
    MultiExitBert.from_pretrained(tmp_path, pooling="mean", head="attention", head_dropout=0.1)


def test_upload_holds_the_table(model, tokenizer, texts, tmp_path, monkeypatch):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    uploads = []

    def push(self, repo_id, **arguments):  # transformers' own saves into a fresh folder and uploads all of it
        self.save_pretrained(tmp_path / "fresh")
        uploads.append((repo_id, arguments, {path.name for path in (tmp_path / "fresh").iterdir()}))

    monkeypatch.setattr(MultiExitBert, "push_to_hub", push)
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/mine", commit_message="first")
    ((repo_id, arguments, files),) = uploads
    assert (repo_id, arguments) == ("me/mine", {"commit_message": "first"})
    assert {"config.json", "exit_config.json", "model.safetensors", "exit_table.safetensors"} <= files


def test_variant(bert_folder):
    (bert_folder / "model.safetensors").rename(bert_folder / "model.fp16.safetensors")
    assert MultiExitBert.from_pretrained(bert_folder, variant="fp16").config.exit_layers == [1, 2, 3]
    with pytest.raises(ValueError, match="expected model.safetensors"):
        MultiExitBert.from_pretrained(bert_folder)


def test_token_classifier_is_a_backbone(tmp_path):
    BertForTokenClassification(BertConfig(**SMALL)).save_pretrained(tmp_path)
    assert MultiExitBert.from_pretrained(tmp_path).config.last_head == "attention"


def test_everything_round_trips(model, tokenizer, texts, tmp_path):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, ngram=2, progress=False)
    model.exit_config.thresholds = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = MultiExitBert.from_pretrained(tmp_path)
    before, after = model.config.to_dict(), loaded.config.to_dict()
    assert {name for name in before if after[name] != before[name]} <= {"_name_or_path", "architectures"}
    assert loaded.exit_config == model.exit_config
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)
    assert loaded.exit_table.settings == model.exit_table.settings
    torch.testing.assert_close(loaded.exit_table.scores, model.exit_table.scores, atol=0, rtol=0)
    for policy in ("threshold", "predicted"):
        before = Engine(model, tokenizer, policy).predict(texts)
        after = Engine.from_pretrained(tmp_path, policy).predict(texts)
        assert after.exit_layers.tolist() == before.exit_layers.tolist()
        torch.testing.assert_close(after.logits, before.logits)
    saved = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "exit_config.json", "model.safetensors", "exit_table.safetensors"} <= saved
    assert not [name for name in saved if name.endswith((".bin", ".pt", ".pkl"))]


def test_saving_without_a_table_removes_a_stale_one(model, tokenizer, texts, tmp_path):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.save_pretrained(tmp_path)
    model.exit_table = None
    model.save_pretrained(tmp_path)
    assert MultiExitBert.from_pretrained(tmp_path).exit_table is None


def test_auto_classes_and_pipeline(model, tokenizer, texts, tmp_path):
    model.config.id2label = {0: "red", 1: "green", 2: "blue"}
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MultiExitBertConfig)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(tmp_path), MultiExitBert)
    classify = pipeline("text-classification", model=str(tmp_path), top_k=None)
    results = classify(texts, batch_size=3)
    expected = Engine(model, tokenizer).predict(texts)
    for row, scores in enumerate(results):
        for entry in scores:
            index = model.config.label2id.get(entry["label"], ["red", "green", "blue"].index(entry["label"]))
            assert entry["score"] == pytest.approx(float(expected.probabilities[row, index]), abs=1e-5)


def test_damaged_table(model, tokenizer, texts, tmp_path):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.save_pretrained(tmp_path)
    path = tmp_path / "exit_table.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged safetensors file"):
        MultiExitBert.from_pretrained(tmp_path)


def test_table_of_another_depth_in_the_folder(make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["exit_layers"] = [2, 4]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"built for exits at \[1, 2, 3, 4\], the model has \[2, 4\]"):
        MultiExitBert.from_pretrained(tmp_path)


def test_new_exits_are_told_and_whether_full_depth_uses_them(fine_tuned, minilm_path, caplog):
    with caplog.at_level(logging.WARNING, "geep_triton"):
        MultiExitBert.from_pretrained(fine_tuned)
        assert "exit heads at layers [1, 2] are new and untrained" in caplog.text
        assert "At full depth they are not used." in caplog.text
        caplog.clear()
        MultiExitBert.from_pretrained(minilm_path, num_labels=2)
        assert "exit heads at layers [1, 2, 3, 4, 5, 6] are new and untrained" in caplog.text
        assert "full depth" not in caplog.text

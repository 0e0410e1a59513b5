"""Maps of labels: two that contradict each other are refused wherever a model is made."""

from __future__ import annotations

import json

import pytest
from transformers import BertConfig, BertForSequenceClassification

from geep_triton import Engine, MultiExitBert, MultiExitBertConfig
from geep_triton.engine.checks import label_ids
from geep_triton.labels import label_maps
from geep_triton.promises.temperatures import fit_temperatures
from tests.conftest import WORDS

NAMES = {0: "neg", 1: "pos"}
IDS = {"neg": 0, "pos": 1}
DEFAULT = {0: "LABEL_0", 1: "LABEL_1"}
DEFAULT_IDS = {"LABEL_0": 0, "LABEL_1": 1}


@pytest.mark.parametrize(
    "given",
    [
        (NAMES, IDS),
        (NAMES, None),
        (None, IDS),
        (NAMES, DEFAULT_IDS),
        (NAMES, {"LABEL_0": 0}),
        (NAMES, {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}),
        (DEFAULT, IDS),
        ({"0": "neg", "1": "pos"}, {"neg": "0", "pos": "1"}),  # as JSON has them
        ({1: "pos", 0: "neg"}, {"pos": 1, "neg": 0}),
        (NAMES, IDS, 2),
    ],
)
def test_maps_that_say_the_same(given):
    names, ids = label_maps(*given)
    assert (list(names.items()), list(ids.items())) == (list(NAMES.items()), list(IDS.items()))


def test_names_that_are_numbers_and_no_names():
    assert label_maps({0: 1, 1: 2}, {"1": 0, "2": 1}) == ({0: "1", 1: "2"}, {"1": 0, "2": 1})
    assert label_maps(None, None, 7) == (None, None)
    assert label_maps(DEFAULT, DEFAULT_IDS, 7) == (None, None)
    assert label_maps(DEFAULT, DEFAULT_IDS) == (DEFAULT, DEFAULT_IDS)


BAD = [
    ((NAMES, {"neg": 1, "pos": 0}), r"label2id must be the inverse.*'neg'.*'neg': 1"),
    ((NAMES, {"neg": 0}), "label2id must be the inverse"),
    ((NAMES, IDS | {"neutral": 2}), "label2id must be the inverse"),
    ((NAMES, IDS | {"negative": 0}), "label2id must be the inverse"),
    ((DEFAULT, {"LABEL_0": 1, "LABEL_1": 0}), "label2id must be the inverse"),
    (({0: "LABEL_1", 1: "LABEL_0"}, DEFAULT_IDS), "label2id must be the inverse"),
    ((DEFAULT, {"a": 0, "b": 1, "c": 2}), "label2id must be the inverse"),
    (({1: "neg", 2: "pos"}, {"neg": 1, "pos": 2}), r"classes 0\.\.1"),
    (({0: "neg", 2: "pos"}, None), r"classes 0\.\.1"),
    (({0: "neg", -1: "pos"}, None), r"classes 0\.\.1"),
    (({"0": "neg", "one": "pos"}, None), r"classes 0\.\.1"),
    (({0.0: "neg", 1.0: "pos"}, None), r"classes 0\.\.0"),
    ((None, {"neg": 1, "pos": 2}), r"classes 0\.\.1"),
    (({0: "same", 1: "same"}, None), "each class differently"),
    ((NAMES, IDS, 3), "num_labels=3 must be the number of classes"),
    ((["neg", "pos"], None), "id2label must be a mapping"),
    ((None, None, 0), "num_labels must be between 1"),
    ((None, None, 10**12), "num_labels must be between 1"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_maps_that_contradict_each_other(given, message):
    with pytest.raises(ValueError, match=message):
        label_maps(*given)


def test_a_configuration_is_refused_when_made():
    with pytest.raises(ValueError, match="label2id must be the inverse"):
        MultiExitBertConfig(id2label=NAMES, label2id={"neg": 1, "pos": 0})
    with pytest.raises(ValueError, match="num_labels=3"):
        MultiExitBertConfig(id2label=NAMES, num_labels=3)
    with pytest.raises(ValueError, match="65536, got 1000000000000"):
        MultiExitBertConfig(num_labels=10**12)
    with pytest.raises(ValueError, match="65536, got 1000000000000"):
        MultiExitBertConfig().num_labels = 10**12
    with pytest.raises(ValueError, match="head_size must be between"):
        MultiExitBertConfig(head_size=10**9)
    assert MultiExitBertConfig(label2id=IDS | {"both": 2}).num_labels == 3


@pytest.mark.parametrize("names", [{1: "neg", 2: "pos", 3: "both"}, {0: "a", 1: "b", 2: "a"}, {0: "a", 1: "b"}, {0: "a"}])
def test_a_configuration_changed_later_is_refused_by_model_engine_and_save(make_model, tokenizer, tmp_path, names):
    model = make_model()
    model.config.id2label, model.config.label2id = names, {name: index for index, name in names.items()}
    with pytest.raises(ValueError, match=r"id2label|num_labels must be 3"):
        Engine(model, tokenizer, "full")
    with pytest.raises(ValueError, match=r"id2label|num_labels must be 3"):
        model.save_pretrained(tmp_path)
    if len(names) == 3:
        with pytest.raises(ValueError, match="id2label"):
            MultiExitBert(model.config)
    assert not list(tmp_path.iterdir())


def test_a_swapped_map_is_refused_by_the_engine(make_model, tokenizer):
    model = make_model(num_labels=2, id2label=NAMES)
    assert model.config.label2id == IDS
    model.config.label2id = {"neg": 1, "pos": 0}
    with pytest.raises(ValueError, match="'neg': 1, 'pos': 0"):
        Engine(model, tokenizer, "full")
    model.config.label2id = IDS
    fit_temperatures(Engine(model, tokenizer, "full"), ["good", "bad"], ["pos", "neg"])


def test_names_set_later_reach_labels_and_truth(make_model, tokenizer, texts):
    model = make_model()
    model.config.id2label = {0: "red", 1: "green", 2: "blue"}
    engine = Engine(model, tokenizer, "full")
    answers = engine.predict(texts)
    found = fit_temperatures(engine, texts, answers.labels)  # answers by name are taken as truth by name
    assert len(found.temperatures) == 4
    assert model.config.label2id == {"red": 0, "green": 1, "blue": 2}


@pytest.fixture
def checkpoint(tmp_path):
    """A fine-tuned classifier, and a function that rewrites its configuration."""
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        id2label=NAMES, label2id=IDS,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)

    def rewrite(**changes):
        values = json.loads((tmp_path / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return rewrite


@pytest.mark.parametrize(
    "changes",
    [
        {"label2id": {"neg": 1, "pos": 0}},
        {"id2label": {"1": "neg", "2": "pos"}, "label2id": {"neg": 1, "pos": 2}},
        {"id2label": {"0": "neg", "2": "pos"}, "label2id": None},
        {"num_labels": 3},
        {"num_labels": 10**12},
    ],
)
def test_checkpoints_that_contradict_themselves(checkpoint, changes):
    folder = checkpoint(**changes)
    with pytest.raises(ValueError, match=r"id2label|num_labels"):
        MultiExitBert.from_pretrained(folder)
    assert MultiExitBert.from_pretrained(folder, id2label=NAMES).config.label2id == IDS


@pytest.mark.parametrize("label2id", [DEFAULT_IDS, None, {"LABEL_0": "0", "LABEL_1": "1"}])
def test_checkpoints_without_names(checkpoint, label2id):
    config = MultiExitBert.from_pretrained(checkpoint(id2label={"0": "LABEL_0", "1": "LABEL_1"}, label2id=label2id)).config
    assert (config.id2label, config.label2id) == (DEFAULT, DEFAULT_IDS)


def test_shapes_of_another_number_of_labels_are_named(checkpoint):
    with pytest.raises(ValueError, match=r"heads.2.classifier.weight \(2, 32\), not \(5, 32\)"):
        MultiExitBert.from_pretrained(checkpoint(), num_labels=5)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [True, False], [0, True], [None, 0], [[0], [1]], [{}, 1]])
def test_labels_that_only_look_like_numbers_of_classes(labels):
    with pytest.raises(ValueError, match="labels must all be names of classes"):
        label_ids(labels, 2, {"a": 0, "b": 1})

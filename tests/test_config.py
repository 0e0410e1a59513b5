"""MultiExitBertConfig: what it accepts, what it refuses."""

from __future__ import annotations

import pytest

from geep_triton.config import HEADS, MultiExitBertConfig
from geep_triton.modeling.heads import HEAD_CLASSES


def test_defaults_are_every_layer():
    config = MultiExitBertConfig(num_hidden_layers=4)
    assert config.exit_layers == [1, 2, 3, 4]
    assert (config.last_head, config.last_pooling) == (config.head, config.pooling)


def test_exit_layers_are_sorted():
    assert MultiExitBertConfig(num_hidden_layers=4, exit_layers=[4, 2]).exit_layers == [2, 4]


def test_every_head_name_has_a_class():
    assert set(HEADS) == set(HEAD_CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layers": [0, 4]}, "between 1 and 4, got 0"),
        ({"exit_layers": [2, 5]}, "between 1 and 4, got 5"),
        ({"exit_layers": [2]}, r"include the last layer \(4\)"),
        ({"exit_layers": []}, "include the last layer"),
        ({"exit_layers": [2, 2, 4]}, "not repeat"),
        ({"head": "mlp"}, "unknown head 'mlp'; known: attention, linear, pooler"),
        ({"pooling": "max"}, "unknown pooling 'max'; known: cls, mean"),
        ({"head_size": 10, "head_attention_heads": 4}, "multiple of head_attention_heads"),
        ({"is_decoder": True}, "MultiExitBert is an encoder"),
        ({"head_dropout": 1.5}, "head_dropout must be between"),
    ],
)
def test_bad_values_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        MultiExitBertConfig(num_hidden_layers=4, **changes)


def test_exit_layers_of_wrong_type():
    with pytest.raises(TypeError, match="must be an int, got 'two'"):
        MultiExitBertConfig(num_hidden_layers=4, exit_layers=["two", 4])


def test_round_trip(tmp_path):
    config = MultiExitBertConfig(num_hidden_layers=4, exit_layers=[2, 4], head="linear")
    config.save_pretrained(tmp_path)
    loaded = MultiExitBertConfig.from_pretrained(tmp_path)
    assert (loaded.exit_layers, loaded.head) == ([2, 4], "linear")

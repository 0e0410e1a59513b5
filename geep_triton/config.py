"""Configuration of MultiExitBert: a BertConfig plus the places and kinds of the exits and skip gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import BertConfig
from transformers.activations import ACT2FN

from geep_triton.checks import check_choice, check_int, check_number, shorten
from geep_triton.exit_config import OLD_FIELDS
from geep_triton.labels import MAX_LABELS, label_maps

HEADS = ("attention", "pooler", "linear")
POOLINGS = ("cls", "mean")
SKIP_GATES = ("attention", "mean")
MAX_SIZE = 1 << 16  # of heads and gates. It catches typing errors before they take all memory
MAX_SIZES = {
    "vocab_size": 1 << 26, "hidden_size": MAX_SIZE, "num_hidden_layers": 1 << 10, "num_attention_heads": MAX_SIZE,
    "intermediate_size": 1 << 20, "max_position_embeddings": 1 << 20, "type_vocab_size": MAX_SIZE,
}  # fmt: skip
_LEFT_OUT: Any = None
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = ("regression", "single_label_classification", MULTI_LABEL)


class MultiExitBertConfig(BertConfig):
    """The shape of a model: `transformers.BertConfig` plus the exits and the skip gates.

    Each attribute is an argument of the constructor, beside those of `BertConfig`. The model's `exit_config` describes how it
    is served (policy, thresholds, temperatures, calibration).

    `id2label` and `label2id` must name the same classes 0..num_labels-1. A missing map is made from the other.

    Attributes:
        exit_layers: layers (1..num_hidden_layers) that have an exit head, ascending. They include the last layer. None: every
            layer.
        head: kind of the exit heads: "attention" (FastBERT/GEEP), "pooler" (BERT's own) or "linear".
        pooling: the input of a head: "cls" (the first token) or "mean" (mean over the real tokens).
        last_head: kind of the last exit's head. None: `head`. A fine-tuned BertForSequenceClassification has "pooler".
        last_pooling: pooling of the last exit's head. None: `pooling`.
        head_size: width of an "attention" head (128 in FastBERT and GEEP).
        head_attention_heads: attention heads of an "attention" head (2 in GEEP, 4 in SmartBERT).
        head_dropout: dropout in "attention" and "linear" heads while training (.5 in GEEP). A "pooler" head uses BERT's own
            classifier_dropout.
        skip_gate: kind of the gates that decide per sample which layers are skipped: "attention" (SmartBERT, Hu et al. 2023) or
            "mean" (mean over the real tokens, then linear; cheaper). None: no gates, every layer runs.
        skip_layers: layers that may be skipped, ascending. None: every layer if there are gates.
        skip_gate_size: width of an "attention" gate (128 in SmartBERT).
        skip_gate_attention_heads: attention heads of an "attention" gate (2 in SmartBERT).
        skip_gate_bias: initial bias of a gate's logit. Below 0, training starts with (nearly) every layer running. SmartBERT's
            gates start at 0.
        skip_threshold: a sample skips a layer if its gate is at least this, in training and in inference.
        digests: digests of the weights, the exit table and exit_config.json that were saved together. `from_pretrained` uses
            them to check that the files belong together.

    Raises:
        ValueError: sizes or rates of BERT are impossible, maps of labels do not fit, there are more than 65,536 classes, exits
            or gates lie outside the model, a head, pooling or gate is unknown, or settings of gates are given without gates.
        TypeError: a setting has another type, or is a setting of `geep_triton.exit_config.ExitConfig`.
        AttributeError: a setting of `geep_triton.exit_config.ExitConfig` is set on the configuration later.
    """

    model_type = "multi_exit_bert"
    # transformers' Trainer takes all other outputs for predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["exit_layers"]

    if TYPE_CHECKING:  # may be left out, and is never None once the configuration is made
        id2label: dict[int, str] = _LEFT_OUT
        label2id: dict[str, int] = _LEFT_OUT
        exit_layers: list[int] = _LEFT_OUT
        last_head: str = _LEFT_OUT
        last_pooling: str = _LEFT_OUT
    else:
        exit_layers: list[int] | None = None
        last_head: str | None = None
        last_pooling: str | None = None
    head: str = "attention"
    pooling: str = "cls"
    head_size: int = 128
    head_attention_heads: int = 2
    head_dropout: float | int = 0.5
    skip_gate: str | None = None
    skip_layers: list[int] | None = None
    skip_gate_size: int = 128
    skip_gate_attention_heads: int = 2
    skip_gate_bias: float | int = -3.0
    skip_threshold: float | int = 0.5
    digests: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # This comes before transformers' own step, which lets the number of labels override their names.
        self._set_labels(kwargs.get("num_labels"))
        for name in kwargs:
            if name in OLD_FIELDS:
                raise TypeError(_moved_setting(name))
        super().__post_init__(**kwargs)
        check_bert(self)
        self.exit_layers = resolve_exit_layers(self.exit_layers, self.num_hidden_layers)
        self.last_head = self.head if self.last_head is None else self.last_head
        self.last_pooling = self.pooling if self.last_pooling is None else self.last_pooling
        for name, value, known in (
            ("head", self.head, HEADS),
            ("last_head", self.last_head, HEADS),
            ("pooling", self.pooling, POOLINGS),
            ("last_pooling", self.last_pooling, POOLINGS),
        ):
            check_choice(name, value, known)
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("is_decoder and add_cross_attention must be False: MultiExitBert is an encoder")
        check_multiple("head_size", self.head_size, "head_attention_heads", self.head_attention_heads)
        check_number("head_dropout", self.head_dropout, 0.0, 1.0)
        if not isinstance(self.digests, dict | None):
            raise TypeError(f"digests must be a dict or None, got {shorten(self.digests)}")
        self.skip_layers = resolve_skip_layers(self.skip_gate, self.skip_layers, self.num_hidden_layers)
        check_multiple("skip_gate_size", self.skip_gate_size, "skip_gate_attention_heads", self.skip_gate_attention_heads)
        check_number("skip_gate_bias", self.skip_gate_bias, -1e3, 1e3)
        check_number("skip_threshold", self.skip_threshold, 0.0, 1.0)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OLD_FIELDS:
            raise AttributeError(_moved_setting(name))
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration as in transformers. Serving settings that version 0.1 saved in config.json are left
        out here: the model reads them.
        """
        return super().from_dict({name: value for name, value in config_dict.items() if name not in OLD_FIELDS}, **kwargs)

    @property
    def num_labels(self) -> int:
        """Number of classes. Setting another number names them LABEL_0, LABEL_1, .."""
        return super().num_labels  # type: ignore[return-value]  # None only before it is made

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        check_int("num_labels", num_labels, 1, MAX_LABELS)
        BertConfig.num_labels.fset(self, num_labels)  # type: ignore[attr-defined]  # of the class it is a property

    def check_labels(self) -> None:
        """Check the maps of labels, which may have been changed. A map with transformers' default names is made from the other.

        Raises:
            ValueError: the maps do not name the same classes 0..C-1.
        """
        self._set_labels()

    def _set_labels(self, num_labels: int | None = None) -> None:
        # None where transformers names them next.
        self.id2label, self.label2id = label_maps(self.id2label, self.label2id, num_labels)  # type: ignore[assignment]


def _moved_setting(name: str) -> str:
    """Says where a setting is now that version 0.1 had in the configuration."""
    chosen = "exit_policy='...+skip:MODE'" if name == "skipping" else name
    return (
        f"the configuration has no field {name}: it holds the model's shape only. Set model.exit_config.{OLD_FIELDS[name]}, or "
        f"pass {chosen} to MultiExitBert.from_pretrained"
    )


def check_bert(config: BertConfig) -> None:
    """Raise unless BERT's own settings are possible. This is checked before a model is built."""
    for name, most in MAX_SIZES.items():
        check_int(name, getattr(config, name), 1, most)
    check_multiple("hidden_size", config.hidden_size, "num_attention_heads", config.num_attention_heads)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        check_number(name, getattr(config, name), 0.0, 1.0)
    if config.classifier_dropout is not None:
        check_number("classifier_dropout", config.classifier_dropout, 0.0, 1.0)
    check_number("layer_norm_eps", config.layer_norm_eps, 0.0, 1.0)
    check_number("initializer_range", config.initializer_range, 0.0, 1e3)
    check_int("chunk_size_feed_forward", config.chunk_size_feed_forward, 0)
    if isinstance(config.hidden_act, str):
        check_choice("hidden_act", config.hidden_act, ACT2FN)
    if config.pad_token_id is not None:
        check_int("pad_token_id", config.pad_token_id, 0, config.vocab_size - 1)
    if config.problem_type is not None:
        check_choice("problem_type", config.problem_type, PROBLEM_TYPES)


def resolve_exit_layers(exit_layers: list[int] | tuple[int, ...] | None, num_layers: int) -> list[int]:
    """The exits as a sorted list. None means every layer.

    Raises:
        TypeError: `exit_layers` is not a list of ints.
        ValueError: it is empty, repeats a layer, has layers outside 1..num_layers, or lacks the last layer.
    """
    if exit_layers is None:
        return list(range(1, num_layers + 1))
    check_layers("exit_layers", exit_layers, num_layers)
    if num_layers not in exit_layers:
        raise ValueError(f"exit_layers must include the last layer ({num_layers}), got {list(exit_layers)}")
    return sorted(exit_layers)


def resolve_skip_layers(
    skip_gate: str | None, skip_layers: list[int] | tuple[int, ...] | None, num_layers: int
) -> list[int] | None:
    """The gated layers as a sorted list, or None without gates. None with gates means every layer.

    Raises:
        TypeError: `skip_layers` is not a list of ints.
        ValueError: the gate is unknown, there are layers without a gate, or the list is empty, repeats a layer, or has layers
            outside 1..num_layers.
    """
    if skip_gate is None:
        if skip_layers is not None:
            raise ValueError(f"skip_layers need a skip_gate ({', '.join(SKIP_GATES)}), got skip_layers={shorten(skip_layers)}")
        return None
    check_choice("skip_gate", skip_gate, SKIP_GATES)
    if skip_layers is None:
        return list(range(1, num_layers + 1))
    check_layers("skip_layers", skip_layers, num_layers)
    if not skip_layers:
        raise ValueError("skip_layers must name at least one layer; leave out skip_gate for a model without gates")
    return sorted(skip_layers)


def check_layers(name: str, layers: list[int] | tuple[int, ...], num_layers: int) -> None:
    """Raise unless `layers` is a list of distinct ints in 1..num_layers."""
    if not isinstance(layers, (list, tuple)):
        raise TypeError(f"{name} must be a list of ints, got {shorten(layers)}")
    for layer in layers:
        check_int(f"each of {name}", layer, 1, num_layers)
    if len(set(layers)) != len(layers):
        raise ValueError(f"{name} must not repeat a layer, got {list(layers)}")


def check_multiple(name: str, value: int, by_name: str, by: int) -> None:
    """Raise unless both are ints from 1 to 65,536 and `value` is a multiple of `by`."""
    check_int(name, value, 1, MAX_SIZE)
    check_int(by_name, by, 1)
    if value % by:
        raise ValueError(f"{name} ({value}) must be a multiple of {by_name} ({by})")

"""Configuration of MultiExitBert: a BertConfig plus where the exits and skip gates are, and what they look like."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig
from transformers.activations import ACT2FN

from geep_triton.checks import check_choice, check_int, check_number, shorten
from geep_triton.exit_config import OLD_FIELDS
from geep_triton.labels import MAX_LABELS, label_maps

HEADS = ("attention", "pooler", "linear")
POOLINGS = ("cls", "mean")
SKIP_GATES = ("attention", "mean")
MAX_SIZE = 1 << 16  # of heads and gates: a slip of some zeros is refused before it takes all memory
MAX_SIZES = {
    "vocab_size": 1 << 26, "hidden_size": MAX_SIZE, "num_hidden_layers": 1 << 10, "num_attention_heads": MAX_SIZE,
    "intermediate_size": 1 << 20, "max_position_embeddings": 1 << 20, "type_vocab_size": MAX_SIZE,
}  # fmt: skip
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


class MultiExitBertConfig(BertConfig):
    """Everything of `transformers.BertConfig`, the exits and the skip gates: the shape of a model.

    How the model is served (policy, thresholds, temperatures, calibration) lies in its `exit_config`.

    Args:
        exit_layers: layers (1..num_hidden_layers) after which an exit head answers, ascending; the last layer is always
            one of them. None: every layer.
        head: kind of the exit heads: "attention" (FastBERT/GEEP), "pooler" (BERT's own) or "linear".
        pooling: what a head reads: "cls" (the first token) or "mean" (mean over the real tokens).
        last_head: kind of the last exit's head where it differs, as in a fine-tuned BertForSequenceClassification.
        last_pooling: pooling of the last exit's head where it differs.
        head_size: width of the "attention" head (128 in FastBERT and GEEP).
        head_attention_heads: attention heads of the "attention" head (2 in GEEP, 4 in SmartBERT).
        head_dropout: dropout inside "attention" and "linear" heads while training (.5 in GEEP); a "pooler" head has BERT's
            own classifier_dropout.
        skip_gate: kind of the gates that decide, sample by sample, which layers are skipped: "attention" (SmartBERT, Hu et al.
            2023) or "mean" (masked mean, linear; cheaper). None: no gates, every layer runs.
        skip_layers: layers that may be skipped, ascending. None with gates: every layer.
        skip_gate_size: width of an "attention" gate (128 in SmartBERT).
        skip_gate_attention_heads: attention heads of an "attention" gate (2 in SmartBERT).
        skip_gate_bias: where a new gate's logit starts; below 0, so that training starts from "run everything". SmartBERT's
            gates start at 0.
        skip_threshold: a sample skips a layer whose gate is at or over it, in training and in inference.
        digests: of the weights, the exit table and exit_config.json that were saved together, by which `from_pretrained` knows
            them again.

    `id2label` and `label2id` must name the same classes 0..num_labels-1; one that is missing is made of the other.

    Raises:
        ValueError, TypeError: for sizes and rates of BERT that cannot be, maps of labels that do not fit, more than 65,536
            classes, exits or gates outside the model, unknown heads, poolings or gates, settings of gates without gates.

    Settings of `geep_triton.exit_config.ExitConfig`, whose place is `model.exit_config`, are a TypeError here, and an
    AttributeError where they are set later.
    """

    model_type = "multi_exit_bert"

    exit_layers: list[int] | None = None
    head: str = "attention"
    pooling: str = "cls"
    last_head: str | None = None
    last_pooling: str | None = None
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
        # Before transformers, which lets a number of labels overrule their names.
        self.id2label, self.label2id = label_maps(self.id2label, self.label2id, kwargs.get("num_labels"))
        for name in kwargs:
            if name in OLD_FIELDS:
                raise TypeError(_whereabouts(name))
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
            raise AttributeError(_whereabouts(name))
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'. Leaves aside what version 0.1 saved in config.json of how a model is served: the model reads it."""
        return super().from_dict({name: value for name, value in config_dict.items() if name not in OLD_FIELDS}, **kwargs)

    @property
    def num_labels(self) -> int | None:
        """How many classes there are. Setting another number names them LABEL_0, LABEL_1, .."""
        return super().num_labels

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        check_int("num_labels", num_labels, 1, MAX_LABELS)
        BertConfig.num_labels.fset(self, num_labels)

    def check_labels(self) -> None:
        """Raise ValueError unless the maps of labels, which may have been changed since, name the same classes 0..C-1.

        A map that was left at transformers' LABEL_0, LABEL_1, .. is made of the other.
        """
        self.id2label, self.label2id = label_maps(self.id2label, self.label2id)


def _whereabouts(name: str) -> str:
    """Where a setting is that version 0.1 had in the configuration."""
    return (
        f"the configuration has no field {name}: it holds the model's shape only. Set model.exit_config.{OLD_FIELDS[name]}, or "
        f"pass {name} to MultiExitBert.from_pretrained"
    )


def check_bert(config: BertConfig) -> None:
    """Raise unless the settings that are BERT's own can be those of a model, before it is made of them."""
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
    """The exits as a sorted list; None stands for every layer.

    Raises:
        TypeError: not a list of ints. ValueError: empty, repeated, outside 1..num_layers, or without the last layer.
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
    """The gated layers as a sorted list, None without gates; None with gates stands for every layer.

    Raises:
        TypeError: not a list of ints. ValueError: an unknown gate; layers without a gate; empty, repeated or outside
            1..num_layers.
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
        raise ValueError("skip_layers must name at least one layer; without gates leave skip_gate out")
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

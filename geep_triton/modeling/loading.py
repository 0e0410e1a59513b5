"""Loads checkpoints: finds the files, the architecture and the tensor names, and refuses checkpoints with missing tensors."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, BertConfig, PretrainedConfig
from transformers.utils import cached_file, logging

from geep_triton.checks import shorten
from geep_triton.config import MultiExitBertConfig
from geep_triton.exit_config import EXIT_CONFIG_FILE, OLD_FIELDS
from geep_triton.labels import label_maps
from geep_triton.modeling.int8_layers import INT8_FILE, Int8Layers
from geep_triton.modeling.served import changed_since, served_as
from geep_triton.modeling.weights import (
    CONFIG_DIGEST,
    INT8_DIGEST,
    TABLE_DIGEST,
    check_digest,
    check_sizes,
    refuse_integers,
    refuse_wrapped,
    settings_digest,
    weight_files,
    weights_digest_name,
)
from geep_triton.saving import digests_of, reading, saved_config
from geep_triton.table.exit_table import OTHER_WEIGHTS, ExitTable
from geep_triton.table.files import TABLE_FILE
from geep_triton.tensor_files import refuse_pointer, tensors_digest

if TYPE_CHECKING:
    from geep_triton.modeling.model import MultiExitBert

logger = logging.get_logger(__name__)

# Besides its layer, a trained head's weights depend on these fields.
HEAD_FIELDS = ("head", "pooling", "last_head", "last_pooling", "head_size", "head_attention_heads")
# Besides its layer, a trained gate's weights depend on these fields.
GATE_FIELDS = ("skip_gate", "skip_gate_size", "skip_gate_attention_heads")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
MODEL_TYPES: dict[str, type[BertConfig]] = {"bert": BertConfig, "multi_exit_bert": MultiExitBertConfig}
LABEL_FIELDS = ("id2label", "label2id")


def load_pretrained(
    load: Callable[..., Any], source: str | os.PathLike, *model_args: Any, **kwargs: Any
) -> MultiExitBert | tuple[MultiExitBert, dict[str, Any]]:
    """The body of `MultiExitBert.from_pretrained`. `load` is transformers' own from_pretrained."""
    with reading(Path(source) / (kwargs.get("subfolder") or "")):
        return _load(load, source, *model_args, **kwargs)


def _load(
    load: Callable[..., Any], source: str | os.PathLike, *model_args: Any, **kwargs: Any
) -> MultiExitBert | tuple[MultiExitBert, dict[str, Any]]:
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    want_info = kwargs.pop("output_loading_info", False)
    overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in _config_arguments()}
    if "skipping" in kwargs:
        raise TypeError(f"skipping is part of the policy: pass exit_policy='...+skip:MODE', got {shorten(kwargs['skipping'])}")
    chosen = {name: kwargs.pop(old) for old, name in OLD_FIELDS.items() if old in kwargs}
    if kwargs.pop("trust_remote_code", False):
        raise ValueError(f"{source}: MultiExitBert runs no code from a checkpoint: leave trust_remote_code out")

    def find(name: str) -> str | None:
        return cached_file(source, name, **hub, _raise_exceptions_for_missing_entries=False)

    given = kwargs.pop("config", None)
    original = given
    if not isinstance(given, BertConfig):
        original = _original_config(source if given is None else given, hub, overrides)
    # These digests are of the saved configuration, even if the caller passed another one.
    config_file = find("config.json")
    there = {} if config_file is None else saved_config(Path(config_file).parent)
    digests, settings = digests_of(there), settings_digest(there)
    edited = given is None and digests.get(CONFIG_DIGEST, settings) != settings
    if edited:
        logger.warning(f"{source}: config.json was changed since it was saved with these weights; it is taken as it is now.")
    variant, files = kwargs.get("variant"), None
    if kwargs.get("state_dict") is not None:
        names = set(kwargs["state_dict"])
    elif kwargs.get("use_safetensors") is False:
        names = None
    else:
        kwargs["use_safetensors"] = True
        files = weight_files(source, find, variant)
        names = set(files)
    refuse_wrapped(source, names or set())
    refuse_integers(source, {} if files is None else files)
    classifier = _is_sequence_classification(original, names)
    trained = _trained_exits(original, names, classifier)
    if not classifier and trained:
        _check_trained(source, original, overrides, HEAD_FIELDS, "exit heads")
    if _trained_gates(original, names):
        _check_trained(source, original, overrides, GATE_FIELDS, "skip gates")
    config = _new_config(source, original, overrides, classifier)
    served = served_as(source, find(EXIT_CONFIG_FILE), there, _saved_shape(source, original, given, there), config, chosen)
    if edited and served.calibration is not None:
        logger.warning(f"{source}: its calibration is left out, because it was made with another config.json; calibrate again.")
        served.calibration = None
    if edited and served.ranking_calibration is not None:
        logger.warning(f"{source}: its ranking is left out, because it was made with another config.json; calibrate it again.")
        served.ranking = served.ranking_calibration = None
    keeps_shapes = not kwargs.pop("ignore_mismatched_sizes", False)
    if keeps_shapes and files is not None:
        check_sizes(source, files, config)
    try:
        with _as_value_error(source):
            model, info = load(
                source,
                *model_args,
                config=config,
                ignore_mismatched_sizes=True,  # they are refused below with their names
                key_mapping={**_last_head_names(config), **kwargs.pop("key_mapping", {})},
                output_loading_info=True,
                **hub,
                **kwargs,
            )
    except SafetensorError as error:
        raise ValueError(f"{source}: damaged safetensors file: {error}") from error
    if info["mismatched_keys"] and keeps_shapes:
        shapes = [f"{name} {tuple(there)}, not {tuple(here)}" for name, there, here in sorted(info["mismatched_keys"])]
        raise ValueError(f"{source}: tensors of another shape than the configuration says: {shorten(shapes, 300)}")
    reset = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    trained -= {layer for layer in trained if any(name.startswith(f"heads.{layer}.") for name in reset)}
    gated = _trained_gates(original, names)
    gated -= {layer for layer in gated if any(name.startswith(f"gates.{layer}.") for name in reset)}
    _check_missing(source, info["missing_keys"], config, trained, gated)
    check_digest(source, digests, variant, files)
    model.exit_config = served
    _attach_table(source, model, find(TABLE_FILE), original, digests, variant)
    _attach_int8(source, model, find(INT8_FILE), digests)
    return (model, info) if want_info else model


def _original_config(source: str | os.PathLike, hub: dict[str, Any], overrides: dict[str, Any]) -> BertConfig:
    """The checkpoint's configuration. Its custom code (auto_map) is never run.

    Raises:
        ValueError: there is no such folder or hub id, a file is damaged, the model is of another kind, or maps of labels do not
            fit each other.
    """
    if isinstance(source, PretrainedConfig):
        raise ValueError(f"MultiExitBert loads checkpoints of model type bert or multi_exit_bert, got {source.model_type!r}")
    path = Path(source)
    if not path.is_dir() and (isinstance(source, Path) or path.is_absolute() or str(source).startswith(".")):
        raise ValueError(f"{source}: no such folder")
    file = path / (hub.get("subfolder") or "") / "config.json"
    if file.is_file():
        refuse_pointer(file)
    elif path.is_dir():
        raise ValueError(f"{source} has no {file.relative_to(path)}")
    try:
        values, _ = PretrainedConfig.get_config_dict(source, **hub)
    except (OSError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{source}: no such folder, and no available hub id, with a config.json: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source}: damaged configuration: expected a JSON object, got {shorten(values)}")
    if "auto_map" in values:
        logger.warning(f"{source}: its configuration names custom code (auto_map), which is not run.")
    kind = values.get("model_type")
    if kind is None:
        kind = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub).model_type
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise ValueError(f"{source}: MultiExitBert loads checkpoints of model type bert or multi_exit_bert, got {kind!r}")
    if any(name in overrides for name in LABEL_FIELDS):
        values = _without_labels(values)
    else:
        # transformers' own BertConfig would let one of these fields override the others.
        label_maps(values.get("id2label"), values.get("label2id"), values.get("num_labels"))
    with _as_value_error(source, TypeError, RuntimeError):
        config = MODEL_TYPES[kind].from_dict(values)
        config.to_dict()  # this fails if its dtype is unknown
    return config


@contextmanager
def _as_value_error(source: str | os.PathLike, *more: type[Exception]) -> Iterator[None]:
    """Turn the errors that transformers and torch raise for bad values in a configuration into a ValueError that names the
    source.
    """
    own = (AttributeError, LookupError, ArithmeticError, AssertionError, StrictDataclassError)
    known: tuple[type[Exception], ...] = own + more
    try:
        yield
    except known as error:
        raise ValueError(
            f"{source}: damaged configuration, no model can be built from it: {type(error).__name__}: {error}"
        ) from error


def _without_labels(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in (*LABEL_FIELDS, "num_labels")}


def _config_arguments() -> set[str]:
    fields = {field.name for field in dataclasses.fields(MultiExitBertConfig)}
    return (fields | {"num_labels"}) - {"dtype", "transformers_version", "architectures"}


def _saved_shape(source: str | os.PathLike, original: BertConfig, given: Any, there: dict[str, Any]) -> BertConfig:
    """The saved configuration, even if the caller passed another one."""
    if given is None or there.get("model_type") != MultiExitBertConfig.model_type:
        return original
    with _as_value_error(source, TypeError, RuntimeError):
        return MultiExitBertConfig.from_dict(there)


def _new_config(
    source: str | os.PathLike, original: BertConfig, overrides: dict[str, Any], classifier: bool
) -> MultiExitBertConfig:
    """The checkpoint's configuration with the caller's choices, validated by its constructor."""
    values = copy.deepcopy(original.to_dict())
    # Digests are of the saved weights. A BERT's field that has the name of an old field has another meaning.
    for name in ("model_type", "architectures", "digests", "auto_map", *OLD_FIELDS):
        values.pop(name, None)
    if classifier:
        values.update(last_head="pooler", last_pooling="cls")
    num_labels = overrides.get("num_labels")
    if num_labels not in (None, original.num_labels) or any(name in overrides for name in LABEL_FIELDS):
        values = _without_labels(values)
    values |= overrides
    with _as_value_error(source):
        config = MultiExitBertConfig(**values)
    config._attn_implementation = original._attn_implementation
    return config


def _check_trained(
    source: str | os.PathLike, original: MultiExitBertConfig, overrides: dict[str, Any], fields: tuple[str, ...], what: str
) -> None:
    for name in fields:
        if name in overrides and overrides[name] != getattr(original, name):
            raise ValueError(
                f"{source}: its {what} were trained with {name}={getattr(original, name)!r}, got {overrides[name]!r}"
            )


def _attach_table(
    source: str | os.PathLike,
    model: MultiExitBert,
    path: str | None,
    original: BertConfig,
    digests: dict[str, Any],
    variant: str | None,
) -> None:
    """Load the exit table into the model, unless the caller chose other exits or gates than it was built with."""
    expected = digests.get(TABLE_DIGEST)
    if path is None:
        if expected is not None:
            logger.warning(f"{source}: the saved exit table is missing: the model is loaded without it.")
        return
    table = ExitTable.load(path)
    weights = digests.get(weights_digest_name(variant))
    if digests and table.digest() != expected and weights not in (table.weights or ()):
        raise ValueError(
            f"{path}: the exit table was built with other weights than the model's, which was saved with "
            f"{'none' if expected is None else 'another table'}. Remove the file to load the model without it"
        )
    fits = table.fits_weights(weights)
    if not fits:
        logger.warning(f"{path}: {OTHER_WEIGHTS}")
    elif table.weights is not None and original.dtype != model.dtype:
        table = table.of_weights(tensors_digest(model.state_dict()))  # the same in another dtype
    if changed := changed_since(original, model.config):
        then = ", ".join(f"{name}={getattr(original, name)!r}" for name in changed)
        logger.warning("The exit table is left out: it was built with %s.", then)
    else:
        model.attach_table(table, fits)


def _attach_int8(source: str | os.PathLike, model: MultiExitBert, path: str | None, digests: dict[str, Any]) -> None:
    """Load the layers in int8 into the model. Whether they are of its weights, a runner asks that takes them."""
    expected = digests.get(INT8_DIGEST)
    if path is None:
        if expected is not None:
            logger.warning(f"{source}: the saved int8 layers are missing: the model is loaded without them.")
        return
    int8 = Int8Layers.load(path)
    if digests and int8.digest() != expected:
        raise ValueError(
            f"{path}: the int8 layers are not those that the model was saved with. Remove the file to load it without them"
        )
    try:
        model.int8_layers = int8
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Remove the file to load the model without them") from error


def is_fine_tuned(config: PretrainedConfig) -> bool:
    """Whether a checkpoint was trained as a classifier, according to its configuration. Then its last layer answers."""
    return any(name.endswith("ForSequenceClassification") or name == "MultiExitBert" for name in config.architectures or ())


def _is_sequence_classification(config: BertConfig, names: set[str] | None) -> bool:
    if names is not None:
        return "classifier.weight" in names and bool({"pooler.dense.weight", "bert.pooler.dense.weight"} & names)
    return "BertForSequenceClassification" in (config.architectures or [])


def _last_head_names(config: MultiExitBertConfig) -> dict[str, str]:
    """Renames from BertForSequenceClassification to the last exit. They do not affect other checkpoints."""
    if config.last_head != "pooler":
        return {}
    last = f"heads.{config.num_hidden_layers}"
    return {r"^(bert\.)?pooler\.dense\.": f"{last}.dense.", r"^classifier\.": f"{last}.classifier."}


def _trained_exits(original: BertConfig, names: set[str] | None, classifier: bool) -> set[int]:
    """Layers whose head must be in the checkpoint."""
    if classifier:
        return {original.num_hidden_layers}
    if names is not None and any(name.startswith("heads.") for name in names):
        return set(original.exit_layers)
    return set()


def _trained_gates(original: BertConfig, names: set[str] | None) -> set[int]:
    """Layers whose gate must be in the checkpoint."""
    if names is not None and any(name.startswith("gates.") for name in names):
        return set(getattr(original, "skip_layers", None) or ())
    return set()


def _check_missing(
    source: str | os.PathLike, missing: set[str], config: MultiExitBertConfig, trained: set[int], gated: set[int]
) -> None:
    """Warn about new heads and gates, which start untrained.

    Raises:
        ValueError: a tensor is missing that the checkpoint should have.
    """
    heads, gates = sorted(set(config.exit_layers) - trained), sorted(set(config.skip_layers or ()) - gated)
    new = (*(f"heads.{layer}." for layer in heads), *(f"gates.{layer}." for layer in gates))
    lost = sorted(name for name in missing if not name.startswith(new))
    if lost:
        raise ValueError(f"{source}: {len(lost)} tensors are missing from the checkpoint: {shorten(lost, 300)}")
    for what, layers in (("exit heads", heads), ("skip gates", gates)):
        if layers:
            at_last = config.num_hidden_layers in layers or what != "exit heads"
            logger.warning(
                "The %s at layers %s are new and untrained: train them before use (by give_exits, `geep exits` or `geep "
                "train`).%s",
                what,
                layers,
                "" if at_last else " At full depth they are not used.",
            )

"""Which files hold a checkpoint's tensors, and whether those are the weights that its configuration was saved with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from geep_triton.checks import shorten
from geep_triton.tensor_files import files_digest, open_tensors, refuse_pointer

EMBEDDINGS = "embeddings.word_embeddings.weight"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
WRAPPERS = {"_orig_mod": "torch.compile", "module": "DataParallel or DistributedDataParallel"}
TABLE_DIGEST = "exit_table"
FLOATS = ("F64", "F32", "F16", "BF16")
NUMBERS = ("position_ids", "token_type_ids")  # buffers that older checkpoints hold
CONFIG_DIGEST = "config"
EXIT_CONFIG_DIGEST = "exit_config"
TOKENIZER_DIGEST = "tokenizer"
# What may differ between the configurations of two variants of one model.
OF_A_VARIANT = ("digests", "dtype", "transformers_version")
# By which fields of a configuration some weights have their shape: enough to notice sizes that they are not of.
SIZES = {
    EMBEDDINGS: ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    "encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
}


def weights_name(variant: str | None) -> str:
    """Of the one file that holds all weights."""
    return "model.safetensors" if variant is None else f"model.{variant}.safetensors"


def index_name(variant: str | None) -> str:
    """Of the file that says which of several files holds which tensor."""
    return "model.safetensors.index.json" if variant is None else f"model.safetensors.index.{variant}.json"


def weights_digest_name(variant: str | None) -> str:
    """Under which `config.digests` has the weights'."""
    return "weights" if variant is None else f"weights.{variant}"


def weight_files(
    source: str | os.PathLike, find: Callable[[str], str | os.PathLike | None], variant: str | None
) -> dict[str, str]:
    """Tensor name -> the safetensors file that holds it.

    Args:
        source: named in errors.
        find: the path of a file of the checkpoint by its name; None: it has none of that name.
        variant: as in model.<variant>.safetensors.

    Raises:
        ValueError: a damaged file or index, an index that names files elsewhere, pickles or tensors that are not there, a
            checkpoint with only a pickle, or without weights.
    """
    single = find(weights_name(variant))
    if single is not None:
        with open_tensors(single) as file:
            return dict.fromkeys(file.keys(), str(single))
    index = find(index_name(variant))
    if index is not None:
        return _indexed(Path(index), find)
    pickles = [name for name in PICKLES if find(name) is not None]
    if pickles:
        raise ValueError(
            f"{source} has no safetensors weights, only the pickle {pickles[0]}, which can run code when it is loaded. "
            "Convert it once: transformers.AutoModelForSequenceClassification.from_pretrained(path, "
            "use_safetensors=False).save_pretrained(new_path) (AutoModel for a bare BERT); or, if you trust its author, "
            "pass use_safetensors=False here."
        )
    raise ValueError(f"{source} has no weights: expected {weights_name(variant)} or its index")


def _indexed(index: Path, find: Callable[[str], str | os.PathLike | None]) -> dict[str, str]:
    refuse_pointer(index)
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(content.get("metadata", {}), dict):
            raise ValueError(f"its metadata must be a mapping, got {shorten(content['metadata'])}")
        shards = content["weight_map"]
        names = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: damaged index, expected a weight_map from tensors to files: {shorten(error)}") from error
    files = {}
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: each shard must be a .safetensors file beside the index, got {shorten(name)}")
        if (found := find(name)) is None:
            raise ValueError(f"{index} names the shard {name}, which is not there")
        files[name] = str(found)
        with open_tensors(found) as file:
            lost = sorted({tensor for tensor, shard in shards.items() if shard == name} - set(file.keys()))
        if lost:
            raise ValueError(f"{found} lacks tensors that {index.name} says it holds: {shorten(lost, 200)}")
    return {tensor: files[name] for tensor, name in shards.items()}


def refuse_wrapped(source: str | os.PathLike, names: set[str]) -> None:
    """Raise ValueError where a model was saved with something around it, by which all its tensors' names begin."""
    for name in names:
        prefix = name.removesuffix(EMBEDDINGS).removesuffix("bert.") if name.endswith(EMBEDDINGS) else ""
        if prefix:
            origins = [origin for part, origin in WRAPPERS.items() if part in prefix.split(".")]
            raise ValueError(
                f"{source}: the names of its tensors start with {prefix!r}: they were saved with "
                f"{' and '.join(origins) or 'another model'} around the BERT. Save the model inside, or rename them: "
                f"{{name.removeprefix({prefix!r}): tensor for name, tensor in state_dict.items()}}"
            )


def refuse_integers(source: str | os.PathLike, files: Mapping[str, str]) -> None:
    """Raise ValueError where weights are no floating point numbers, which transformers would make of them without a word.

    Args:
        source: named in errors.
        files: of `weight_files`.
    """
    for path in sorted(set(files.values())):
        with open_tensors(path) as file:
            for name in (name for name in files if files[name] == path and not name.endswith(NUMBERS)):
                if (kind := file.get_slice(name).get_dtype()) not in FLOATS:
                    raise ValueError(
                        f"{source}: the weights {name} are {kind}, expected floating point of 16 bits or more "
                        f"({', '.join(FLOATS)}): the checkpoint is quantized or damaged"
                    )


def settings_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over what config.json says, but for what differs between variants."""
    settings = {name: value for name, value in values.items() if name not in OF_A_VARIANT}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_sizes(source: str | os.PathLike, files: Mapping[str, str], config: PreTrainedConfig) -> None:
    """Raise ValueError where a configuration's sizes are not the weights', before memory is taken for them.

    Args:
        source: named in errors.
        files: of `weight_files`.
        config: of a BERT.
    """
    for suffix, fields in SIZES.items():
        for name in (suffix, f"bert.{suffix}"):
            if name not in files:
                continue
            with open_tensors(files[name]) as file:
                there = tuple(file.get_slice(name).get_shape())
            here = tuple(getattr(config, field) for field in fields)
            if there != here:
                said = ", ".join(fields)
                raise ValueError(
                    f"{source}: tensors of another shape than the configuration says: {name} {there}, not {here} ({said})"
                )


def check_digest(
    source: str | os.PathLike, digests: Mapping[str, Any] | None, variant: str | None, files: Mapping[str, str] | None
) -> None:
    """Raise ValueError where the configuration was saved with other weights than these; one of an earlier version passes.

    Args:
        source: named in errors.
        digests: of the configuration.
        variant: of the weights.
        files: of `weight_files`; None: the weights are a pickle.
    """
    if not digests:
        return
    expected = digests.get(weights_digest_name(variant))
    if files is None or expected is None or files_digest(files) != expected:
        raise ValueError(
            f"{source}: config.json was saved with other weights than those that are there: files of two models or saves "
            "are mixed up, or one is damaged. Save the model again; if you changed the weights on purpose, and exit table, "
            "thresholds and calibration still hold, take 'digests' out of config.json"
        )

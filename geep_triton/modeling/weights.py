"""The files with a checkpoint's tensors, and whether they are the weights that its configuration was saved with."""

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
INT8_DIGEST = "int8_layers"
FLOATS = ("F64", "F32", "F16", "BF16")
NUMBERS = ("position_ids", "token_type_ids")  # older checkpoints have these buffers
CONFIG_DIGEST = "config"
EXIT_CONFIG_DIGEST = "exit_config"
TOKENIZER_DIGEST = "tokenizer"
# These fields may differ between the configurations of two variants of one model.
OF_A_VARIANT = ("digests", "dtype", "transformers_version")
# The fields that give the shape of some weights. They suffice to notice wrong sizes.
SIZES = {
    EMBEDDINGS: ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    "encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
}


def weights_name(variant: str | None) -> str:
    """Name of the file if one file has all weights."""
    return "model.safetensors" if variant is None else f"model.{variant}.safetensors"


def index_name(variant: str | None) -> str:
    """Name of the index file, which maps each tensor to one of several files."""
    return "model.safetensors.index.json" if variant is None else f"model.safetensors.index.{variant}.json"


def weights_digest_name(variant: str | None) -> str:
    """Key of the weights' digest in `config.digests`."""
    return "weights" if variant is None else f"weights.{variant}"


def weight_files(
    source: str | os.PathLike, find: Callable[[str], str | os.PathLike | None], variant: str | None
) -> dict[str, str]:
    """Map each tensor's name to the safetensors file that has it.

    Args:
        source: name of the checkpoint in errors.
        find: maps a file name to its path in the checkpoint, or None if there is no such file.
        variant: the variant, as in model.<variant>.safetensors.

    Raises:
        ValueError: a file or an index is damaged, an index names files elsewhere, pickles or missing tensors, or the checkpoint
            has no weights or only a pickle.
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
    """Check that a model was not saved inside a wrapper, which adds a prefix to the names of its tensors.

    Raises:
        ValueError: it was.
    """
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
    """Check that weights are floating point numbers. transformers would convert integers without a warning.

    Args:
        source: name of the checkpoint in errors.
        files: as returned by `weight_files`.

    Raises:
        ValueError: some weights are not.
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
    """SHA-256 (hex) of a config.json without the fields that differ between variants."""
    settings = {name: value for name, value in values.items() if name not in OF_A_VARIANT}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_sizes(source: str | os.PathLike, files: Mapping[str, str], config: PreTrainedConfig) -> None:
    """Check that a configuration's sizes are those of the weights, before memory is allocated for them.

    Args:
        source: name of the checkpoint in errors.
        files: as returned by `weight_files`.
        config: configuration of a BERT.

    Raises:
        ValueError: they are not.
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
    """Check that the configuration was saved with these weights. A configuration without digests (from version 0.1) passes.

    Args:
        source: name of the checkpoint in errors.
        digests: digests in the configuration.
        variant: variant of the weights.
        files: as returned by `weight_files`. None: the weights are a pickle.

    Raises:
        ValueError: it was saved with other weights.
    """
    if not digests:
        return
    expected = digests.get(weights_digest_name(variant))
    if files is None or expected is None or files_digest(files) != expected:
        raise ValueError(
            f"{source}: config.json was saved with other weights than these: files of two models or saves "
            "are mixed up, or one is damaged. Save the model again; if you changed the weights on purpose, and the exit table, "
            "thresholds and calibration are still valid, remove 'digests' from config.json"
        )

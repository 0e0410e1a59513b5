"""Writes a model's files, with digests that tie them together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from geep_triton.exit_config import write_exit_config
from geep_triton.model_card import write_card
from geep_triton.modeling.int8_layers import save_int8
from geep_triton.modeling.weights import (
    CONFIG_DIGEST,
    EXIT_CONFIG_DIGEST,
    INT8_DIGEST,
    TABLE_DIGEST,
    index_name,
    settings_digest,
    weight_files,
    weights_digest_name,
    weights_name,
)
from geep_triton.saving import Replacement, saved_config, saved_digests
from geep_triton.table.files import save_table
from geep_triton.tensor_files import files_digest

if TYPE_CHECKING:
    from geep_triton.modeling.model import MultiExitBert

logger = logging.get_logger(__name__)

ARCHITECTURES = ["MultiExitBert"]


def write_model(save: Callable[..., None], model: MultiExitBert, new: Replacement, **kwargs: Any) -> None:
    """Write a model into `new.path`. Weights that are already in `new.folder` are not written again.

    Args:
        save: transformers' own save_pretrained.
        model: the model to save.
        new: the atomic replacement of the folder.
        **kwargs: arguments of `save`.
    """
    variant = kwargs.get("variant")
    weights = weights_digest_name(variant)
    before = saved_config(new.folder)
    known = saved_digests(new.folder)
    same = kwargs.keys() == {"save_original_format"} and _same_weights(model, new.folder, known.get(weights))
    weights_now = {} if same else model.original_weights()
    save(new.path, **(kwargs if weights_now is None else kwargs | {"state_dict": weights_now}))
    # transformers set the name of the model's class, which may be that of a subclass with the same weights.
    model.config.architectures = list(ARCHITECTURES)
    config_file, table = new.path / "config.json", model.exit_table
    if not config_file.is_file():  # only adapters were saved
        save_table(table, new)
        save_int8(model.int8_layers, new, None)
        return
    digests = {weights: known[weights] if same else files_digest(weight_files(new.path, _finder(new.path), variant))}
    table = model.table_to_save(digests[weights])
    if table is not None:
        digests[TABLE_DIGEST] = table.digest()
    save_table(table, new)
    int8 = save_int8(model.int8_layers, new, known.get(INT8_DIGEST))
    if int8 is not None:
        digests[INT8_DIGEST] = int8
    write_exit_config(model.exit_config, new.path, digests[weights])
    digests[EXIT_CONFIG_DIGEST] = model.exit_config.digest()
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"architectures": ARCHITECTURES}
    if model.converted is not None and model.converted.rounded is not None and (same or weights_now is not None):
        config["dtype"] = model.converted.rounded.dtype  # transformers writes the present dtype
    digests[CONFIG_DIGEST] = settings_digest(config)
    shared = (TABLE_DIGEST, EXIT_CONFIG_DIGEST, INT8_DIGEST)
    fits = settings_digest(before) == digests[CONFIG_DIGEST] and all(known.get(name) == digests.get(name) for name in shared)
    if fits and (same or variant is not None):
        digests = known | digests  # keep the digests of other variants, as long as they are variants of the same model
    _write_config(config_file, config | {"digests": digests})
    write_card(new, model.config, model.exit_config)
    if not same:
        # Remove weights of an earlier save in another number of files. transformers might load them instead.
        stem = re.escape(weights_name(variant).removesuffix(".safetensors"))
        old = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(index_name(variant))}")
        new.remove |= {path.name for path in new.folder.iterdir() if old.fullmatch(path.name)}
        new.remove -= {path.name for path in new.path.iterdir()}


def add_digest(folder: Path, name: str, digest: str) -> None:
    """Add a digest to the folder's config.json. If adapters were saved alone, there is no such file and nothing to do."""
    if config := saved_config(folder):
        _write_config(folder / "config.json", config | {"digests": saved_digests(folder) | {name: digest}})


def _write_config(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _same_weights(model: MultiExitBert, folder: Path, digest: str | None) -> bool:
    """Whether the folder has complete and equal weights."""
    if digest is None or getattr(model, "_hf_peft_config_loaded", False) or model.weights_digest() != digest:
        return False
    try:
        return files_digest(weight_files(folder, _finder(folder), None)) == digest
    except ValueError:
        return False


def _finder(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: folder / name if (folder / name).is_file() else None

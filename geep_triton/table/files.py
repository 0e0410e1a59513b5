"""The exit table's file. It is written with a digest, and every value is checked when it is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from geep_triton.checks import check_choice, check_int, shorten
from geep_triton.ops.reference.ngrams import EMPTY
from geep_triton.saving import Replacement
from geep_triton.table.forecasts import CERTAIN, FEWEST_HELD_OUT, Forecasts
from geep_triton.table.learned import LENGTH_BUCKETS, LearnedValues
from geep_triton.table.records import TABLE_CRITERIA, ExitRecords, TableSettings
from geep_triton.tensor_files import read_tensors, tensors_digest
from geep_triton.tokens.ragged import Tokens

if TYPE_CHECKING:
    from geep_triton.table.exit_table import ExitTable

TABLE_FILE = "exit_table.safetensors"
FORMAT = "geep_triton.exit_table.1"
# The names of learned values in the file are older than the keys of `ExitTable.learned`.
LEARNED_NAMES = {"agreement": "agreement", "exits": "exit_values", "skips": "skip_values"}
LEARNED_PARTS = ("weights", "length_bias", "held_out", "held_out_targets")
FIELDS = ("exit_layers", "criterion", "vocab_size", "fingerprint", "special_ids", "settings")
SETTINGS = ("threshold", "ngram", "smoothing", "reduction")
REQUIRED = ("keys", "counts", "exit_counts")
RECORDS = ("ids", "offsets", "uncertainty", "type_ids", "agrees", "skipped", "logits")
FORECAST_PARTS = ("hidden_weight", "hidden_bias", "weight", "bias", "held_out", "held_out_agrees", "held_out_skipped")
MAX_LAYERS, MAX_VOCAB, MAX_COUNT = 1 << 10, 1 << 26, 1 << 48
MAX_LOGIT = torch.finfo(torch.float32).max  # of recorded answers, of whatever scale they are
MAX_SCORE = 1e6  # of learned values. Sums of larger ones could overflow, and with NaN every text would leave at layer 1


def save_table(table: ExitTable | None, new: Replacement) -> None:
    """Write this table into a folder. None removes the table of an earlier model.

    Raises:
        ValueError: the table has contents that `read_table` would refuse.
    """
    if table is None:
        new.remove.add(TABLE_FILE)
        return
    header, tensors = json.loads(json.dumps(_header(table))), _tensors(table)
    digest = _contents_digest(header, tensors)
    if _digest_there(new.folder) == digest:
        return
    _check(header, tensors)
    metadata = {"format": FORMAT, "table": json.dumps(header), "digest": digest}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, new.path / TABLE_FILE, metadata=metadata)


def read_table(path: str | os.PathLike) -> dict[str, Any]:
    """The checked fields of the `ExitTable` in a file, or in the folder of the file.

    Raises:
        ValueError: there is no such file, it is damaged, it is not an exit table of this version, or it has values that
            building a table cannot give.
    """
    header, tensors = _read(path)
    records, text_hashes = _read_records(tensors), tensors.get("text_hashes")
    if records is not None and text_hashes is None:  # from an earlier version
        text_hashes = records.tokens.hashes().sort().values
    return {
        **{name: tensors[name] for name in REQUIRED},
        "exit_layers": tuple(header["exit_layers"]),
        "settings": TableSettings(**header["settings"]),
        "criterion": header["criterion"],
        "vocab_size": header["vocab_size"],
        "fingerprint": header["fingerprint"],
        "special_ids": tuple(header["special_ids"]),
        "text_hashes": text_hashes,
        "records": records,
        "save_records": records is not None,
        "learned": _read_learned(tensors),
        "forecasts": _read_forecasts(tensors),
        "weights": _weights_of(header),
        "answers_by": header.get("answers_by"),
    }


def learned_tensors(learned: Mapping[str, LearnedValues]) -> dict[str, torch.Tensor]:
    """Learned values as tensors, by their names in the file."""
    tensors: dict[str, torch.Tensor] = {}
    for key in sorted(learned):
        tensors |= {f"{LEARNED_NAMES[key]}.{part}": getattr(learned[key], part) for part in LEARNED_PARTS}
        if (paths := learned[key].paths) is not None:
            tensors["paths"] = paths
    return tensors


def forecast_tensors(forecasts: Forecasts | None) -> dict[str, torch.Tensor]:
    """Forecasts as tensors, by their names in the file; none where there are no forecasts."""
    if forecasts is None:
        return {}
    return {f"forecasts.{part}": getattr(forecasts, part) for part in FORECAST_PARTS}


def _header(table: ExitTable) -> dict[str, Any]:
    header = {name: getattr(table, name) for name in FIELDS} | {"settings": vars(table.settings)}
    origin = {"weights": None if table.weights is None else list(table.weights), "answers_by": table.answers_by}
    return header | {name: value for name, value in origin.items() if value is not None}


def _weights_of(header: dict[str, Any]) -> tuple[str, ...] | None:
    """Digests of weights. Files of earlier versions have one, as a string."""
    weights = header.get("weights")
    return None if weights is None else (weights,) if isinstance(weights, str) else tuple(weights)


def _tensors(table: ExitTable) -> dict[str, torch.Tensor]:
    tensors = {name: getattr(table, name) for name in REQUIRED}
    tensors |= learned_tensors(table.learned) | forecast_tensors(table.forecasts)
    if table.text_hashes is not None:
        tensors["text_hashes"] = table.text_hashes
    if table.save_records and table.records is not None:
        tokens = table.records.tokens
        records = {
            "ids": tokens.ids.int(),
            "offsets": tokens.offsets,
            "uncertainty": table.records.uncertainty.float(),
            "type_ids": None if tokens.type_ids is None else tokens.type_ids.to(torch.int8),
            "agrees": table.records.agrees,
            "skipped": table.records.skipped,
            "logits": None if table.records.logits is None else table.records.logits.float(),
        }
        tensors |= {f"records.{name}": tensor for name, tensor in records.items() if tensor is not None}
    return tensors


def _read_records(tensors: dict[str, torch.Tensor]) -> ExitRecords | None:
    if "records.ids" not in tensors:
        return None
    type_ids = tensors.get("records.type_ids")
    tokens = Tokens(tensors["records.ids"].long(), tensors["records.offsets"], None if type_ids is None else type_ids.long())
    others = (tensors.get(f"records.{name}") for name in ("agrees", "skipped", "logits"))
    return ExitRecords(tokens, tensors["records.uncertainty"], *others)


def _read_learned(tensors: dict[str, torch.Tensor]) -> dict[str, LearnedValues]:
    learned = {}
    for key, name in LEARNED_NAMES.items():
        if f"{name}.weights" in tensors:
            parts = {part: tensors[f"{name}.{part}"] for part in LEARNED_PARTS}
            learned[key] = LearnedValues(**parts, paths=tensors["paths"] if key == "skips" else None)
    return learned


def _read_forecasts(tensors: dict[str, torch.Tensor]) -> Forecasts | None:
    if "forecasts.weight" not in tensors:
        return None
    return Forecasts(**{part: tensors[f"forecasts.{part}"] for part in FORECAST_PARTS})


def _digest_there(directory: str | os.PathLike) -> str | None:
    """Digest of the contents of a folder's table. None if there is no undamaged table."""
    try:
        return _contents_digest(*_read(directory))
    except (OSError, ValueError):
        return None


def _read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and the tensors, checked."""
    path = Path(path) / TABLE_FILE if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(f"no such exit table: {path}")
    metadata, tensors = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not an exit table: expected format {FORMAT!r}, got {metadata.get('format')!r}")
    try:
        header = json.loads(metadata.get("table", ""))
        _check(header, tensors)
        # Files of earlier versions have no digest.
        if "digest" in metadata and metadata["digest"] != _contents_digest(header, tensors):
            raise ValueError("its contents are not the saved ones: their digest differs")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: damaged exit table: {error}") from error
    return header, tensors


def _contents_digest(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    contents = f"{json.dumps(header, sort_keys=True)}\n{tensors_digest(tensors)}"
    return hashlib.sha256(contents.encode()).hexdigest()


def _check(header: Any, tensors: dict[str, torch.Tensor]) -> None:
    _check_header(header)
    _check_counts(header, tensors)
    _check_records(header, tensors)
    _check_learned(header, tensors)
    _check_forecasts(header, tensors)
    _check_names(tensors)


def _check_header(header: Any) -> None:
    if not isinstance(header, dict) or header.keys() - {"weights", "answers_by"} != set(FIELDS):
        raise ValueError(f"its header must have the fields {', '.join(FIELDS)}, got {shorten(header)}")
    settings, layers, special = header["settings"], header["exit_layers"], header["special_ids"]
    if not isinstance(settings, dict) or settings.keys() != set(SETTINGS):
        raise ValueError(f"settings must be {', '.join(SETTINGS)}, got {shorten(settings)}")
    TableSettings(**settings)
    for name, values in (("exit_layers", layers), ("special_ids", special)):
        if not isinstance(values, list):
            raise TypeError(f"{name} must be a list of ints, got {shorten(values)}")
    for layer in layers:
        check_int("each of exit_layers", layer, 1, MAX_LAYERS)
    if not layers or layers != sorted(set(layers)):
        raise ValueError(f"exit_layers must be distinct and ascending, at least one, got {shorten(layers)}")
    check_int("vocab_size", header["vocab_size"], 1, MAX_VOCAB)
    for index in special:
        check_int("each of special_ids", index, 0, header["vocab_size"] - 1)
    for name in ("fingerprint", "criterion", "answers_by"):
        if not isinstance(header.get(name, ""), str):
            raise TypeError(f"{name} must be a string, got {shorten(header[name])}")
    weights = header.get("weights", "")
    if not isinstance(weights, str) and not (isinstance(weights, list) and all(isinstance(one, str) for one in weights)):
        raise TypeError(f"weights must be a list of strings, got {shorten(weights)}")
    check_choice("criterion", header["criterion"], TABLE_CRITERIA)


def _check_counts(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    missing = [name for name in REQUIRED if name not in tensors]
    if missing:
        raise ValueError(f"missing tensors {', '.join(missing)}")
    num_exits, size = len(header["exit_layers"]), tensors["keys"].numel()
    _check_tensor("keys", tensors, torch.int64, (size,))
    _check_tensor("counts", tensors, torch.int64, (size, num_exits), 0, MAX_COUNT)
    _check_tensor("exit_counts", tensors, torch.int64, (num_exits,), 0, MAX_COUNT)
    keys, counts = tensors["keys"], tensors["counts"]
    if not (keys[1:] > keys[:-1]).all():
        raise ValueError("keys must be distinct and ascending")
    if size and (int(keys[-1]) >= header["vocab_size"] or int(keys[0]) == EMPTY):
        raise ValueError(f"keys must be ids below {header['vocab_size']} or hashes, got {int(keys[0])}..{int(keys[-1])}")
    if not counts.sum(1).all() or not tensors["exit_counts"].sum():
        raise ValueError("counts and exit_counts must be above 0 for some exit: every key and every table needs samples")


def _check_records(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    num_exits, samples = len(header["exit_layers"]), int(tensors["exit_counts"].sum())
    if "text_hashes" in tensors:
        _check_tensor("text_hashes", tensors, torch.int64, (samples,))
        if _descends(tensors["text_hashes"]):
            raise ValueError("text_hashes must ascend")
    if not any(name.startswith("records.") for name in tensors):
        return
    missing = [name for name in ("records.ids", "records.offsets", "records.uncertainty") if name not in tensors]
    if missing:
        raise ValueError(f"missing tensors {', '.join(missing)}")
    tokens = tensors["records.ids"].numel()
    _check_tensor("records.ids", tensors, torch.int32, (tokens,), 0, header["vocab_size"] - 1)
    _check_tensor("records.offsets", tensors, torch.int64, (samples + 1,))
    offsets = tensors["records.offsets"]
    if int(offsets[0]) != 0 or int(offsets[-1]) != tokens or _descends(offsets):
        raise ValueError(f"records.offsets must ascend from 0 to the number of ids ({tokens})")
    _check_tensor("records.uncertainty", tensors, torch.float32, (samples, num_exits))
    if (tensors["records.uncertainty"].isnan() | tensors["records.uncertainty"].isneginf()).any():
        raise ValueError("records.uncertainty must not be NaN or -infinity")
    if "records.type_ids" in tensors:
        _check_tensor("records.type_ids", tensors, torch.int8, (tokens,), 0)
    if "records.agrees" in tensors:
        _check_tensor("records.agrees", tensors, torch.bool, (samples, num_exits))
    if "records.skipped" in tensors:
        _check_tensor("records.skipped", tensors, torch.bool, (samples, header["exit_layers"][-1]))
    if "records.logits" in tensors:
        classes = _size(tensors["records.logits"], 2)
        _check_tensor("records.logits", tensors, torch.float32, (samples, num_exits, classes), -MAX_LOGIT, MAX_LOGIT)


def _check_learned(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    size = tensors["keys"].numel()
    for name in LEARNED_NAMES.values():
        if not any(found.startswith(f"{name}.") for found in tensors):
            continue
        columns = header["exit_layers"][-1] if name == "skip_values" else len(header["exit_layers"])
        held_out = tensors.get(f"{name}.held_out", torch.empty(0, columns))
        rows = held_out.shape[0] if held_out.ndim else 0
        for part, count in (("weights", size + 1), ("length_bias", LENGTH_BUCKETS), ("held_out", rows)):
            _check_tensor(f"{name}.{part}", tensors, torch.float32, (count, columns), -MAX_SCORE, MAX_SCORE)
        _check_tensor(f"{name}.held_out_targets", tensors, torch.bool, (rows, columns))
    if ("paths" in tensors) != ("skip_values.weights" in tensors):
        raise ValueError("skip_values and paths go together")
    if "paths" in tensors:
        paths = tensors["paths"]
        _check_tensor("paths", tensors, torch.bool, (max(1, paths.shape[0] if paths.ndim else 0), header["exit_layers"][-1]))


def _check_forecasts(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    if not any(found.startswith("forecasts.") for found in tensors):
        return
    exits = len(header["exit_layers"])
    classes, rows = (_size(tensors.get("forecasts.held_out"), dimension) for dimension in (2, 0))
    units = _size(tensors.get("forecasts.hidden_bias"), 1)
    shapes = {
        "hidden_weight": (exits - 1, 2 * classes, units),
        "hidden_bias": (exits - 1, units),
        "weight": (exits - 1, units, exits),
        "bias": (exits - 1, exits),
        "held_out": (rows, exits, classes),
    }
    for part, shape in shapes.items():
        limit = MAX_LOGIT if part == "held_out" else MAX_SCORE
        _check_tensor(f"forecasts.{part}", tensors, torch.float32, shape, -limit, limit)
    for part in ("held_out_agrees", "held_out_skipped"):
        _check_tensor(f"forecasts.{part}", tensors, torch.bool, (rows, exits))
    if rows < FEWEST_HELD_OUT:
        raise ValueError(f"forecasts must have at least {FEWEST_HELD_OUT} held-out texts, got {rows}")
    weight, bias = tensors["forecasts.weight"][:, :, -1], tensors["forecasts.bias"][:, -1]
    if bool(weight.any()) or bool((bias != CERTAIN).any()) or not bool(tensors["forecasts.held_out_agrees"][:, -1].all()):
        raise ValueError("forecasts must say of the last exit that it agrees with itself")


def _size(tensor: torch.Tensor | None, dimension: int) -> int:
    """Size of one dimension; 1 where there is no such dimension, which the check of the shape then refuses."""
    return 1 if tensor is None or tensor.ndim <= dimension else tensor.shape[dimension]


def _check_names(tensors: dict[str, torch.Tensor]) -> None:
    known = {*REQUIRED, "paths", "text_hashes", *(f"records.{name}" for name in RECORDS)}
    known |= {f"{name}.{part}" for name in LEARNED_NAMES.values() for part in LEARNED_PARTS}
    known |= {f"forecasts.{part}" for part in FORECAST_PARTS}
    if unknown := sorted(tensors.keys() - known):
        raise ValueError(f"unknown tensors {shorten(unknown)}")


def _descends(values: torch.Tensor) -> bool:
    """Whether a value is below the one before it. Differences are not used, because they could exceed int64."""
    return bool((values[1:] < values[:-1]).any())


def _check_tensor(
    name: str,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Raise ValueError unless the tensor exists, has this dtype and shape, and lies within the given bounds."""
    found = tensors.get(name)
    if found is None or found.dtype != dtype or tuple(found.shape) != shape:
        got = "none" if found is None else f"{found.dtype} of {tuple(found.shape)}"
        raise ValueError(f"{name} must be {str(dtype).removeprefix('torch.')} of shape {shape}, got {got}")
    # The comparisons are written so that NaN fails them.
    if (low is not None and not (found >= low).all()) or (high is not None and not (found <= high).all()):
        raise ValueError(f"{name} must be {f'at least {low}' if high is None else f'between {low:g} and {high:g}'} and not NaN")

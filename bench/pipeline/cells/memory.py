"""Peak memory and its growth, each system in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.pipeline.int8 import save_with_int8
from bench.pipeline.peak_memory import peak_memory, resident_after
from bench.pipeline.rivals_dense import DenseBert
from bench.pipeline.rivals_given import Given, batches_of, why
from bench.pipeline.rivals_onnx import onnx_file
from bench.pipeline.rivals_openvino import openvino_file
from bench.pipeline.settings import Settings
from bench.pipeline.systems import CALIBRATION
from bench.rows import Found, found, not_there
from bench.shapes import load_model, load_tokenizer

GROWING, GROWING_DRY = (20, 200), (1, 3)  # windows after which memory is read


def memory(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Peak megabytes, each system in a process of its own; a trained model's folder where there is one of this shape.

    Models are loaded in bfloat16 where they run in it; "from float32" has the engine convert one that stays beside it. Rivals
    of other packages load a file that another process wrote.
    """
    with _spec(shape, data, dtype, settings) as spec:
        return _memory(shape, data, dtype, settings, spec)


def _memory(shape: str, data: str, dtype: str, settings: Settings, spec: dict[str, Any]) -> list[Found]:
    peaks = {"huggingface, length-sorted": peak_memory(system="huggingface", policy=None, **spec)}
    for policy in ("full", early_policy(shape, data, settings)):
        peaks[f"ours, {policy}"] = peak_memory(system="engine", policy=policy, **spec)
        if settings.way(dtype) == "onednn":
            peaks[f"ours, {policy}, onednn"] = peak_memory(system="engine", policy=policy, runner="onednn", **spec)
            alone = peak_memory(system="engine", policy=policy, runner="onednn", in_place=True, **spec)
            peaks[f"ours, {policy}, onednn in place"] = alone
        if dtype == "bfloat16":
            peaks[f"ours, {policy}, from float32"] = peak_memory(system="engine", policy=policy, **spec | {"loaded": "float32"})
    with tempfile.TemporaryDirectory() as folder:
        files, missing = _rival_files(shape, data, dtype, settings, Path(folder))
        for name, path in files.items():
            peaks[f"{name}, length-sorted"] = peak_memory(system=name, file=str(path), **spec)
    return [
        *(found(system, megabytes) for system, megabytes in peaks.items()),
        *not_there(missing),
    ]


def growth(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Resident megabytes after few and after many windows of texts that were not met before, each system in a process of its
    own: what a system keeps of every text or shape shows here.
    """
    early = early_policy(shape, data, settings)
    runner = "onednn" if settings.way(dtype) == "onednn" else "auto"
    windows = GROWING_DRY if settings.dry else GROWING
    systems = {"huggingface, length-sorted": {"system": "huggingface", "policy": None}}
    systems |= {f"ours, {policy}": {"system": "engine", "policy": policy, "runner": runner} for policy in ("full", early)}
    with tempfile.TemporaryDirectory() as folder, _spec(shape, data, dtype, settings) as spec:
        files, missing = _rival_files(shape, data, dtype, settings, Path(folder))
        systems |= {f"{name}, length-sorted": {"system": name, "file": str(path)} for name, path in files.items()}
        rows = {name: resident_after(windows, **spec, **system) for name, system in systems.items()}
    for megabytes in rows.values():
        megabytes["grown"] = megabytes[f"after_{windows[1]}"] - megabytes[f"after_{windows[0]}"]
    return [
        found("", {"windows": list(windows)}),
        *(found(name, megabytes) for name, megabytes in rows.items()),
        *not_there(missing),
    ]


def early_policy(shape: str, data: str, settings: Settings) -> str:
    """A policy whose batches shrink."""
    return "threshold:0.3" if settings.trained(data, shape) else "threshold:0.99"


@contextmanager
def _spec(shape: str, data: str, dtype: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """What a process of its own is told of every system. In int8 it gets a folder with the scales, within this context."""
    folder, length = settings.trained(data, shape), settings.max_length
    spec = {
        "shape": settings.shape(shape), "folder": folder, "dtype": dtype, "texts": settings.texts[data],
        "samples": len(settings.rows(data, shape)), "token_budget": settings.token_budget,
        "max_length": length, "threads": torch.get_num_threads(),
        "loaded": "bfloat16" if dtype == "bfloat16" else "float32",
    }  # fmt: skip
    if dtype != "int8":
        yield spec
        return
    with tempfile.TemporaryDirectory() as place:
        model, tokenizer = load_model(spec["shape"], folder), load_tokenizer(folder)
        rows = settings.dealt(data, shape, tokenizer).left or settings.rows(data, shape)
        yield spec | {"folder": save_with_int8(Path(place), model, tokenizer, rows, length)}


def _rival_files(shape: str, data: str, dtype: str, settings: Settings, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The file of each rival that a process of its own can open, and why others are missing."""
    trained = settings.trained(data, shape)
    model, tokenizer = load_model(settings.shape(shape), trained), load_tokenizer(trained)
    left = settings.dealt(data, shape, tokenizer).left[:CALIBRATION] if dtype == "int8" else []
    batches = batches_of(left, tokenizer, settings.token_budget, settings.max_length) if left else []
    module = DenseBert(model, model.config.num_hidden_layers)
    given = Given(module, dtype, torch.get_num_threads(), folder, batches, tokenizer, compile=False)
    files, missing = {}, {}
    for name, export in {"openvino": openvino_file, "onnxruntime": onnx_file}.items():
        try:
            files[name] = export(given)
        except Exception as error:  # whatever another package raises
            missing[name] = why(error)
    return files, missing

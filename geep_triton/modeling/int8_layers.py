"""Layers in int8, and their file: rounded weights, and the fixed scales of what they are multiplied by."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from geep_triton.checks import shorten
from geep_triton.compat import packed_int8, unpacked_int8
from geep_triton.saving import Replacement
from geep_triton.tensor_files import read_tensors, tensors_digest

if TYPE_CHECKING:
    from geep_triton.modeling.model import MultiExitBert

INT8_FILE = "int8_layers.safetensors"
FORMAT = "geep_triton.int8_layers.2"
TEXT_HASHES = "text_hashes"
PRODUCTS = ("attend", "project", "expand", "reduce")
PARTS = ("weight", "weight_scale", "bias", "input_scale", "input_zero", "smoothing")


@dataclass(frozen=True, eq=False)
class Int8Product:
    """A linear layer whose weights are int8, and whose inputs are rounded to 8 bits by a scale that never changes.

    Input x of a channel stands for round(x / smoothing / input_scale) + input_zero, between 0 and 255.

    Attributes:
        weight: [I, O] int8 as oneDNN lays it out, or [O, I] int8 where this torch has no oneDNN.
        weight_scale: [O] float32.
        bias: [O] float32.
        input_scale: of all inputs.
        input_zero: the integer that stands for 0.
        smoothing: [I] float32; None: 1. The weights were multiplied by it.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor
    input_scale: float
    input_zero: int
    smoothing: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """O and I."""
        return len(self.bias), self.weight.numel() // len(self.bias)

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names in the file."""
        found = {
            "weight": unpacked_int8(self.weight),
            "weight_scale": self.weight_scale,
            "bias": self.bias,
            "input_scale": torch.tensor(self.input_scale, dtype=torch.float32),
            "input_zero": torch.tensor(self.input_zero, dtype=torch.int32),
        }
        return found if self.smoothing is None else found | {"smoothing": self.smoothing}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Int8Product:
        """Of tensors by their names in the file."""
        return cls(
            packed_int8(tensors["weight"]),
            tensors["weight_scale"],
            tensors["bias"],
            float(tensors["input_scale"]),
            int(tensors["input_zero"]),
            tensors.get("smoothing"),
        )

    def __getstate__(self) -> dict[str, torch.Tensor]:
        return self.tensors()

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__dict__.update(vars(Int8Product.of(state)))


class Int8Layers:
    """All layers of a model in int8, as `quantize` found them. They are saved and loaded with the model.

    Attributes:
        products: one mapping per layer, by the names in `PRODUCTS`.
        source: digest of the layers that were rounded, see `layers_digest`.
        text_hashes: [N] int64, `geep_triton.tokens.ragged.Tokens.hashes` of the texts that the scales were found on.
    """

    def __init__(self, products: list[dict[str, Int8Product]], source: str, text_hashes: torch.Tensor) -> None:
        self.products = products
        self.source = source
        self.text_hashes = text_hashes

    @property
    def texts(self) -> int:
        """How many texts the scales were found on."""
        return len(self.text_hashes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Layers:
        return self  # nothing in it changes

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names in the file, such as "3.expand.weight"; layers count from 1."""
        return {TEXT_HASHES: self.text_hashes} | {
            f"{number}.{name}.{part}": tensor
            for number, layer in enumerate(self.products, start=1)
            for name, product in layer.items()
            for part, tensor in product.tensors().items()
        }

    def digest(self) -> str:
        """Digest of all values."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return tensors_digest(self.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Int8Layers:
        """Read the file.

        Raises:
            ValueError: it is damaged, has another format, or values that `quantize` cannot give.
        """
        metadata, tensors = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} has no int8 layers: expected format {FORMAT!r}, got {metadata.get('format')!r}")
        try:
            source, hashes = json.loads(metadata.get("about", ""))["source"], tensors.pop(TEXT_HASHES)
            if hashes.dtype != torch.int64 or hashes.ndim != 1:
                raise ValueError(f"{TEXT_HASHES} must be int64 of one dimension, got {shorten(hashes)}")
            layers = list(_layers(tensors))
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise ValueError(f"{path}: damaged int8 layers: {error}") from error
        return cls(layers, source, hashes)

    def check_fits(self, model: MultiExitBert) -> None:
        """Raise ValueError unless these are layers of the model's shape."""
        depth, width = model.config.num_hidden_layers, model.config.hidden_size
        if len(self.products) != depth:
            raise ValueError(f"int8_layers must be {depth} layers of width {width}, got {len(self.products)}")
        for number, layer in enumerate(self.products, start=1):
            units = len(layer["expand"].bias)
            wanted = {
                "attend": (3 * width, width),
                "project": (width, width),
                "expand": (units, width),
                "reduce": (width, units),
            }
            found = {name: product.shape for name, product in layer.items()}
            if found != wanted or units < model.config.intermediate_size:
                raise ValueError(f"int8_layers: layer {number} must be of the shapes {wanted}, got {found}")


def save_int8(int8: Int8Layers | None, new: Replacement, there: str | None) -> str | None:
    """Write int8 layers into a folder, and return their digest. None removes those of an earlier model.

    Args:
        int8: the layers.
        new: the atomic replacement of the folder.
        there: digest of those that the folder has, which are not written again if they are the same.
    """
    if int8 is None:
        new.remove.add(INT8_FILE)
        return None
    digest = int8.digest()
    if there != digest or not (new.folder / INT8_FILE).is_file():
        metadata = {"format": FORMAT, "about": json.dumps({"source": int8.source})}
        save_file({name: tensor.contiguous() for name, tensor in int8.tensors().items()}, new.path / INT8_FILE, metadata)
    return digest


def _layers(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, Int8Product]]:
    depth = max((int(name.split(".")[0]) for name in tensors), default=0)
    known = set()
    for number in range(1, depth + 1):
        layer = {}
        for name in PRODUCTS:
            parts = {part: tensors[f"{number}.{name}.{part}"] for part in PARTS if f"{number}.{name}.{part}" in tensors}
            known |= {f"{number}.{name}.{part}" for part in parts}
            _check(f"{number}.{name}", parts)
            layer[name] = Int8Product.of(parts)
        yield layer
    if unknown := sorted(tensors.keys() - known) or not depth:
        raise ValueError(f"unknown tensors {shorten(unknown)}" if depth else "there are no layers")


def _check(name: str, parts: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless the tensors of a product have the right dtypes, shapes and finite values."""
    weight = parts.get("weight")
    if weight is None or weight.dtype != torch.int8 or weight.ndim != 2:
        raise ValueError(f"{name}.weight must be int8 of two dimensions, got {shorten(weight)}")
    outputs, inputs = weight.shape
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "weight_scale": (torch.float32, (outputs,)),
        "bias": (torch.float32, (outputs,)),
        "input_scale": (torch.float32, ()),
        "input_zero": (torch.int32, ()),
        "smoothing": (torch.float32, (inputs,)),
    }
    for part, (dtype, shape) in wanted.items():
        found = parts.get(part)
        if found is None and part == "smoothing":
            continue
        if found is None or found.dtype != dtype or tuple(found.shape) != shape or not bool(found.isfinite().all()):
            raise ValueError(f"{name}.{part} must be finite {dtype} of shape {shape}, got {shorten(found)}")
        if part in ("weight_scale", "input_scale", "smoothing") and not bool((found > 0).all()):
            raise ValueError(f"{name}.{part} must be above 0, got {float(found.min())}")
    if not 0 <= int(parts["input_zero"]) <= 255:
        raise ValueError(f"{name}.input_zero must be between 0 and 255, got {int(parts['input_zero'])}")


def layers_digest(model: MultiExitBert) -> str:
    """Digest of the weights of a model's layers, whatever its exits are."""
    return tensors_digest(model.bert.encoder.layer.state_dict())

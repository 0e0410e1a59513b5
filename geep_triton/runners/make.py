"""From a runner's name and a dtype to a runner, and what does not go together."""

from __future__ import annotations

from typing import Any

import torch

from geep_triton.checks import check_choice, shorten
from geep_triton.compat import BertLayer, attention_implementation, has_onednn
from geep_triton.modeling.heads import build_heads
from geep_triton.modeling.model import Converted, MultiExitBert, additive_mask
from geep_triton.runners.base import Runner
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.graphed import GraphsRunner
from geep_triton.runners.linear import PaddedLinear, check_own, convert_linear, is_plain
from geep_triton.runners.onednn import lay_out, quantize
from geep_triton.runners.packed import PackedRunner
from geep_triton.runners.padded import MakeMask, PaddedRunner
from geep_triton.runners.parts import Parts
from geep_triton.warn import warn

HALF = ("bfloat16", "float16")
FLOATS = ("float32", *HALF)
DTYPES = (*FLOATS, "int8")
# What goes together: runner -> kind of device -> dtypes. Any other device is for "torch" alone.
RUNNERS: dict[str, dict[str, tuple[str, ...]]] = {
    "torch": {"cpu": FLOATS, "cuda": FLOATS},
    "onednn": {"cpu": ("float32", "bfloat16", "int8")},
    "compiled": {"cpu": FLOATS, "cuda": FLOATS},
    "packed": {"cuda": HALF},
    "graphs": {"cuda": FLOATS},
}
WHY = {
    "torch": "int8 is for the runner 'onednn' on a CPU",
    "onednn": "it lays weights out for a CPU's matrix products",
    "compiled": "torch's int8 layers cannot be compiled",
    "packed": "torch's attention without padding runs on a GPU in half precision",
    "graphs": "CUDA graphs need a CUDA device, and int8 a CPU",
}


def make_runner(
    model: MultiExitBert,
    name: str = "auto",
    dtype: str | torch.dtype | None = None,
    *,
    calibrated: bool = False,
    in_place: bool = False,
) -> Runner:
    """A way to run the layers of a model.

    Args:
        model: on the device that it shall run on; it is set to evaluation mode.
        name: "torch": the layers as transformers has them. "onednn": on a CPU, their products by oneDNN, which torch brings
            along, on weights that are laid out once; much faster than "torch" on CPUs that MKL was not made for, such as
            AMD's. "compiled": one layer compiled for all (torch.compile). "packed": on a GPU, samples without padding.
            "graphs": on a GPU, CUDA graphs for small batches, whose launches take longer than their work. "auto": "onednn" on a
            CPU where that holds no weights twice (`in_place`, or int8) and nothing would be lost, else "torch".
        dtype: "float32", "bfloat16", "float16" (or torch's own) or "int8" (torch's dynamic quantization; see
            `geep_triton.runners.onednn.quantize`). None: the model's own on a CPU; on a GPU half precision where the model is
            in float32, or, where `calibrated`, that of its calibration.
        calibrated: whether the model's calibration shall hold.
        in_place: whether the model is the runner's to convert: its weights are then held once. It can no longer be trained,
            moved or loaded into where its layers are converted. Else the model stays as it is, and the runner holds what it
            converts as a copy of its own.

    Raises:
        ValueError: an unknown runner or dtype; a runner that does not run in this dtype or on this device; int8 for a model
            that is not in float32; adapters or hooks that a conversion would lose; a model that another runner has converted;
            and what a runner itself raises.
    """
    check_choice("runner", name, ("auto", *RUNNERS))
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    model.eval()
    if model.converted is not None and model.converted.layers is not None:
        return _as_converted(model, name, dtype)
    named, dtype = dtype is not None, dtype or usual_dtype(model, calibrated)
    name = _chosen(model, dtype, in_place) if name == "auto" else name
    _check_goes_together(model, name, dtype)
    if dtype == "float16" and not named and model.device.type == "cpu":
        warn(
            "the model is in float16, which most CPUs multiply slowly: dtype='float32' or 'bfloat16' is faster, "
            "dtype='float16' keeps it without this warning"
        )
    if name in ("onednn", "packed", "graphs"):
        check_convertible(model, f"runner {name!r}")
    if in_place:
        _convert(model, name, dtype)
    if name == "onednn":
        return _onednn(model, dtype, in_place)
    if name == "packed":
        return PackedRunner(model, _copied(model, dtype), dtype)
    if name == "graphs":
        return GraphsRunner(model, _copied(model, dtype), dtype)
    few_row_counts = name == "torch" and dtype in HALF and model.device.type == "cpu"
    parts = _copied(model, dtype) if few_row_counts or dtype != dtype_name(model) else Parts.of(model)
    if name == "compiled":
        return CompiledRunner(model, parts, dtype)
    if few_row_counts:
        for part in (parts.layers, parts.heads):
            convert_linear(part, lambda linear: PaddedLinear.of(linear) if is_plain(linear) else linear)
    return PaddedRunner(model, parts, dtype)


def _as_converted(model: MultiExitBert, name: str, dtype: str | None) -> PaddedRunner:
    """A runner of a model that is no longer what it was."""
    own = model.converted.layers
    if name not in ("auto", "onednn") or dtype not in (None, own):
        raise ValueError(
            f"the model's layers were converted for inference: they run by runner 'onednn' in {own}, got runner {name!r}, "
            f"dtype {dtype!r}; load it again"
        )
    return PaddedRunner(model, Parts.of(model), own, "onednn", _lean_mask(model))


def _convert(model: MultiExitBert, name: str, dtype: str) -> None:
    """Note what becomes of the weights of a model that is the runner's, and round them to `dtype`."""
    own, digest = dtype_name(model), None
    if dtype != own:
        digest = (model.config.digests or {}).get("weights") or model.weights_digest()
    if dtype != "int8":
        model.to(getattr(torch, dtype))
    model.converted = Converted(dtype if name == "onednn" else None, digest, own)


def _copied(model: MultiExitBert, dtype: str) -> Parts:
    return Parts.copied(model, getattr(torch, dtype))


def _onednn(model: MultiExitBert, dtype: str, in_place: bool) -> PaddedRunner:
    of_int8 = dtype == "int8"
    parts = Parts.of(model) if in_place else Parts.copied(model) if of_int8 else _copied(model, dtype)
    convert = quantize if of_int8 else lay_out
    convert(parts)
    return PaddedRunner(model, parts, dtype, "onednn", _lean_mask(model))


def _lean_mask(model: MultiExitBert) -> MakeMask | None:
    """Lean layers add their mask; those that attend otherwise stayed as they were."""
    return additive_mask if attention_implementation(model.config) == "sdpa" else None


def _chosen(model: MultiExitBert, dtype: str, in_place: bool) -> str:
    if model.device.type != "cpu" or dtype not in RUNNERS["onednn"]["cpu"]:
        return "torch"
    if dtype == "int8":
        return "onednn"
    if not in_place or not has_onednn() or attention_implementation(model.config) != "sdpa":
        return "torch"
    try:
        check_convertible(model, "runner 'auto'")
    except ValueError:
        return "torch"
    return "onednn"


def _check_goes_together(model: MultiExitBert, name: str, dtype: str) -> None:
    device = model.device.type
    dtypes = RUNNERS[name].get(device, FLOATS if name == "torch" else ())
    if not dtypes:
        devices = " or ".join(RUNNERS[name])
        raise ValueError(f"runner {name!r} is for models on {devices}, got one on {device}: {WHY[name]}")
    if dtype not in dtypes:
        raise ValueError(f"runner {name!r} on {device} runs in {', '.join(dtypes)}, got dtype {dtype!r}: {WHY[name]}")
    if dtype == "int8" and model.dtype != torch.float32:
        raise ValueError(f"dtype 'int8' needs a model in float32, got {model.dtype}")


def check_runner(given: Any, model: MultiExitBert, dtype: str | torch.dtype | None) -> None:
    """Raise unless `given` is a runner that runs this model, in `dtype` where one is given."""
    if not all(hasattr(given, name) for name in ("model", "dtype", "embed", "layers", "logits", "take", "join")):
        raise TypeError(f"runner must be a name ({', '.join(RUNNERS)}) or a runner of this model, got {shorten(given)}")
    wanted = str(dtype).removeprefix("torch.")
    if given.model is not model or (dtype is not None and wanted != given.dtype):
        raise ValueError(
            f"runner must be a name, or a runner of this model{'' if dtype is None else f' in dtype {wanted}'}, got "
            f"{given.name!r} in {given.dtype} of {'this' if given.model is model else 'another'} model"
        )


def dtype_name(model: MultiExitBert) -> str:
    """The precision of a model's weights, e.g. "float32"."""
    return str(model.dtype).removeprefix("torch.")


def usual_dtype(model: MultiExitBert, calibrated: bool) -> str:
    """The dtype that a model runs in where none is named.

    Its own; but on a GPU, where float32 takes many times as long, half precision. If its calibration shall hold, the dtype of
    that on a GPU.
    """
    own = dtype_name(model)
    if model.device.type != "cuda":
        return own
    if calibrated and model.exit_config.calibration is not None:
        return model.exit_config.calibration.get("dtype", own)
    half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return half if own == "float32" else own


def check_convertible(model: MultiExitBert, option: str) -> None:
    """ValueError for a model whose layers or heads are not just what its configuration says, before anything is converted."""
    with torch.device("meta"):
        layer, heads = BertLayer(model.config), build_heads(model.config)
    for number, own in enumerate(model.bert.encoder.layer, start=1):
        check_own(f"layer {number}", own, layer, option)
    for number, own in model.heads.items():
        check_own(f"head {number}", own, heads[number], option)

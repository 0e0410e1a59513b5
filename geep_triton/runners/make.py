"""Makes a runner from a name and a dtype, and refuses combinations that do not work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from geep_triton.checks import check_choice, shorten
from geep_triton.compat import (
    BertLayer,
    attention_implementation,
    has_onednn,
    has_onednn_bfloat16,
    multiplies_bfloat16,
    multiplies_int8,
)
from geep_triton.modeling.converted import Converted, Rounded
from geep_triton.modeling.heads import build_heads
from geep_triton.modeling.int8_layers import Int8Layers, layers_digest
from geep_triton.modeling.model import MultiExitBert
from geep_triton.runners.base import Runner
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.graphed import GraphsRunner
from geep_triton.runners.linear import PaddedLinear, check_own, convert_linear, is_plain
from geep_triton.runners.onednn.convert import lay_out, lay_out_int8
from geep_triton.runners.onednn.runner import OnednnRunner
from geep_triton.runners.packed import PackedRunner
from geep_triton.runners.padded import PaddedRunner
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
# Why a runner runs on no other device, and why in no other dtype.
WHY_NO_DEVICE = {
    "onednn": "it lays weights out for a CPU's matrix products",
    "compiled": "its compiled layer is tested on CPUs and CUDA devices only",
    "packed": "its attention without padding is a CUDA kernel",
    "graphs": "CUDA graphs need a CUDA device",
}
WHY_NO_DTYPE = {
    "onednn": "oneDNN multiplies float16 on few CPUs",
    "packed": "its attention without padding is for half precision",
}
WHY_NO_INT8 = "int8 is for runner 'onednn' on a CPU"


def make_runner(
    model: MultiExitBert,
    name: str = "auto",
    dtype: str | torch.dtype | None = None,
    *,
    calibrated: bool = False,
    in_place: bool = False,
) -> Runner[Any]:
    """A way to run the layers of a model.

    Args:
        model: a model on the device that it will run on. It is set to evaluation mode.
        name: "torch" (the layers of transformers), "onednn" (on a CPU, products by oneDNN, which is part of torch, with weights
            in its own layout; much faster than "torch" on CPUs that MKL was not made for, such as AMD's), "compiled" (one layer
            compiled for all by torch.compile), "packed" (on a GPU, samples without padding), "graphs" (on a GPU, CUDA graphs
            for small batches, whose launches take longer than their work) or "auto" (what was fastest where a calibration
            compared runners; else "onednn" on a CPU if that loses nothing, and "torch" elsewhere. But a model that does not
            change runs by "torch" in its own dtype, since any other runner would hold its weights twice).
        dtype: "float32", "bfloat16", "float16" (or torch's own) or "int8" (of `model.int8_layers`, see
            `geep_triton.engine.quantize`). None: the calibration's dtype if `calibrated`; else the model's own on
            a CPU, and half precision for a float32 model on a GPU.
        calibrated: whether the model's calibration has to stay valid.
        in_place: whether the runner may convert the model itself, so that its weights are in memory only once. A model with
            converted layers can no longer be trained, moved or loaded into. If False, the model does not change and the runner
            converts a copy.

    Raises:
        ValueError: the runner or dtype is unknown, the runner does not support this dtype or device, int8 is requested for a
            model that is not in float32 or has no int8 layers of its own, a conversion would lose adapters or hooks, or another
            runner has converted the model. A runner raises its own errors too.
    """
    check_choice("runner", name, ("auto", *RUNNERS))
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    model.eval()
    if model.converted is not None and model.converted.layers is not None:
        return _as_converted(model, model.converted.layers, name, dtype)
    named, dtype = dtype is not None, dtype or usual_dtype(model, calibrated)
    if not named and dtype not in (*DTYPES, dtype_name(model)):
        raise ValueError(f"the model's calibration says dtype {shorten(dtype)}, expected one of {', '.join(DTYPES)}")
    name = _chosen(model, dtype, in_place) if name == "auto" else name
    check_goes_together(model, name, dtype)
    if dtype == "float16" and not named and model.device.type == "cpu":
        warn(
            "the model is in float16, which most CPUs multiply slowly: dtype='float32' or 'bfloat16' is faster, "
            "dtype='float16' keeps it without this warning"
        )
    if dtype == "bfloat16" and model.device.type == "cpu" and not multiplies_bfloat16():
        warn("dtype 'bfloat16': this CPU has no instructions for its products, so they are right, but slower than float32's")
    if name in ("onednn", "packed", "graphs"):
        check_convertible(model, f"runner {name!r}")
    own, digest = dtype_name(model), _digest_before(model, dtype) if in_place else None
    if in_place and dtype != "int8":
        model.to(getattr(torch, dtype))
    runner = _made(model, name, dtype, in_place)
    if in_place:
        rounded = None if digest is None else Rounded(digest, own, _source(model), model.weights_version())
        model.converted = Converted(dtype if name == "onednn" else None, rounded)
    return runner


def _digest_before(model: MultiExitBert, dtype: str) -> str | None:
    """Digest of the weights of a model that is about to be rounded to `dtype`. None if it has this dtype."""
    if dtype == dtype_name(model):
        return None
    return (model.config.digests or {}).get("weights") or model.weights_digest()


def _source(model: MultiExitBert) -> str:
    """Folder or hub id that the model was loaded from, whatever folder the process changes to."""
    source = str(model.config.name_or_path)
    return str(Path(source).resolve()) if Path(source).exists() else source


def _made(model: MultiExitBert, name: str, dtype: str, in_place: bool) -> Runner[Any]:
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


def _as_converted(model: MultiExitBert, own: str, name: str, dtype: str | None) -> OnednnRunner:
    """A runner for a model whose layers were already converted."""
    if name not in ("auto", "onednn") or dtype not in (None, own):
        raise ValueError(
            f"the model's layers were converted for inference: they run by runner 'onednn' in {own}, got runner {name!r}, "
            f"dtype {dtype!r}; load it again"
        )
    return OnednnRunner(model, Parts.of(model), own)


def _copied(model: MultiExitBert, dtype: str) -> Parts:
    return Parts.copied(model, getattr(torch, dtype))


def _onednn(model: MultiExitBert, dtype: str, in_place: bool) -> OnednnRunner:
    of_int8 = dtype == "int8"
    int8 = _own_int8(model) if of_int8 else None
    parts = Parts.of(model) if in_place else Parts.copied(model) if of_int8 else _copied(model, dtype)
    lay_out(parts) if int8 is None else lay_out_int8(parts, int8)
    return OnednnRunner(model, parts, dtype)


def _own_int8(model: MultiExitBert) -> Int8Layers:
    """The model's layers in int8. ValueError where it has none, or those of other weights."""
    if model.int8_layers is None:
        raise ValueError(
            "dtype 'int8' needs scales found on your texts: model.int8_layers = quantize(model, tokenizer, texts), or "
            "`geep calibrate MODEL --texts TEXTS --dtype int8 ...`"
        )
    if model.int8_layers.source != layers_digest(model):
        raise ValueError("dtype 'int8': model.int8_layers are of other weights than the model's: quantize it again")
    return model.int8_layers


def _chosen(model: MultiExitBert, dtype: str, in_place: bool) -> str:
    """What "auto" means. It does not measure: a run over files that goes on in another process must have the same runner."""
    if model.device.type != "cpu":
        return "torch"
    if dtype == "int8":
        return "onednn"
    speeds = model.exit_config.runner_speeds(dtype)
    names = [name for name in (speeds or runners_to_compare(model, dtype)) if dtype in RUNNERS.get(name, {}).get("cpu", ())]
    if not names or not (in_place or dtype != dtype_name(model)):
        return "torch"
    return max(names, key=lambda name: speeds.get(name, 0.0))  # without speeds the first


def runners_to_compare(model: MultiExitBert, dtype: str) -> list[str]:
    """The runners for a CPU of which "auto" takes one, without those that would lose something of the model."""
    if dtype not in RUNNERS["onednn"]["cpu"] or not has_onednn() or attention_implementation(model.config) != "sdpa":
        return ["torch"]
    if dtype == "bfloat16" and not has_onednn_bfloat16():
        return ["torch"]
    try:
        check_convertible(model, "runner 'auto'")
    except ValueError:
        return ["torch"]
    return ["onednn"] if dtype == "int8" else ["onednn", "torch"]


def multiplied_here() -> list[str]:
    """The dtypes below float32 in which this CPU has instructions for products. In others layers run, but no faster."""
    return [name for name, there in (("bfloat16", multiplies_bfloat16()), ("int8", multiplies_int8())) if there]


def check_goes_together(model: MultiExitBert, name: str, dtype: str) -> None:
    """Raise ValueError, with the reason, unless the runner runs on the model's device in this dtype."""
    device, devices = model.device.type, RUNNERS[name]
    dtypes = devices.get(device, FLOATS if name == "torch" else ())
    if not dtypes:
        raise ValueError(f"runner {name!r} is for models on {' or '.join(devices)}, got one on {device}: {WHY_NO_DEVICE[name]}")
    if dtype not in dtypes:
        why = WHY_NO_INT8 if dtype == "int8" else WHY_NO_DTYPE[name]
        raise ValueError(f"runner {name!r} on {device} runs in {', '.join(dtypes)}, got dtype {dtype!r}: {why}")
    if dtype == "int8" and model.dtype != torch.float32:
        raise ValueError(f"dtype 'int8' needs a model in float32, got {model.dtype}")


def check_runner(given: Any, model: MultiExitBert, dtype: str | torch.dtype | None) -> None:
    """Raise unless `given` is a runner for this model, in `dtype` if one is given."""
    if not all(hasattr(given, name) for name in ("model", "dtype", "embed", "layers", "logits", "take", "join")):
        raise TypeError(f"runner must be a name ({', '.join(RUNNERS)}) or a runner of this model, got {shorten(given)}")
    wanted = str(dtype).removeprefix("torch.")
    if given.model is not model or (dtype is not None and wanted != given.dtype):
        raise ValueError(
            f"runner must be a name, or a runner of this model{'' if dtype is None else f' in dtype {wanted}'}, got "
            f"{given.name!r} in {given.dtype} of {'this' if given.model is model else 'another'} model"
        )


def dtype_name(model: MultiExitBert) -> str:
    """The dtype of a model's weights, e.g. "float32"."""
    return str(model.dtype).removeprefix("torch.")


def usual_dtype(model: MultiExitBert, calibrated: bool) -> str:
    """The default dtype of a model.

    It is the model's own. On a GPU, where float32 takes many times as long, a float32 model runs in half precision. If the
    model's calibration has to stay valid, it is the calibration's dtype, unless that holds on another kind of device alone.
    """
    own, device = dtype_name(model), model.device.type
    calibration = (model.exit_config.calibration or model.exit_config.ranking_calibration) if calibrated else None
    if calibration is not None:
        made_in = calibration.get("dtype", own)
        if made_in == "float32" or calibration.get("device", device) == device:
            return made_in
    if device != "cuda":
        return own
    half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return half if own == "float32" else own


def check_quantizable(model: MultiExitBert, option: str) -> None:
    """Raise ValueError unless the model's layers can be rounded to int8: they are convertible, and their attention is SDPA."""
    check_convertible(model, option)
    if (attention := attention_implementation(model.config)) != "sdpa":
        raise ValueError(f"{option} needs layers with SDPA attention, got {attention!r}: model.set_attn_implementation('sdpa')")


def check_convertible(model: MultiExitBert, option: str) -> None:
    """Raise ValueError before a conversion if the model's layers or heads are not exactly what its configuration describes."""
    with torch.device("meta"):
        layer, heads = BertLayer(model.config), build_heads(model.config)
    for number, own in enumerate(model.bert.encoder.layer, start=1):
        check_own(f"layer {number}", own, layer, option)
    for key, own in model.heads.items():
        check_own(f"head {key}", own, heads[key], option)

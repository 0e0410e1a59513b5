"""Checks of the engine and of calibration: they refuse models that cannot run, and inputs and labels that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_bool, check_int, shorten
from geep_triton.modeling.model import MultiExitBert
from geep_triton.runners.make import dtype_name
from geep_triton.tokens.rows import to_list
from geep_triton.tokens.samples import check_no_bare_pair

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_list(inputs: Any) -> list[Any]:
    """The inputs as a list, for those that are read more than once. TypeError where they cannot be counted beforehand."""
    check_no_bare_pair(inputs)
    if hasattr(inputs, "to_pylist"):  # a pyarrow Table, whose own iterator gives columns
        return inputs.to_pylist()
    if isinstance(inputs, (str, Mapping)) or not (isinstance(inputs, Sequence) or hasattr(inputs, "column_names")):
        raise TypeError(
            "inputs must be a list of texts, tuples or rows, a datasets.Dataset or a pyarrow Table, got "
            f"{type(inputs).__name__}"
        )
    return list(inputs)


def label_ids(labels: Sequence[str | int], samples: int, label2id: dict[str, int]) -> torch.Tensor:
    """Ids [N] int64 from names or ids. TypeError unless there is a list of them; ValueError for an unknown one or another N."""
    if isinstance(labels, str) or not hasattr(labels, "__len__"):
        raise TypeError(f"labels must be a list of names or numbers, one per text, got {type(labels).__name__}")
    labels = to_list(labels)
    if len(labels) != samples:
        raise ValueError(f"labels must be one per text ({samples}), got {len(labels)}")
    # Either all are names or none is, since a name may be a number: stars 1 to 5 are not ids 0 to 4.
    names = {str(name): index for name, index in label2id.items()}
    ids = {index: index for index in label2id.values()}
    unknown = []
    numbers = [label if isinstance(label, int) and not isinstance(label, bool) else repr(label) for label in labels]
    choices: tuple[tuple[dict[Any, int], list[Any]], ...] = ((names, [str(label) for label in labels]), (ids, numbers))
    for known, keys in choices:
        missing = [label for label in keys if label not in known]
        if not missing:
            return torch.tensor([known[key] for key in keys])
        unknown.append(missing[0])
    raise ValueError(
        f"labels must all be names of classes ({', '.join(names)}) or all be their numbers (0..{len(ids) - 1}), got "
        f"{' and '.join(dict.fromkeys(map(shorten, unknown)))}"
    )


def check_calibrated(model: MultiExitBert, dtype: str, ranks: bool = True) -> None:
    """Raise ValueError where the model was calibrated in another dtype, or below float32 on another kind of device.

    Args:
        model: with its calibrations.
        dtype: of the layers.
        ranks: whether it may rank, so that the calibration of its ranking counts too.
    """
    served, device = model.exit_config, model.device.type
    of_ranking = None if served.ranking is None else served.ranking_calibration  # at full depth nothing depends on the dtype
    for calibration, verb in ((served.calibration, "calibrate"), (of_ranking if ranks else None, "calibrate_ranking")):
        if calibration is None:
            continue
        made_in, made_on = calibration.get("dtype", dtype_name(model)), calibration.get("device", device)
        if made_in != dtype:
            made, here = made_in, f"in dtype {dtype!r}"
        elif made_on != device and dtype != "float32":
            made, here = f"{made_in} on a device {made_on!r}", f"on {device!r}"
        else:
            continue
        raise ValueError(
            f"the model was calibrated in {made}, and what that promises does not hold {here}: calibrate again "
            f"({verb}(Engine(..., policy='full', dtype={dtype!r}), ...)), or name the policy"
        )


def check_device(device: str | torch.device | None) -> torch.device:
    """The device to run on. None: a GPU where there is one, else the CPU. ValueError where it is unknown or not there."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a device of torch such as 'cpu' or 'cuda', got {device!r}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(found)!r}: this torch ({torch.__version__}) sees no GPU")
    return found


def check_model(model: MultiExitBert) -> None:
    """Raise ValueError for a configuration that does not fit the model, or weights that are no finite numbers."""
    model.check_config()
    for name, parameter in model.named_parameters():
        if parameter.dtype not in FLOATS:
            raise ValueError(
                f"the weights of {name} are {parameter.dtype}, expected floating point of 16 to 64 bits: the checkpoint is "
                "damaged"
            )
        if parameter.dtype != model.dtype:
            raise ValueError(
                f"the weights of {name} are {parameter.dtype}, others {model.dtype}, expected one dtype: model.to(dtype) "
                "makes it so"
            )
        with torch.inference_mode():
            # `isfinite` would take the memory of the largest weight again.
            if parameter.numel() and not all(bound.isfinite() for bound in parameter.aminmax()):
                raise ValueError(
                    f"the weights of {name} are NaN or infinite: the checkpoint is damaged or its training diverged"
                )


def text_limits(
    model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, calibrated: bool, max_length: int | None, truncation: bool | None
) -> tuple[int, bool]:
    """The most tokens that a sample may have, and whether longer ones are cut.

    Args:
        model, tokenizer: they bound the length.
        calibrated: take what is None as the model was calibrated, before as it was trained.
        max_length, truncation: as for `geep_triton.engine.engine.Engine`.

    Raises:
        ValueError: `max_length` is out of range.
        TypeError: a value has another type.
    """
    longest = min(model.config.max_position_embeddings, tokenizer.model_max_length)
    served = model.exit_config
    calibration = (served.calibration or served.ranking_calibration or {}) if calibrated else {}
    if max_length is None:
        max_length = min(calibration.get("max_length", served.max_length or longest), longest)
    truncation = calibration.get("truncation", bool(served.truncation)) if truncation is None else truncation
    check_bool("truncation", truncation)
    check_int("max_length", max_length, 3, longest)
    return max_length, truncation


def check_finite(logits: torch.Tensor, first: int) -> None:
    """Raise ValueError, which names the sample, where logits are not finite; `first` is the number of the first sample."""
    bad = ~logits.isfinite().all(1)
    if bad.any():
        raise ValueError(f"sample {first + int(bad.int().argmax())} got logits that are NaN or infinite")

"""Loads a model with the tokenizer that it was saved with."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from geep_triton.checks import check_number
from geep_triton.engine.checks import check_device, check_model
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.weights import TOKENIZER_DIGEST
from geep_triton.saving import reading, saved_digests
from geep_triton.table.fingerprint import tokenizer_fingerprint


def load_both(
    source: str | os.PathLike, device: str | torch.device | None, **changes: Any
) -> tuple[MultiExitBert, PreTrainedTokenizerBase]:
    """Load the model and the tokenizer of one save of a folder or hub id.

    Args:
        source: folder or hub id.
        device: on which the model shall be. None: a GPU where there is one, else the CPU.
        **changes: fields of `MultiExitBertConfig`.

    Raises:
        ValueError: there is no such device, the model cannot be run, or what `MultiExitBert.from_pretrained` and
            `load_tokenizer` raise.
    """
    device = check_device(device)
    with reading(source):
        model = MultiExitBert.from_pretrained(source, **changes).to(device)
        tokenizer = load_tokenizer(source)
    check_model(model)
    return model, tokenizer


def load_tokenizer(source: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id that also holds a model.

    Raises:
        ValueError: there is no tokenizer, it does not load, or the model was saved with another one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        check_number("its model_max_length", tokenizer.model_max_length, 3)
        expected = saved_digests(source).get(TOKENIZER_DIGEST)
        same = expected is None or expected == tokenizer_fingerprint(tokenizer)
    except Exception as error:  # the package tokenizers raises this class for a damaged file
        raise ValueError(
            f"{source} holds a model but no tokenizer that loads: save it there too (tokenizer.save_pretrained, or "
            f"engine.save_pretrained, which saves both). {type(error).__name__}: {error}"
        ) from error
    if not same:
        raise ValueError(
            f"{source}: the model was saved with another tokenizer than the one that is there, or that one is damaged: save "
            "both again (engine.save_pretrained). If it was changed on purpose, make the engine of both yourself: "
            "Engine(model, tokenizer, ...)"
        )
    return tokenizer

"""The tokenizer that a model was saved with."""

from __future__ import annotations

import os

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from geep_triton.checks import check_number
from geep_triton.modeling.weights import TOKENIZER_DIGEST
from geep_triton.saving import saved_digests
from geep_triton.table.fingerprint import tokenizer_fingerprint


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

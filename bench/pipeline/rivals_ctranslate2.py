"""CTranslate2's BERT encoder; the head of the exit runs in torch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from transformers import BertModel

from bench.pipeline.rivals_dense import DenseBert
from bench.pipeline.rivals_given import Given, Missing, need


class Ct2Bert:
    """The encoder of a converted model, and a head.

    Args:
        folder: of the converted model.
        module: whose head and temperature these are.
        dtype: that the encoder runs in, one of CTranslate2's names.
        threads: of the encoder.
    """

    def __init__(self, folder: Path, module: DenseBert, dtype: str, threads: int) -> None:
        import ctranslate2

        if dtype not in ctranslate2.get_supported_compute_types("cpu"):
            raise Missing(f"it has no {dtype} on this CPU")
        self._encoder = ctranslate2.Encoder(str(folder), compute_type=dtype, intra_threads=threads, inter_threads=1)
        self._head, self._temperature = module.head, module.temperature
        self._view = ctranslate2.StorageView.from_array

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Each [B, S] -> logits [B, C]."""
        lengths = attention_mask.sum(1)
        arrays = [tensor.numpy().astype(np.int32) for tensor in (input_ids, lengths)]  # which the views do not keep alive
        ids, sizes = map(self._view, arrays)
        output = self._encoder.forward_batch(ids, sizes, token_type_ids=token_type_ids.tolist())
        hidden = torch.from_numpy(np.array(output.last_hidden_state))
        return self._head(hidden, attention_mask) / self._temperature


def ctranslate2_bert(given: Given) -> Ct2Bert:
    """Converted from a folder of transformers' BertModel. Raises Missing without the package, or where it has no such dtype."""
    need("ctranslate2")
    import ctranslate2

    source, folder = given.folder / "bert", given.folder / "ctranslate2"
    if not folder.is_dir():
        config = copy.deepcopy(given.module.bert.config)
        config.position_embedding_type = "absolute"  # the converter asks; transformers knows no other any more
        bert = BertModel(config)  # with a pooler, which the converter wants; its answers are not read
        bert.load_state_dict(given.module.bert.state_dict(), strict=False)
        bert.save_pretrained(source)
        given.tokenizer.save_pretrained(source)
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(folder))
    return Ct2Bert(folder, given.module, given.dtype, given.threads)

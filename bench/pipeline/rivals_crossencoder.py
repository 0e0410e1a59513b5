"""sentence-transformers' CrossEncoder, for its speed only: it wants BERT's own classifier, which no measured model has."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BertForSequenceClassification

from bench.pipeline.rivals_dense import answers
from bench.pipeline.rivals_given import Given, Missing, need
from geep_triton import MultiExitBert, Predictions

BACKENDS = {"onnx": "optimum-onnx", "openvino": "optimum-intel"}  # and the package that each needs


class CrossEncoderRival:
    """A classifier of the same layers and a fresh head, in CrossEncoder's own batches.

    Args:
        given: the model, whose layers it shares, and where files go.
        model: that ours runs: its names of classes.
        max_length: tokens at which texts are cut.
        backend: "torch", "onnx" or "openvino". Raises Missing where its package is not installed.
    """

    def __init__(self, given: Given, model: MultiExitBert, max_length: int, backend: str) -> None:
        need("sentence_transformers")
        if backend != "torch" and importlib.util.find_spec("optimum") is None:
            package = BACKENDS[backend]
            raise Missing(f"{package} is not installed: its releases take no transformers that this project takes")
        if backend != "torch" and given.dtype != "float32":
            raise Missing("measured in float32")
        if given.dtype == "int8":
            raise Missing("torch's backend has no int8 of its own")
        from sentence_transformers import CrossEncoder

        folder = given.folder / "classifier"
        if not folder.is_dir():
            config = given.module.bert.config
            config.num_labels = model.config.num_labels
            classifier = BertForSequenceClassification(config)
            classifier.bert.load_state_dict(given.module.bert.state_dict(), strict=False)
            classifier.save_pretrained(folder)
            given.tokenizer.save_pretrained(folder)
        kwargs = {"dtype": getattr(torch, given.dtype)} if backend == "torch" else {}
        self._encoder = CrossEncoder(
            str(folder),
            backend=backend,
            device="cpu",
            max_length=max_length,
            model_kwargs=kwargs,
            activation_fn=torch.nn.Identity(),
        )
        self._model, self._layers = model, given.module.bert.config.num_hidden_layers

    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`; what it answers is nobody's answer."""
        start = time.perf_counter()
        pairs = [(row["text"], row.get("text_pair", "")) for row in rows]  # it takes pairs only: a token or two more of a text
        logits = self._encoder.predict(pairs, show_progress_bar=False, convert_to_tensor=True).float().cpu()
        depth = torch.full((len(rows),), self._layers)
        return answers(self._model, logits.view(len(rows), -1), depth, {"run": time.perf_counter() - start})

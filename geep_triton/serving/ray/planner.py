"""`Planner`: how deep each text is expected to go, from its tokens alone. No model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import torch
from transformers import AutoConfig

from geep_triton.checks import check_int
from geep_triton.config import MultiExitBertConfig
from geep_triton.engine.loading import load_tokenizer
from geep_triton.files.answerer import Answer
from geep_triton.over_files.bad_samples import answer_good
from geep_triton.over_files.predicting import Predicting, samples_of
from geep_triton.serving.ray.scorer import Batch, beside, rows_of
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.tokens.encoder import Encoder

LAYERS, WORK = "expected_layers", "expected_work"


class Planner:
    """Foretells how many layers each text runs, by the exit table of a saved model, for `map_batches` of Ray Data.

    It adds the columns "expected_layers", the mean exit that the table predicts, and "expected_work": these times the text's
    tokens. A text that cannot be answered counts as a deep one.

    Args:
        model: the folder of a model with an exit table.
        predicting: the columns with the texts; None: the defaults.
        max_length: the number of tokens to which engines will cut a text; None: as many as the model takes.

    Raises:
        ValueError: the model has no exit table, or one that does not fit; or `max_length` is out of range.
        TypeError: `max_length` is no whole number.
    """

    def __init__(
        self, model: str | os.PathLike, predicting: Predicting | None = None, *, max_length: int | None = None
    ) -> None:
        asked = predicting or Predicting()
        self._wanted, self._optional = asked.wanted, asked.optional
        config = AutoConfig.from_pretrained(model)
        if not isinstance(config, MultiExitBertConfig):
            raise ValueError(
                f"model must be the folder of a model with exits, got {str(model)!r}, whose model is a {config.model_type}"
            )
        tokenizer = load_tokenizer(model)
        self._table = ExitTable.load(Path(model))
        self._table.check_fits(config.vocab_size, config.exit_layers, tokenizer_fingerprint(tokenizer))
        self._exits = torch.tensor(self._table.exit_layers, dtype=torch.float32)
        longest = min(config.max_position_embeddings, tokenizer.model_max_length)
        if max_length is not None:
            check_int("max_length", max_length, 3, longest)
            longest = max_length
        self._encode = Encoder(tokenizer, longest, True, config.vocab_size, config.type_vocab_size)

    def __call__(self, batch: Batch) -> Batch:
        """Add the columns to a batch: an Arrow table, or a mapping of columns to arrays."""
        samples, nothing = samples_of(rows_of(batch, self._wanted, self._optional))

        def foretell(good: list[int]) -> list[Answer]:
            tokens = self._encode([samples[index] for index in good])
            layers = self._table.predict(tokens).probabilities @ self._exits
            return [
                {LAYERS: depth, WORK: depth * length}
                for depth, length in zip(layers.tolist(), tokens.lengths.tolist(), strict=True)
            ]

        deepest = float(self._exits[-1])
        found = [
            {LAYERS: deepest, WORK: deepest} if isinstance(answer, str) else answer
            for answer in answer_good(len(samples), nothing, foretell)
        ]
        return beside(batch, pa.table({name: pa.array([row[name] for row in found], pa.float32()) for name in (LAYERS, WORK)}))

"""Reads requests: tokenizes them, and foretells their work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch

from geep_triton.checks import BadSample, shorten
from geep_triton.engine.engine import Engine
from geep_triton.serving.backend import Body
from geep_triton.serving.bodies import PredictBody, RerankBody
from geep_triton.serving.errors import RequestError, of_sample
from geep_triton.serving.jobs import PredictJob, RankJob
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import Sample

Read: TypeAlias = PredictJob | RankJob | RequestError


class Reader:
    """Reads many requests together, which takes little longer than one.

    Args:
        engine: it tokenizes, and its policy and table foretell.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        device = engine.model.device
        # The table is asked on a stream of its own, which does not wait for the layers of the batch that runs.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def read(self, bodies: Sequence[Body]) -> list[Read]:
        """A job for each request, or why it cannot be answered."""
        found: dict[int, Read] = {}
        texts: dict[bool | None, list[tuple[int, PredictBody]]] = {}
        for index, body in enumerate(bodies):
            refusal = self._refusal(body)
            if refusal is not None:
                found[index] = refusal
            elif isinstance(body, PredictBody):
                texts.setdefault(body.truncate, []).append((index, body))
            else:
                found[index] = self._rank_job(body)
        for truncation, group in texts.items():
            found |= self._predict_jobs(group, truncation)
        return [found[index] for index in range(len(bodies))]

    def _predict_jobs(self, group: Sequence[tuple[int, PredictBody]], truncation: bool | None) -> dict[int, Read]:
        """Jobs, or refusals, by the number of the request."""
        encoded = self._encode([body.inputs.samples for _, body in group], truncation)
        good = [tokens for tokens in encoded if isinstance(tokens, Tokens)]
        works = iter(self._works(good))
        return {
            index: PredictJob(body, tokens, next(works)) if isinstance(tokens, Tokens) else tokens
            for (index, body), tokens in zip(group, encoded, strict=True)
        }

    def _encode(self, requests: Sequence[Sequence[Sample]], truncation: bool | None) -> list[Tokens | RequestError]:
        try:
            together = self._engine.encode([sample for samples in requests for sample in samples], truncation=truncation)
            return [*together.split([len(samples) for samples in requests])]
        except BadSample as error:
            if len(requests) == 1:
                return [of_sample(error)]
        return [self._encode([samples], truncation)[0] for samples in requests]

    def _works(self, requests: Sequence[Tokens]) -> list[float]:
        """The expected cost of each request, in tokens that run all layers."""
        if not requests:
            return []
        together = Tokens.concatenate(requests)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            expected = self._engine.expected_layers(together)
        works = (together.lengths * expected).double() / self._engine.model.config.num_hidden_layers
        return [float(each.sum()) for each in works.split([len(tokens) for tokens in requests])]

    def _rank_job(self, body: RerankBody) -> Read:
        try:
            return RankJob(body, self._engine.encode_group(body.query, body.texts, truncation=body.truncate))
        except BadSample as error:
            # A query's error names the query. Its cause names the text, and there is one query.
            return of_sample(error.__cause__ if isinstance(error.__cause__, BadSample) else error)

    def _refusal(self, body: Body) -> RequestError | None:
        """Why a request cannot be answered, as far as this shows without a tokenizer."""
        side, wanted = self._engine.tokenizer.truncation_side, body.truncation_direction
        if wanted is not None and wanted.lower() != side:
            told = shorten(wanted)  # the client's own words may be no valid Unicode, or long
            return RequestError("Tokenizer", f'this tokenizer cuts texts on the {side}, not "truncation_direction": {told}')
        if isinstance(body, PredictBody):
            for index, sample in enumerate(body.inputs.samples):
                if not all(text is None or text.strip() for text in sample):
                    return RequestError("Empty", f"input {index} has an empty text")
            return None
        if self._engine.model.config.num_labels != 1:
            return RequestError("Backend", "the model is not a reranker, which has one label: POST /predict instead")
        if not body.texts:
            return RequestError("Empty", "texts must not be empty")
        for name, text in (("query", body.query), *((f"text {index}", text) for index, text in enumerate(body.texts))):
            if not text.strip():
                return RequestError("Empty", f"{name} is empty")
        return None

"""Answers requests by an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geep_triton.engine.engine import Engine
from geep_triton.policies.text import describe
from geep_triton.serving.answers import predictions_of, ranks_of
from geep_triton.serving.backend import Answered, Body
from geep_triton.serving.errors import RequestError
from geep_triton.serving.jobs import PredictJob, RankJob
from geep_triton.serving.reading import Reader
from geep_triton.tokens.ragged import Tokens
from geep_triton.version import __version__

BATCHES = 4  # full batches of the engine that run together: enough to sort by length and exit


class EngineBackend:
    """Answers by an engine, which nobody else should run meanwhile; see `geep_triton.serving.backend.Backend`.

    A request is tokenized before it waits. So its tokens are known, and how many layers they are expected to run.

    Args:
        engine: its audit, if it has one, sees the texts of /predict.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_layers: int = engine.model.config.num_hidden_layers
        self.max_batch_tokens = BATCHES * engine.token_budget
        self._reader = Reader(engine)

    def prepare(self, bodies: Sequence[Body]) -> list[PredictJob | RankJob | RequestError]:
        """Tokenize requests, and foretell their work."""
        return self._reader.read(bodies)

    def run(self, jobs: Sequence[PredictJob | RankJob]) -> list[Answered]:
        """Answer jobs, all of labels or all of orders.

        Raises:
            ValueError: logits are not finite, or the weights have changed.
        """
        predicted = [job for job in jobs if isinstance(job, PredictJob)]
        return self._predict(predicted) if predicted else self._rank([job for job in jobs if isinstance(job, RankJob)])

    def information(self) -> dict[str, Any]:
        """What runs here: fields of text-embeddings-inference, and after them our own."""
        engine, config, made = self.engine, self.engine.model.config, self.engine.promise
        labels = {
            "id2label": {str(index): name for index, name in config.id2label.items()},
            "label2id": dict(config.label2id),
        }
        return {
            "model_id": config.name_or_path,
            "model_dtype": engine.dtype,
            "model_type": {"reranker" if config.num_labels == 1 else "classifier": labels},
            "max_input_length": engine.max_length,
            "auto_truncate": engine.truncation,
            "version": __version__,
            "policy": describe(engine.policy),
            "ranking": None if engine.ranking is None else str(engine.ranking),
            "promise": None if made is None else {"agreement": made.agreement, "class_recall": dict(made.class_recall)},
            "device": str(engine.model.device),
            "runner": engine.runner.name,
        }

    def _predict(self, jobs: Sequence[PredictJob]) -> list[Answered]:
        found = self.engine.predict(Tokens.concatenate([job.tokens for job in jobs]))
        sizes = [job.texts for job in jobs]
        answered = []
        for job, logits, exits in zip(jobs, found.logits.split(sizes), found.exit_layers.split(sizes), strict=True):
            content = predictions_of(logits, found.answers, job.body.raw_scores)
            answered.append(Answered(content if job.body.inputs.is_batch else content[0], exits.tolist()))
        return answered

    def _rank(self, jobs: Sequence[RankJob]) -> list[Answered]:
        found = self.engine.rank_many([job.group for job in jobs], jobs[0].body.top_k)
        answered = []
        for job, ranking in zip(jobs, found, strict=True):
            content = ranks_of(ranking, job.body.raw_scores, job.body.texts if job.body.return_text else None)
            answered.append(Answered(content, ranking.exit_layers.tolist()))
        return answered

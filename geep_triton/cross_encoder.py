"""`CrossEncoder`: the signatures of sentence-transformers' class of this name over an engine, so that pairs exit early."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import cached_file

from geep_triton.checks import check_bool, check_int, shorten
from geep_triton.config import MultiExitBertConfig
from geep_triton.engine.engine import Engine
from geep_triton.engine.loading import load_both
from geep_triton.policies.policy import Policy
from geep_triton.runners.make import make_runner
from geep_triton.saving import reading
from geep_triton.warn import warn

Activation: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Pair: TypeAlias = tuple[str, str] | list[str]
Scores: TypeAlias = np.ndarray | torch.Tensor | list[torch.Tensor]

SETTINGS_FILE = "config_sentence_transformers.json"  # of sentence-transformers from version 5 on
# Arguments of sentence-transformers that this class does not have -> why, and what to do instead.
_HUB = "load model and tokenizer yourself and pass CrossEncoder(Engine(model, tokenizer, truncation=True))"
_ONE_PROCESS = "an engine runs in one process on its model's device: make a CrossEncoder for each device"
_PROMPTS = "write prompts into the texts"
REFUSED = {
    **dict.fromkeys(("cache_folder", "revision", "local_files_only", "token", "config_kwargs"), _HUB),
    **dict.fromkeys(("processor_kwargs", "tokenizer_kwargs", "modules"), _HUB),
    **dict.fromkeys(("device", "pool", "chunk_size"), _ONE_PROCESS),
    **dict.fromkeys(("prompts", "default_prompt_name", "prompt", "prompt_name"), _PROMPTS),
    "trust_remote_code": "no code of a checkpoint is run",
    "model_kwargs": "dtype and runner say how layers run",
    "backend": "runner says how layers run",
    "model_card_data": "no model card is written",
}


class CrossEncoder:
    """Scores and ranks pairs of texts as `sentence_transformers.CrossEncoder` does, with the exits of a `MultiExitBert`.

    It takes any BERT classifier. A model without exits runs all layers. A model with exits answers by its saved policy, and
    `rank` lets candidates leave by its saved ranking; see `Engine`.

    It differs from sentence-transformers in these: the engine makes its own batches; texts must not be empty; on a GPU, models
    in float32 run in half precision, as with `Engine`; and what it cannot do it refuses, such as prompts and several devices.

    Args:
        model_name_or_path: folder or hub id, as for `MultiExitBert.from_pretrained`. Or an engine, which says how layers run
            and how long pairs may be.
        num_labels: how many labels the model has. It is only checked.
        max_length: the most tokens of a pair; longer pairs are cut, the longer text first. None: what model and tokenizer can
            take, or what the model was calibrated with.
        activation_fn: applied to the logits [N, C]. None: what the model was saved with, else the sigmoid for one label and
            nothing for several.
        device: as for `Engine.from_pretrained`.
        policy: as for `Engine`.
        runner: as for `Engine`.
        dtype: as for `Engine`.
        **others: further arguments of sentence-transformers, as long as they ask for nothing.

    Raises:
        ValueError: the model has another number of labels, an argument is not supported (the error says what to do instead), or
            what `Engine.from_pretrained` raises.
        TypeError: an argument has another type, or is unknown.

    Attributes:
        engine: it answers. `calibrate(encoder.engine, pairs, ...)` gives it exits that keep a promise.
        activation_fn: see above.
        truncated: how many pairs `predict` and `rank` have cut so far.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike | Engine,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        device: str | torch.device | None = None,
        *,
        policy: str | Policy | None = None,
        runner: str = "auto",
        dtype: str | torch.dtype | None = None,
        **others: Any,
    ) -> None:
        _refuse("CrossEncoder", others)
        source = model_name_or_path
        settings: Mapping[str, Any] = {}
        if isinstance(source, Engine):
            given = {"max_length": max_length, "device": device, "policy": policy, "dtype": dtype}
            if named := [name for name, value in given.items() if value is not None]:
                raise ValueError(f"{', '.join(named)}: with an engine it is the engine's, leave it out")
            self.engine = source
        else:
            settings = _settings(source)
            if settings.get("default_prompt_name") is not None:
                raise ValueError(f"{source} was saved with a default prompt, which is not supported: {_PROMPTS}")
            self.engine = _engine(source, policy, device, runner, dtype, max_length)
        if num_labels not in (None, self.num_labels):
            raise ValueError(f"num_labels must be {self.num_labels}, as the model's, got {shorten(num_labels)}")
        if activation_fn is None:
            activation_fn = _saved_activation(self.engine.model.config, settings) or _usual_activation(self.num_labels)
        _check_activation(activation_fn)
        self.activation_fn = activation_fn
        self.truncated = 0

    @property
    def num_labels(self) -> int:
        """The number of the model's labels."""
        return self.engine.model.config.num_labels

    @property
    def max_length(self) -> int:
        """The most tokens of a pair."""
        return self.engine.max_length

    def predict(
        self,
        inputs: Sequence[Pair] | Pair | np.ndarray,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **others: Any,
    ) -> Any:
        """Score pairs of texts.

        Args:
            inputs: a pair of texts; or N pairs, in a list or another sequence.
            batch_size: checked, and not used: the engine makes batches of `Engine.token_budget` tokens.
            show_progress_bar: whether to show a progress bar. None: no.
            activation_fn: instead of the encoder's own.
            apply_softmax: whether the scores of several labels go through a softmax.
            convert_to_numpy: whether the scores become an array.
            convert_to_tensor: whether the scores become one tensor, on the model's device, instead of an array.
            **others: further arguments of sentence-transformers, as long as they ask for nothing.

        Returns:
            Scores [N] float32 of a model of one label, [N, C] of others, in the order of the pairs: an array, a tensor, or a
            list of N tensors. Of one pair: a scalar, or [C].

        Raises:
            ValueError: an argument is not supported, `batch_size` is below 1, or a text is empty.
            TypeError: the inputs are no pairs of texts, or an argument has another type or is unknown.
        """
        _refuse("predict", others, ("num_workers",))
        check_int("batch_size", batch_size, 1)
        activation = self.activation_fn if activation_fn is None else activation_fn
        _check_activation(activation)
        pairs, single = _pairs(inputs)
        scores = torch.empty(0)
        if pairs:
            found = self._running(show_progress_bar).predict(pairs)
            self.truncated += found.truncated
            scores = _activated(activation, found.logits)
            if self.num_labels == 1 and scores.ndim > 1:
                scores = scores.squeeze(-1)
            if apply_softmax and scores.ndim > 1:
                scores = scores.softmax(1)
        result: Scores
        if convert_to_tensor:
            result = scores.to(self.engine.model.device)
        else:
            result = scores.float().numpy() if convert_to_numpy else list(scores)
        return result[0] if single else result

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        **others: Any,
    ) -> list[dict[str, Any]]:
        """Order the documents of a query, the best first. See `Engine.rank`; `Engine.rank_many` runs many queries together.

        Args:
            query: a text.
            documents: N texts.
            top_k: how many of the best are wanted. None: all, in the full model's order.
            return_documents: whether the documents' texts are returned.
            batch_size: checked, and not used.
            show_progress_bar: whether to show a progress bar. None: no.
            activation_fn: instead of the encoder's own. The order is that of the logits, which it should keep.
            **others: further arguments of sentence-transformers, as long as they ask for nothing.

        Returns:
            A dict for each of the best: "corpus_id", its number among the documents; "score", a float; and "text" if
            `return_documents`. With a ranking, documents that went deeper come first, whatever their scores.

        Raises:
            ValueError: the model has several labels, an argument is not supported, or what `Engine.rank` raises.
            TypeError: an argument has another type, or is unknown.
        """
        _refuse("rank", others, ("num_workers", "convert_to_numpy", "convert_to_tensor", "apply_softmax"))
        check_int("batch_size", batch_size, 1)
        activation = self.activation_fn if activation_fn is None else activation_fn
        _check_activation(activation)
        found = self._running(show_progress_bar).rank(query, documents, top_k, return_documents=return_documents)
        self.truncated += found.truncated
        scores = _activated(activation, found.logits[:, None]).flatten().tolist()
        return [{**result, "score": scores[result["corpus_id"]]} for result in found.results()]

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write model, tokenizer, how they are served, and an activation of torch; see `Engine.save_pretrained`."""
        config, kind = self.engine.model.config, type(self.activation_fn)
        if kind.__module__.startswith("torch.nn."):
            older = getattr(config, "sentence_transformers", None) or {}
            config.sentence_transformers = {**older, "activation_fn": f"{kind.__module__}.{kind.__qualname__}"}
        self.engine.save_pretrained(save_directory)

    def _running(self, progress: bool | None) -> Engine:
        if progress is None:
            return self.engine
        check_bool("show_progress_bar", progress)
        if progress == self.engine.progress:
            return self.engine
        _ = self.engine.layer_costs  # measured once; otherwise each copy would measure them
        engine = copy.copy(self.engine)
        engine.progress = progress
        return engine


def _engine(
    source: str | os.PathLike,
    policy: str | Policy | None,
    device: str | torch.device | None,
    runner: str,
    dtype: str | torch.dtype | None,
    max_length: int | None,
) -> Engine:
    """An engine that owns the model of a folder or hub id. A model without exits gets none."""
    with reading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        exits = {} if isinstance(config, MultiExitBertConfig) else {"exit_layers": [config.num_hidden_layers]}
        model, tokenizer = load_both(source, device, **exits)
    made = make_runner(model, runner, dtype, calibrated=policy is None, in_place=True)
    return Engine(model, tokenizer, policy, runner=made, max_length=max_length, truncation=True)


def _settings(source: str | os.PathLike) -> Mapping[str, Any]:
    """What sentence-transformers saved beside the model. ValueError where the file is damaged."""
    path = cached_file(source, SETTINGS_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged file, expected JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged file, expected a JSON object, got {shorten(values)}")
    return values


def _saved_activation(config: MultiExitBertConfig, settings: Mapping[str, Any]) -> Activation | None:
    """The activation that a model was saved with. None: it says nothing, or names code of its own, which is not run."""
    older = getattr(config, "sentence_transformers", None) or {}
    oldest = getattr(config, "sbert_ce_default_activation_function", None)  # before version 4
    path = settings.get("activation_fn") or older.get("activation_fn") or oldest
    if path is None:
        return None
    kind = getattr(nn, str(path).rpartition(".")[2], None) if str(path).startswith("torch.nn.") else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        warn(f"the model was saved with the activation {shorten(path)}, which is not torch's: pass activation_fn to use it")
        return None
    return kind()


def _usual_activation(num_labels: int) -> Activation:
    return nn.Sigmoid() if num_labels == 1 else nn.Identity()


def _pairs(inputs: Any) -> tuple[list[tuple[str, str]], bool]:
    """The pairs, and whether it was one pair alone. TypeError where they are none."""
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()
    if isinstance(inputs, (str, bytes, Mapping)) or not hasattr(inputs, "__iter__"):
        raise TypeError(f"inputs must be a pair of texts or a list of pairs, got {shorten(inputs)}")
    rows = list(inputs)
    single = bool(rows) and isinstance(rows[0], str)
    rows = [rows] if single else rows
    for index, row in enumerate(rows):
        if not (isinstance(row, (list, tuple)) and len(row) == 2 and all(isinstance(text, str) for text in row)):
            raise TypeError(f"inputs must be pairs of texts, got {shorten(row)}{'' if single else f' as pair {index}'}")
    return [(text, other) for text, other in rows], single


def _check_activation(activation: Any) -> None:
    """Raise TypeError unless an activation can be called."""
    if not callable(activation):
        raise TypeError(f"activation_fn must be a function of the logits, got {shorten(activation)}")


def _activated(activation: Activation, logits: torch.Tensor) -> torch.Tensor:
    """The scores of logits [N, C]. TypeError where they are no tensor of N scores, or of N rows of them for several labels."""
    scores = activation(logits)
    fits = isinstance(scores, torch.Tensor) and scores.shape[:1] == logits.shape[:1]
    if not fits or (logits.shape[1] == 1 and scores.numel() != len(logits)):
        told = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"{shorten(scores)}"
        raise TypeError(f"activation_fn must make a tensor of {len(logits)} scores, one for each pair, got {told}")
    return scores


def _refuse(what: str, given: Mapping[str, Any], ignored: Sequence[str] = ()) -> None:
    """Refuse arguments that are not supported, unless they ask for nothing. Those in `ignored` change nothing here.

    Raises:
        ValueError: sentence-transformers has this argument. The error says what to do instead.
        TypeError: it is unknown.
    """
    for name, value in given.items():
        if name in ignored:
            continue
        if name not in REFUSED:
            raise TypeError(f"{what} has no argument {name!r}")
        if value is not None and value is not False and (name, value) != ("backend", "torch"):
            raise ValueError(f"{name}={shorten(value)} is not supported: {REFUSED[name]}")

"""The engine: texts in, answers out, in the caller's order, under a policy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from geep_triton.checks import check_int
from geep_triton.data import Encoder, iter_samples
from geep_triton.engine.policies import Policy, parse_policy
from geep_triton.engine.run import run_batch, run_every_exit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.outputs import Predictions, Schedule, Tokens
from geep_triton.schedule import schedule

TOKEN_BUDGETS = {"cpu": 1024, "cuda": 65536}


class Engine:
    """Runs a MultiExitBert over any number of texts in dense sorted batches.

    Inputs are read in windows: each window is tokenized, its exits planned, its samples sorted by exit and length and cut
    into batches, run, and put back into order. Memory does not grow with the number of inputs.

    Args:
        model: on the device it shall run on; put into evaluation mode.
        tokenizer: the model's own.
        policy: a policy, or its short form: "full", "constant:3", "threshold:0.3", "predicted", "predicted:mean",
            "predicted:0.9".
        token_budget: most tokens a batch may have, padding included; None: 1,024 on a CPU, 65,536 on a GPU.
        window: samples planned and sorted together.
        max_length: most tokens a sample may have; None: what the model and its tokenizer can take.
        truncation: cut longer samples instead of raising; `Predictions.truncated` counts them.
        text_column, pair_column: where rows of a data set hold their text.
        progress: show a progress bar.

    Raises:
        ValueError: a policy this model cannot run, weights that are NaN or infinite, an exit table built with another
            tokenizer, a window or budget below 1, a multi-label model.
    """

    def __init__(
        self,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        policy: str | Policy = "full",
        *,
        token_budget: int | None = None,
        window: int = 4096,
        max_length: int | None = None,
        truncation: bool = False,
        text_column: str = "text",
        pair_column: str = "text_pair",
        progress: bool = False,
    ) -> None:
        if not isinstance(model, MultiExitBert):
            raise TypeError(f"model must be a MultiExitBert, got {type(model).__name__}")
        check_int("window", window, 1)
        longest = min(model.config.max_position_embeddings, tokenizer.model_max_length)
        if max_length is not None:
            check_int("max_length", max_length, 3, longest)
        if token_budget is None:
            token_budget = TOKEN_BUDGETS.get(model.device.type, TOKEN_BUDGETS["cuda"])
        check_int("token_budget", token_budget, 1)
        _check_model(model)
        self.model = model.eval()
        self.policy = parse_policy(policy)
        self.policy.check(model, tokenizer)
        self.token_budget = token_budget
        self.window = window
        self.text_column = text_column
        self.pair_column = pair_column
        self.progress = progress
        self._encoder = Encoder(
            tokenizer, max_length or longest, truncation, model.config.vocab_size, model.config.type_vocab_size
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        policy: str | Policy = "full",
        *,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Engine:
        """Engine for the model and tokenizer of a folder or hub id.

        Args:
            pretrained_model_name_or_path: as for `MultiExitBert.from_pretrained`.
            policy: as for `Engine`.
            device: where to run; None: a GPU where there is one, else the CPU.
            **kwargs: as for `Engine`.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = MultiExitBert.from_pretrained(pretrained_model_name_or_path).to(device)
        return cls(model, AutoTokenizer.from_pretrained(pretrained_model_name_or_path), policy, **kwargs)

    def predict(self, inputs: Any) -> Predictions:
        """Answer all inputs.

        Args:
            inputs: a text; a list of texts or of (text, pair) tuples; a mapping of columns to lists; or any iterable of
                texts, tuples or rows, such as a `datasets.Dataset`. Rows may hold `input_ids` instead of text.

        Raises:
            ValueError: no inputs; an empty or over-long text; a missing column; token ids outside the vocabulary; logits
                that are not finite. TypeError: inputs that hold no text.
        """
        return Predictions.concatenate(list(self.predict_windows(inputs)))

    def predict_windows(self, inputs: Any) -> Iterator[Predictions]:
        """Answer the inputs window by window, for streams that do not fit into memory; see `predict`."""
        for tokens, first, seconds, truncated in self._encoded_windows(inputs):
            yield self._predict_window(tokens, first, seconds, truncated)

    def exit_logits(self, inputs: Any) -> tuple[Tokens, torch.Tensor]:
        """Run every exit on all inputs, whatever the policy.

        Returns:
            The inputs' tokens, and the logits of every exit [N, E, C] float32.
        """
        tokens, logits = zip(*self.exit_logits_windows(inputs), strict=True)
        return Tokens.concatenate(tokens), torch.cat(logits)

    def exit_logits_windows(self, inputs: Any) -> Iterator[tuple[Tokens, torch.Tensor]]:
        """As `exit_logits`, window by window."""
        for tokens, first, *_ in self._encoded_windows(inputs):
            plan = self._schedule(torch.full((len(tokens),), self.model.config.num_hidden_layers), tokens)
            window = torch.empty(len(tokens), len(self.model.config.exit_layers), self.model.config.num_labels)
            with torch.inference_mode():
                for rows, _ in plan.batches():
                    window[rows] = run_every_exit(self.model, tokens, rows).float().cpu()
            _check_finite(window.flatten(1), first)
            yield tokens, window

    def _encoded_windows(self, inputs: Any) -> Iterator[tuple[Tokens, int, float, int]]:
        """(tokens, index of the first sample, seconds taken to tokenize, samples truncated) per window."""
        total = len(inputs) if isinstance(inputs, Sized) and not isinstance(inputs, (str, Mapping)) else None
        samples, first = iter_samples(inputs, self.text_column, self.pair_column), 0
        with tqdm(total=total, unit="text", disable=not self.progress) as bar:
            while True:
                start, truncated = time.perf_counter(), self._encoder.truncated
                window = list(islice(samples, self.window))
                if not window:
                    break
                tokens = self._encoder(window, first)
                yield tokens, first, time.perf_counter() - start, self._encoder.truncated - truncated
                bar.update(len(window))
                first += len(window)
        if not first:
            raise ValueError("inputs: expected at least one text, got none")

    def _predict_window(self, tokens: Tokens, first: int, tokenize_seconds: float, truncated: int) -> Predictions:
        config = self.model.config
        start = time.perf_counter()
        plan = self._schedule(self.policy.plan(self.model, tokens), tokens)
        planned = time.perf_counter()
        answers = []
        with torch.inference_mode():
            thresholds = self.policy.thresholds(self.model)
            for rows, depth in plan.batches():
                answers += run_batch(self.model, tokens, rows, depth, thresholds, self.policy.answer_head)
            logits = torch.cat([answer.logits for answer in answers]).float().cpu()
        ran = time.perf_counter()
        back = torch.cat([answer.rows for answer in answers]).argsort()
        sizes = torch.tensor([answer.rows.numel() for answer in answers])
        exits, layers = torch.tensor([(answer.exit_layer, answer.layers_run) for answer in answers]).T
        logits = logits[back]
        _check_finite(logits, first)
        return Predictions(
            logits=logits,
            exit_layers=exits.repeat_interleave(sizes)[back],
            layers_run=layers.repeat_interleave(sizes)[back],
            id2label=dict(config.id2label),
            num_layers=config.num_hidden_layers,
            timings={
                "tokenize": tokenize_seconds,
                "plan": planned - start,
                "run": ran - planned,
                "gather": time.perf_counter() - ran,
            },
            truncated=truncated,
            tokens=plan.tokens,
            padding=plan.padding,
        )

    def _schedule(self, exits: torch.Tensor, tokens: Tokens) -> Schedule:
        return schedule(exits, tokens.lengths, self.token_budget)


def _check_model(model: MultiExitBert) -> None:
    if model.config.problem_type == "multi_label_classification":
        raise ValueError("problem_type multi_label_classification is not supported: an exit answers with one class")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"the weights of {name} are NaN or infinite: the checkpoint is damaged or its training diverged")


def _check_finite(logits: torch.Tensor, first: int) -> None:
    bad = ~logits.isfinite().all(1)
    if bad.any():
        raise ValueError(f"sample {first + int(bad.int().argmax())} got logits that are NaN or infinite")

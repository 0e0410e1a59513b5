"""The engine: texts in, answers out, in the caller's order, under a policy."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_bool, check_int, check_kind
from geep_triton.engine.batching import BATCH_COST, Schedule, schedule
from geep_triton.engine.checks import (
    check_calibrated,
    check_finite,
    check_model,
)
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.exit_counts import ExitCounts
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.loading import load_tokenizer
from geep_triton.engine.model_watch import ModelWatch
from geep_triton.engine.observer import Observer
from geep_triton.engine.pools import Pools
from geep_triton.engine.predictions import EveryExit, Predictions
from geep_triton.engine.promise import Promise
from geep_triton.engine.run import WindowRun
from geep_triton.engine.windows import Encoded, Window, encoded_windows, one_ahead
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.storing import add_digest
from geep_triton.modeling.weights import TOKENIZER_DIGEST
from geep_triton.policies.policy import Policy
from geep_triton.policies.skip import Skip
from geep_triton.policies.text import parse_policy, saved_policy
from geep_triton.runners.base import Runner
from geep_triton.runners.make import check_runner, make_runner
from geep_triton.saving import reading, replacing
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.warn import warn

TOKEN_BUDGETS = {"cpu": 1024, "cuda": 65536}
# A CPU runs small batches as well as large ones; a GPU needs thousands of tokens to hide a layer's launches.
BATCH_COSTS = {"cpu": BATCH_COST, "cuda": 4096}
IN_FLIGHT = 3  # batches on a GPU


class Engine:
    """Runs a MultiExitBert over any number of texts in dense sorted batches.

    Inputs are read in windows: each window is tokenized, its exits planned, its samples sorted by exit and length and cut
    into batches, run, and put back into order. Memory does not grow with the number of inputs. An engine refuses to answer once
    the model's weights are others than those it was made with.

    Args:
        model: on the device it shall run on; set to evaluation mode now and whenever the engine runs it, which leaves it so.
        tokenizer: the model's own.
        policy: a policy, or its short form, such as "full", "constant:3", "threshold:0.3", "predicted:0.05+threshold:0.3" or
            "threshold:0.3+skip:planned"; see `geep_triton.policies.text`. None: what the model was calibrated to, else "full".
            Where it does not say what samples skip, they skip by the model's gates, if it has any.
        runner: how layers run: "auto", "torch", "onednn", "compiled", "packed" or "graphs"; see
            `geep_triton.runners.make.make_runner`. Or a runner of this model.
        dtype: "float32", "bfloat16", "float16" (or torch's own) or "int8", in which the layers run; None: on a CPU the model's
            own; on a GPU half precision where the model is in float32, or, where `policy` is None, that of its calibration.
            The model stays as it is: the engine holds what it converts as a copy, but for `from_pretrained`, whose engine
            owns its model and holds its weights once.
        token_budget: most tokens a batch may have, padding included; None: 1,024 on a CPU, 65,536 on a GPU.
        window: samples planned and sorted together.
        prefetch: tokenize and plan the next window in a thread while the device runs this one; None: on a GPU. Inputs are then
            read a window further than answers have come, and who stops early waits for the inputs that are being read.
        in_flight: batches that run by turns where the host must know a batch's exits or gates to go on, so that the device has
            work meanwhile; None: 3 on a GPU, 1 on a CPU, which waits for nothing. Answers do not depend on it.
        max_length: most tokens a sample may have; None: what the model and its tokenizer can take.
        truncation: cut longer samples instead of raising; `Predictions.truncated` counts them.
        text_column, pair_column: where rows of a data set hold their text.
        progress: show a progress bar.

    Raises:
        ValueError: a policy this model cannot run, weights that are NaN or infinite, an exit table built with another
            tokenizer, a window or budget below 1, a multi-label model, what `make_runner` raises, and, where `policy` is None,
            a calibration made in another dtype.
        TypeError: a model or argument of another type.

    Attributes:
        promise: what a calibration promised of this engine's answers; None: nothing.
        observer: is shown every window's answers, as an audit is; None: nobody.
        runner: how layers run.
    """

    def __init__(
        self,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        policy: str | Policy | None = None,
        *,
        runner: str | Runner = "auto",
        dtype: str | torch.dtype | None = None,
        token_budget: int | None = None,
        window: int = 4096,
        prefetch: bool | None = None,
        in_flight: int | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        text_column: str = "text",
        pair_column: str = "text_pair",
        progress: bool = False,
    ) -> None:
        if not isinstance(model, MultiExitBert):
            raise TypeError(f"model must be a MultiExitBert, got {type(model).__name__}")
        check_kind("tokenizer", tokenizer, PreTrainedTokenizerBase)
        on_gpu = model.device.type == "cuda"
        prefetch = on_gpu if prefetch is None else prefetch
        for name, value in (("prefetch", prefetch), ("truncation", truncation), ("progress", progress)):
            check_bool(name, value)
        check_int("window", window, 1)
        self.in_flight = (IN_FLIGHT if on_gpu else 1) if in_flight is None else in_flight
        check_int("in_flight", self.in_flight, 1)
        longest = min(model.config.max_position_embeddings, tokenizer.model_max_length)
        if max_length is not None:
            check_int("max_length", max_length, 3, longest)
        if token_budget is None:
            token_budget = TOKEN_BUDGETS.get(model.device.type, TOKEN_BUDGETS["cuda"])
        self._batch_cost = BATCH_COSTS.get(model.device.type, BATCH_COSTS["cuda"])
        check_int("token_budget", token_budget, 1)
        check_model(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.observer: Observer | None = None
        self.policy = saved_policy(model.exit_config.policy, model.exit_config.skipping) if policy is None else policy
        if isinstance(runner, str):
            runner = make_runner(model, runner, dtype, calibrated=policy is None)
        check_runner(runner, model, dtype)
        self.runner = runner
        if policy is None:
            check_calibrated(model, self.dtype)
        self._watch = ModelWatch(runner)
        self.token_budget = token_budget
        self.window = min(window, sys.maxsize)
        self.prefetch = prefetch
        # On a stream of its own, planning a window does not wait for the layers of the one before.
        self._planner = torch.cuda.Stream(model.device, priority=-1) if prefetch and on_gpu else None
        self.text_column = text_column
        self.pair_column = pair_column
        self.progress = progress
        self.max_length = max_length or longest
        self.truncation = truncation
        self._encoder = Encoder(tokenizer, self.max_length, truncation, model.config.vocab_size, model.config.type_vocab_size)
        self.promise = Promise.saved(model, self.max_length, truncation) if policy is None else None
        self._checked_table = model.exit_table

    @property
    def dtype(self) -> str:
        """In which the layers run."""
        return self.runner.dtype

    @property
    def policy(self) -> Policy:
        """What samples run under. Setting another one, or its short form, ends an audit; a calibration's promise is not its."""
        return self._policy

    @policy.setter
    def policy(self, policy: str | Policy) -> None:
        policy = parse_policy(policy)
        policy.check(self.model, self.tokenizer)
        self._policy, self._skip = policy, policy.skip_on(self.model)
        self.forget_promise()
        self._exits = ExitCounts(self.model.config.num_hidden_layers)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        policy: str | Policy | None = None,
        *,
        device: str | torch.device | None = None,
        runner: str = "auto",
        dtype: str | torch.dtype | None = None,
        **kwargs: Any,
    ) -> Engine:
        """Engine for the model and tokenizer of a folder or hub id.

        The engine owns its model: it converts the weights to what the runner needs in place, so that they are held once.
        `save_pretrained` saves them as they were.

        Args:
            pretrained_model_name_or_path: as for `MultiExitBert.from_pretrained`.
            policy: as for `Engine`.
            device: where to run; None: a GPU where there is one, else the CPU.
            runner, dtype: as for `Engine`.
            **kwargs: as for `Engine`.

        Raises:
            ValueError: there is no tokenizer, and all that `MultiExitBert.from_pretrained` and `Engine` raise.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with reading(pretrained_model_name_or_path):
            model = MultiExitBert.from_pretrained(pretrained_model_name_or_path).to(device)
            tokenizer = load_tokenizer(pretrained_model_name_or_path)
        check_model(model)
        made = make_runner(model, runner, dtype, calibrated=policy is None, in_place=True)
        return cls(model, tokenizer, policy, runner=made, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the model, with what `calibrate` found for it, and the tokenizer, for `Engine.from_pretrained`.

        All or nothing, as `MultiExitBert.save_pretrained`; over the model that was calibrated only what has changed is written.
        """
        with replacing(save_directory) as new:
            self.model.save_into(new)
            self.tokenizer.save_pretrained(new.path)
            add_digest(new.path, TOKENIZER_DIGEST, tokenizer_fingerprint(self.tokenizer))

    def with_policy(self, policy: str | Policy) -> Engine:
        """An engine for the same model and settings under another policy."""
        other = copy.copy(self)
        other.observer = None
        other.policy = policy
        return other

    def predict(self, inputs: Any) -> Predictions:
        """Answer all inputs.

        Args:
            inputs: a text; a row; a list of texts or of (text, pair) tuples, also for one pair; a mapping of columns to lists;
                or any iterable of texts, tuples or rows that keeps its order, such as a `datasets.Dataset`. Rows and columns
                may hold `input_ids` instead of text: lists, arrays, tensors or Arrow lists of integers, with `attention_mask`
                and `token_type_ids` where needed; ids that are padded without a mask are warned of.

        Raises:
            ValueError: no inputs; an empty or over-long text; a missing column; token ids outside the vocabulary; logits
                that are not finite. TypeError: inputs that hold no text, or a bare tuple of two texts.
        """
        return Predictions.concatenate(list(self.predict_windows(inputs)))

    def predict_windows(self, inputs: Any) -> Iterator[Predictions]:
        """Answer the inputs window by window, for streams that do not fit into memory; see `predict`."""
        scores = self.policy.rule(self.model) is not None
        windows = self._planned_windows(inputs)
        if self.prefetch:
            by_gates = self._skip.mode == "gates" or (self.observer is not None and self._skip.mode == "planned")
            if scores or by_gates:
                _ = self.layer_costs  # measured before a thread works beside
            windows = one_ahead(windows)
        with closing(windows):
            for window in windows:
                if window.encoded.padding is not None:
                    warn(window.encoded.padding)
                result = self._predict_window(window)
                if self.policy.chooses:
                    self._exits.add(result.histogram)
                yield result
        self._exits.warn_of_one(self.policy)

    def exit_logits(self, inputs: Any) -> tuple[Tokens, torch.Tensor]:
        """Run every exit on all inputs, whatever the policy.

        Returns:
            The inputs' tokens, and the logits of every exit [N, E, C] float32.
        """
        record = self.every_exit(inputs)
        return record.tokens, record.logits

    def every_exit(self, inputs: Any) -> EveryExit:
        """As `exit_logits`, and which layers each sample skips."""
        return EveryExit.concatenate(list(self.every_exit_windows(inputs)))

    def every_exit_windows(self, inputs: Any) -> Iterator[EveryExit]:
        """As `every_exit`, window by window."""
        for part in self._encoded_windows(inputs):
            if part.padding is not None:
                warn(part.padding)
            tokens = part.tokens
            logits = torch.empty(len(tokens), len(self.model.config.exit_layers), self.model.config.num_labels)
            layers = self._layers(tokens)
            with self._watch.running():
                run = WindowRun(layers, tokens, in_flight=self.in_flight)
                rows, answers = zip(*run.every_exit(self._to_the_end(layers, tokens)), strict=True)
                logits[torch.cat(rows)] = torch.cat(answers).float().cpu()
            check_finite(logits.flatten(1), part.first)
            yield EveryExit(tokens, logits, layers.skipped)

    def _encoded_windows(self, inputs: Any) -> Iterator[Encoded]:
        return encoded_windows(inputs, self._encoder, self.window, (self.text_column, self.pair_column), self.progress)

    def _planned_windows(self, inputs: Any) -> Iterator[Window]:
        """The inputs' windows, ready to run."""
        if self.model.exit_table is not self._checked_table:
            self.policy.check(self.model, self.tokenizer)
            self._checked_table = self.model.exit_table
        for part in self._encoded_windows(inputs):
            start, tokens = time.perf_counter(), part.tokens
            with nullcontext() if self._planner is None else torch.cuda.stream(self._planner):
                stops = self.policy.stops(self.model, tokens)
                layers = self._layers(tokens)
            batches = self._schedule(stops, layers, tokens)
            yield Window(part, layers, batches, time.perf_counter() - start)

    def _predict_window(self, window: Window) -> Predictions:
        config, layers, part = self.model.config, window.layers, window.encoded
        start = time.perf_counter()
        with self._watch.running():
            run = self._window_run(window)
            answers = list(run.answers(window.batches))
            logits = torch.cat([answer.logits for answer in answers]).float().cpu()
        ran = time.perf_counter()
        back = torch.cat([answer.rows for answer in answers]).argsort()
        sizes = torch.tensor([answer.rows.numel() for answer in answers])
        exits, layers_run = torch.tensor([(answer.exit_layer, answer.layers_run) for answer in answers]).T
        exits, layers_run = (values.repeat_interleave(sizes)[back] for values in (exits, layers_run))
        if layers.skipped is not None:
            layers_run = layers_run - layers.skipped.sum(1)
        logits = logits[back]
        check_finite(logits, part.first)
        run.check_scores(part.first)
        observed = self._observe(part.tokens, logits)
        return Predictions(
            logits=logits,
            exit_layers=exits,
            layers_run=layers_run,
            id2label=dict(config.id2label),
            num_layers=config.num_hidden_layers,
            timings={
                "tokenize": part.seconds,
                "plan": window.plan_seconds,
                "run": ran - start,
                "gather": time.perf_counter() - ran - sum(observed.values()),
                **observed,
            },
            truncated=part.tokens.truncated,
            tokens=window.batches.tokens,
            padding=window.batches.padding,
            flops=layers.flops,
            skipped=layers.skipped,
        )

    def _observe(self, tokens: Tokens, logits: torch.Tensor) -> dict[str, float]:
        """Show the answers to the observer: seconds taken, by stage."""
        if self.observer is None:
            return {}
        start = time.perf_counter()
        self.observer.see(tokens, logits)
        return {"audit": time.perf_counter() - start}

    def full_depth(self, tokens: Tokens) -> torch.Tensor:
        """The last exit's answers [N, C], on the host, whatever the policy.

        A model with skip gates skips by them, also where the policy plans paths: a plan is not held to itself.
        """
        layers = self._layers(tokens, Skip("gates") if self._skip.mode == "planned" else self._skip)
        logits = torch.empty(len(tokens), self.model.config.num_labels)
        with self._watch.running():
            run = WindowRun(layers, tokens, in_flight=self.in_flight)
            for answer in list(run.answers(self._to_the_end(layers, tokens))):
                logits[answer.rows] = answer.logits.float().cpu()
        return logits

    def forget_promise(self) -> None:
        """What was promised and observed so far is not of the answers to come: end them."""
        if self.observer is not None:
            self.observer.end()
        self.observer, self.promise = None, None

    def _layers(self, tokens: Tokens, skip: Skip | None = None) -> WindowLayers:
        skip = skip or self._skip
        return WindowLayers(self.runner, tokens, skip, self.layer_costs if skip.mode == "gates" else None)

    def _window_run(self, window: Window) -> WindowRun:
        rule = self.policy.rule(self.model)
        tokens = window.encoded.tokens
        waits = rule is not None and self.policy.regroup != "never" and len(tokens) > 1
        return WindowRun(
            window.layers,
            tokens,
            rule,
            self.policy.answer_head,
            Pools(self.runner, tokens, self.token_budget, window.layers.groups, self._batch_cost) if waits else None,
            self.layer_costs if waits and self.policy.regroup == "auto" else None,
            self.in_flight,
        )

    @cached_property
    def layer_costs(self) -> LayerCosts:
        """Of this model on this machine, which decide whether survivors wait and whether few skip; measured when needed."""
        with self._watch.running():
            return LayerCosts.measure(self.runner, self.token_budget)

    def _to_the_end(self, layers: WindowLayers, tokens: Tokens) -> Schedule:
        return self._schedule(torch.full((len(tokens),), self.model.config.num_hidden_layers), layers, tokens)

    def _schedule(self, exits: torch.Tensor, layers: WindowLayers, tokens: Tokens) -> Schedule:
        return schedule(exits, tokens.lengths, self.token_budget, layers.groups, self._batch_cost)

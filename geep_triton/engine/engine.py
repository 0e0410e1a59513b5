"""The engine: texts in, answers out, in the caller's order, under a policy."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedTokenizerBase

from geep_triton.calibrated import Calibrated
from geep_triton.checks import check_bool, check_int, check_kind
from geep_triton.engine.batching import BATCH_COSTS, IN_FLIGHT, TOKEN_BUDGETS, Batches, schedule
from geep_triton.engine.checks import check_calibrated, check_finite, check_model, text_limits
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.exit_counts import ExitCounts
from geep_triton.engine.gather import gather
from geep_triton.engine.groups import Groups, RankInputs, windows_of_groups
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.loading import load_both
from geep_triton.engine.model_watch import ModelWatch
from geep_triton.engine.observer import Observer, observe
from geep_triton.engine.planner import Planner
from geep_triton.engine.pools import Pools
from geep_triton.engine.predictions import EveryExit, Predictions
from geep_triton.engine.promise import Promise, still_kept, warn_of_another_ranking
from geep_triton.engine.ranker import Ranker
from geep_triton.engine.ranking import Ranking
from geep_triton.engine.run import WindowRun
from geep_triton.engine.scorer import Scorer
from geep_triton.engine.windows import Encoded, Window, encoded_windows, one_ahead
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.storing import add_digest
from geep_triton.modeling.weights import TOKENIZER_DIGEST
from geep_triton.policies.policy import Policy
from geep_triton.policies.ranking import RankPolicy, check_ranking
from geep_triton.policies.skip import Skip
from geep_triton.policies.text import describe, parse_policy
from geep_triton.pushing import PushOptions, push
from geep_triton.runners.base import Runner
from geep_triton.runners.make import check_runner, make_runner
from geep_triton.saving import replacing
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import COLUMNS, Inputs, column_names
from geep_triton.warn import warn

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Engine:
    """Runs a MultiExitBert over any number of texts in dense sorted batches.

    The engine reads inputs in windows. It tokenizes a window, predicts its exits, sorts its samples by exit and length, cuts
    them into batches, runs them, and puts the answers back into order. Memory does not grow with the number of inputs. An
    engine refuses to answer once the model's weights have changed.

    Args:
        model: on the device on which it shall run. The engine sets it to evaluation mode and leaves it so.
        tokenizer: the model's own.
        policy: a policy, or its short form, such as "full", "constant:3", "threshold:0.3", "predicted:0.05+threshold:0.3" or
            "threshold:0.3+skip:planned"; see `geep_triton.policies.text`. None: policy and ranking of the model's
            `exit_config`, else "full". Samples skip by the model's gates, if it has any, where the policy does not say how.
        runner: how layers run: "auto", "torch", "onednn", "compiled", "packed" or "graphs"; see
            `geep_triton.runners.make.make_runner`. Or a runner of this model.
        dtype: of the layers: "float32", "bfloat16", "float16" (or torch's own) or "int8". None: where `policy` is None, that of
            the model's calibration; else on a CPU the model's own, and on a GPU half precision for a model in float32. The
            model stays as it is, and the engine converts a copy; but the engine of `from_pretrained` owns its model, converts
            it in place and holds its weights once.
        token_budget: the most tokens that a batch may have, padding included; None: 1,024 on a CPU, 65,536 on a GPU.
        window: how many samples are sorted together.
        prefetch: tokenize and schedule the next window in a thread while the device runs this one; None: on a GPU. The engine
            then reads one window further than it has answered, and a caller who stops early waits for that window.
        in_flight: how many batches run by turns. While the host waits for the exits or gates of one, the device runs another.
            None: 3 on a GPU, 1 on a CPU, which waits for nothing. Answers do not depend on it.
        max_length: the most tokens that a sample may have. None: where `policy` is None, what the model was calibrated with;
            else what it was trained with (`exit_config.max_length`), or what it and its tokenizer can take.
        truncation: cut longer samples instead of raising; `truncated` of predictions and rankings counts them. None: where
            `policy` is None, as the model was calibrated; else as `exit_config.truncation` says, or False.
        columns: the name of the column that holds the text of a row, or a pair of names: the second column holds the other text
            of a pair, and rows may lack it.
        progress: show a progress bar.

    Raises:
        ValueError: the model cannot run the policy; its weights are NaN or infinite; its exit table was built with another
            tokenizer; a window or budget is below 1; `policy` is None and the calibration was made in
            another dtype; and whatever `make_runner` raises.
        TypeError: the model or an argument has another type.

    Attributes:
        promise: what a calibration promised of this engine's answers; None: nothing.
        observer: it is shown the answers of every window, as an audit is; None: nobody is.
    """

    _runner: Runner[Any]
    _watch: ModelWatch

    def __init__(
        self,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        policy: str | Policy | None = None,
        *,
        runner: str | Runner[Any] = "auto",
        dtype: str | torch.dtype | None = None,
        token_budget: int | None = None,
        window: int = 4096,
        prefetch: bool | None = None,
        in_flight: int | None = None,
        max_length: int | None = None,
        truncation: bool | None = None,
        columns: str | tuple[str, str] = COLUMNS,
        progress: bool = False,
    ) -> None:
        if not isinstance(model, MultiExitBert):
            raise TypeError(f"model must be a MultiExitBert, got {type(model).__name__}")
        check_kind("tokenizer", tokenizer, PreTrainedTokenizerBase)
        on_gpu = model.device.type == "cuda"
        prefetch = on_gpu if prefetch is None else prefetch
        check_bool("prefetch", prefetch)
        check_bool("progress", progress)
        self.max_length, self.truncation = text_limits(model, tokenizer, policy is None, max_length, truncation)
        check_int("window", window, 1)
        self.in_flight = (IN_FLIGHT if on_gpu else 1) if in_flight is None else in_flight
        check_int("in_flight", self.in_flight, 1)
        if token_budget is None:
            token_budget = TOKEN_BUDGETS.get(model.device.type, TOKEN_BUDGETS["cuda"])
        self._batch_cost = BATCH_COSTS.get(model.device.type, BATCH_COSTS["cuda"])
        check_int("token_budget", token_budget, 1)
        check_model(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.observer: Observer | None = None
        self.policy = (model.exit_config.policy or "full") if policy is None else policy
        self.ranking = model.exit_config.ranking if policy is None else None
        if isinstance(runner, str):
            runner = make_runner(model, runner, dtype, calibrated=policy is None)
        if dtype is not None:
            check_runner(runner, model, dtype)
        self.runner = runner
        if policy is None:
            check_calibrated(model, self.dtype)
            warn_of_another_ranking(model, self.max_length)
        self.token_budget = token_budget
        self.window = min(window, sys.maxsize)
        self.prefetch = prefetch
        # A window is scheduled on a stream of its own, which does not wait for the layers of the window before.
        self._planner = torch.cuda.Stream(model.device, priority=-1) if prefetch and on_gpu else None
        self.columns = column_names(columns)
        self.progress = progress
        sizes = model.config.vocab_size, model.config.type_vocab_size
        self._encoder = Encoder(tokenizer, self.max_length, self.truncation, *sizes)
        self.promise = Promise.saved(model, self.max_length) if policy is None else None
        self._checked_table = model.exit_table

    def __repr__(self) -> str:
        return (
            f"Engine({self.model.config.name_or_path!r}, {describe(self.policy)!r}, runner={self.runner.name!r}, "
            f"dtype={self.dtype!r}, device={str(self.model.device)!r})"
        )

    @property
    def dtype(self) -> str:
        """The dtype in which the layers run."""
        return self.runner.dtype

    def explain(self) -> list[str]:
        """How this engine answers and why, in plain sentences: its policy, its layers, and what a calibration measured of both.

        `geep_triton.explain(engine, texts)` says why texts went as deep as they did.
        """
        found = [
            f"Texts run under the policy {describe(self.policy)}.",
            f"Layers run in {self.dtype} by runner “{self.runner.name}” on {self.model.device.type}.",
        ]
        calibration = self.model.exit_config.calibration
        calibrated = None if calibration is None else Calibrated.of(calibration)
        if calibrated is None or calibrated.chosen is None or self.policy != parse_policy(calibrated.chosen.policy):
            return [*found, "No calibration has chosen this policy."]
        if calibrated.dtype not in (None, self.dtype):
            return [*found, f"A calibration has chosen it in {calibrated.dtype}, and promises nothing in {self.dtype}."]
        if calibrated.on_answers and self.promise is None:
            return [*found, "A calibration has chosen it, but what that was made with has changed: it promises nothing here."]
        return [
            *found,
            "A calibration has chosen the policy:",
            *calibrated.sentences(),
            calibrated.how_sure(),
            *filter(None, [calibrated.holds_for()]),
            *calibrated.gains(),
            *calibrated.why_so(),
        ]

    @property
    def runner(self) -> Runner[Any]:
        """It runs the layers. Setting another runner of the same model ends an audit and a calibration's promise."""
        return self._runner

    @runner.setter
    def runner(self, runner: Runner[Any]) -> None:
        check_runner(runner, self.model, None)
        if "_watch" in self.__dict__:
            self._watch.check_weights()  # a runner that was made before they changed may hold old copies
        self._runner, self._watch = runner, ModelWatch(runner)
        self.__dict__.pop("layer_costs", None)  # of the runner before
        self.forget_promise()

    @property
    def policy(self) -> Policy:
        """The policy that samples run under. Setting a policy or its short form ends an audit and a calibration's promise."""
        return self._policy

    @policy.setter
    def policy(self, policy: str | Policy) -> None:
        policy = parse_policy(policy)
        policy.check(self.model, self.tokenizer)
        self._policy, self._skip = policy, policy.skip_on(self.model)
        self.forget_promise()
        self._exits = ExitCounts(self.model.config.num_hidden_layers)

    @property
    def ranking(self) -> RankPolicy | None:
        """Which candidates leave early in `rank`. None: nobody. It may be set, also by its short form."""
        return self._ranking

    @ranking.setter
    def ranking(self, ranking: str | RankPolicy | None) -> None:
        self._ranking = check_ranking(ranking, self.model)

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
        """Make an engine for the model and tokenizer of a folder or hub id.

        The engine owns its model. It converts the weights in place to what the runner needs, so that they are held once;
        `save_pretrained` saves them as they were.

        Args:
            pretrained_model_name_or_path: as for `MultiExitBert.from_pretrained`.
            policy: as for `Engine`.
            device: on which the engine runs; None: a GPU where there is one, else the CPU.
            runner, dtype: as for `Engine`.
            **kwargs: as for `Engine`.

        Raises:
            ValueError: there is no tokenizer or no such device; and what `MultiExitBert.from_pretrained` and `Engine` raise.
        """
        model, tokenizer = load_both(pretrained_model_name_or_path, device)
        made = make_runner(model, runner, dtype, calibrated=policy is None, in_place=True)
        return cls(model, tokenizer, policy, runner=made, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the model, with what `calibrate` found for it, a card and the tokenizer. `Engine.from_pretrained` loads them.

        The folder holds all of it afterwards, or what it held before; see `MultiExitBert.save_pretrained`. Files that are there
        already are not written again. A policy that was set by hand is the engine's alone: it is not saved, with a warning.
        """
        kept = self.model.exit_config.policy or "full"
        if self.policy != parse_policy(kept):
            warn(
                f"the engine's policy {describe(self.policy)} is not saved, but the model's, {kept}: "
                "model.exit_config.policy = ... sets that, and calibrate does"
            )
        with replacing(save_directory) as new:
            self.model.save_into(new)
            self.tokenizer.save_pretrained(new.path)
            add_digest(new.path, TOKENIZER_DIGEST, tokenizer_fingerprint(self.tokenizer))

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> CommitInfo:
        """Upload the files of `save_pretrained` to the Hugging Face hub, in one commit; see `geep_triton.pushing.push`."""
        return push(self.save_pretrained, repo_id, **options)

    def with_policy(self, policy: str | Policy) -> Engine:
        """Make an engine for the same model and settings under another policy."""
        other = copy.copy(self)
        other.observer = None
        other.policy = policy
        return other

    def with_runner(self, runner: Runner[Any]) -> Engine:
        """Make an engine for the same model, policy and settings whose layers run by another runner."""
        other = copy.copy(self)
        other.observer, other._exits = None, ExitCounts(self.model.config.num_hidden_layers)
        other.runner = runner
        return other

    def with_truncation(self, truncation: bool) -> Engine:
        """Make an engine for the same model, policy and settings that cuts longer samples, or refuses them."""
        check_bool("truncation", truncation)
        other = copy.copy(self)
        other.truncation, other._encoder = truncation, self._encoder.with_truncation(truncation)
        return other

    def encode(self, inputs: Inputs, *, truncation: bool | None = None) -> Tokens:
        """Tokenize all inputs, as `predict` does. It takes the tokens in their place, and gives the same answers.

        Args:
            inputs: as for `predict`.
            truncation: cut longer samples instead of raising; None: as the engine does.

        Raises:
            ValueError, TypeError: as `predict`.
        """
        encoder = self._encoder_that(truncation)
        windows = encoded_windows(inputs, encoder, self.window, self.columns, self.progress)
        return Tokens.concatenate([encoded.tokens for encoded in windows])

    def encode_group(self, query: str, candidates: Iterable[str], *, truncation: bool | None = None) -> Groups:
        """Tokenize the candidates of one query, as `rank` does. `rank_many` takes what this returns in the place of a tuple.

        Args:
            query, candidates: as for `rank`.
            truncation: as for `encode`.

        Raises:
            ValueError, TypeError: as `rank`.
        """
        return next(windows_of_groups([(query, candidates)], self._encoder_that(truncation), 1))

    def expected_layers(self, tokens: Tokens) -> torch.Tensor:
        """How many layers samples are expected to run under the policy, before any has run: [N] int64 on the host.

        See `Policy.expected_layers`. The tokens are on the host, as `encode` returns them.
        """
        return self.policy.expected_layers(self.model, tokens)

    def predict(self, inputs: Inputs | Tokens) -> Predictions:
        """Answer all inputs.

        Args:
            inputs: a text; a row; a list of texts or of (text, pair) tuples, also for one pair; a mapping of columns to lists;
                any iterable of texts, tuples or rows that keeps its order, such as a `datasets.Dataset`; or what `encode`
                returned. Rows and columns may hold `input_ids` instead of text: lists, arrays, tensors or Arrow lists of
                integers, with `attention_mask` and `token_type_ids` where needed. A warning tells of ids that are padded
                without a mask.

        Raises:
            ValueError: there are no inputs; a text is empty or too long; a column is missing; token ids are outside the
                vocabulary; or logits are not finite.
            TypeError: the inputs hold no text, or are a bare tuple of two texts.
        """
        return Predictions.concatenate(list(self.predict_windows(inputs)))

    def predict_windows(self, inputs: Inputs | Tokens) -> Iterator[Predictions]:
        """Answer the inputs window by window, as `predict` does. Use it for streams that do not fit into memory."""
        if self.observer is None:  # an audit looks itself
            self.promise = still_kept(self.promise, self.model)
        windows = self._windows(inputs)
        if self.prefetch:
            by_gates = self._skip.mode == "gates" or (self.observer is not None and self._skip.mode == "planned")
            if by_gates or self.policy.looks:
                _ = self.layer_costs  # measured now, since a thread that works beside would disturb it
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

    def rank(
        self, query: str, candidates: Iterable[str], top_k: int | None = None, *, return_documents: bool = False
    ) -> Ranking:
        """Order the candidates of one query, the best first; see `rank_many`."""
        return next(self.rank_many([(query, candidates)], top_k, return_documents=return_documents))

    def rank_many(
        self, groups: RankInputs | Iterable[Groups], top_k: int | None = None, *, return_documents: bool = False
    ) -> Iterator[Ranking]:
        """Order the candidates of many queries, with a model of one score. Those of many queries run together.

        Candidates leave early as `ranking` says, if at most its `top_k` are wanted, else nobody does. The engine's policy only
        says what they skip. Who went deeper comes first, then who has the higher logit, then who was given first.

        Args:
            groups: (query, candidates) tuples of texts, as many as there are, or what `encode_group` returned. Without
                candidates an order is empty.
            top_k: how many of the best candidates are wanted; None: all, in the full model's order.
            return_documents: keep the candidates' texts in `Ranking.documents`.

        Raises:
            ValueError: the model has several labels; layers are skipped though candidates may leave early; `top_k` is below 1;
                a text is empty or too long; or a score is not finite.
            TypeError: an argument has another type.
        """
        policy = check_ranking(self.ranking, self.model, top_k)
        check_bool("return_documents", return_documents)
        costs = None if policy is None and self._skip.mode != "gates" else self.layer_costs
        ranker = Ranker(self.runner, policy, self._skip, self.token_budget, self._batch_cost, self.in_flight, costs)
        windows = windows_of_groups(groups, self._encoder, self.window)
        windows = one_ahead(windows) if self.prefetch else windows
        return ranker.rankings(windows, self._watch.running, top_k, return_documents, self.progress)

    def every_exit(self, inputs: Inputs) -> EveryExit:
        """Run every exit on all inputs, which are as for `predict`, whatever the policy.

        Returns:
            The inputs' tokens, the logits of every exit [N, E, C] float32, and which layers each sample skips.
        """
        return EveryExit.concatenate(list(self.every_exit_windows(inputs)))

    def every_exit_windows(self, inputs: Inputs) -> Iterator[EveryExit]:
        """The same as `every_exit`, window by window."""
        for encoded in self._encoded_windows(inputs):
            if encoded.padding is not None:
                warn(encoded.padding)
            tokens = encoded.tokens
            logits = torch.empty(len(tokens), len(self.model.config.exit_layers), self.model.config.num_labels)
            layers = self._layers(tokens)
            with self._watch.running():
                run = WindowRun(layers, in_flight=self.in_flight)
                rows, answers = zip(*run.every_exit(self._to_the_end(layers, tokens)), strict=True)
                logits[torch.cat(rows)] = torch.cat(answers).float().cpu()
            check_finite(logits.flatten(1), encoded.first)
            yield EveryExit(tokens, logits, layers.skipped)

    def _encoder_that(self, truncation: bool | None) -> Encoder:
        """The encoder that cuts longer samples, or refuses them; None: as the engine does."""
        return self._encoder if truncation is None else self._encoder.with_truncation(truncation)

    def _encoded_windows(self, inputs: Any) -> Iterator[Encoded]:
        return encoded_windows(inputs, self._encoder, self.window, self.columns, self.progress)

    def _windows(self, inputs: Any) -> Generator[Window, None, None]:
        """The inputs' windows, ready to run."""
        if self.model.exit_table is not self._checked_table:
            self.policy.check(self.model, self.tokenizer)
            self._checked_table = self.model.exit_table
        for encoded in self._encoded_windows(inputs):
            start, tokens = time.perf_counter(), encoded.tokens
            with nullcontext() if self._planner is None else torch.cuda.stream(self._planner):
                stops = self.policy.stops(self.model, tokens)
                layers = self._layers(tokens)
            batches = self._schedule(stops, layers, tokens)
            yield Window(encoded, layers, batches, time.perf_counter() - start)

    def _predict_window(self, window: Window) -> Predictions:
        start = time.perf_counter()
        with self._watch.running():
            run = self._window_run(window)
            answers = list(run.answers(window.batches))
            logits = torch.cat([answer.logits for answer in answers]).float().cpu()
        ran = time.perf_counter()
        found = gather(window, answers, logits, self.model.answers)
        run.check(window.encoded.first, len(window.encoded.tokens))
        seconds = {"run": ran - start, "gather": time.perf_counter() - ran}
        seconds |= observe(self.observer, window.encoded.tokens, found.logits)
        return replace(found, timings=found.timings | seconds)

    def full_depth(self, tokens: Tokens) -> torch.Tensor:
        """The last exit's answers [N, C] on the host, whatever the policy.

        A model with skip gates skips by them, also where the policy plans paths: a planned path is not held to itself.
        """
        layers = self._layers(tokens, Skip("gates") if self._skip.mode == "planned" else self._skip)
        logits = torch.empty(len(tokens), self.model.config.num_labels)
        with self._watch.running():
            run = WindowRun(layers, in_flight=self.in_flight)
            for answer in list(run.answers(self._to_the_end(layers, tokens))):
                logits[answer.rows] = answer.logits.float().cpu()
        return logits

    def forget_promise(self) -> None:
        """End the promise and the audit, since the answers to come are others."""
        if self.observer is not None:
            self.observer.end()
        self.observer, self.promise = None, None

    def _layers(self, tokens: Tokens, skip: Skip | None = None) -> WindowLayers[Any]:
        skip = skip or self._skip
        return WindowLayers(self.runner, tokens, skip, self.layer_costs if skip.mode == "gates" else None)

    def _window_run(self, window: Window) -> WindowRun[Any]:
        policy, rule, plan = self.policy, self.policy.rule(self.model), self.policy.plan(self.model)
        scorer = None if rule is None else Scorer(rule, window.layers)
        planner = None if plan is None else Planner(plan, window.layers)
        pools = None
        if (scorer or planner) is not None and policy.regroup != "never" and len(window.encoded.tokens) > 1:
            costs = self.layer_costs if policy.regroup == "auto" else None
            pools = Pools(self.runner, self.token_budget, self._batch_cost, costs)
        return WindowRun(window.layers, scorer, policy.answer_head, pools, self.in_flight, planner)

    @cached_property
    def layer_costs(self) -> LayerCosts:
        """What layers cost on this machine. It decides whether survivors wait and whether few skip; measured when needed."""
        with self._watch.running():
            return LayerCosts.measure(self.runner, self.token_budget)

    def _to_the_end(self, layers: WindowLayers[Any], tokens: Tokens) -> Batches:
        return self._schedule(torch.full((len(tokens),), self.model.config.num_hidden_layers), layers, tokens)

    def _schedule(self, exits: torch.Tensor, layers: WindowLayers[Any], tokens: Tokens) -> Batches:
        return schedule(exits, tokens.lengths, self.token_budget, layers.groups, self._batch_cost)

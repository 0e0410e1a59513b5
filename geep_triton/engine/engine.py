"""The engine: texts in, answers out, in the caller's order, under a policy."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import closing, contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from geep_triton.batching import BATCH_COST, schedule
from geep_triton.checks import check_bool, check_int, check_kind, check_number
from geep_triton.config import check_temperatures
from geep_triton.data import Encoder, iter_samples
from geep_triton.engine.audit import Audit
from geep_triton.engine.calibrate import Calibration, calibrate
from geep_triton.engine.checks import (
    as_list,
    check_calibrated,
    check_finite,
    check_model,
    label_ids,
    usual_dtype,
)
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.policies import ConstantDepth, FullDepth, OneExitWarning, Policy, parse_policy
from geep_triton.engine.pools import Pools
from geep_triton.engine.promise import Promise
from geep_triton.engine.run import WindowRun
from geep_triton.engine.skipping import Layers, Skipping
from geep_triton.engine.weight_watch import WeightWatch
from geep_triton.engine.windows import Window, one_ahead
from geep_triton.exits.fingerprint import tokenizer_fingerprint
from geep_triton.exits.temperature import TemperatureFit
from geep_triton.modeling.attention import attention_kernels
from geep_triton.modeling.compiled import compile_layers
from geep_triton.modeling.graphed import graph_layers
from geep_triton.modeling.lean import lean, replace_layers
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.packed import pack_layers
from geep_triton.modeling.precision import HALF, dtype_name, in_dtype, with_few_row_counts
from geep_triton.modeling.storing import add_digest
from geep_triton.modeling.varlen import varlen_layers
from geep_triton.modeling.weights import TOKENIZER_DIGEST
from geep_triton.outputs import EveryExit, Predictions, Schedule, Tokens
from geep_triton.saving import reading, replacing, saved_digests
from geep_triton.warn import warn

TOKEN_BUDGETS = {"cpu": 1024, "cuda": 65536}
# A CPU runs small batches as well as large ones; a GPU needs thousands of tokens to hide a layer's launches.
BATCH_COSTS = {"cpu": BATCH_COST, "cuda": 4096}
IN_FLIGHT = 3  # batches on a GPU
ENOUGH = 50  # samples, before their all leaving at one layer is worth a warning


class Engine:
    """Runs a MultiExitBert over any number of texts in dense sorted batches.

    Inputs are read in windows: each window is tokenized, its exits planned, its samples sorted by exit and length and cut
    into batches, run, and put back into order. Memory does not grow with the number of inputs. An engine refuses to answer once
    the model's weights are others than those it was made with.

    Args:
        model: on the device it shall run on; set to evaluation mode now and whenever the engine runs it, which leaves it so.
        tokenizer: the model's own.
        policy: a policy, or its short form, such as "full", "constant:3", "threshold:0.3", "predicted:mean", "verified:0.2";
            see `geep_triton.engine.policies`. None: what the model was calibrated to, else "full".
        skipping: how samples skip layers: "gates", "planned", "planned:PRICE" or "never"; see
            `geep_triton.engine.skipping.Skipping`. None: what the model was calibrated with, else by its gates if it has any.
        token_budget: most tokens a batch may have, padding included; None: 1,024 on a CPU, 65,536 on a GPU.
        window: samples planned and sorted together.
        dtype: "float32", "bfloat16", "float16" (or torch's own) or "int8" (on a CPU only), in which the layers run. None: on a
            CPU the model's own; on a GPU half precision where the model is in float32, or, where `policy` is None, that of its
            calibration.
            The model stays as it is: the engine holds a copy, which takes memory of its own (load the model in bfloat16 to hold
            it once: `MultiExitBert.from_pretrained(..., dtype=torch.bfloat16)`); see
            `geep_triton.modeling.precision.in_dtype`. A float16 model is slow on most CPUs; where no dtype is named, the engine
            says so.
        packed: hold the layers' weights a second time, laid out for oneDNN: much faster on CPUs that MKL was not made for, such
            as AMD's. For models on a CPU, not with int8 or `compile`.
        in_place: with `packed`, lay out the model's own weights instead of holding them twice; to the dtype that they are in.
            The model is saved as it was, but can no longer be trained or moved. Engines made of it before refuse to answer,
            and hold the old weights as long as they are there.
        varlen: attend by where texts begin and end instead of by masks (torch's variable-length attention). Needs a GPU and
            half precision; not with `graphs`. Not yet measured.
        compile: compile one layer for all (torch.compile) now; `compile_seconds` says how long it took. Not with int8.
        graphs: replay CUDA graphs of layers and heads in small batches, whose launches take longer than their work; see
            `geep_triton.modeling.graphed`. Needs a GPU.
        prefetch: tokenize and plan the next window in a thread while the device runs this one; None: on a GPU. Inputs are then
            read a window further than answers have come, and who stops early waits for the inputs that are being read.
        in_flight: batches that run by turns where the host must know a batch's exits or gates to go on, so that the device has
            work meanwhile; None: 3 on a GPU, 1 on a CPU, which waits for nothing. Answers do not depend on it.
        cudnn_attention: let torch choose cuDNN's attention on a GPU, which is made anew for every batch shape: only for texts
            that always make the same shapes.
        max_length: most tokens a sample may have; None: what the model and its tokenizer can take.
        truncation: cut longer samples instead of raising; `Predictions.truncated` counts them.
        text_column, pair_column: where rows of a data set hold their text.
        progress: show a progress bar.

    Raises:
        ValueError: a policy this model cannot run, skipping without gates or learned paths, weights that are NaN or infinite,
            adapters or hooks in a model to be packed or quantized, an exit table built with another tokenizer, a window or
            budget below 1, a multi-label model, a dtype that cannot be had here, layers that cannot be compiled, and, where
            `policy` is None, a calibration made in another dtype.
        TypeError: a model or argument of another type.

    Attributes:
        dtype: in which the layers run.
        compile_seconds: None where nothing was compiled.
    """

    def __init__(
        self,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        policy: str | Policy | None = None,
        *,
        skipping: str | None = None,
        token_budget: int | None = None,
        window: int = 4096,
        dtype: str | torch.dtype | None = None,
        packed: bool = False,
        in_place: bool = False,
        varlen: bool = False,
        compile: bool = False,
        graphs: bool = False,
        prefetch: bool | None = None,
        in_flight: int | None = None,
        cudnn_attention: bool = False,
        max_length: int | None = None,
        truncation: bool = False,
        text_column: str = "text",
        pair_column: str = "text_pair",
        progress: bool = False,
    ) -> None:
        if not isinstance(model, MultiExitBert):
            raise TypeError(f"model must be a MultiExitBert, got {type(model).__name__}")
        check_kind("tokenizer", tokenizer, PreTrainedTokenizerBase)
        if isinstance(dtype, torch.dtype):
            dtype = str(dtype).removeprefix("torch.")
        on_gpu = model.device.type == "cuda"
        prefetch = on_gpu if prefetch is None else prefetch
        flags = {
            "packed": packed, "in_place": in_place, "varlen": varlen, "compile": compile, "graphs": graphs,
            "prefetch": prefetch, "cudnn_attention": cudnn_attention, "truncation": truncation, "progress": progress,
        }  # fmt: skip
        for name, value in flags.items():
            check_bool(name, value)
        if packed and compile:
            raise ValueError("packed and compile do not go together: torch.compile lays weights out itself")
        if packed and graphs:
            raise ValueError("packed and graphs do not go together: one is for models on a CPU, the other on a GPU")
        if in_place and not (packed and dtype in (None, dtype_name(model))):
            raise ValueError(
                f"in_place=True lays out a model's own weights: it needs packed=True, and dtype {dtype_name(model)!r} or None, "
                f"got packed={packed}, dtype={dtype!r}; MultiExitBert.from_pretrained(..., dtype=...) loads it in another"
            )
        if varlen and graphs:
            raise ValueError("varlen and graphs do not go together: a graph attends by masks of one shape")
        if varlen and not on_gpu:
            raise ValueError(f"varlen=True is for models on a GPU, got one on {model.device}")
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
        self._audit: Audit | None = None
        self.policy = (model.config.exit_policy or "full") if policy is None else policy
        self.skipping = skipping
        self.dtype = usual_dtype(model, calibrated=policy is None) if dtype is None else dtype
        if policy is None:
            check_calibrated(model, self.dtype)
        if dtype is None and self.dtype == "float16" and model.device.type == "cpu":
            warn(
                "the model is in float16, which most CPUs multiply slowly: dtype='float32' or 'bfloat16' is faster, "
                "dtype='float16' keeps it without this warning"
            )
        as_it_is = dtype is None and self.dtype == dtype_name(model)
        self._twin = self.model if as_it_is else in_dtype(self.model, self.dtype)
        self.cudnn_attention = cudnn_attention
        self.compile_seconds: float | None = None
        if packed:
            self._twin = pack_layers(self._twin, in_place or self._twin is not self.model)
            if self._twin is not self.model:
                replace_layers(self._twin, lean)
        elif not compile and not on_gpu and self.dtype in HALF:
            self._twin = with_few_row_counts(self._twin)
        if varlen:
            self._twin = varlen_layers(self._twin)
        if compile:
            with attention_kernels(cudnn_attention):
                self._twin, self.compile_seconds = compile_layers(self._twin)
        if graphs:
            self._twin = graph_layers(self._twin)
        self._twins_modules = tuple(self._twin.eval().modules())
        self._model_was = model.packed, model.config._attn_implementation
        # Answers of other weights are not what was calibrated, and a copy of some beside others that are shared is no model.
        self._weights = WeightWatch(model)
        self._config_was = self._config_now()
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
        self._promise = Promise.saved(model, self.skipping, self.max_length, truncation) if policy is None else None
        self._checked_table = model.exit_table

    @property
    def policy(self) -> Policy:
        """What samples run under. Setting another one, or its short form, ends an audit; a calibration's promise is not its."""
        return self._policy

    @policy.setter
    def policy(self, policy: str | Policy) -> None:
        policy = parse_policy(policy)
        policy.check(self.model, self.tokenizer)
        self._policy = policy
        self._end_audit()
        self._count_exits_anew()

    @property
    def skipping(self) -> Skipping:
        """How samples skip layers. Setting it, or its short form, ends an audit and what was promised before."""
        return self._skipping

    @skipping.setter
    def skipping(self, skipping: str | Skipping | None) -> None:
        if not isinstance(skipping, Skipping):
            skipping = Skipping.parse(skipping, self.model)
        skipping.check(self.model, self.tokenizer)
        self._skipping = skipping
        self._end_audit()
        self._count_exits_anew()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        policy: str | Policy | None = None,
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

        Raises:
            ValueError: there is no tokenizer, and all that `MultiExitBert.from_pretrained` and `Engine` raise.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with reading(pretrained_model_name_or_path):
            model = MultiExitBert.from_pretrained(pretrained_model_name_or_path).to(device)
            try:
                tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False)
                check_number("its model_max_length", tokenizer.model_max_length, 3)
                expected = saved_digests(pretrained_model_name_or_path).get(TOKENIZER_DIGEST)
                same = expected is None or expected == tokenizer_fingerprint(tokenizer)
            except Exception as error:  # of a damaged file the package tokenizers raises no other class
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds a model but no tokenizer that loads: save it there too "
                    "(tokenizer.save_pretrained, or engine.save_pretrained, which saves both). "
                    f"{type(error).__name__}: {error}"
                ) from error
        if not same:
            raise ValueError(
                f"{pretrained_model_name_or_path}: the model was saved with another tokenizer than the one that is there, or "
                "that one is damaged: save both again (engine.save_pretrained). If it was changed on purpose, make the engine "
                "of both yourself: Engine(model, tokenizer, ...)"
            )
        return cls(model, tokenizer, policy, **kwargs)

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
        other._audit = None
        other.policy = policy
        return other

    def calibrate(
        self,
        inputs: Any,
        labels: Sequence[str | int] | None = None,
        *,
        agreement: float | None = None,
        max_accuracy_drop: float | None = None,
        mean_depth: float | None = None,
        speedup: float | None = None,
        method: str = "learn-then-test",
        confidence: float | None = None,
        rounds: int = 3,
        speed_samples: int = 512,
        save: bool = True,
    ) -> Calibration:
        """Find the fastest policy that keeps a promise on answers, or the most faithful one within a budget, and use it.

        The promises on answers hold with `confidence` for texts like the given ones (fixed-sequence Learn-then-Test,
        Angelopoulos et al. 2021; the error is shared among the families of policies tried), or, with the method "conformal",
        on average over the texts one might have given (conformal risk control, Angelopoulos et al. 2022): bolder, and fewer
        texts will do, but any one calibration may fall short. With `mean_depth` or `speedup` the policy that agrees most
        among those that are cheap enough is taken; those are not promises about answers. In int8 an answer varies a little with
        the texts beside it, on which a promise, made of one run, says nothing. The full model is that at its last exit, which
        skips layers by its gates if the engine does.

        Args:
            inputs: a list of what `predict` takes, or a `datasets.Dataset`; neither trained on nor in the exit table. The more,
                the bolder the policy that can be shown to be safe.
            labels: names or ids, one per text; only "max_accuracy_drop" needs them.
            agreement: share of texts that must get the full model's answer, e.g. .98.
            max_accuracy_drop: by how much accuracy may lie below the full model's, e.g. .01.
            mean_depth: mean layers a text may take.
            speedup: over full depth, measured here.
            method: "learn-then-test" or "conformal".
            confidence: of the promise by "learn-then-test"; None: .95.
            rounds, speed_samples: how speed is measured: the median of interleaved rounds over so many texts.
            save: keep the policy in `model.config`, so that `save_pretrained` saves it and `Engine(...)` uses it.

        Raises:
            ValueError: not exactly one promise, or one out of range; too few texts for it (the error says how many are
                needed); texts that the exit table was built from; labels that do not fit; no policy is as fast as asked; and
                all that `predict` raises.
        """
        promises = {
            "agreement": agreement, "max_accuracy_drop": max_accuracy_drop, "mean_depth": mean_depth, "speedup": speedup
        }  # fmt: skip
        given = [(name, value) for name, value in promises.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"calibrate needs exactly one of {', '.join(promises)}, got {len(given)}")
        result = calibrate(self, inputs, labels, given[0], method, confidence, rounds, speed_samples, self.progress)
        self.policy = result.chosen.policy
        self._promise = None if agreement is None else Promise.made(self.model, agreement)
        if save:
            self.model.config.exit_policy = result.chosen.policy
            self.model.config.skipping = str(self.skipping)
            self.model.config.calibration = result.to_dict()
        return result

    def fit_temperatures(self, inputs: Any, labels: Sequence[str | int]) -> TemperatureFit:
        """Fit a temperature to each exit, so that its probabilities mean what they say; answers stay the same.

        Thresholds, an exit table and a calibration made before then mean something else, so do this first.

        Args:
            inputs: what `calibrate` takes; texts that were not trained on.
            labels: names or ids, one per text.

        Returns:
            One temperature per exit, kept in `model.config.exit_temperatures` and saved with the model; and the expected
            calibration error of each exit before and after.

        Raises:
            ValueError: labels that do not fit, before anything runs, and all that `predict` raises.
            TypeError: inputs of another type.
        """
        config, inputs = self.model.config, as_list(inputs)
        truth = label_ids(labels, len(inputs), config.label2id)
        record = self.every_exit(inputs)
        logits, counted = record.logits, None
        if config.exit_temperatures is not None:
            logits = logits * torch.tensor(config.exit_temperatures)[:, None]
        if record.skipped is not None:  # early exits score only who runs their layer
            counted = ~record.skipped[:, torch.tensor(config.exit_layers) - 1]
            counted[:, -1] = True
        found = TemperatureFit.of(logits, truth, config.exit_temperatures, counted)
        stale = [name for name, value in (("calibration", config.calibration), ("exit table", self.model.exit_table)) if value]
        if stale:
            warn(f"the model's {' and '.join(stale)} were made with other temperatures: make them again")
        self.model.forget_calibration()
        self._end_audit()
        config.exit_temperatures = list(found.temperatures)
        return found

    def audit(
        self, rate: float = 0.01, promised: float | None = None, confidence: float = 0.95, seed: int | None = None
    ) -> Audit:
        """From now on also run a random share of the samples to the end, and compare.

        A model with skip gates skips by them there, too, also where `skipping` is "planned"; with "never" it runs every layer.

        Args:
            rate: that share.
            promised: the agreement to hold answers to; None: what `calibrate` promised of this policy, if it did and the exit
                table and temperatures are still those it was made with. Without a promise the audit only observes.
            confidence: of the audit's interval.
            seed: of the choice; None: another one each time.

        Returns:
            The audit, whose `report()` tells the observed agreement; `predict` warns once when it is shown, at this confidence
            however often one looks, that the promise no longer holds. A promise by the method "conformal" holds on average
            over calibrations: any one of them may fall a little short of it, which a long audit finds. Another policy,
            calibration or fit of temperatures ends the audit.

        Raises:
            ValueError: a regression model, or a rate, promise or confidence out of range.
        """
        if self.model.config.num_labels < 2:
            raise ValueError("audit needs classes to compare: a regression model (num_labels=1) has none")
        self._check_promise()
        if promised is None and self._promise is not None:
            promised = self._promise.agreement
        self._audit = Audit(rate, promised, confidence, seed)
        return self._audit

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
            by_gates = self.skipping.mode == "gates" or (self._audit is not None and self.skipping.mode == "planned")
            if scores or by_gates:
                _ = self.layer_costs  # measured before a thread works beside
            windows = one_ahead(windows)
        with closing(windows):
            for window in windows:
                if window.padding is not None:
                    warn(window.padding)
                result = self._predict_window(window)
                if not isinstance(self.policy, (FullDepth, ConstantDepth)):
                    self._exits += Counter(result.histogram)
                yield result
        self._warn_of_one_exit()

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
        for tokens, first, _, padding in self._encoded_windows(inputs):
            if padding is not None:
                warn(padding)
            logits = torch.empty(len(tokens), len(self.model.config.exit_layers), self.model.config.num_labels)
            layers = self._layers(tokens)
            plan = self._schedule(torch.full((len(tokens),), self.model.config.num_hidden_layers), layers, tokens)
            with self._running():
                run = WindowRun(self._runner, tokens, layers=layers, in_flight=self.in_flight)
                rows, answers = zip(*run.every_exit(plan), strict=True)
                logits[torch.cat(rows)] = torch.cat(answers).float().cpu()
            check_finite(logits.flatten(1), first)
            yield EveryExit(tokens, logits, layers.skipped)

    def _encoded_windows(self, inputs: Any) -> Iterator[tuple[Tokens, int, float, str | None]]:
        """Of each window: tokens, index of the first sample, seconds taken to tokenize, and, once, what to warn of.

        This may run in a thread of its own, where no warning would find the user's line.
        """
        known = isinstance(inputs, Sized) and not isinstance(inputs, (str, Mapping)) and getattr(inputs, "ndim", 1) > 0
        total = len(inputs) if known else None
        samples, first, padding = iter_samples(inputs, self.text_column, self.pair_column), 0, None
        with tqdm(total=total, unit="text", disable=not self.progress) as bar:
            while True:
                start = time.perf_counter()
                window = list(islice(samples, self.window))
                if not window:
                    break
                tokens = self._encoder(window, first)
                told, padding = padding, padding or self._encoder.padding_of(window, tokens, first)
                yield tokens, first, time.perf_counter() - start, None if told else padding
                bar.update(len(window))
                first += len(window)
        if not first:
            raise ValueError("inputs: expected at least one text, got none")

    def _planned_windows(self, inputs: Any) -> Iterator[Window]:
        """The inputs' windows, ready to run."""
        if self.model.exit_table is not self._checked_table:
            self.policy.check(self.model, self.tokenizer)
            self.skipping.check(self.model, self.tokenizer)
            self._checked_table = self.model.exit_table
        for tokens, first, tokenize_seconds, padding in self._encoded_windows(inputs):
            start = time.perf_counter()
            with nullcontext() if self._planner is None else torch.cuda.stream(self._planner):
                plan = self.policy.plan(self.model, tokens)
                layers = self._layers(tokens)
            batches = self._schedule(plan.stops, layers, tokens)
            seconds = {"tokenize": tokenize_seconds, "plan": time.perf_counter() - start}
            yield Window(tokens, first, plan, layers, batches, seconds, padding)

    def _predict_window(self, window: Window) -> Predictions:
        config, layers = self.model.config, window.layers
        start = time.perf_counter()
        with self._running():
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
        check_finite(logits, window.first)
        run.check_scores(window.first)
        audited = {"audit": self._run_audit(window.tokens, logits)} if self._audit is not None else {}
        return Predictions(
            logits=logits,
            exit_layers=exits,
            layers_run=layers_run,
            id2label=dict(config.id2label),
            num_layers=config.num_hidden_layers,
            timings={
                **window.seconds,
                "run": ran - start,
                "gather": time.perf_counter() - ran - sum(audited.values()),
                **audited,
            },
            truncated=window.tokens.truncated,
            tokens=window.batches.tokens,
            padding=window.batches.padding,
            flops=layers.flops,
            skipped=layers.skipped,
        )

    def _run_audit(self, tokens: Tokens, logits: torch.Tensor) -> float:
        """Seconds taken to run the chosen samples to the end and compare."""
        start = time.perf_counter()
        made = self._promise
        self._check_promise()
        if made is not None and self._promise is None and self._audit.promised == made.agreement:
            self._audit.promised = None
        rows = self._audit.choose(len(tokens))
        if rows.numel():
            part = tokens.select(rows)
            # A plan is not held to itself: its samples run to the end by the gates that it foretells.
            layers = self._layers(part, Skipping("gates") if self.skipping.mode == "planned" else self.skipping)
            plan = self._schedule(torch.full_like(rows, self.model.config.num_hidden_layers), layers, part)
            agrees = torch.empty(len(rows), dtype=torch.bool)
            with self._running():
                run = WindowRun(self._runner, part, layers=layers, in_flight=self.in_flight)
                for answer in list(run.answers(plan)):
                    given = logits[rows[answer.rows]].argmax(-1)
                    agrees[answer.rows] = given == answer.logits.argmax(-1).cpu()
            self._audit.record(agrees)
        return time.perf_counter() - start

    def _check_promise(self) -> None:
        """Drop, aloud, a promise that was made with another table or other temperatures."""
        if self._promise is not None and not self._promise.holds(self.model):
            warn("the exit table or temperatures have changed since the calibration: its promise is gone")
            self._promise = None

    def _end_audit(self) -> None:
        """What was promised and observed so far is not of the answers to come."""
        if self._audit is not None:
            warn("the audit that was running ends here: call `audit` again for the new answers")
        self._audit, self._promise = None, None

    def _count_exits_anew(self) -> None:
        """Where samples left under the policy, over all calls."""
        self._exits: Counter[int] = Counter()
        self._warned_of_one_exit = False

    def _warn_of_one_exit(self) -> None:
        """Say so once where a policy that chooses chose nothing: it answered enough samples, and all at one exit."""
        exits = self._exits
        if self._warned_of_one_exit or sum(exits.values()) < ENOUGH or len(exits) != 1:
            return
        self._warned_of_one_exit = True
        (layer,) = exits
        last = layer == self.model.config.num_hidden_layers
        warn(
            f"policy {self.policy}: of {exits[layer]} samples "
            f"{'none left before the last layer' if last else f'all left at layer {layer}'}; "
            "its threshold, its patience or the exit table's plan tells none of them apart",
            OneExitWarning,
        )

    @property
    def _runner(self) -> MultiExitBert:
        """The model whose layers run: the given one, or this engine's twin of it with the table that it has now."""
        if self._twin.exit_table is not self.model.exit_table:
            self._twin._exit_table = self.model.exit_table
        return self._twin

    def _check_runner(self) -> None:
        """Before layers run: the model may have been changed or converted since this engine was made, or run last."""
        if self._config_now() != self._config_was:
            self.model.check_config()
        packed, attention = self._model_was
        own_layers = self._twin is not self.model
        if self.model.packed != packed or (own_layers and self.model.config._attn_implementation != attention):
            raise ValueError(
                "since this engine was made, the model was packed in place or given another attention implementation: make a "
                "new engine"
            )
        self._check_weights()
        check_temperatures(self.model.config.exit_temperatures, len(self.model.config.exit_layers))

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Layers run within: with the weights that this engine was made for, and for inference, from the first to the last."""
        self._check_runner()
        if any(module.training for module in self._twins_modules):
            self._twin.eval()
        with torch.inference_mode(), attention_kernels(self.cudnn_attention):
            yield
        self._check_weights()
        if any(module.training for module in self._twins_modules):
            raise ValueError("the model was set to training mode while the engine ran it: its answers are not kept")

    def _config_now(self) -> tuple[Any, ...]:
        config = self.model.config
        return (
            dict(config.id2label),
            dict(config.label2id),
            list(config.exit_layers),
            config.num_hidden_layers,
            config.vocab_size,
        )

    def _check_weights(self) -> None:
        """Before layers run, and after: else a window would be answered half by the old ones and half by the new."""
        if self._weights.changed():
            raise ValueError(
                "the model's weights have changed since this engine was made (by training, loading or moving them): make a new "
                "engine"
            )

    def _layers(self, tokens: Tokens, skipping: Skipping | None = None) -> Layers:
        skipping = skipping or self.skipping
        costs = self.layer_costs if skipping.mode == "gates" else None
        return Layers(self._runner, tokens, skipping, costs)

    def _window_run(self, window: Window) -> WindowRun:
        rule = self.policy.rule(self.model)
        waits = rule is not None and self.policy.pooling != "never" and len(window.tokens) > 1
        return WindowRun(
            self._runner,
            window.tokens,
            rule,
            window.plan.certain,
            self.policy.answer_head,
            Pools(window.tokens, self.token_budget, window.layers.groups, self._batch_cost) if waits else None,
            self.layer_costs if waits and self.policy.pooling == "auto" else None,
            window.layers,
            self.in_flight,
        )

    @cached_property
    def layer_costs(self) -> LayerCosts:
        """Of this model on this machine, which decide whether survivors wait and whether few skip; measured when needed."""
        with self._running():
            return LayerCosts.measure(self._runner, self.token_budget)

    def _schedule(self, exits: torch.Tensor, layers: Layers, tokens: Tokens) -> Schedule:
        return schedule(exits, tokens.lengths, self.token_budget, layers.groups, self._batch_cost)

"""Every system of the pipeline benchmark on the same texts, and the answers that each must give."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bench.pipeline.int8 import with_int8
from bench.pipeline.replay import replay, spread_heads, thresholds_for
from bench.pipeline.rivals_crossencoder import BACKENDS, CrossEncoderRival
from bench.pipeline.rivals_ctranslate2 import ctranslate2_bert
from bench.pipeline.rivals_dense import (
    BATCH,
    Call,
    DenseBert,
    DenseRival,
    Inputs,
    compiled,
    encode,
    frozen,
    torch_int8,
)
from bench.pipeline.rivals_embedding import TfIdf
from bench.pipeline.rivals_exits import ShrinkingBatches, normalized_entropy
from bench.pipeline.rivals_given import Given, Missing, batches_of, need, why
from bench.pipeline.rivals_onnx import fused_onnx_bert, onnx_bert, static_onnx_bert
from bench.pipeline.rivals_openvino import openvino_bert
from bench.pipeline.rivals_torchao import torchao_bert
from bench.pipeline.rivals_varlen import VarlenRival
from bench.pipeline.rivals_zentorch import zentorch_bert
from bench.pipeline.segments import ENGINES, Build, SegmentRunner
from geep_triton import Engine, MultiExitBert, Predictions
from geep_triton.policies.leave import Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import FirstExit
from geep_triton.policies.text import parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.runners.make import make_runner

# Mean difference of a probability from float32's at the same exit, and share of samples that leave elsewhere.
DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.08}
MOVED = 0.02  # in float32; in less a sample near a threshold may well cross it
NOBODY = "threshold:0,pooling=never"
WINDOW = 1024  # samples, so that the texts of a cell on a GPU make several
CALIBRATION = 300  # texts of static quantization
IMITATED = 1_000  # texts whose answers a ceiling is fitted to
ALONE, ALONE_SECONDS = 32, 10.0  # texts that are answered without their neighbours; none after so many seconds
ALL_LAYERS = ("ours", "full", "truncated", "exits")  # kinds of systems that run the model's layers, and answer as its exits do
PACKAGES: dict[str, Callable[[Given], Call]] = {  # rivals that run all layers in another package; each may raise Missing
    "onnxruntime": onnx_bert,
    "onnxruntime fused": fused_onnx_bert,
    "onnxruntime static": static_onnx_bert,
    "openvino": openvino_bert,
    "zentorch": zentorch_bert,
    "torchao": torchao_bert,
    "ctranslate2": ctranslate2_bert,
}
WAYS = {  # of running the layers: arguments of `Engine`
    "plain": {},
    "onednn": {"runner": "onednn"},
    "compiled": {"runner": "compiled"},
    "packed": {"runner": "packed"},
    "graphs": {"runner": "graphs"},
    "compiled, windows": {"runner": "compiled", "window": WINDOW},
    "compiled, windows, prefetch": {"runner": "compiled", "window": WINDOW, "prefetch": True},
}


def targets(rows: Sequence[dict[str, Any]], label2id: Mapping[str, int]) -> torch.Tensor:
    """[N] int64 classes of labelled rows."""
    return torch.tensor([label2id[str(row["label"])] for row in rows])


@dataclass(frozen=True)
class System:
    """Something that answers texts.

    Attributes:
        name: shown in tables.
        kind: "ours", "full" (a rival that runs all layers), "truncated" or "exits" (rivals that run fewer); "speed only" (its
            answers are not the model's), "ceiling" (it runs no layers).
        predict: rows -> predictions.
        exits: [N] layers at which it must answer; None: wherever it did.
        suffix: of the name of ours at full depth that it is to be held against.
        facts: further metrics.
    """

    name: str
    kind: str
    predict: Any
    exits: torch.Tensor | None = None
    suffix: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Workbench:
    """A model, texts, and the float32 answers of every exit to them.

    Args:
        model: in float32, where it shall run.
        tokenizer: its own.
        rows: texts, or rows of token ids.
        token_budget, max_length: as for `Engine`.
        recorded: name -> layers of exits to replay on a random model, whose heads are then spread, of `rows` and then of all of
            `fresh`; None: a trained model.
        predicted: name -> layers that a table predicted of them, from which samples are scored on.
        policies: name -> short form, that a trained model runs. Rivals take the thresholds of those that have them, and one
            that runs fewer layers the mean depth of the first.
        fresh: further texts, a list for each round that is timed; none: `rows` are timed.
        left: texts that are never timed; none: without rivals that need such, or come with them.
    """

    def __init__(
        self,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[dict[str, Any]],
        token_budget: int,
        max_length: int,
        recorded: Mapping[str, torch.Tensor] | None = None,
        policies: Mapping[str, str] = MappingProxyType({"threshold:0.3": "threshold:0.3"}),
        predicted: Mapping[str, torch.Tensor] | None = None,
        fresh: Sequence[Sequence[dict[str, Any]]] = (),
        left: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.model, self.tokenizer, self.rows = model, tokenizer, list(rows)
        self.fresh, self.left = [list(chunk) for chunk in fresh], list(left)
        self.settings = {"token_budget": token_budget, "max_length": max_length, "truncation": True}
        self.layers, self.depth = model.config.exit_layers, model.config.num_hidden_layers
        full = Engine(model, tokenizer, "full", dtype="float32", **self.settings)
        if recorded is not None:
            spread_heads(model, full.every_exit(self.rows).logits)
            full = Engine(model, tokenizer, "full", dtype="float32", **self.settings)  # the other answered with other heads
        record = full.every_exit(self.rows)
        self.tokens, self.logits = record.tokens, record.logits
        self.policies: dict[str, Policy] = {}
        if recorded is None:
            self.policies |= {name: parse_policy(form) for name, form in policies.items()}
        for name, exits in (recorded or {}).items():
            thresholds = self.policies[f"threshold, {name}"] = self._replayed(exits[: len(self.rows)])
            every = encode(tokenizer, [*self.rows, *chain(*self.fresh)], max_length)
            if predicted is not None:
                self.policies[f"verified, {name}"] = replay(every, predicted[name], thresholds.leave)
            self.policies[f"oracle, {name}"] = replay(every, exits)
        self.main, self.random = next(iter(self.policies)), recorded is not None
        self.truth = None
        if recorded is None and all("label" in row for row in self.rows):
            self.truth = targets(self.rows, model.config.label2id)

    def _replayed(self, recorded: torch.Tensor) -> Policy:
        """Thresholds at which as many samples leave at each exit as were recorded there."""
        early = recorded[recorded < self.depth]
        deepest = int(early.max()) if len(early) else 0  # nobody leaves beyond, so nobody is scored there
        used = [layer for layer in self.layers if layer <= deepest or layer == self.depth]
        at = [self.layers.index(layer) for layer in used[:-1]]
        if not at:
            return Policy(FirstExit(), Sure(0.0))
        found = thresholds_for(normalized_entropy(self.logits)[:, at], recorded, used)
        return Policy(FirstExit(), Sure(tuple(found.values()), layers=tuple(found)))

    def exits_of(self, policy: Policy) -> torch.Tensor:
        """[N] layers at which each sample is answered in float32."""
        return torch.tensor(self.layers)[simulate(self.model, policy, self.tokens, self.logits)]

    def engine(self, policy: str | Policy, dtype: str, way: str = "plain") -> Engine:
        """Ours, one of `WAYS` to run layers, with what it measures of them measured."""
        engine = Engine(self._ready(dtype), self.tokenizer, policy, dtype=dtype, **WAYS[way], **self.settings)
        _ = engine.layer_costs
        return engine

    def _ready(self, dtype: str) -> MultiExitBert:
        """The model, with scales for int8 where it shall run in that."""
        if dtype != "int8":
            return self.model
        return with_int8(self.model, self.tokenizer, self.left or self.rows, self.settings["max_length"])

    def ours(self, dtype: str, way: str = "plain") -> list[System]:
        """Full depth, nobody leaving though all are scored, and every policy."""
        return self._of(self.engine("full", dtype, way), "" if way == "plain" else f", {way}")

    def _of(self, engine: Engine, suffix: str) -> list[System]:
        policies = {"full": parse_policy("full"), NOBODY: parse_policy(NOBODY)} | self.policies
        return [
            System(f"ours, {name}{suffix}", "ours", engine.with_policy(policy).predict, self.exits_of(policy), suffix)
            for name, policy in policies.items()
        ]

    def rivals(
        self, dtype: str, compile: bool, folder: Path | None, batch: int = BATCH, one_shape: bool = False
    ) -> tuple[list[System], dict[str, str]]:
        """Those of this precision, and why others are missing.

        Args:
            dtype, compile: whether compiled ones take part.
            folder: for files of rivals of other packages; None: without those.
            batch: samples of a batch that shrinks.
            one_shape: all batches are of one shape, for which a GPU's rival may be compiled to a CUDA graph.
        """
        model = self.model if dtype in ("float32", "int8") else copy.deepcopy(self.model).to(getattr(torch, dtype))
        quantize = torch_int8 if dtype == "int8" else lambda module: module
        full = DenseBert(model, self.depth)
        call, found, missing = quantize(full), [], {}
        name = "torch dynamic int8" if dtype == "int8" else "huggingface"
        budget = self.settings["token_budget"]
        found.append(System(f"{name}, random batches", "full", self._dense(call, self.depth, None)))
        found.append(System(f"{name}, length-sorted", "full", self._dense(call, self.depth, budget)))
        if dtype == "int8":
            missing["compiled"] = "torch's int8 layers cannot be compiled"
        elif compile:
            found.append(System(f"{name}, compiled, length-sorted", "full", self._dense(compiled(full), self.depth, budget)))
            if self.model.device.type == "cpu":
                packed = self._dense(frozen(full), self.depth, budget)
                found.append(System(f"{name}, compiled and frozen, length-sorted", "full", packed))
            if one_shape and self.model.device.type == "cuda":
                graphed = torch.compile(full, mode="reduce-overhead", dynamic=False)
                found.append(System(f"{name}, compiled to CUDA graphs", "full", self._dense(graphed, self.depth, budget)))
        else:
            missing["compiled"] = "left out (--no-compile)"
        if folder is None or self.model.device.type != "cpu":
            missing |= dict.fromkeys(PACKAGES, "measured on texts on a CPU only")
        else:
            foreign, absent = self._foreign(dtype, compile, folder)
            found += foreign
            missing |= absent
        if self.model.device.type == "cuda" and dtype == "bfloat16":
            packed = VarlenRival(model, self.tokenizer, budget, self.settings["max_length"], compile)
            found.append(System(f"{name}, packed tokens", "full", packed.predict))
        else:
            missing["packed tokens"] = "torch's variable-length attention needs a GPU and half precision"
        mean_depth = float(self.exits_of(self.policies[self.main]).double().mean())
        layers = min(self.layers, key=lambda layer: abs(layer - mean_depth))
        short = quantize(DenseBert(model, layers))
        found.append(System(f"{name}, {layers} layers, length-sorted", "truncated", self._dense(short, layers, budget)))
        runner = make_runner(self._ready(dtype), dtype=dtype)
        for policy_name, policy in self.policies.items():
            if not (isinstance(policy.start, FirstExit) and isinstance(policy.leave, Sure)):
                continue
            thresholds, exits = policy.rule(self.model).thresholds, self.exits_of(policy)
            for title, size in (("deebert, one at a time", 1), ("fastbert, shrinking batches", batch)):
                rival = ShrinkingBatches(runner, self.tokenizer, thresholds, self.settings["max_length"], size)
                found.append(System(f"{title}, {policy_name}", "exits", rival.predict, exits))
        return found, missing

    def _foreign(self, dtype: str, compile: bool, folder: Path) -> tuple[list[System], dict[str, str]]:
        """Rivals of other packages; without texts that are not timed only the plain ONNX Runtime."""
        given = self._given(dtype, compile, folder)
        builds: dict[str, Callable[[], System]] = {
            name: partial(self._package, given, name) for name in (PACKAGES if self.left else ["onnxruntime"])
        }
        if self.left:
            for backend in ("torch", *BACKENDS):
                builds[f"CrossEncoder, {backend}"] = partial(self._cross_encoder, given, backend)
            builds["tf-idf"] = self._ceiling
        return self._built(builds)

    @staticmethod
    def _built(builds: Mapping[str, Callable[[], System]]) -> tuple[list[System], dict[str, str]]:
        """The systems that can be built, and why others cannot."""
        found, missing = [], {}
        for name, build in builds.items():
            try:
                found.append(build())
            except Exception as error:  # whatever another package raises
                missing[name] = why(error)
        return found, missing

    def dense_of_other_engines(self, dtype: str, folder: Path) -> tuple[list[System], dict[str, str]]:
        """Those that `under_exits` takes layers of, at full depth."""
        given = self._given(dtype, False, folder)
        return self._built({name: partial(self._package, given, name) for name in ENGINES})

    def _given(self, dtype: str, compile: bool, folder: Path) -> Given:
        """What rivals of other packages are given."""
        module, threads = DenseBert(self.model, self.depth), torch.get_num_threads()
        return Given(module, dtype, threads, folder, self._calibration(), self.tokenizer, compile)

    def under_exits(self, dtype: str, folder: Path) -> tuple[list[System], dict[str, str]]:
        """Ours at full depth and with exits, layers by another engine: on batches of any shape, and on a grid of shapes."""
        found, missing, calibration = [], {}, self._calibration()
        for name in ENGINES:
            for grid in (False, True):
                build = Build(name, dtype, torch.get_num_threads(), folder, calibration)
                suffix = f", {name}{', grid' if grid else ''}"
                try:
                    build.check()
                    runner = SegmentRunner(self.model, build, grid)
                    found += self._of(Engine(self.model, self.tokenizer, "full", runner=runner, **self.settings), suffix)
                except Missing as error:
                    missing[suffix.removeprefix(", ")] = why(error)
        return found, missing

    def _package(self, given: Given, name: str) -> System:
        call = PACKAGES[name](given)
        predict = self._dense(call, self.depth, self.settings["token_budget"])
        return System(f"{name}, length-sorted", "full", predict, facts=getattr(call, "facts", {}))

    def _cross_encoder(self, given: Given, backend: str) -> System:
        rival = CrossEncoderRival(given, self.model, self.settings["max_length"], backend)
        return System(f"CrossEncoder, {backend}", "speed only", rival.predict)

    def _calibration(self) -> list[Inputs]:
        """Batches of texts that are not timed, as long as those that are."""
        rows, limits = self.left[:CALIBRATION], (self.settings["token_budget"], self.settings["max_length"])
        return batches_of(rows, self.tokenizer, *limits) if rows else []

    def _ceiling(self) -> System:
        """Fitted to the model's answers. They are given one by one: no batch of a shape that is timed runs beforehand."""
        need("sklearn")
        if self.random:
            raise Missing("the answers of a random model follow from no words")
        rows = self.left[:IMITATED]
        full = Engine(self.model, self.tokenizer, "full", **self.settings | {"token_budget": 1})
        rival = TfIdf(self.model, rows, full.predict(rows).label_ids)
        return System("tf-idf", "ceiling", rival.predict)

    def _dense(self, call: Any, layers: int, budget: int | None) -> Any:
        return DenseRival(call, self.model, self.tokenizer, layers, budget, self.settings["max_length"]).predict

    def sound(self, systems: Sequence[System], dtype: str) -> tuple[dict[System, dict[str, Any]], dict[str, str]]:
        """What one run shows of each, and why rivals are missing that fail or answer otherwise.

        Raises:
            ValueError: ours answers otherwise.
        """
        found, missing = {}, {}
        for system in systems:
            try:
                found[system] = self.checked(system, dtype)
            except Exception as error:  # whatever another package raises
                if system.kind == "ours":
                    raise
                missing[system.name] = why(error)
        return found, missing

    def checked(self, system: System, dtype: str) -> dict[str, Any]:
        """What one run shows of a system's answers.

        Raises:
            ValueError: they are not those of its exits, or it left where it should not have.
        """
        start = time.perf_counter()
        got: Predictions = system.predict(self.rows)
        seconds, difference, moved = time.perf_counter() - start, None, None
        if system.kind in ALL_LAYERS:
            at = torch.searchsorted(torch.tensor(self.layers), got.exit_layers)
            expected = self.logits[torch.arange(len(got)), at]
            difference = float((got.logits.softmax(-1) - expected.softmax(-1)).abs().mean())
            moved = 0.0 if system.exits is None else float((got.exit_layers != system.exits).double().mean())
            if not difference <= DIFFERENCE[dtype] or (dtype == "float32" and moved > MOVED):
                raise ValueError(f"{system.name}, {dtype}: probabilities differ by {difference}, {moved:.1%} left elsewhere")
        lengths, judged = self.tokens.lengths, system.kind != "speed only"
        return {
            "first_seconds": seconds,
            "difference": difference,
            "moved": moved,
            "agreement": float((got.label_ids == self.logits[:, -1].argmax(-1)).double().mean()) if judged else None,
            "accuracy": float((got.label_ids == self.truth).double().mean()) if judged and self.truth is not None else None,
            "mean_layers": got.mean_layers,
            "mean_layers_of_a_token": float((got.layers_run * lengths).sum() / lengths.sum()),
            "padding": got.padding,
            **system.facts,
        }

    def lengths(self, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        """[N] tokens of texts."""
        return encode(self.tokenizer, rows, self.settings["max_length"]).lengths

    def neighbours(self, system: System) -> dict[str, Any]:
        """The largest difference of a text's logits from those that it gets among the others, and of how many texts.

        A text runs beside a copy of itself: a batch of one would be compiled anew. Empty for rivals that leave early, and for
        those whose answers are nobody's.
        """
        if system.kind not in ("ours", "full", "ceiling"):
            return {}
        among, began, differences = system.predict(self.rows).logits, time.perf_counter(), []
        for at in range(0, len(self.rows), -(-len(self.rows) // ALONE)):
            if differences and time.perf_counter() - began > ALONE_SECONDS:
                break
            alone = system.predict([self.rows[at]] * 2).logits
            differences.append(float((alone - among[at]).abs().max()))
        return {"neighbours": max(differences), "neighbours_texts": len(differences)}

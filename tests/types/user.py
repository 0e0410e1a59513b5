"""What users write, for mypy alone. What it must refuse is marked, and it refuses a mark that is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments
from typing_extensions import assert_type

import geep_triton
from geep_triton import (
    CrossEncoder,
    Engine,
    ExitTable,
    MultiExitBert,
    MultiExitBertConfig,
    MultiExitTrainer,
    Policy,
    Predictions,
    audit,
    build_exit_table,
    calibrate,
    calibrate_ranking,
    give_exits,
)
from geep_triton.engine.ranking import Ranking
from geep_triton.modeling.flops import Flops
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.ops.exit_scores import ExitScores, score_exits
from geep_triton.policies.leave import Patient, Sure
from geep_triton.policies.ranking import RankPolicy
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, TableAgreement, TableExit
from geep_triton.policies.text import format_policy, parse_policy
from geep_triton.promises.audit import Audit
from geep_triton.promises.calibration import Calibration, Candidate
from geep_triton.promises.ranking import RankCalibration
from geep_triton.promises.temperatures import TemperatureFit, fit_temperatures
from geep_triton.runners.base import Runner, StatesT
from geep_triton.runners.make import make_runner
from geep_triton.runners.packed import PackedRunner, PackedStates
from geep_triton.runners.padded import PaddedRunner, PaddedStates
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.recipes import get_recipe
from geep_triton.training.stages import Batch, Recipe, Stage, asked


def give(texts: list[str]) -> None:
    engine = give_exits("my-fine-tuned-bert", texts, output=Path("runs/fast"), agreement=0.98, exit_layers=[2, 4])
    assert_type(engine, Engine)
    give_exits("my-fine-tuned-bert", texts)  # type: ignore[call-arg]
    give_exits("my-fine-tuned-bert", 3, output="runs/fast")  # type: ignore[arg-type]


def score_pairs(pairs: list[tuple[str, str]]) -> None:
    encoder = CrossEncoder("my-reranker", max_length=256, activation_fn=torch.nn.Sigmoid(), device="cpu", policy="full")
    assert_type(encoder.engine, Engine)
    encoder.predict(pairs, batch_size=64, convert_to_tensor=True)
    encoder.predict(("a query", "a document"))
    encoder.predict(3)  # type: ignore[arg-type]
    found = encoder.rank("a query", [document for _, document in pairs], top_k=10, return_documents=True)
    assert_type(found[0]["corpus_id"], Any)
    encoder.rank(pairs, "a query")  # type: ignore[arg-type]


def load() -> Engine:
    engine = Engine.from_pretrained("runs/mine", policy="threshold:0.3", device="cpu", dtype=torch.bfloat16)
    assert_type(engine, Engine)
    assert_type(engine.policy, Policy)
    assert_type(engine.dtype, str)
    assert_type(engine.model, MultiExitBert)
    engine.policy = "full"
    engine.policy = Policy(LastLayer())
    engine.policy = 3  # type: ignore[assignment]
    engine.save_pretrained(Path("runs/other"))
    Engine.from_pretrained(3)  # type: ignore[arg-type]
    Engine.from_pretrained("runs/mine", runner=PaddedRunner(engine.model))  # type: ignore[arg-type]
    return engine.with_policy("constant:3")


def predict(engine: Engine, stream: Iterator[str], ids: torch.Tensor, array: np.ndarray) -> None:
    engine.predict("a text")
    engine.predict(["a text", "another"])
    engine.predict([("a text", "its pair"), ("alone", None)])
    engine.predict([["a text", "its pair"]])
    engine.predict(stream)
    engine.predict(f"text {number}" for number in range(3))
    engine.predict({"text": ["a text"], "text_pair": ["its pair"]})
    engine.predict([{"text": "a text"}, {"input_ids": [101, 102]}])
    engine.predict({"input_ids": ids, "attention_mask": ids > 0})
    engine.predict({"input_ids": array})
    engine.predict(np.array(["a text"]))
    engine.predict(None)  # type: ignore[arg-type]
    engine.predict(3)  # type: ignore[arg-type]
    engine.predict(b"bytes")  # type: ignore[arg-type]
    engine.predict([1, 2])  # type: ignore[list-item]
    engine.predict()  # type: ignore[call-arg]


def results(engine: Engine) -> None:
    result = engine.predict(["a text"])
    assert_type(result, Predictions)
    assert_type(engine.predict_windows(["a text"]), Iterator[Predictions])
    assert_type(result.logits, torch.Tensor)
    assert_type(result.labels, list[str])
    assert_type(result.label_ids, torch.Tensor)
    assert_type(result.probabilities, torch.Tensor)
    assert_type(result.exit_layers, torch.Tensor)
    assert_type(result.layers_run, torch.Tensor)
    assert_type(result.id2label, dict[int, str])
    assert_type(result.histogram, dict[int, int])
    assert_type(result.skip_histogram, dict[int, int])
    assert_type(result.skipped, torch.Tensor | None)
    assert_type(result.timings, dict[str, float])
    assert_type(result.flops, Flops)
    assert_type(result.flops.total, int)
    assert_type(result.padding, float)
    assert_type(result.mean_layers, float)
    assert_type(result.samples_per_second, float)
    assert_type(len(result), int)
    _ = result.label  # type: ignore[attr-defined]
    result.tokens = 3  # type: ignore[misc]


def promise(engine: Engine, texts: list[str]) -> None:
    found = calibrate(engine, texts, agreement=0.98)
    assert_type(found, Calibration)
    assert_type(found.chosen, Candidate)
    assert_type(found.chosen.speed_up, float | None)
    assert_type(found.candidates, tuple[Candidate, ...])
    calibrate(engine, texts, labels=["positive"] * len(texts), max_accuracy_drop=0.01, method="conformal")
    calibrate(engine, texts, labels=[0] * len(texts), speedup=2)
    calibrate(engine, texts, mean_depth=4, save=False)
    calibrate(engine, texts, agrement=0.98)  # type: ignore[call-arg]
    calibrate(engine.model, texts, agreement=0.98)  # type: ignore[arg-type]
    calibrate(engine, texts, agreement="0.98")  # type: ignore[arg-type]
    running = audit(engine, rate=0.01)
    assert_type(running, Audit)
    assert_type(running.report().agreement, float | None)
    assert_type(running.report().interval, tuple[float, float])
    assert_type(fit_temperatures(engine, texts, [0, 1]), TemperatureFit)


def rank(engine: Engine, texts: list[str]) -> None:
    assert_type(engine.ranking, RankPolicy | None)
    result = engine.rank("a query", texts, top_k=10, return_documents=True)
    assert_type(result, Ranking)
    assert_type(result.scores, torch.Tensor)
    for one in engine.rank_many([("a query", texts), ("another", iter(texts))], 10):
        assert_type(one, Ranking)
    found = calibrate_ranking(engine, [("a query", texts)] * 200, top_k=10, same_top_k=0.95)
    assert_type(found, RankCalibration)
    calibrate_ranking(engine, [("a query", texts)], [[0.0, 1.0]], top_k=10, max_ndcg_drop=0.02, confidence=0.9)
    engine.ranking = "top:10,margins=1.5/0.8,layers=2/4"
    engine.ranking = RankPolicy(10, {2: 1.5})
    engine.ranking = None
    engine.rank(3, texts)  # type: ignore[arg-type]
    engine.rank("a query", 3)  # type: ignore[arg-type]
    calibrate_ranking(engine, [("a query", texts)], same_top_k=0.95)  # type: ignore[call-arg]


def policies(engine: Engine) -> None:
    assert_type(parse_policy("predicted:0.05+threshold:0.3"), Policy)
    assert_type(format_policy(Policy(FirstExit(), Sure(0.3))), str)
    Engine(engine.model, engine.tokenizer, Policy(AtLayer(3)))
    Policy(FirstExit(), Sure((0.1, 0.2), criterion="margin", layers=(2, 4)))
    Policy(FirstExit(), Sure([0.1, 0.2], layers=[2, 4]), Skip("never"))
    Policy(FirstExit(), Patient(2, threshold=0.3, regroup="never"))
    Policy(TableExit(0.05), Sure(0.3), Skip("planned", price=0.5))
    Policy(TableAgreement(mean_depth=3), answer_head="shared")
    Policy("full")  # type: ignore[arg-type]
    Policy(LastLayer)  # type: ignore[arg-type]
    Policy(FirstExit(), 0.3)  # type: ignore[arg-type]
    Policy(FirstExit(), Patient())  # type: ignore[call-arg]
    AtLayer("3")  # type: ignore[arg-type]
    Sure(threshold="0.3")  # type: ignore[arg-type]


def table(model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    built = build_exit_table(model, tokenizer, texts, threshold=0.3, learn=("agreement", "exits"), max_length=128)
    assert_type(built, ExitTable)
    assert_type(built.rebuild(threshold=0.2), ExitTable)
    assert_type(built.learned.keys() >= {"exits"}, bool)
    model.exit_table = built
    model.exit_table = None
    model.exit_table = "table.safetensors"  # type: ignore[assignment]
    assert_type(model.exit_table, ExitTable | None)
    build_exit_table(model, tokenizer, texts, threshold="0.3")  # type: ignore[arg-type]


def build(ids: torch.Tensor) -> MultiExitBert:
    config = MultiExitBertConfig(num_hidden_layers=6, exit_layers=[2, 4, 6], head="linear", skip_gate="mean")
    assert_type(config.exit_layers, list[int])
    assert_type(config.num_labels, int)
    assert_type(config.id2label, dict[int, str])
    assert_type(config.last_head, str)
    assert_type(config.skip_layers, list[int] | None)
    MultiExitBertConfig(exit_layers="2,4")  # type: ignore[arg-type]
    model = MultiExitBert(config)
    assert_type(model.config, MultiExitBertConfig)
    assert_type(model.to("cpu"), MultiExitBert)
    assert_type(model.eval(), MultiExitBert)
    assert_type(model.weights_digest(), str)
    assert_type(model.exit_config.thresholds, float | tuple[float, ...] | None)
    output = model.forward(ids, attention_mask=ids > 0, exit_layer=2)
    assert_type(output, MultiExitBertOutput | tuple)
    model.forward(ids, exit_layer="2")  # type: ignore[arg-type]
    model.save_pretrained(Path("runs/mine"))
    assert_type(MultiExitBert.from_pretrained("google-bert/bert-base-uncased", num_labels=2), MultiExitBert)
    MultiExitBert.from_pretrained(None)  # type: ignore[arg-type]
    return model


def own_loss(output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(asked(output.logits), asked(batch.labels))


def train(model: MultiExitBert, rows: Dataset) -> None:
    arguments = TrainingArguments("runs/training")
    trainer = MultiExitTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        recipe="geep",
        head_learning_rate=1e-3,
        curriculum=Curriculum("staged"),
        difficulty=[1.0, 2.0],
        class_weights="balanced",
    )
    assert_type(trainer.model, MultiExitBert)
    assert_type(trainer.train().training_loss, float)
    assert_type(trainer.evaluate(), dict[str, float])
    MultiExitTrainer(model=model, args=arguments, recipe=get_recipe("smartbert", skip_rate=0.3))
    MultiExitTrainer(
        model=model, args=arguments, recipe=Recipe("own", (Stage(own_loss),)), curriculum=lambda progress: progress
    )
    MultiExitTrainer(model=model, recipe=own_loss)  # type: ignore[arg-type]
    MultiExitTrainer(model=model, curriculum=0.5)  # type: ignore[arg-type]
    Stage(lambda output: output.loss)  # type: ignore[arg-type, misc]


def again(runner: Runner[StatesT], states: StatesT) -> StatesT:
    """A runner gets the states that it gave."""
    return runner.join([runner.layers(1, 2, states)])


def runners(model: MultiExitBert, padded: PaddedRunner, packed: PackedRunner, here: PaddedStates, there: PackedStates) -> None:
    Engine(model, AutoTokenizer.from_pretrained("runs/mine"), runner=make_runner(model, "onednn", "int8"))
    Engine(model, AutoTokenizer.from_pretrained("runs/mine"), runner=padded)
    Engine(model, AutoTokenizer.from_pretrained("runs/mine"), runner=3)  # type: ignore[arg-type]
    assert_type(again(padded, here), PaddedStates)
    assert_type(again(packed, there), PackedStates)
    again(padded, there)  # type: ignore[misc]


def ops(logits: torch.Tensor) -> None:
    scores = score_exits(logits, threshold=0.2, criterion="margin")
    assert_type(scores, ExitScores)
    assert_type(scores.leaves, torch.Tensor)
    score_exits(logits, "0.2")  # type: ignore[arg-type]


def nothing() -> None:
    _ = geep_triton.nothing_here  # type: ignore[attr-defined]

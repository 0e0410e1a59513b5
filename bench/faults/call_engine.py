"""The engine and building a table: all callables, and the values that their arguments must not have."""

from __future__ import annotations

from typing import Any

import torch

from bench.faults import hostile
from bench.faults.hostile import not_bool, not_choice, not_int, not_number, not_path, not_texts
from bench.faults.material import make_model, make_texts
from bench.faults.target import Target
from geep_triton import Engine, MultiExitBert, audit, build_exit_table, calibrate, calibrate_ranking
from geep_triton.policies.text import parse_policy
from geep_triton.promises.temperatures import fit_temperatures

I64, F32 = torch.int64, torch.float32
SAMPLES = 8


def engine_targets(engine: Engine) -> list[Target]:
    """Targets that work on small models."""
    model, tokenizer = engine.model, engine.tokenizer
    texts = make_texts(3, SAMPLES, odd=0.0)
    policies = {
        "policy": lambda: [
            *not_choice(optional=True)(),
            *(f"{name}:x" for name in ("constant", "threshold", "patience", "full+skip")),
            *(f"full+skip:{skip}" for skip in ("never:1", "planned:x")),
        ]
    }
    run = {"policy": lambda: [*policies["policy"](), "full+skip:gates", "full+skip:planned"]}  # by a model without gates
    settings = {
        "token_budget": not_int(1, optional=True),
        "window": not_int(),
        "dtype": not_choice(optional=True),
        "runner": not_choice(),
        **dict.fromkeys(("truncation", "progress"), not_bool),
        "columns": lambda: [None, 3, [], ["text"], ("text", 3), {}],
        "in_flight": not_int(1, optional=True),
        "max_length": lambda: [*not_int(3, optional=True)(), 10**6],
        "model": lambda: [None, 3, "x", torch.nn.Linear(2, 2), {}, hostile.Stranger(), MultiExitBert],
        "tokenizer": lambda: [None, 3, "x", {}, hostile.Stranger(), len],
        **run,
    }
    reading = {"inputs": not_texts}
    no_engine = {"engine": lambda: [None, 3, "x", model, tokenizer, hostile.Stranger(), Engine]}
    promises = {
        "agreement": not_number(0.0, 1.0, optional=True),
        "max_accuracy_drop": not_number(0.0, 1.0, optional=True),
        "mean_depth": not_number(0.9, optional=True),
        "speedup": not_number(0.9, optional=True),
    }
    ranker = Engine(make_model(num_labels=1), tokenizer)
    ranker.ranking = "top:2,margins=0.5,layers=2"
    groups = [("good film", texts)] * SAMPLES
    ranking = {"groups": groups, "relevances": [[1.0] * SAMPLES] * SAMPLES, "top_k": 2, "confidence": 0.5}
    return [
        Target("Engine", Engine, settings, {"model": model, "tokenizer": tokenizer}),
        Target("Engine.with_policy", engine.with_policy, run),
        Target("parse_policy", parse_policy, {"text": lambda: [*policies["policy"](), None]}),
        Target("Engine.predict", engine.predict, reading),
        Target("Engine.predict_windows", lambda inputs: list(engine.predict_windows(inputs)), reading),
        Target("Engine.every_exit_windows", lambda inputs: list(engine.every_exit_windows(inputs)), reading),
        Target("Engine.every_exit", engine.every_exit, reading),
        Target(
            "Engine.rank",
            ranker.rank,
            {
                "query": lambda: [None, 3, b"x", [], {}, hostile.NAN, hostile.Stranger(), "\ud800", " "],
                "candidates": not_candidates,
                "top_k": not_int(1, optional=True),
                "return_documents": not_bool,
            },
            {"query": "good film", "candidates": texts},
        ),
        Target("Engine.rank_many", lambda groups: list(ranker.rank_many(groups)), {"groups": not_groups}),
        *(
            Target(
                f"calibrate_ranking({promise}=)",
                calibrate_ranking,
                {
                    "engine": lambda: [*no_engine["engine"](), engine],
                    "groups": lambda: [*not_groups(), [], groups[:1]],
                    "relevances": lambda: not_relevances(SAMPLES),
                    "top_k": not_int(1),
                    promise: lambda: [value for value in not_number(0.0001, 0.9999)() if value is not None],
                    "confidence": not_number(0.5, 0.9999),
                    "rounds": not_int(1),
                    "speed_queries": not_int(1),
                },
                {"engine": ranker, **ranking, promise: 0.5},
            )
            for promise in ("same_top_k", "max_ndcg_drop", "max_mrr_drop")
        ),
        *(
            Target(
                f"calibrate({promise}=)",
                calibrate,
                {
                    promise: lambda wrong=wrong: [value for value in wrong() if value is not None],
                    "inputs": not_texts,
                    "labels": hostile.not_labels(SAMPLES) if promise == "max_accuracy_drop" else list,
                    "method": not_choice(),
                    **no_engine,
                },
                {
                    "engine": engine,
                    "inputs": texts,
                    promise: 0.5,
                    **({"labels": [0] * SAMPLES} if promise == "max_accuracy_drop" else {}),
                },
            )
            for promise, wrong in promises.items()
        ),
        Target(
            "fit_temperatures",
            fit_temperatures,
            {"inputs": not_texts, "labels": hostile.not_labels(SAMPLES), **no_engine},
            {"engine": engine, "inputs": texts, "labels": [0, 1] * (SAMPLES // 2)},
        ),
        Target(
            "audit",
            audit,
            {
                "rate": lambda: [*not_number(0.0, 1.0)(), 0],
                "promised": not_number(0.0, 1.0, optional=True),
                "confidence": not_number(0.5, 0.9999),
                "seed": lambda: ["x", 1.5, [], {}, b"", hostile.NAN, True],
                **no_engine,
            },
            {"engine": engine},
        ),
        Target("Engine.from_pretrained", Engine.from_pretrained, {"pretrained_model_name_or_path": not_path}),
        Target(
            "Engine.save_pretrained", engine.save_pretrained, {"save_directory": lambda: [None, 3, [], {}, "\0", 1.5, b"\xff"]}
        ),
        Target(
            "build_exit_table",
            build_exit_table,
            {
                "model": settings["model"],
                "tokenizer": settings["tokenizer"],
                "texts": not_texts,
                "threshold": not_number(0.0, 1.0),
                "ngram": lambda: [*not_int()(), 17, 10**12],
                "smoothing": not_number(0.0),
                "reduction": not_choice(),
                "criterion": not_choice(optional=True),
                "learn": lambda: ["agreement", "", 3, {}, {1}, b"full", ["nothing"], [None], [["exits"]], ("exits", 1)],
                **dict.fromkeys(("progress", "save_records"), not_bool),
            },
            {"model": model, "tokenizer": tokenizer, "texts": texts, "threshold": 0.5, "progress": False},
        ),
    ]


def not_candidates() -> list[Any]:
    """Values that are no candidates of a query."""
    return [
        *(None, 3, True, "good", b"good", {}, {"good"}, hostile.NAN, hostile.Stranger(), [None], ["good", None], ["good", 3]),
        *([""], ["good", " "], [b"good"], [["good"]], [("good", "bad")], ["good " * 500], ["\ud800"], torch.tensor([1, 2])),
    ]


def not_groups() -> list[Any]:
    """Values that are no queries with their candidates."""
    wrong = [None, 3, "good", b"good", {"good": ["bad"]}, hostile.Stranger(), ["good"], [("good",)], [("good", [], [])], [None]]
    return [*wrong, *([(query, ["bad"])] for query in (None, 3, b"x", [])), *([("good", texts)] for texts in not_candidates())]


def not_relevances(queries: int) -> list[Any]:
    """Values that are not a number from 0 for each of as many candidates as there are queries."""
    rows = [[], None, [-1.0] * queries, [hostile.NAN] * queries, ["x"] * queries, [None] * queries, [1.0] * (queries + 1), 3]
    return [3, "x", [], [[1.0] * queries] * (queries + 1), hostile.Stranger(), *([row] * queries for row in rows)]

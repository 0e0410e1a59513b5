"""The engine and building a table: each callable with the values that its arguments must not have."""

from __future__ import annotations

import torch

from bench.faults import hostile
from bench.faults.hostile import not_bool, not_choice, not_int, not_number, not_path, not_texts
from bench.faults.material import make_texts
from bench.faults.target import Target
from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.engine.policies import parse_policy

I64, F32 = torch.int64, torch.float32
SAMPLES = 8


def engine_targets(engine: Engine) -> list[Target]:
    """Around small models."""
    model, tokenizer = engine.model, engine.tokenizer
    texts = make_texts(3, SAMPLES, odd=0.0)
    policies = {
        "policy": lambda: [*not_choice(optional=True)(), *(f"{name}:x" for name in ("constant", "threshold", "patience"))]
    }
    settings = {
        "skipping": lambda: [*not_choice(optional=True)()[1:], "gates", "planned", "never:1", "planned:x"],
        "token_budget": not_int(1, optional=True),
        "window": not_int(),
        "dtype": not_choice(optional=True),
        **dict.fromkeys(
            ("packed", "in_place", "varlen", "compile", "graphs", "cudnn_attention", "truncation", "progress"), not_bool
        ),
        "in_flight": not_int(1, optional=True),
        "max_length": lambda: [*not_int(3, optional=True)(), 10**6],
        "model": lambda: [None, 3, "x", torch.nn.Linear(2, 2), {}, hostile.Stranger(), MultiExitBert],
        "tokenizer": lambda: [None, 3, "x", {}, hostile.Stranger(), len],
        **policies,
    }
    reading = {"inputs": not_texts}
    promises = {
        "agreement": not_number(0.0, 1.0, optional=True),
        "max_accuracy_drop": not_number(0.0, 1.0, optional=True),
        "mean_depth": not_number(0.9, optional=True),
        "speedup": not_number(0.9, optional=True),
    }
    return [
        Target("Engine", Engine, settings, {"model": model, "tokenizer": tokenizer}),
        Target("Engine.with_policy", engine.with_policy, policies),
        Target("parse_policy", parse_policy, {"text": lambda: [*policies["policy"](), None]}),
        Target("Engine.predict", engine.predict, reading),
        Target("Engine.predict_windows", lambda inputs: list(engine.predict_windows(inputs)), reading),
        Target("Engine.exit_logits", engine.exit_logits, reading),
        Target("Engine.every_exit", engine.every_exit, reading),
        *(
            Target(
                f"Engine.calibrate({promise}=)",
                engine.calibrate,
                {
                    promise: lambda wrong=wrong: [value for value in wrong() if value is not None],
                    "inputs": not_texts,
                    "labels": hostile.not_labels(SAMPLES) if promise == "max_accuracy_drop" else list,
                    "method": not_choice(),
                },
                {"inputs": texts, promise: 0.5, **({"labels": [0] * SAMPLES} if promise == "max_accuracy_drop" else {})},
            )
            for promise, wrong in promises.items()
        ),
        Target(
            "Engine.fit_temperatures",
            engine.fit_temperatures,
            {"inputs": not_texts, "labels": hostile.not_labels(SAMPLES)},
            {"inputs": texts, "labels": [0, 1] * (SAMPLES // 2)},
        ),
        Target(
            "Engine.audit",
            engine.audit,
            {
                "rate": lambda: [*not_number(0.0, 1.0)(), 0],
                "promised": not_number(0.0, 1.0, optional=True),
                "confidence": not_number(0.5, 0.9999),
                "seed": lambda: ["x", 1.5, [], {}, b"", hostile.NAN, True],
            },
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
                "criterion": not_choice(),
                **dict.fromkeys(("learn_agreement", "learn_exits", "learn_skips", "progress", "save_records"), not_bool),
            },
            {"model": model, "tokenizer": tokenizer, "texts": texts, "threshold": 0.5, "progress": False},
        ),
    ]

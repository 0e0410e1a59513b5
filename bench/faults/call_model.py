"""Models, exit tables and policies: all callables, and the values that their arguments must not have."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from bench.faults import hostile
from bench.faults.hostile import Values, not_choice, not_int, not_number, not_path, not_tensor
from bench.faults.target import Target
from geep_triton import Engine, ExitTable, MultiExitBert, MultiExitBertConfig
from geep_triton.exit_config import OLD_FIELDS, ExitConfig
from geep_triton.policies.leave import Patient, Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import AtLayer, FirstExit, TableAgreement, TableExit
from geep_triton.tokens.ragged import Tokens

I64, F32 = torch.int64, torch.float32


def model_targets(engine: Engine, folder: Path) -> list[Target]:
    """Targets that work on small models."""
    model = engine.model
    count, size = len(model.config.exit_layers), model.config.vocab_size
    layers: Values = partial(
        list, [[], [0], [count + 1], [1, 1, count], [1], "12", 3, {}, [1.5], [None], [True], ["x"], [[1]], hostile.Stranger()]
    )
    fields = {
        "exit_layers": layers,
        "head": not_choice(),
        "pooling": not_choice(),
        "last_head": not_choice(optional=True),
        "last_pooling": not_choice(optional=True),
        "head_size": lambda: [*not_int()(), 10**9],
        "head_attention_heads": not_int(),
        "head_dropout": not_number(0.0, 1.0),
        "skip_gate": not_choice(optional=True),
        "skip_layers": lambda: [[1], 3, "x"],
        "skip_threshold": not_number(0.0, 1.0),
        "skip_gate_bias": not_number(-1e3, 1e3),
        "skip_gate_size": not_int(),
        "skip_gate_attention_heads": not_int(),
        "num_labels": lambda: [0, -1, 10**9, 1.5, "3", [], hostile.NAN],
        "id2label": lambda: [{1: "a", 2: "b"}, {0: "a", 1: "a"}, {"x": "a"}, 3, "ab", {0.5: "a"}, {-1: "a"}],
        "label2id": lambda: [{"a": 1}, {"a": 0, "b": 0}, {"a": "x"}, {"a": None}, {"a": 2**70}, 3, {"a": 0.5}],
        "hidden_size": not_int(),
        "num_hidden_layers": not_int(),
        "num_attention_heads": not_int(),
        "vocab_size": not_int(),
        "pad_token_id": lambda: [-1, 10**9, "x", 1.5],
        "is_decoder": lambda: [True, "x"],
    }
    served = {
        "exit_thresholds": lambda: [*not_number(0.0, 1.0, optional=True)(), [0.1], [0.1] * count, ["x"] * (count - 1)],
        "exit_temperatures": lambda: [3, 1.5, "x", [1.0], [0.0] * count, [-1.0] * count, [hostile.NAN] * count, [None] * count],
        "exit_policy": lambda: [3, [], {}, b"full"],
        "skipping": lambda: [3, [], {}],
        "calibration": lambda: [3, "x", {"x": 1}],
    }
    forward = {
        "input_ids": not_tensor(2, I64, empty=True, low=0, high=size - 1),
        "labels": lambda: [
            torch.tensor([3, 0]),
            torch.tensor([-1, 0]),
            torch.tensor([0.5, 1.0]),
            "x",
            [0, 1],
            torch.tensor([0]),
        ],
        "exit_layer": lambda: [*not_int(1, optional=True)(), count + 1],
        "answer_head": not_choice(),
        "gating": not_choice(optional=True),
        "attention_mask": lambda: ["x", 3, [[1] * 3] * 2, torch.ones(3), torch.ones(2, 4), torch.ones(1, 3, 3)],
        "token_type_ids": lambda: [
            "x",
            3,
            torch.full((2, 3), 2),
            torch.full((2, 3), -1),
            torch.zeros(2, 4, dtype=I64),
            torch.zeros(2, 3),
        ],
    }
    return [
        Target("MultiExitBertConfig", MultiExitBertConfig, fields),
        Target(
            "MultiExitBert.exit_config =",
            lambda **values: setattr(model, "exit_config", ExitConfig(**values)),
            {OLD_FIELDS[name]: values for name, values in served.items() if name != "skipping"},
        ),
        Target(
            "MultiExitBert.exit_config =",
            lambda exit_config: setattr(model, "exit_config", exit_config),
            {"exit_config": lambda: [None, 3, "x", {}, [], hostile.Stranger()]},
        ),
        Target("MultiExitBert.forward", model.forward, forward, {"input_ids": torch.tensor([[2, 5, 3], [2, 6, 3]])}),
        Target(
            "MultiExitBert.from_pretrained",
            lambda path, **fields: MultiExitBert.from_pretrained(path, **fields),
            {
                "path": not_path,
                **{name: fields[name] for name in ("exit_layers", "head", "head_size", "num_labels", "id2label")},
                **served,
            },
            {"path": folder / "model"},
        ),
        Target(
            "MultiExitBert.exit_table =",
            lambda table: setattr(model, "exit_table", table),
            {"table": lambda: [3, "x", {}, [], hostile.Stranger(), torch.zeros(2)]},
        ),
    ]


def table_targets(engine: Engine) -> list[Target]:
    """Targets that work on small models."""
    table = engine.model.exit_table
    tokens = Tokens.from_lists([[2, 5, 6, 3], [2, 7, 3]])
    statistics = hostile.not_statistic
    training = {"epochs": not_int(), "batch_size": not_int(), "learning_rate": lambda: [*not_number(0.0)(), 0]}
    return [
        Target(
            "ExitTable.rebuild",
            table.rebuild,
            {
                "threshold": not_number(0.0, 1.0),
                "ngram": lambda: [*not_int()(), 17],
                "smoothing": not_number(0.0),
                "reduction": not_choice(),
            },
        ),
        Target("ExitTable.learn", table.learn, {"what": not_choice(), **training}, {"what": "agreement"}),
        Target("ExitTable.learn('skips')", table.learn, {"most_paths": not_int(optional=True)}, {"what": "skips"}),
        Target("ExitTable.merge", table.merge, {"other": lambda: [None, 3, "x", {}, hostile.Stranger()]}),
        Target(
            "ExitTable.predict",
            table.predict,
            {
                "tokens": lambda: [None, 3, "x", [[2, 5, 3]], hostile.Stranger(), torch.zeros(3)],
                "statistic": statistics,
                "values": not_choice(),
            },
            {"tokens": tokens},
        ),
        Target(
            "ExitTable.price_for",
            table.price_for,
            {"mean_depth": lambda: [value for value in not_number(1.0)() if value is not None]},
        ),
        Target(
            "ExitTable.price_for(agreement=)",
            table.price_for,
            {"agreement": lambda: [value for value in not_number(0.0, 1.0)() if value is not None]},
        ),
        Target("ExitTable.load", ExitTable.load, {"path": not_path}),
        Target(
            "ExitTable.save_pretrained", table.save_pretrained, {"directory": lambda: [None, 3, [], {}, "\0", 1.5, b"\xff"]}
        ),
        *(
            Target(policy.__name__, policy, refuses, valid)
            for policy, refuses, valid in (
                (AtLayer, {"layer": not_int()}, {"layer": 1}),
                (
                    TableExit,
                    {"statistic": lambda: [value for value in statistics() if value is not None], "values": not_choice()},
                    {},
                ),
                (TableAgreement, {"price": lambda: [v for v in not_number(0.0, 1.0)() if v is not None]}, {}),
                (Sure, {"criterion": not_choice(), "top_k": not_int(2), "regroup": not_choice()}, {"threshold": 0.5}),
                (Patient, {"patience": not_int(), "regroup": not_choice()}, {"patience": 1}),
                (Skip, {"mode": not_choice(), "price": not_number()}, {"mode": "planned"}),
                (
                    Policy,
                    {
                        "start": lambda: [None, 3, "full", AtLayer, FirstExit(), hostile.Stranger()],
                        "leave": lambda: [3, "threshold:0.3", Sure, AtLayer(1), hostile.Stranger()],
                        "skip": lambda: [3, "never", Skip, hostile.Stranger()],
                        "answer_head": not_choice(),
                    },
                    {"start": AtLayer(1)},
                ),
            )
        ),
        *(
            Target(
                f"Engine({type(start).__name__}, Sure)",
                lambda start=start, **values: Engine(engine.model, engine.tokenizer, Policy(start, Sure(**values))),
                {
                    "threshold": lambda: [*not_number(0.0, 1.0)()[:-1], [0.5], [0.5] * 9, ["x"] * 3, [None] * 3, "x"],
                    "layers": lambda: [(), (9,), (1, 1), (3, 1), (4,), "12", 3, ("x",), (1.5,), ([1],), hostile.Stranger()],
                },
                {"threshold": 0.5},
            )
            for start in (FirstExit(), TableExit(0.05))
        ),
    ]

"""The ops: all callables, and the values that their arguments must not have."""

from __future__ import annotations

import torch

from bench.faults.hostile import not_choice, not_int, not_number, not_tensor
from bench.faults.target import Target
from geep_triton import Engine
from geep_triton.engine.batching import schedule
from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.forecast import ForecastNet, forecast
from geep_triton.ops.hash_table import HashTable, insert_add, lookup
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.ops.outranked import outranked
from geep_triton.ops.partition import partition
from geep_triton.ops.predict_exits import predict_exits
from geep_triton.ops.skip_gate import skip_gate

I64, F32 = torch.int64, torch.float32


def ops_targets(engine: Engine) -> list[Target]:
    """Targets that work on small models."""
    table = HashTable.empty(3)
    backend = {"backend": not_choice(optional=True)}
    scores = engine.model.exit_table.score_table()
    three = torch.tensor([0, 1, 2])
    net, other = (ForecastNet(torch.zeros(2 * n, 4), torch.zeros(4), torch.zeros(4, 2), torch.zeros(2)) for n in (3, 5))
    return [
        Target(
            "schedule",
            schedule,
            {
                "exits": not_tensor(1, I64),
                "lengths": not_tensor(1, I64, low=1),
                "token_budget": not_int(),
                "groups": lambda: [v for v in not_tensor(1, I64)() if v is not None],
                "batch_cost": not_int(0),
            },
            {"exits": three + 1, "lengths": three + 1, "token_budget": 10},
        ),
        Target(
            "score_exits",
            score_exits,
            {
                "logits": not_tensor(2, F32),
                "threshold": not_number(0.0, 1.0),
                "criterion": not_choice(),
                "top_k": not_int(2),
                "rule": not_choice(),
                "patience": not_int(),
                "previous": lambda: [torch.zeros(2), torch.zeros(5, dtype=I64), 3, "x"],
                "cuts": lambda: [torch.zeros(3), torch.zeros(2), 3, "x", [0.0]],
                **backend,
            },
            {"logits": torch.randn(4, 3), "threshold": 0.5},
        ),
        Target(
            "score_exits, distance",
            score_exits,
            {
                "logits": not_tensor(2, F32),
                "threshold": not_number(),
                "criterion": lambda: [*not_choice()(), "margin", "change"],
                "rule": lambda: [*not_choice()(), "agreement"],
                "patience": not_int(),
                "cuts": lambda: [*not_tensor(1, F32)(), torch.zeros(2), torch.zeros(3, dtype=torch.float64)],
            },
            {"logits": torch.randn(4, 3), "threshold": -0.5, "criterion": "distance", "cuts": torch.zeros(3)},
        ),
        Target(
            "score_exits, change",
            score_exits,
            {
                "logits": lambda: [*not_tensor(2, F32)(), torch.zeros(4, 2), torch.zeros(3, 1)],
                "threshold": not_number(0.0),
                "criterion": lambda: [*not_choice()(), "margin", "distance"],
                "rule": lambda: [*not_choice()(), "agreement"],
                "previous": lambda: [*not_tensor(1, F32)(), torch.zeros(5), torch.zeros(4, dtype=I64)],
                "streak": lambda: [*not_tensor(1, torch.int32)(), torch.zeros(5).int(), torch.zeros(4, dtype=I64)],
            },
            {
                "logits": torch.randn(4, 1),
                "threshold": 0.5,
                "criterion": "change",
                "previous": torch.zeros(4),
                "streak": torch.zeros(4).int(),
            },
        ),
        Target(
            "HashTable.empty",
            HashTable.empty,
            {"num_exits": not_int(), "capacity": lambda: [*not_int(4)(), 5, 2**31]},
            {"num_exits": 2},
        ),
        Target(
            "insert_add",
            insert_add,
            {
                "table": lambda: [None, 3, "x", {}],
                "keys": not_tensor(1, I64),
                "exits": not_tensor(1, I64, low=0, high=2),
                "weights": lambda: [v for v in not_tensor(1, I64, low=1)() if v is not None],
                "max_capacity": not_int(4),
                **backend,
            },
            {"table": table, "keys": three, "exits": three},
        ),
        Target(
            "lookup",
            lookup,
            {
                "slots": lambda: [*not_tensor(1, I64)(), torch.zeros(5, dtype=I64)],
                "probes": not_int(0),
                "keys": not_tensor(1, I64),
                **backend,
            },
            {"slots": table.slots, "probes": 0, "keys": three},
        ),
        Target(
            "ngram_keys",
            ngram_keys,
            {
                "ids": not_tensor(1, I64),
                "special": not_tensor(1, torch.bool),
                "ngram": lambda: [*not_int()(), 17],
                "offsets": lambda: [
                    *not_tensor(1, I64)(),
                    torch.tensor([0, 9]),
                    torch.tensor([2, 0, 3]),
                    torch.tensor([], dtype=I64),
                ],
            },
            {"ids": three, "offsets": torch.tensor([0, 3]), "special": three < 0, "ngram": 2},
        ),
        Target(
            "forecast",
            forecast,
            {"logits": not_tensor(2, F32), "net": lambda: [None, 3, "x", {}, other], **backend},
            {"logits": torch.randn(4, 3), "net": net},
        ),
        Target(
            "outranked",
            outranked,
            {
                "scores": not_tensor(1, F32),
                "offsets": lambda: [*not_tensor(1, I64)(), torch.tensor([0, 9]), torch.tensor([0, 2, 1, 3])],
                "top_k": not_int(1),
                "margin": not_number(0.0),
                **backend,
            },
            {"scores": torch.randn(3), "offsets": torch.tensor([0, 3]), "top_k": 1, "margin": 1.0},
        ),
        Target("partition", partition, {"flags": not_tensor(1, torch.bool), **backend}, {"flags": three > 1}),
        Target(
            "predict_exits",
            predict_exits,
            {
                "table": lambda: [None, 3, "x", {}],
                "ids": not_tensor(1, I64),
                **backend,
                "offsets": lambda: [*not_tensor(1, I64)(), torch.tensor([0, 9]), torch.tensor([0, 2, 1, 3])],
                "statistic": lambda: [*not_number(0.0, 1.0)(), 0, "median"],
            },
            {"table": scores, "ids": three, "offsets": torch.tensor([0, 3])},
        ),
        Target(
            "skip_gate",
            skip_gate,
            {
                "states": not_tensor(2, F32),
                "threshold": not_number(0.0, 1.0),
                **backend,
                "weight": lambda: [torch.zeros(5), torch.zeros(2, 2), "x", 3],
                "bias": lambda: [torch.zeros(5), torch.zeros(1, 1), "x", 3],
            },
            {"states": torch.randn(4, 3), "weight": torch.zeros(3), "bias": torch.zeros(1)},
        ),
    ]

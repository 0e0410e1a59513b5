"""Reading rows, training data and judging answers: all callables, and the values that their arguments must not have."""

from __future__ import annotations

import torch

from bench.faults import hostile
from bench.faults.hostile import not_choice, not_int, not_number, not_path, not_tensor
from bench.faults.target import Target
from geep_triton import Engine
from geep_triton.files.csv_lines import read_csv
from geep_triton.files.json_lines import read_json_lines
from geep_triton.files.rows import read_rows
from geep_triton.promises.temperatures import best_temperatures, expected_calibration_error
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.difficulty import cross_review, difficulty_column, first_right_exit
from geep_triton.training.recipes import get_recipe

I64, F32 = torch.int64, torch.float32


def data_targets(engine: Engine) -> list[Target]:
    """Targets that work on small models."""
    encoder = Encoder(engine.tokenizer, 64, vocab_size=engine.model.config.vocab_size)
    rows = [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}]
    no_rows = [None, 3, "x", [], {}, [3], [None], [[]], [{}], [{"text": "good"}], [{"label": None}], [{"label": ""}]]
    no_rows.append(hostile.Stranger())
    return [
        *(
            Target(read.__name__, lambda path, read=read: list(read(path)), {"path": not_path})
            for read in (read_rows, read_csv, read_json_lines)
        ),
        Target("label_names", label_names, {"rows": lambda: [*no_rows, [{"label": 0.5}, {"label": 1.5}], rows[:1]]}),
        Target(
            "TextDataset",
            TextDataset,
            {
                "rows": lambda: [*no_rows, [{"label": "a"}], [{"text": "", "label": "a"}], [{"text": 3, "label": "a"}]],
                "label2id": lambda: [{"a": 0}, {}, 3, "x", [], hostile.Stranger()],
                "window": not_int(),
                "encoder": lambda: [None, 3, "x", hostile.Stranger()],
            },
            {"rows": rows, "encoder": encoder, "label2id": {"a": 0, "b": 1}},
        ),
        Target(
            "difficulty_column",
            difficulty_column,
            {"rows": lambda: [*no_rows[:9], [{"difficulty": "x"}], [{"difficulty": hostile.NAN}]]},
        ),
        Target(
            "first_right_exit",
            first_right_exit,
            {"exit_logits": not_tensor(3, F32), "labels": not_tensor(1, I64)},
            {"exit_logits": torch.randn(4, 2, 3), "labels": torch.zeros(4, dtype=I64)},
        ),
        Target(
            "cross_review",
            cross_review,
            {"labels": not_tensor(1, I64), "folds": lambda: [*not_int(2)(), 100]},
            {"labels": torch.zeros(4, dtype=I64), "dataset": rows * 2, "teach": lambda fold: torch.zeros(4, dtype=I64)},
        ),
        Target("get_recipe", get_recipe, {"recipe": not_choice(), "nonsense": lambda: [1]}, {"recipe": "joint"}),
        *(
            Target(f"get_recipe({name!r})", lambda name=name, **values: get_recipe(name, **values), refuses)
            for name, refuses in {
                "fastbert": {"finetune": not_number(0.0, 1.0)},
                "distillation": {
                    "alpha": not_number(0.0),
                    "temperature": not_number(1e-3),
                    "pairing": not_choice(),
                    "order": not_choice(),
                },
            }.items()
        ),
        Target(
            "Curriculum",
            Curriculum,
            {
                "schedule": not_choice(),
                "start": not_number(1e-6, 1.0),
                "buckets": not_int(),
                "until": not_number(1e-6, 1.0),
            },
        ),
    ]


def judging_targets() -> list[Target]:
    """Targets that work on random tensors."""
    logits, labels, exits = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 2, 3)
    classes = {"logits": not_tensor(2, F32, empty=True), "labels": not_tensor(1, I64, empty=True, low=0, high=2)}
    return [
        Target(
            "best_temperatures",
            best_temperatures,
            {"logits": not_tensor(3, F32, empty=True), "labels": not_tensor(1, I64, empty=True, low=0, high=2)},
            {"logits": exits, "labels": labels},
        ),
        Target(
            "expected_calibration_error",
            expected_calibration_error,
            {**classes, "bins": not_int()},
            {"logits": logits, "labels": labels},
        ),
    ]

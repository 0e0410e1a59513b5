"""The options of `geep train`, and what goes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from geep_triton.checks import check_int

PLACES = ("model", "texts", "dev", "output", "columns")  # what lies there is compared, not what it is called

Settings: TypeAlias = Mapping[str, Any]  # name -> value, which are checked by what takes them


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a training depends on; see `geep train --help`."""

    model: str
    texts: str
    dev: str
    output: Path
    columns: Mapping[str, str]
    labels: list[str] | None
    problem_type: str | None
    decision: float | None
    tolerance: float | None
    exit_layers: list[int] | None
    head: str | None
    head_size: int | None
    head_dropout: float | None
    pooling: str | None
    skip_gate: str | None
    skip_layers: list[int] | None
    recipe: str
    recipe_settings: Settings
    curriculum: str | None
    curriculum_settings: Settings
    difficulty: str | int | None
    class_weights: str | None
    epochs: float
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    gate_learning_rate: float | None
    gradient_accumulation_steps: int
    save_steps: int
    keep_best: bool
    patience: int | None
    seed: int
    bf16: bool
    fp16: bool
    max_length: int
    truncate: bool
    threshold: float | None
    ngram: int
    save_records: bool

    def check(self) -> None:
        """Raise ValueError where an option would be ignored, or would write over the model that is read."""
        ignored = {"difficulty": self.difficulty, "curriculum-setting": self.curriculum_settings}
        for name, value in ignored.items():
            if value and self.curriculum is None:
                raise ValueError(f"--{name} would be ignored without --curriculum")
        if self.patience is not None and not self.keep_best:
            raise ValueError("--patience would be ignored without --keep-best")
        for name in ("batch_size", "save_steps", "gradient_accumulation_steps"):
            check_int(name, getattr(self, name), 1)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"output must be a folder, got the file {self.output}")
        if self.output.exists() and Path(self.model).exists() and self.output.samefile(self.model):
            raise ValueError(f"output must be another folder than the model's, which would be overwritten, got {self.output}")

    def of_the_model(self) -> dict[str, Any]:
        """Fields of `MultiExitBertConfig` that were chosen."""
        names = ("exit_layers", "head", "head_size", "head_dropout", "pooling", "skip_gate", "skip_layers")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def of_the_run(self) -> dict[str, Any]:
        """All options but the places, in JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in PLACES}

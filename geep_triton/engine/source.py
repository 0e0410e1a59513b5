"""Where an engine comes from: every actor makes its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from geep_triton.engine.engine import Engine


@dataclass(frozen=True)
class EngineSource:
    """What makes an engine, on whatever machine.

    Attributes:
        model: a folder, which all machines see at the same path, or a hub id.
        policy, device, dtype, runner, max_length, truncation, window: see `geep_triton.Engine`. A window of None: the engine's
            default.
    """

    model: str
    policy: str | None = None
    device: str | None = None
    dtype: str | None = None
    runner: str = "auto"
    max_length: int | None = None
    truncation: bool | None = None
    window: int | None = None

    def load(self) -> Engine:
        """Make the engine. It raises what `Engine.from_pretrained` raises."""
        return Engine.from_pretrained(
            self.model,
            self.policy,
            device=self.device,
            dtype=self.dtype,
            runner=self.runner,
            max_length=self.max_length,
            truncation=self.truncation,
            **({} if self.window is None else {"window": self.window}),
        )

    def absolute(self) -> EngineSource:
        """The same for processes in other folders."""
        return replace(self, model=str(Path(self.model).absolute())) if Path(self.model).is_dir() else self

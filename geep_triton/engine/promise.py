"""What a calibration promised of an engine's answers, and whether that still holds."""

from __future__ import annotations

from dataclasses import dataclass

from geep_triton.engine.calibrate import PROMISES_ON_ANSWERS
from geep_triton.engine.skipping import Skipping
from geep_triton.exits.table import ExitTable
from geep_triton.modeling.model import MultiExitBert
from geep_triton.warn import warn


@dataclass(frozen=True, eq=False)
class Promise:
    """An agreement with the full model, and what it was promised with.

    Attributes:
        agreement: share of the samples that get the full model's answer.
        table: exit table that the model had.
        temperatures: of its exits.
    """

    agreement: float
    table: ExitTable | None
    temperatures: list[float] | None

    @classmethod
    def made(cls, model: MultiExitBert, agreement: float) -> Promise:
        """With what the model has now."""
        return cls(agreement, model.exit_table, model.config.exit_temperatures)

    @classmethod
    def saved(cls, model: MultiExitBert, skipping: Skipping, max_length: int, truncation: bool) -> Promise | None:
        """The agreement that the model's saved calibration promised; None where it promised none.

        Also None, with a warning, where an engine with these settings differs from the one that was calibrated.
        """
        calibration, config = model.config.calibration, model.config
        if calibration is None or calibration["promise"][0] not in PROMISES_ON_ANSWERS:
            return None
        now = {
            "skipping": str(skipping), "max_length": max_length, "truncation": truncation,
            "exit_table": None if model.exit_table is None else model.exit_table.digest(),
            "exit_temperatures": config.exit_temperatures, "exit_policy": config.exit_policy,
        }  # fmt: skip
        then = {name: calibration.get(name, value) for name, value in now.items()} | {"skipping": config.skipping}
        then["exit_policy"] = calibration.get("chosen", {}).get("policy", config.exit_policy)
        changed = [f"{name} {then[name]}, now {now[name]}" for name in now if now[name] != then[name]]
        if changed:
            warn(f"the model was calibrated with {'; '.join(changed)}: its policy is used, but its promise does not hold here")
        name, value = calibration["promise"]
        return None if changed or name != "agreement" else cls.made(model, value)

    def holds(self, model: MultiExitBert) -> bool:
        """Whether the model's table, with its records or without, and temperatures are still those."""
        table = model.exit_table
        same = table is self.table or (table is not None and self.table is not None and table.predicts_as(self.table))
        return same and self.temperatures == model.config.exit_temperatures

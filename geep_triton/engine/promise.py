"""The promise of a calibration about an engine's answers, and whether it still holds."""

from __future__ import annotations

from dataclasses import dataclass

from geep_triton.exit_config import PROMISES_ON_ANSWERS
from geep_triton.modeling.model import MultiExitBert
from geep_triton.table.exit_table import ExitTable
from geep_triton.warn import warn


@dataclass(frozen=True, eq=False)
class Promise:
    """An agreement with the full model, and the table and temperatures that it was promised with.

    Attributes:
        agreement: the share of samples that get the full model's answer.
        table: the exit table that the model had.
        temperatures: the temperatures that its exits had.
    """

    agreement: float
    table: ExitTable | None
    temperatures: tuple[float, ...] | None

    @classmethod
    def made(cls, model: MultiExitBert, agreement: float) -> Promise:
        """A promise with the table and temperatures that the model has now."""
        return cls(agreement, model.exit_table, model.exit_config.temperatures)

    @classmethod
    def saved(cls, model: MultiExitBert, max_length: int, truncation: bool) -> Promise | None:
        """The promise of the model's saved calibration. None where it made none.

        Also None, with a warning, where an engine with these settings differs from the engine that was calibrated.
        """
        served, calibration = model.exit_config, model.exit_config.calibration
        if calibration is None or calibration["promise"][0] not in PROMISES_ON_ANSWERS:
            return None
        now = {
            "max_length": max_length, "truncation": truncation,
            "exit_table": None if model.exit_table is None else model.exit_table.digest(),
            "exit_temperatures": served.temperatures and list(served.temperatures), "exit_policy": served.policy,
        }  # fmt: skip
        then = {name: calibration.get(name, value) for name, value in now.items()}
        then["exit_policy"] = calibration.get("chosen", {}).get("policy", served.policy)
        changed = [f"{name} {then[name]}, now {now[name]}" for name in now if now[name] != then[name]]
        if changed:
            warn(f"the model was calibrated with {'; '.join(changed)}: its policy is used, but its promise does not hold here")
        name, value = calibration["promise"]
        return None if changed or name != "agreement" else cls.made(model, value)

    def holds(self, model: MultiExitBert) -> bool:
        """Whether the model still has that table, with its records or without, and those temperatures."""
        table = model.exit_table
        same = table is self.table or (table is not None and self.table is not None and table.predicts_as(self.table))
        return same and self.temperatures == model.exit_config.temperatures

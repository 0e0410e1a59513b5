"""The promise of a calibration about an engine's answers, and whether it still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geep_triton.exit_config import PROMISES_ON_ANSWERS, Promises
from geep_triton.modeling.model import MultiExitBert
from geep_triton.table.exit_table import ExitTable
from geep_triton.warn import warn


@dataclass(frozen=True, eq=False)
class Promise:
    """What was promised about answers, and what it was promised with.

    Attributes:
        agreement: the share of samples that get the full model's answer. None: not promised.
        class_recall: class -> the share of the samples that the full model gives it to and that get it.
        table: the exit table that the model had.
        temperatures: the temperatures that its exits had.
        decision, tolerance: by which scores and sets of labels were compared.
        reference: dtype of the full model. None: that in which the engine runs.
    """

    agreement: float | None
    class_recall: Mapping[str, float]
    table: ExitTable | None
    temperatures: tuple[float, ...] | None
    decision: float | tuple[float, ...] | None
    tolerance: float | None
    reference: str | None

    @classmethod
    def made(cls, model: MultiExitBert, promises: Promises, reference: str | None = None) -> Promise | None:
        """What an audit can watch of these promises, with what the model has now. None where that is nothing."""
        agreement, recall = promises.get("agreement"), promises.get("class_recall")
        agreement = None if isinstance(agreement, Mapping) else agreement
        recall = recall if isinstance(recall, Mapping) else {}
        if agreement is None and not recall:
            return None
        served = model.exit_config
        return cls(agreement, recall, model.exit_table, served.temperatures, served.decision, served.tolerance, reference)

    @classmethod
    def saved(cls, model: MultiExitBert, max_length: int) -> Promise | None:
        """The promise of the model's saved calibration. None where it made none.

        Also None, with a warning, where an engine with these settings differs from the engine that was calibrated. Whether
        longer samples are cut is not compared: those of the calibration were not longer, or were cut.
        """
        served, calibration = model.exit_config, model.exit_config.calibration
        if calibration is None or calibration["promise"][0] not in PROMISES_ON_ANSWERS:
            return None
        now = {
            "max_length": max_length,
            "exit_table": None if model.exit_table is None else model.exit_table.digest(),
            "exit_temperatures": served.temperatures and list(served.temperatures), "exit_policy": served.policy,
            "decision": list(served.decision) if isinstance(served.decision, tuple) else served.decision,
            "tolerance": served.tolerance,
        }  # fmt: skip
        of_int8 = calibration.get("dtype") == "int8"
        now["int8_layers"] = model.int8_layers.digest() if of_int8 and model.int8_layers is not None else None
        then = {name: calibration.get(name, value) for name, value in now.items()}
        then["decision"] = list(then["decision"]) if isinstance(then["decision"], tuple) else then["decision"]
        then["int8_layers"] = calibration.get("int8_layers")
        then["exit_policy"] = calibration.get("chosen", {}).get("policy", served.policy)
        changed = [f"{name} {then[name]}, now {now[name]}" for name in now if now[name] != then[name]]
        if changed:
            warn(f"the model was calibrated with {'; '.join(changed)}: its policy is used, but its promise does not hold here")
        name, value = calibration["promise"]
        return None if changed else cls.made(model, calibration.get("promises", {name: value}), calibration.get("reference"))

    def holds(self, model: MultiExitBert) -> bool:
        """Whether the model still has that table, with its records or without, those temperatures and that decision."""
        table, served = model.exit_table, model.exit_config
        if (self.decision, self.tolerance) != (served.decision, served.tolerance):
            return False
        same = table is self.table or (table is not None and self.table is not None and table.predicts_as(self.table))
        return same and self.temperatures == model.exit_config.temperatures


def still_kept(promise: Promise | None, model: MultiExitBert) -> Promise | None:
    """The promise. None, with a warning, where what it was made with has changed since."""
    if promise is not None and not promise.holds(model):
        warn("the exit table, temperatures or decision have changed since the calibration: its promise is gone")
        return None
    return promise


def warn_of_another_ranking(model: MultiExitBert, max_length: int) -> None:
    """Warn where the saved ranking is not the calibrated one, or `max_length` is not that of its calibration.

    Whether longer pairs are cut is not compared: those of the calibration were not longer, or were cut.
    """
    served, calibration = model.exit_config, model.exit_config.ranking_calibration
    if served.ranking is None or calibration is None:
        return
    now = {"max_length": max_length, "ranking": served.ranking}
    then = {
        "max_length": calibration.get("max_length", max_length),
        "ranking": calibration.get("chosen", {}).get("ranking", served.ranking),
    }
    changed = [f"{name} {then[name]}, now {now[name]}" for name in now if now[name] != then[name]]
    if changed:
        warn(f"the ranking was calibrated with {'; '.join(changed)}: it is used, but its promise does not hold here")

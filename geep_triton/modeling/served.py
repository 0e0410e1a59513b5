"""How a loaded model is served: the saved exit_config.json as far as it is still valid, and the caller's choices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BertConfig
from transformers.utils import logging

from geep_triton.answers import is_logistic
from geep_triton.config import MultiExitBertConfig
from geep_triton.exit_config import EXIT_CONFIG_FILE, ExitConfig, read_exit_config
from geep_triton.modeling.weights import EXIT_CONFIG_DIGEST
from geep_triton.saving import digests_of

logger = logging.get_logger(__name__)

# Exit tables and calibrations are valid only for these fields, and for the kind of answers.
MADE_FOR = ("exit_layers", "skip_gate", "skip_layers", "skip_threshold")


def served_as(
    source: str | os.PathLike,
    path: str | None,
    there: Mapping[str, Any],
    then: BertConfig,
    now: MultiExitBertConfig,
    chosen: Mapping[str, Any],
) -> ExitConfig:
    """How a loaded model is served.

    Args:
        source: name of the checkpoint in errors and warnings.
        path: path of the checkpoint's exit_config.json. None: it has none.
        there: values of the checkpoint's config.json. In version 0.1 it has the same settings under other names.
        then: the configuration that the model was saved with.
        now: the configuration that the model gets.
        chosen: fields of `ExitConfig` that the caller chose.

    Raises:
        ValueError: the file is damaged or was saved with other weights, or values do not fit the model's exits.
        TypeError: the caller chose a value of another type.
    """
    saved = _saved(source, path, there)
    changed = changed_since(then, now)
    values = {**vars(saved), **chosen}
    if "exit_layers" in changed:
        for name in ("thresholds", "temperatures"):
            if isinstance(getattr(saved, name), tuple) and name not in chosen:
                logger.warning(f"The {name} are left out, because there is one per exit and the exits have changed.")
                values[name] = None
    if saved.calibration is not None and changed:
        logger.warning("The calibration is left out, because exits, gates or the kind of answers changed: calibrate again.")
        values |= {name: chosen.get(name) for name in ("policy", "calibration")}
    if saved.ranking is not None and changed:
        logger.warning("The ranking is left out, because exits, gates or the kind of answers changed: calibrate it again.")
        values |= {"ranking": None, "ranking_calibration": None}
    served = ExitConfig(**values)
    try:
        served.check_fits(len(now.exit_layers))
    except ValueError as error:
        raise ValueError(f"{source if path is None else path}: {error}") from error
    return served


def changed_since(then: BertConfig, now: MultiExitBertConfig) -> list[str]:
    """Names of changed fields that tables and calibrations depend on. Empty for a BERT without exits."""
    if not isinstance(then, MultiExitBertConfig):
        return []
    changed = [name for name in MADE_FOR if getattr(then, name) != getattr(now, name)]
    # The same logits are another score, or another set of labels, under another kind of answers.
    kinds = [(config.num_labels == 1, is_logistic(config)) for config in (then, now)]
    return changed if kinds[0] == kinds[1] else [*changed, "problem_type"]


def _saved(source: str | os.PathLike, path: str | None, there: Mapping[str, Any]) -> ExitConfig:
    """The saved settings, or the defaults if there are none."""
    digests = digests_of(there)
    expected = digests.get(EXIT_CONFIG_DIGEST)
    if path is None:
        if expected is not None:
            logger.warning(f"{source}: the {EXIT_CONFIG_FILE} that the model was saved with is not there: defaults are used.")
        if there.get("model_type") != MultiExitBertConfig.model_type:
            return ExitConfig()
        try:
            return ExitConfig.from_old_config(there)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{Path(source, 'config.json')}: {error}") from error
    saved, weights = read_exit_config(path)
    if digests and weights is not None and weights not in digests.values():
        raise ValueError(
            f"{path} was saved with other weights than the model's: files of two models or saves are mixed up. Remove the file "
            "to load the model without it"
        )
    if expected not in (None, saved.digest()):
        logger.warning(f"{path} was changed since it was saved with these weights; it is taken as it is now.")
    return saved

"""Plants a fault in the library for each part of the campaign, which must find it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import geep_triton.engine.engine
import geep_triton.modeling.loading
import geep_triton.modeling.model
import geep_triton.tokens.encoder
from geep_triton.saving import Replacement


def _plant_in_streams() -> None:
    """Two samples of a window get each other's answers."""
    predict = geep_triton.engine.engine.Engine._predict_window

    def swapped(self: Any, window: Any) -> Any:
        result = predict(self, window)
        order = torch.arange(len(result))
        order[:2] = order[:2].flip(0)
        return dataclasses.replace(result, logits=result.logits[order])

    geep_triton.engine.engine.Engine._predict_window = swapped


def _plant_in_kills() -> None:
    """Files are written in place, one after another."""

    @contextmanager
    def in_place(directory: Any) -> Iterator[Replacement]:
        Path(directory).mkdir(parents=True, exist_ok=True)
        yield Replacement(Path(directory), Path(directory))

    geep_triton.engine.engine.replacing = geep_triton.modeling.model.replacing = in_place


def _plant_in_mutations() -> None:
    """All weights count as those that were saved."""
    geep_triton.modeling.loading.check_digest = lambda *_: None


def _plant_in_inputs() -> None:
    """Token ids are not checked."""
    geep_triton.tokens.encoder.Encoder._check_ids = lambda *_: None


PLANTS = {
    "streams": _plant_in_streams,
    "kills": _plant_in_kills,
    "mutations": _plant_in_mutations,
    "inputs": _plant_in_inputs,
}

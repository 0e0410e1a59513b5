"""Pages of every kind, and a browser to look at them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geep_triton import Engine, calibrate
from geep_triton.report.page import write_report

HOSTILE = [
    "<script>alert('x')</script><img src=https://example.org/x.png onerror=alert(1)>",
    "שלום עולם, מה שלומך? <b>" + "שלום" * 30,
    "x" * 400,
    "'\"&{{ 7 * 7 }}{% raw %}</style></title><!--",
    "\u202eevil\u202c\x00\x1b[0m",
]


@pytest.fixture
def page(tmp_path) -> Callable[..., tuple[Path, str]]:
    """Writes a report: its path, and its HTML."""

    def write(engine: Engine, *arguments: Any) -> tuple[Path, str]:
        path = tmp_path / "report.html"
        write_report(engine, path, *arguments)
        return path, path.read_text(encoding="utf-8")

    return write


@pytest.fixture
def hostile(make_model, tokenizer, many) -> Engine:
    """An engine of 100 classes with hostile names, calibrated on few texts, whose model has a hostile name too."""
    names = dict(enumerate([*HOSTILE, *(f"class {index}" for index in range(95))]))
    model = make_model(num_labels=100, id2label=names, label2id={name: index for index, name in names.items()})
    for head in model.heads.values():  # so that it gives the hostile ones
        head.classifier.bias.data[:5] += 3
        head.classifier.weight.data.mul_(0.4)
    engine = Engine(model, tokenizer, "full")
    calibrate(engine, many, agreement=0.5, confidence=0.5, rounds=1, speed_samples=20)
    chosen = model.exit_config.calibration["chosen"]
    model.exit_config.calibration |= {"unsafe": HOSTILE, "chosen": chosen | {"family": HOSTILE[0]}}
    model.config._name_or_path = HOSTILE[0] + HOSTILE[2]
    return engine


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser. Debian's package is called chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip("there is no browser: chromium, chromium-browser or google-chrome")

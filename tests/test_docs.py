"""The documentation says what is true: its code runs, its imports exist, its tables are the code's."""

from __future__ import annotations

import ast
import importlib
import random
import re
import warnings
from pathlib import Path

import pytest

from geep_triton.runners.make import RUNNERS
from tests.conftest import WORDS
from tests.test_layout import FLOORS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = [(path.name, number, code) for path in PAGES for number, code in enumerate(CODE.findall(path.read_text("utf-8")))]


@pytest.mark.parametrize(("page", "number", "code"), BLOCKS, ids=lambda value: str(value)[:20].strip().replace("\n", " "))
def test_what_an_example_imports_is_there(page, number, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{page}, example {number}: {node.module} has no {alias.name}"


def test_the_table_of_floors_is_the_layouts():
    told = {}
    for line in (ROOT / "docs" / "internals.md").read_text("utf-8").splitlines():
        if (cells := re.match(r"\| ([\d.]+) \| (.+?) \|", line)) is not None:
            told |= {room.removesuffix("/").removesuffix(".py"): float(cells[1]) for room in re.findall(r"`(.+?)`", cells[2])}
    assert told == FLOORS


def test_the_table_of_runners_is_the_codes():
    told = {}
    for line in (ROOT / "docs" / "serving.md").read_text("utf-8").splitlines():
        if (cells := re.match(r"\| `(.+?)` \| (.+?) \| (.+?) \|", line)) is not None:
            devices = {"CPU": ["cpu"], "GPU": ["cuda"], "CPU, GPU": ["cpu", "cuda"], "any": ["cpu", "cuda"]}[cells[2]]
            assert (cells[2] == "any") == (cells[1] == "torch"), "on other devices runs `torch` alone"
            told[cells[1]] = dict.fromkeys(devices, tuple(cells[3].split(", ")))
    assert told == RUNNERS


def test_the_readmes_examples_run(fine_tuned, tmp_path):
    """All of them, in their order, on a tiny model."""
    chosen = random.Random(0)
    words = [word for word in WORDS if word.isalpha()]
    drawn = list({" ".join(chosen.choices(words, k=chosen.randint(3, 12))): None for _ in range(2000)})
    names = {"texts": drawn[:1000], "stream": iter(drawn[:10])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a policy does on a model that learned nothing
        for code in CODE.findall((ROOT / "README.md").read_text("utf-8")):
            code = code.replace("my-fine-tuned-bert", str(fine_tuned)).replace("runs/fast", str(tmp_path / "fast"))
            exec(code, names)
            names["texts"] = drawn[1000:]  # others calibrate
    assert names["calibration"].chosen.agreement >= 0.99
    assert names["running"].report().samples >= 0

"""The documentation says what is true: its code runs, its imports exist, its tables are the code's."""

from __future__ import annotations

import ast
import importlib
import random
import re
import warnings
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from geep_triton import Engine
from geep_triton.runners.make import RUNNERS
from tests.conftest import WORDS, tiny_config
from tests.test_layout import FLOORS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = [(path.name, number, code) for path in PAGES for number, code in enumerate(CODE.findall(path.read_text("utf-8")))]


def drawn_texts(number):
    chosen = random.Random(0)
    words = [word for word in WORDS if word.isalpha()]
    return list({" ".join(chosen.choices(words, k=chosen.randint(3, 12))): None for _ in range(number)})


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
    section = (ROOT / "docs" / "serving.md").read_text("utf-8").partition("## Runner and dtype")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if (cells := re.match(r"\| `(.+?)` \| (.+?) \| (.+?) \|", line)) is not None:
            devices = {"CPU": ["cpu"], "GPU": ["cuda"], "CPU, GPU": ["cpu", "cuda"], "any": ["cpu", "cuda"]}[cells[2]]
            assert (cells[2] == "any") == (cells[1] == "torch"), "on other devices runs `torch` alone"
            told[cells[1]] = dict.fromkeys(devices, tuple(cells[3].split(", ")))
    assert told == RUNNERS


def test_the_readmes_examples_run(fine_tuned, tmp_path):
    """All of them, in their order, on a tiny model."""
    drawn = drawn_texts(2000)
    names = {"texts": drawn[:1000], "stream": iter(drawn[:10])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a policy does on a model that learned nothing
        for code in CODE.findall((ROOT / "README.md").read_text("utf-8")):
            code = code.replace("my-fine-tuned-bert", str(fine_tuned)).replace("runs/fast", str(tmp_path / "fast"))
            exec(code, names)
            names["texts"] = drawn[1000:]  # others calibrate
    assert names["calibration"].chosen.agreement >= 0.99
    assert names["running"].report().samples >= 0


def test_the_examples_of_scores_label_sets_and_rankings_run(fine_tuned, make_model, tokenizer, tmp_path):
    """All of docs/answers.md, in its order, on tiny models."""
    settings = tiny_config(num_labels=1, problem_type="regression").to_dict()
    BertForSequenceClassification(BertConfig(**settings)).save_pretrained(tmp_path / "my-quality-filter")
    tokenizer.save_pretrained(tmp_path / "my-quality-filter")
    labels = {"num_labels": 2, "problem_type": "multi_label_classification", "id2label": {0: "toxic", 1: "insult"}}
    moderation = make_model(**labels, label2id={"toxic": 0, "insult": 1})
    with torch.no_grad():
        for head in moderation.heads.values():
            head.load_state_dict(moderation.heads["4"].state_dict())
            head.classifier.bias[0] += 9.0  # there must be toxic texts
    Engine(moderation, tokenizer, "full").save_pretrained(tmp_path / "moderation")
    Engine(make_model(num_labels=1), tokenizer, "full").save_pretrained(tmp_path / "reranker")
    Engine(make_model(), tokenizer, "full").save_pretrained(tmp_path / "fast")
    texts = drawn_texts(1000)
    groups = [(text, texts[start : start + 12]) for start, text in enumerate(texts[:150])]
    names = {"texts": texts, "candidates": texts[:15], "groups": groups}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a policy does on a model that learned nothing
        for code in CODE.findall((ROOT / "docs" / "answers.md").read_text("utf-8")):
            code = code.replace("my-quality-filter", str(tmp_path / "my-quality-filter")).replace("runs/", f"{tmp_path}/")
            exec(code, names)
    assert len(names["ranking"].results()) == 10
    assert names["result"].decisions.dtype == torch.bool

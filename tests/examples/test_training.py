"""The short scripts, one after another: examples/train.py, then examples/calibrate.py."""

from __future__ import annotations

import json
import re

from geep_triton import Engine
from geep_triton.policies.text import parse_policy
from tests.examples.scripts import ROWS, run, write


def test_a_model_is_trained_and_calibrated(trained, tmp_path):
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    done = run("train.py", trained.parent / "bert", data, data, tmp_path / "model", "--epochs", 2, "--max-length", 32)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^exit (\d): accuracy (0\.\d+|1\.0+)$", done.stdout, re.MULTILINE)
    assert [layer for layer, _ in told] == ["1", "2", "3"]
    assert Engine.from_pretrained(tmp_path / "model", "full", device="cpu").model.exit_table is not None

    rows = [{"text": f"{text} {word}"} for text, _ in ROWS for word in ("again", "soup", "never", "book")]
    texts = write(tmp_path / "texts.jsonl", rows)
    done = run("calibrate.py", tmp_path / "model", texts, "--agreement", 0.7)
    assert done.returncode == 0, done.stderr
    policy = done.stdout.splitlines()[-1].removeprefix("chosen: ")
    assert json.loads((tmp_path / "model" / "exit_config.json").read_text())["policy"] == policy
    assert Engine.from_pretrained(tmp_path / "model", device="cpu").policy == parse_policy(policy)
    assert "full: 3.00 layers, 1.000 agree, 1.00 times" in done.stdout

"""examples/calibrate.py."""

from __future__ import annotations

import json

from geep_triton import Engine
from geep_triton.policies.text import parse_policy
from tests.examples.scripts import ROWS, run, write


def test_calibrate_saves_a_policy_that_predict_uses(trained, tmp_path, refusal):
    rows = [{"text": f"{text} {word}", "label": label} for text, label in ROWS for word in ("again", "soup", "never", "book")]
    texts, output = write(tmp_path / "calibration.jsonl", rows), tmp_path / "calibrated"
    done = run("calibrate.py", "--model", trained, "--texts", texts, "--agreement", 0.7, "--output", output)
    assert done.returncode == 0, done.stderr
    policy = done.stdout.splitlines()[-1].partition(" saved with the model")[0]
    assert json.loads((output / "exit_config.json").read_text())["policy"] == policy
    table = [line for line in done.stdout.splitlines() if line.endswith(("x", "chosen"))]
    assert table[0].startswith("full")
    assert sum(line.endswith("chosen") for line in table) == 1
    assert Engine.from_pretrained(output, device="cpu").policy == parse_policy(policy)
    # Where the model lies, it is written over: its weights, which may be read from that very file, stay.
    before = (output / "model.safetensors").read_bytes()
    done = run("calibrate.py", "--model", output, "--texts", texts, "--max-accuracy-drop", 0.45, "--method", "conformal",
               "--max-length", 8, "--truncate")  # fmt: skip
    assert done.returncode == 0, done.stderr
    served = Engine.from_pretrained(output, device="cpu")
    assert (served.max_length, served.truncation) == (8, True)
    assert (output / "model.safetensors").read_bytes() == before
    assert "accuracy" in done.stdout
    for arguments, message in (
        (["--texts", texts, "--agreement", 0.99], "are too few to promise agreement=0.99"),
        (["--texts", write(tmp_path / "no.jsonl", [{"text": "good"}]), "--max-accuracy-drop", 0.1], "label"),
        (
            ["--texts", texts, "--agreement", 0.7, "--mean-depth", 2],
            "--mean-depth, --speedup, got agreement, mean_depth",
        ),
        (["--texts", texts], "expected one or several of --agreement"),
        (["--model", "some/model", "--texts", texts, "--agreement", 0.7], "--output must say where"),
    ):
        assert message in refusal("calibrate.py", "--model", output, *arguments)

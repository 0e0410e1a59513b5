"""`geep calibrate`."""

from __future__ import annotations

import json

import pytest

from geep_triton import Engine
from geep_triton.calibrated import Calibrated, Candidate, brief
from geep_triton.cli import failures
from geep_triton.cli.calibrate import table_of
from geep_triton.policies.text import parse_policy
from geep_triton.runners.make import multiplied_here
from tests.cli.commands import ROWS, write


@pytest.fixture
def rows():
    return [{"text": f"{text} {word}", "label": label} for text, label in ROWS for word in ("again", "soup", "never", "book")]


def test_a_policy_is_saved_that_predict_uses(trained, tmp_path, rows, geep):
    texts, output = write(tmp_path / "calibration.jsonl", rows), tmp_path / "calibrated"
    done = geep("calibrate", trained, "--texts", texts, "--agreement", 0.7, "--output", output)
    assert done.code == 0, done.err
    policy = json.loads((output / "exit_config.json").read_text())["policy"]
    assert done.out.splitlines()[-1] == f"{output}: {brief(policy)}"
    table = [line for line in done.out.splitlines() if line.endswith(("x", "chosen"))]
    assert table[0].startswith("full")
    assert sum(line.endswith("chosen") for line in table) == 1
    assert Engine.from_pretrained(output, device="cpu").policy == parse_policy(policy)


def test_a_model_that_shall_run_in_int8_gets_its_scales_from_the_texts(trained, tmp_path, rows, geep, refusal):
    texts, output = write(tmp_path / "calibration.jsonl", rows), tmp_path / "calibrated"
    few = write(tmp_path / "few.jsonl", rows[:20])
    assert "scales for int8 need at least 32, got 20" in refusal(
        3, "calibrate", trained, "--texts", few, "--mean-depth", 3, "--dtype", "int8", "-o", tmp_path / "few"
    )
    done = geep("calibrate", trained, "--texts", texts, "--mean-depth", 3, "--dtype", "int8", "-o", output)
    assert done.code == 0, done.err
    served = Engine.from_pretrained(output, dtype="int8", device="cpu")
    assert served.model.exit_config.calibration["dtype"] == "int8"
    assert served.model.int8_layers.texts >= 32
    before = (output / "int8_layers.safetensors").read_bytes()
    again = geep("calibrate", output, "--texts", texts, "--agreement", 0.7, "--dtype", "int8")
    assert again.code == 0, again.err
    assert (output / "int8_layers.safetensors").read_bytes() == before


def test_calibrate_chooses_the_dtype(trained, tmp_path, rows, geep, refusal):
    """Every dtype that this CPU multiplies is tried, and the folder is served in the one that was chosen."""
    output, more = tmp_path / "calibrated", [{"text": f"{row['text']} {word}"} for row in rows for word in ("good", "dull")]
    texts = write(tmp_path / "calibration.jsonl", more)
    arguments = "--agreement", 0.7, "--dtype", "auto", "-o", output, "--device", "cpu"
    said = refusal(2, "calibrate", trained, "--texts", texts, *arguments, "--runner", "torch")
    assert "--dtype auto finds the fastest runner" in said
    done = geep("calibrate", trained, "--texts", texts, *arguments)
    assert done.code == 0, done.err
    assert "full in float32" in done.out
    assert "Full depth answered, timed in turns: float32 " in done.out or multiplied_here() == []
    saved = json.loads((output / "exit_config.json").read_text())["calibration"]
    assert [each["dtype"] for each in saved["full_depths"]] == ["float32", *multiplied_here()]
    assert Engine.from_pretrained(output, device="cpu").dtype == saved["dtype"]
    assert (output / "int8_layers.safetensors").exists() == (saved["dtype"] == "int8")
    assert geep("report", output, "-o", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "dtype and runner" in page
    assert "full in float32" in page
    assert "full in float32" in (output / "README.md").read_text()
    assert "unknown dtype 'auto'" in refusal(3, "predict", output, texts, "--dtype", "auto", "-o", tmp_path / "answers.jsonl")


def test_the_table_says_why_a_faster_policy_was_not_chosen():
    full = Candidate("full", "full", 1.0, None, 4.0, 100.0, 1.0)
    chosen = Candidate("threshold:0.2", "threshold", 0.99, None, 2.0, 180.0, 1.8)
    for speed_up, said in ((1.9, True), (2.1, False)):
        risk = Candidate("risk:0.1", "risk", 0.99, None, 1.9, 100 * speed_up, speed_up)
        found = Calibrated({"agreement": 0.98}, chosen=chosen, candidates=(full, chosen, risk), unsafe=())
        assert ("was not chosen" in table_of({"promise": ["agreement", 0.98], **found.to_dict()})) == said


def test_the_weights_stay_where_the_policy_is_written_over(trained, tmp_path, rows, geep):
    """They may be read from that very file."""
    texts, output = write(tmp_path / "calibration.jsonl", rows), tmp_path / "calibrated"
    assert geep("calibrate", trained, "--texts", texts, "--agreement", 0.7, "-o", output, "--quiet").code == 0
    before = (output / "model.safetensors").read_bytes()
    done = geep("calibrate", output, "--texts", texts, "--max-accuracy-drop", 0.45, "--method", "conformal",
                "--max-length", 8, "--truncate", "--json", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    found = done.values
    assert (found["output"], found["method"], found["max_length"]) == (str(output), "conformal", 8)
    assert found["chosen"]["accuracy"] is not None
    served = Engine.from_pretrained(output, device="cpu")
    assert (served.max_length, served.truncation) == (8, True)
    assert served.policy == parse_policy(found["chosen"]["policy"])
    assert (output / "model.safetensors").read_bytes() == before


def test_columns_go_by_their_names(trained, tmp_path, rows, geep, refusal):
    named = [{"review": row["text"], "stars": row["label"], "text": 3} for row in rows]
    texts = write(tmp_path / "named.jsonl", named)
    columns = ("--text-column", "review", "--label-column", "stars")
    done = geep("calibrate", trained, "--texts", texts, "--max-accuracy-drop", 0.4, "-o", tmp_path / "out", "--json", *columns)
    assert done.code == 0, done.err
    assert done.values["samples"] == len(rows)
    again = ("calibrate", trained, "--texts", texts, "--agreement", 0.7, "-o", tmp_path / "out", *columns)
    assert "missing column 'other'" in refusal(failures.REFUSED, *again, "--pair-column", "other")


def test_what_is_refused(trained, tmp_path, rows, refusal):
    texts = write(tmp_path / "calibration.jsonl", rows)
    given = ("calibrate", trained, "--texts", texts)
    assert "are too few to promise agreement=0.99" in refusal(failures.NO_PROMISE, *given, "--agreement", 0.99)
    assert "no policy is 2.999 times as fast here" in refusal(failures.NO_PROMISE, *given, "--speedup", 2.999)
    unlabelled = write(tmp_path / "no.jsonl", [{"text": "good"}])
    assert "label" in refusal(failures.REFUSED, "calibrate", trained, "--texts", unlabelled, "--max-accuracy-drop", 0.1)
    for arguments, message in (
        (["--agreement", 0.7, "--mean-depth", 2], "--mean-depth, --speedup, got --agreement, --mean-depth"),
        ([], "expected one or several of --agreement"),
        (["--class-recall", "toxic"], "expected NAME=SHARE, as in toxic=0.99, got 'toxic'"),
        (["--agreement", "much"], "'--agreement': Input should be a valid number"),
    ):
        assert message in refusal(failures.USAGE, *given, *arguments)
    missing = ("calibrate", "some/model", "--texts", texts, "--agreement", 0.7)
    assert "--output must say where" in refusal(failures.USAGE, *missing)
    assert "unknown runner 'fast'" in refusal(failures.REFUSED, *given, "--agreement", 0.7, "--runner", "fast")
    assert "nothing.jsonl" in refusal(failures.REFUSED, "calibrate", trained, "--texts", "nothing.jsonl", "--agreement", 0.7)

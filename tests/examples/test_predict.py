"""examples/predict.py: bad lines, kills, changing inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geep_triton import Engine
from geep_triton.resumable import ResumableFile
from tests.examples.scripts import ROOT, ROWS, run, write


@pytest.mark.parametrize("policy", ["full", "constant:2", "threshold", "predicted"])
def test_predict(trained, tmp_path, policy):
    source = write(tmp_path / "in.jsonl", [{"text": text} for text, _ in ROWS])
    done = run("predict.py", "--model", trained, "--input", source, "--output", tmp_path / "out.jsonl", "--policy", policy)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == len(ROWS)
    assert all(set(row) == {"label", "score", "exit_layer"} for row in rows)
    if policy == "full":
        assert [row["label"] for row in rows] == [label for _, label in ROWS]
        assert {row["exit_layer"] for row in rows} == {3}


BAD = [
    {"text": "good"},
    "{broken",
    {"body": "good"},
    {"text": ""},
    {"text": "good " * 100},
    {"text": "bad", "text_pair": "good", "input_ids": "not ours"},
]


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_predict_stops_at_a_bad_line_and_leaves_nothing(trained, tmp_path, refusal, first):
    source = write(tmp_path / "in.jsonl", [{"text": "good"}] * 3 + BAD[first:])
    said = refusal("predict.py", "--model", trained, "--input", source, "--output", tmp_path / "out.jsonl", "--window", 2)
    assert "in.jsonl, line 4" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def has_lines(state: Path) -> bool:
    """Whether a run has recorded lines of its output."""
    return state.exists() and json.loads(state.read_text())["lines"] > 0


def test_predict_goes_on_where_it_was_killed(trained, tmp_path):
    rows = [{"text": " ".join(["good", "bad", "and"][i % 3 :] * (1 + i % 7))} for i in range(3000)]
    source = write(tmp_path / "in.jsonl", rows)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    command = ["--model", trained, "--input", source, "--truncate", "--window", 10, "--policy", "threshold:0.7", "--output"]
    done = run("predict.py", *command, whole)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(list(map(str, [sys.executable, ROOT / "examples" / "predict.py", *command, killed])))
    state, deadline = tmp_path / "killed.jsonl.partial.json", time.monotonic() + 60
    while not has_lines(state) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert has_lines(state)
    assert not killed.exists()
    with (tmp_path / "killed.jsonl.partial").open("a") as file:
        file.write('{"label": "go')  # as a kill in the middle of a window leaves it
    done = run("predict.py", *command, killed)
    assert done.returncode == 0, done.stderr
    assert re.search(r"continuing after line [1-9]\d*0\b", done.stdout)
    assert killed.read_text() == whole.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "whole.jsonl", "killed.jsonl"}

    # Of a run with another policy nothing is used.
    state.write_text(json.dumps({"run": {}, "lines": 5, "bytes": 0, "truncated": 0, "exits": {}}))
    (tmp_path / "killed.jsonl.partial").write_text("")
    done = run("predict.py", *command, killed)
    assert "starting over" in done.stderr
    assert killed.read_text() == whole.read_text()


def test_predict_refuses_outputs_before_the_model_is_loaded(tmp_path, in_process):
    source = write(tmp_path / "in.jsonl", [{"text": "my only copy"}])
    whole, other = source.read_text(), write(tmp_path / "b.jsonl.partial", [{"text": "mine, too"}])
    (tmp_path / "model").mkdir()
    config = write(tmp_path / "model" / "config.json", ["{}"])
    (tmp_path / "link").symlink_to(source)
    os.mkfifo(tmp_path / "pipe")
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    for given, output, message in (
        (source, source, "in.jsonl would be overwritten, but it is an input"),
        (tmp_path / "link", source, "in.jsonl would be overwritten, but it is an input"),
        (other, tmp_path / "b.jsonl", "b.jsonl.partial would be overwritten, but it is an input"),
        (source, config, "config.json would be overwritten, but it is an input"),
        (source, tmp_path / "link", "link is a link, which would be replaced"),
        (source, tmp_path / "pipe", "pipe is a pipe, which would be replaced"),
        (source, tmp_path / "model", "model is a folder, which would be replaced"),
        (source, Path("/dev/null"), "/dev/null is a device, which would be replaced"),
        (source, tmp_path / "none" / "out.jsonl", "none is not a folder"),
        (tmp_path / "model", tmp_path / "out.jsonl", "model is a folder, expected a regular file"),
        (tmp_path / "pipe", tmp_path / "out.jsonl", "pipe is a pipe, expected a regular file"),
        (tmp_path / "none", tmp_path / "out.jsonl", "no such file"),
    ):
        with pytest.raises(SystemExit, match=message):
            in_process("predict.py", "--model", tmp_path / "model", "--input", given, "--output", output)
    assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before
    assert source.read_text() == whole


def test_predict_of_an_input_that_changes(trained, tmp_path, in_process, monkeypatch, capsys):
    source, output = write(tmp_path / "in.jsonl", [{"text": "good"}] * 9), tmp_path / "out.jsonl"
    command = ["predict.py", "--model", trained, "--input", source, "--output", output, "--window", 3, "--policy", "full"]
    answer = Engine.predict

    def change(engine: Engine, inputs: list) -> object:
        write(source, [{"text": "evil"}] * 9)
        return answer(engine, inputs)

    monkeypatch.setattr(Engine, "predict", change)
    with pytest.raises(SystemExit, match="in.jsonl changed while it was read"):
        in_process(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]

    def stop(engine: Engine, inputs: list) -> object:
        if has_lines(tmp_path / "out.jsonl.partial.json"):
            raise KeyboardInterrupt
        return answer(engine, inputs)

    monkeypatch.setattr(Engine, "predict", stop)
    with pytest.raises(SystemExit, match="stopped after line 3"):
        in_process(*command)
    before = source.stat()
    write(source, [{"text": "liev"}] * 9)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    monkeypatch.setattr(Engine, "predict", answer)
    in_process(*command)
    assert "belongs to another run (input_sha256): starting over" in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == 9


def test_predict_beside_its_model(trained, tmp_path, in_process, monkeypatch, capsys):
    """An output in the model's own folder goes on, too: what lies there of its own does not make the model another one."""
    model = tmp_path / "model"
    shutil.copytree(trained, model, ignore=shutil.ignore_patterns("checkpoints"))
    source, output = write(tmp_path / "in.jsonl", [{"text": "good"}] * 9), model / "out.jsonl"
    command = ["predict.py", "--model", model, "--input", source, "--output", output, "--window", 3, "--policy", "full"]
    answer = Engine.predict

    def stop(engine: Engine, inputs: list) -> object:
        if has_lines(output.with_name("out.jsonl.partial.json")):
            raise KeyboardInterrupt
        return answer(engine, inputs)

    monkeypatch.setattr(Engine, "predict", stop)
    with pytest.raises(SystemExit, match="stopped after line 3"):
        in_process(*command)
    monkeypatch.setattr(Engine, "predict", answer)
    (model / "other.jsonl.partial.json").write_text("of another run")
    in_process(*command)
    assert "continuing after line 3" in capsys.readouterr().out
    assert len(output.read_text().splitlines()) == 9
    in_process(*command)  # what lies there now is an output, and nothing that is read
    in_process(*command[:6], model / "out.json", *command[7:])
    in_process(*command[:6], model / "out.json", *command[7:])
    assert (model / "out.json").read_text() == output.read_text()


def test_two_predicts_of_one_output(trained, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good " * (1 + number % 9)} for number in range(20_000)])
    command = [
        "--model",
        trained,
        "--input",
        source,
        "--output",
        tmp_path / "out.jsonl",
        "--window",
        10,
        "--policy",
        "threshold:0.7",
    ]
    first = subprocess.Popen(list(map(str, [sys.executable, ROOT / "examples" / "predict.py", *command])))
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.jsonl.partial.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = run("predict.py", *command)
    assert first.poll() is None, "the first ended too early to be met"
    assert second.returncode != 0
    assert "another run is writing" in second.stderr
    assert "Traceback" not in second.stderr
    first.kill()
    first.wait()
    with ResumableFile(tmp_path / "out.jsonl"):
        pass  # nobody holds it any more


@pytest.mark.parametrize("window", [1, 2, 100])
def test_predict_carries_bad_lines_through(trained, tmp_path, in_process, capsys, window):
    source = write(tmp_path / "in.jsonl", BAD)
    in_process(
        "predict.py", "--model", trained, "--input", source, "--output", tmp_path / "out.jsonl", "--skip-bad-lines",
        "--window", window,
    )  # fmt: skip
    said = capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["error" in row for row in rows] == [False, True, True, True, True, False]
    for number, reason in ((2, "Expecting"), (3, "missing column 'text'"), (4, "empty text"), (5, "102 tokens")):
        assert f"line {number}" in rows[number - 1]["error"]
        assert reason in rows[number - 1]["error"]
        assert f"line {number}" in said


def test_predict_truncates_when_asked(trained, tmp_path, in_process, capsys):
    source = write(tmp_path / "in.jsonl", [{"text": "good " * 100}, {"text": "good"}])
    in_process("predict.py", "--model", trained, "--input", source, "--output", tmp_path / "out.jsonl", "--truncate")
    assert "1 texts were cut to 64 tokens" in capsys.readouterr().out


def test_wrong_policy_and_missing_files_are_plain_errors(trained, tmp_path, refusal):
    source = write(tmp_path / "in.jsonl", [{"text": "good"}])
    for arguments, message in (
        (["--input", source, "--policy", "fast"], "unknown policy 'fast'"),
        (["--input", tmp_path / "none.jsonl"], "no such file"),
        (["--input", write(tmp_path / "empty.jsonl", [])], "has no lines"),
        (["--input", source, "--model", tmp_path / "nowhere"], "nowhere"),
    ):
        assert message in refusal("predict.py", "--model", trained, "--output", tmp_path / "out.jsonl", *arguments)

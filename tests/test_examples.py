"""The example scripts, run as a user runs them."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from bench.rows import read, records
from geep_triton import Engine, MultiExitBert
from geep_triton.policies.text import parse_policy
from geep_triton.resumable import ResumableFile

ROOT = Path(__file__).parent.parent
ROWS = [
    ("the film was good", "pos"),
    ("a great book", "pos"),
    ("we liked the soup", "pos"),
    ("not bad", "pos"),
    ("the film was awful", "neg"),
    ("a dull book", "neg"),
    ("we hated the soup", "neg"),
    ("not good", "neg"),
]


def run(script: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.fixture
def in_process(monkeypatch):
    """A script in this process, which saves the imports."""

    def run_here(script: str, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")

    return run_here


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer) -> Path:
    """A tiny BERT trained by examples/train.py."""
    folder = tmp_path_factory.mktemp("examples")
    config = BertConfig(
        vocab_size=42,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    data = write(folder / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS] * 4)
    done = run(
        "train.py", "--model", folder / "bert", "--train", data, "--dev", data, "--output", folder / "model",
        "--epochs", 30, "--learning-rate", 3e-3, "--head-dropout", 0, "--pooling", "mean", "--max-length", 32,
        "--save-steps", 5, "--threshold", 0.5, "--save-records",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exit 3: accuracy" in done.stdout
    return folder / "model"


def test_train_leaves_a_whole_model_and_its_record(trained):
    assert {"config.json", "model.safetensors", "exit_table.safetensors", "tokenizer.json", "training.json"} <= {
        path.name for path in trained.iterdir()
    }
    record = json.loads((trained / "training.json").read_text())
    assert record["arguments"]["recipe"] == "joint"
    assert record["metrics"]["eval_accuracy"] >= 0.9


def test_train_goes_on_after_a_kill(trained, tmp_path):
    """Killed while training and started again, it ends with the weights of a run that was left alone."""
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS] * 4)

    def command(output: Path) -> list[str]:
        return [
            "train.py", "--model", trained.parent / "bert", "--train", data, "--dev", data, "--output", output,
            "--epochs", 60, "--pooling", "mean", "--max-length", 32, "--save-steps", 10,
        ]  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*command(whole)).returncode == 0
    script, *arguments = map(str, command(killed))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (killed / "checkpoints" / "checkpoint-10").exists():
        assert process.poll() is None, "training ended before its first checkpoint"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "model.safetensors").exists()
    (killed / "checkpoints" / "checkpoint-1000").mkdir()  # as a kill in the middle of a save leaves it
    done = run(*command(killed))
    assert done.returncode == 0, done.stderr
    expected, resumed = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5, msg=name)
    changed = run(*command(killed)[:-1], 20)
    assert changed.returncode != 0
    assert "holds a run with another save_steps (10, now 20)" in changed.stderr


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
def test_predict_stops_at_a_bad_line_and_leaves_nothing(trained, tmp_path, first):
    source = write(tmp_path / "in.jsonl", [{"text": "good"}] * 3 + BAD[first:])
    done = run("predict.py", "--model", trained, "--input", source, "--output", tmp_path / "out.jsonl", "--window", 2)
    assert done.returncode != 0
    assert "in.jsonl, line 4" in done.stderr
    assert "Traceback" not in done.stderr
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
    assert re.search(r"going on after line [1-9]\d*0\b", done.stdout)
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
        (source, source, "in.jsonl would be written over, but it is what is read"),
        (tmp_path / "link", source, "in.jsonl would be written over, but it is what is read"),
        (other, tmp_path / "b.jsonl", "b.jsonl.partial would be written over, but it is what is read"),
        (source, config, "config.json would be written over, but it is what is read"),
        (source, tmp_path / "link", "link is a link, which would be replaced"),
        (source, tmp_path / "pipe", "pipe is a pipe, which would be replaced"),
        (source, tmp_path / "model", "model is a folder, which would be replaced"),
        (source, Path("/dev/null"), "/dev/null is a device, which would be replaced"),
        (source, tmp_path / "none" / "out.jsonl", "none is no folder"),
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
    assert "is of another run (input_sha256): starting over" in capsys.readouterr().err
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
    assert "going on after line 3" in capsys.readouterr().out
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
    assert "another run writes" in second.stderr
    assert "Traceback" not in second.stderr
    first.kill()
    first.wait()
    with ResumableFile(tmp_path / "out.jsonl"):
        pass  # nobody holds it any more


@pytest.mark.parametrize("window", [1, 2, 100])
def test_predict_carries_bad_lines_through(trained, tmp_path, window):
    source = write(tmp_path / "in.jsonl", BAD)
    done = run(
        "predict.py", "--model", trained, "--input", source, "--output", tmp_path / "out.jsonl", "--skip-bad-lines",
        "--window", window,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["error" in row for row in rows] == [False, True, True, True, True, False]
    for number, reason in ((2, "Expecting"), (3, "missing column 'text'"), (4, "empty text"), (5, "102 tokens")):
        assert f"line {number}" in rows[number - 1]["error"]
        assert reason in rows[number - 1]["error"]
        assert f"line {number}" in done.stderr


def test_predict_truncates_when_asked(trained, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good " * 100}, {"text": "good"}])
    done = run("predict.py", "--model", trained, "--input", source, "--output", tmp_path / "out.jsonl", "--truncate")
    assert done.returncode == 0, done.stderr
    assert "1 texts were cut" in done.stdout


def test_calibrate_saves_a_policy_that_predict_uses(trained, tmp_path):
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
    done = run("calibrate.py", "--model", output, "--texts", texts, "--max-accuracy-drop", 0.45, "--method", "conformal")
    assert done.returncode == 0, done.stderr
    assert (output / "model.safetensors").read_bytes() == before
    assert "accuracy" in done.stdout
    for arguments, message in (
        (["--texts", texts, "--agreement", 0.99], "are too few to promise agreement=0.99"),
        (["--texts", write(tmp_path / "no.jsonl", [{"text": "good"}]), "--max-accuracy-drop", 0.1], "label"),
        (["--texts", texts, "--agreement", 0.7, "--mean-depth", 2], "not allowed with argument"),
        (["--texts", texts], "one of the arguments --agreement"),
        (["--model", "some/model", "--texts", texts, "--agreement", 0.7], "--output must say where"),
    ):
        done = run("calibrate.py", "--model", output, *arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_wrong_policy_and_missing_files_are_plain_errors(trained, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good"}])
    for arguments, message in (
        (["--input", source, "--policy", "fast"], "unknown policy 'fast'"),
        (["--input", tmp_path / "none.jsonl"], "no such file"),
        (["--input", write(tmp_path / "empty.jsonl", [])], "has no lines"),
        (["--input", source, "--model", tmp_path / "nowhere"], "nowhere"),
    ):
        done = run("predict.py", "--model", trained, "--output", tmp_path / "out.jsonl", *arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_quickstart(minilm_path, tmp_path):
    """The README's first command, with fewer epochs."""
    done = run("quickstart.py", "--epochs", 1, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines() if line.startswith(("full", "constant", "threshold", "pred"))]
    assert [row[0].split(":")[0] for row in table] == ["full", "constant", "threshold", "predicted"]
    assert float(table[0][1]) >= 0.7
    for name in ("exit_histogram.png", "accuracy_speed.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    lines = done.stdout[done.stdout.index("    from geep_triton") :]
    code = "\n".join(line.strip() for line in lines.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("['positive']", "['negative']")


def test_bench_policies(trained, tmp_path):
    """The script behind the README's table, on the tiny model."""
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    command = [sys.executable, "-m", "bench.claims.policies", "--name", "tiny set", "--rounds", 1, "--output", tmp_path]
    command += ["--model", trained, "--test", data, "--dev", data]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = records(read(tmp_path / "tiny set.jsonl"))
    (facts,) = (row for row in rows if "exit_layers" in row)
    by_name = {row["system"]: row for row in rows if "samples_per_second" in row}
    assert by_name["full"]["accuracy"] == pytest.approx(facts["exit_accuracies.test"][-1])
    assert by_name["full"]["agreement"] == 1.0
    assert by_name["huggingface, length-sorted"]["agreement"] == 1.0
    assert by_name["constant:2"]["mean_layers"] == 2.0
    assert {row["decision"] for row in rows if "decision" in row} == {"argmax", "mean", 0.9}
    for row in by_name.values():
        bound = 3 / row["mean_layers_timed"]
        assert row["share_of_bound"] == pytest.approx(row["speed_up"] / bound)


def texts_of(words: str, count: int, seed: int) -> list[dict]:
    """Rows of four to nine random words, labelled by whether "good" is among them."""
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(words.split(), k=generator.randint(4, 9))) for _ in range(count)]
    return [{"text": text, "label": "pos" if "good" in text else "neg"} for text in texts]


def bench(module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", f"bench.claims.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


WORDS = "the film was good a great book we liked soup not bad awful dull hated"


def test_bench_promises(trained, tmp_path):
    files = {}
    for seed, name in enumerate(("train", "dev", "test", "other")):
        (tmp_path / name).mkdir()
        files[name] = write(tmp_path / name / "rows.jsonl", texts_of(WORDS, 150, seed))
    bench(
        "promises", "--model", trained, "--name", "tiny set", "--seed", 7, "--output", tmp_path, "--dev", files["dev"],
        "--test", files["test"], "--train", files["train"], "--shifted", files["other"], "--agreements", 0.6,
        "--token-budgets", 64, "--rounds", 1, "--speed-tokens", 100, "--max-length", 32,
    )  # fmt: skip
    rows = records(read(tmp_path / "tiny_set_s7.jsonl"))
    policies = [row for row in rows if "policy" in row]
    judged = [row for row in policies if not {"token_budget", "texts"} & row.keys()]
    assert sum(row["chosen"] for row in judged) == 1
    speeds = [row for row in policies if row.get("token_budget") == 64]
    assert {row["policy"] for row in speeds} == {row["policy"] for row in judged}
    for speed in speeds:
        assert speed["share_of_bound"] == pytest.approx(speed["speed_up"] * speed["mean_layers"] / 3)
        assert speed["share_of_token_bound"] == pytest.approx(speed["speed_up"] * speed["mean_layers_of_a_token"] / 3)
    elsewhere = [row for row in policies if row.get("texts") == "other"]
    assert len(elsewhere) == len(judged)
    assert all("accuracy" not in row for row in elsewhere)
    full = next(row for row in judged if row["policy"] == "full")
    assert (full["agreement"], full["mean_layers"], full["mean_layers_of_a_token"]) == (1.0, 3.0, 3.0)
    assert next(row for row in rows if row["system"] == "audit" and row["texts"] == "other")["samples"] > 20
    (timed,) = (row["speed_samples"] for row in rows if "speed_samples" in row)
    assert 2 * 64 / 32 <= timed < 100  # what fills two batches
    (unsafe,) = (row["unsafe"] for row in rows if "unsafe" in row)
    assert set(unsafe).isdisjoint(row["system"] for row in judged)
    assert [row["token_budget"] for row in rows if "drift" in row] == [64]
    (facts,) = (row for row in rows if "num_layers" in row)
    assert facts["verified_less_threshold.worst"] <= facts["verified_less_threshold.mean"]


def test_bench_predictors(trained, tmp_path):
    train, test = (write(tmp_path / f"{seed}.jsonl", texts_of(WORDS, 200, seed)) for seed in (0, 1))
    bench(
        "predictors", "--model", trained, "--name", "tiny", "--train", train, "--test", test, "--output", tmp_path,
        "--max-length", 32,
    )  # fmt: skip
    rows = records(read(tmp_path / "tiny.jsonl"))
    by_name = {row["system"]: row for row in rows}
    assert by_name["the threshold itself"]["exact_match"] == 1.0
    assert {row.get("ngram") for row in rows if row["system"] == "counts"} == {1, 2, 3}

    flags = [{"text": row["text"], "label": [0, int("good" in row["text"]), 1]} for row in texts_of(WORDS, 200, 2)]
    train, test = write(tmp_path / "2.jsonl", flags[:150]), write(tmp_path / "3.jsonl", flags[150:])
    bench("predictors", "--flags", "--tokenizer", trained, "--name", "flags", "--train", train, "--test", test,
          "--output", tmp_path, "--max-length", 32)  # fmt: skip
    rows = records(read(tmp_path / "flags.jsonl"))
    learned = [row for row in rows if row["system"] == "learned exits" and row["texts"] == 150]
    assert max(row["exact_match"] for row in learned) > 0.9
    assert next(row for row in rows if row["system"] == "random")["exact_match"] < 0.9


@pytest.fixture
def train_here(in_process):
    """examples/train.py in this process."""
    return partial(in_process, "train.py")


def test_train_by_other_recipes(trained, tmp_path, train_here):
    """Settings, a difficulty column, class weights; then exits for the model that came out, which keeps its answers."""
    rows = [{"text": text, "label": label, "hard": len(text)} for text, label in ROWS] * 2
    data = write(tmp_path / "data.jsonl", rows)
    common = ["--train", data, "--dev", data, "--epochs", 4, "--max-length", 32]
    train_here(
        "--model", trained.parent / "bert", "--output", tmp_path / "kd", *common, "--recipe", "distillation",
        "--recipe-settings", "temperature=3", "pairing=last", "--curriculum", "staged", "--curriculum-settings", "buckets=2",
        "until=0.7", "--difficulty", "hard", "--class-weights", "balanced",
    )  # fmt: skip
    record = json.loads((tmp_path / "kd" / "training.json").read_text())
    assert record["arguments"]["recipe_settings"] == {"temperature": 3, "pairing": "last"}
    assert record["arguments"]["curriculum_settings"] == {"buckets": 2, "until": 0.7}
    train_here("--model", tmp_path / "kd", "--output", tmp_path / "frozen", *common, "--recipe", "frozen")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("kd", "frozen"))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("heads.1.", "heads.2.")) for name in moved)
    train_here(
        "--model", trained.parent / "bert", "--output", tmp_path / "curriculum", *common, "--curriculum", "competence",
        "--difficulty", "cross-review:2",
    )  # fmt: skip
    assert (tmp_path / "curriculum" / "model.safetensors").is_file()
    assert len(list((tmp_path / "curriculum" / "teachers").glob("answers_*.json"))) == 2  # a killed review goes on from these


@pytest.fixture
def fine_tuned(trained, tmp_path) -> Path:
    """A BertForSequenceClassification whose classes are not in alphabetical order."""
    config = BertConfig.from_pretrained(trained.parent / "bert", id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "fine")
    AutoTokenizer.from_pretrained(trained.parent / "bert").save_pretrained(tmp_path / "fine")
    return tmp_path / "fine"


@pytest.mark.parametrize("labelled", [True, False])
def test_classes_of_a_fine_tuned_model_keep_their_numbers(fine_tuned, tmp_path, train_here, labelled):
    data = write(tmp_path / "data.jsonl", [{"text": text} | ({"label": label} if labelled else {}) for text, label in ROWS])
    command = ["--train", data, "--dev", data, "--epochs", 1, "--max-length", 32, "--output", tmp_path / "out"]
    train_here("--model", fine_tuned, "--recipe", "joint" if labelled else "frozen", *command)
    assert MultiExitBert.from_pretrained(tmp_path / "out").config.id2label == {0: "pos", 1: "neg"}
    metrics = json.loads((tmp_path / "out" / "training.json").read_text())["metrics"]
    assert ("eval_accuracy_exit_1" in metrics) == labelled
    assert metrics.get("eval_agreement_exit_3", 1.0) == 1.0


def test_classes_without_names(fine_tuned, tmp_path, train_here):
    config = json.loads((fine_tuned / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (fine_tuned / "config.json").write_text(json.dumps(config))
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    command = ["--model", fine_tuned, "--train", data, "--dev", data, "--epochs", 1, "--max-length", 32]
    command += ["--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"does not say what its classes are called \(LABEL_0, LABEL_1\), .* give --labels"):
        train_here(*command)
    train_here(*command, "--labels", "pos", "neg")
    assert MultiExitBert.from_pretrained(tmp_path / "out").config.id2label == {0: "pos", 1: "neg"}


def test_train_refuses_what_the_recipe_has_no_use_for(trained, tmp_path, train_here):
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    command = ["--model", trained.parent / "bert", "--train", data, "--dev", data, "--output", tmp_path / "out"]
    command += ["--max-length", "64"]
    for arguments, error, message in (
        (["--difficulty", "hard"], SystemExit, "--difficulty would be ignored without --curriculum"),
        (["--curriculum-settings", "until=1"], SystemExit, "--curriculum-settings would be ignored without --curriculum"),
        (["--curriculum", "staged", "--curriculum-settings", "until=2"], ValueError, "until must be between"),
        (["--recipe-settings", "speed=1"], ValueError, "recipe 'joint' has no setting 'speed'; known: gradient_scale"),
        (["--curriculum", "competence", "--difficulty", "hard"], ValueError, "column 'hard' must have a number in every row"),
        (["--max-length", "65"], SystemExit, "--max-length must be at most .* 64"),
        (["--recipe", "frozen"], SystemExit, "recipe 'frozen' leaves the last exit as it is, but .* is not fine-tuned"),
    ):
        with pytest.raises(error, match=message):
            train_here(*command, *arguments)

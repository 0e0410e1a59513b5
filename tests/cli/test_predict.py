"""`geep predict`: answers beside the columns of the input, restarts, refusals and their exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geep_triton import Engine
from geep_triton.files.rows import read_rows
from geep_triton.over_files.predicting import predict_files
from tests.cli.commands import ROWS, command, environment, write


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("policy", ["full", "constant:2", "threshold", "predicted"])
def test_predict(geep, trained, tmp_path, policy):
    source = write(tmp_path / "in.jsonl", [{"text": text, "id": number} for number, (text, _) in enumerate(ROWS)])
    done = geep("predict", trained, source, "-o", tmp_path / "out.jsonl", "--policy", policy, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"8 of 8 rows answered, mean exit layer {3.0 if policy == 'full' else ''}")
    rows = lines(tmp_path / "out.jsonl")
    assert [list(row) for row in rows] == [["text", "id", "label", "score", "exit_layer"]] * len(ROWS)
    assert [(row["text"], row["id"]) for row in rows] == [(text, number) for number, (text, _) in enumerate(ROWS)]
    if policy == "full":
        assert [row["label"] for row in rows] == [label for _, label in ROWS]
        assert {row["exit_layer"] for row in rows} == {3}


def test_it_answers_as_the_engine_does(geep, trained, tmp_path):
    texts = [text for text, _ in ROWS]
    pq.write_table(pa.table({"body": texts, "n": range(8)}), tmp_path / "in.parquet")
    done = geep(
        "predict", trained, tmp_path / "in.parquet", "-o", tmp_path / "out.csv", "--text-column", "body", "--columns", "n",
        "--all-scores", "--json", "--prefix", "p_", "--policy", "threshold:0.5,regroup=always",
    )  # fmt: skip
    found = Engine.from_pretrained(trained, "threshold:0.5,regroup=always").predict(texts)
    assert done.values["exits"] == {str(layer): count for layer, count in found.histogram.items() if count}
    assert done.values["mean_exit_layer"] == found.mean_exit_layer
    assert (done.values["rows"], done.values["truncated"], done.values["output"]) == (8, 0, str(tmp_path / "out.csv"))
    rows = read_rows(tmp_path / "out.csv", required=("n", "p_label"))
    assert [row["p_label"] for row in rows] == found.labels
    assert list(rows[0]) == ["n", "p_label", "p_score", "p_exit_layer", "p_scores"]
    for row, each in zip(rows, found.probabilities.tolist(), strict=True):
        assert json.loads(row["p_scores"]) == dict(zip(found.id2label.values(), each, strict=True))
        assert float(row["p_score"]) == max(each)


def test_pairs(geep, refusal, trained, tmp_path):
    rows = [{"text": "good", "text_pair": "bad"}, {"text": "good"}, {"text": "good", "text_pair": None}]
    source = write(tmp_path / "in.jsonl", rows)
    assert geep("predict", trained, source, "-o", tmp_path / "out.jsonl", "--policy", "full").code == 0
    scores = [row["score"] for row in lines(tmp_path / "out.jsonl")]
    found = Engine.from_pretrained(trained, "full").predict([("good", "bad"), "good", "good"])
    assert scores == pytest.approx(found.probabilities.amax(-1).tolist(), abs=1e-6)
    said = refusal(3, "predict", trained, source, "-o", tmp_path / "b.jsonl", "--pair-column", "text_pair")
    assert "in.jsonl, line 2: missing column 'text_pair'" in said
    assert "missing column 'other'" in refusal(
        3, "predict", trained, source, "-o", tmp_path / "b.jsonl", "--pair-column", "other"
    )


KINDS = {
    "score": ({"num_labels": 1}, {}, {"score", "exit_layer"}),
    "score with a cut": ({"num_labels": 1}, {"decision": 0.1}, {"score", "exit_layer", "decision"}),
    "label sets": ({"problem_type": "multi_label_classification"}, {}, {"labels", "scores", "exit_layer"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_models_of_every_kind(make_model, tokenizer, tmp_path, kind, form):
    changes, served, names = KINDS[kind]
    model = make_model(**changes)
    for name, value in served.items():
        setattr(model.exit_config, name, value)
    engine, texts = Engine(model, tokenizer, "constant:2"), [text for text, _ in ROWS]
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    predict_files(engine, [source], tmp_path / f"out.{form}")
    rows = lines(tmp_path / "out.jsonl") if form == "jsonl" else pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert set(rows[0]) == {"text"} | names
    found = engine.predict(texts)
    if kind == "label sets":
        assert [row["labels"] for row in rows] == found.label_sets
        assert [list(row["scores"].values()) for row in rows] == found.probabilities.tolist()
    else:
        assert [row["score"] for row in rows] == found.scores.tolist()
        assert "decision" not in names or [row["decision"] for row in rows] == found.decisions.tolist()
        with pytest.raises(ValueError, match="all_scores is for models of classes"):
            predict_files(engine, [source], tmp_path / "b.jsonl", all_scores=True)


BAD = [
    {"text": "good"}, "{broken", {"body": "good"}, {"text": ""}, {"text": "good " * 100}, {"text": None},
    {"text": "bad", "text_pair": "good", "input_ids": "not ours"},
]  # fmt: skip


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5])
def test_it_stops_at_a_bad_row_and_leaves_nothing(refusal, trained, tmp_path, first):
    source = write(tmp_path / "in.jsonl", [{"text": "good"}] * 3 + BAD[first:])
    said = refusal(3, "predict", trained, source, "-o", tmp_path / "out.jsonl", "--window", 2)
    assert "in.jsonl, line 4" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("window", [1, 2, 100])
def test_bad_rows_are_skipped_or_stay(geep, trained, tmp_path, window):
    source = write(tmp_path / "in.jsonl", BAD)
    done = geep("predict", trained, source, "-o", tmp_path / "out.jsonl", "--bad-rows", "skip", "--window", window, "--json")
    assert (done.code, done.values["answered"], done.values["bad"]) == (0, 2, 5)
    reasons = [(row["line"], row["reason"]) for row in lines(tmp_path / "out.jsonl.skipped.jsonl")]
    for (line, reason), expected in zip(
        reasons, ["Expecting", "missing column 'text'", "empty text", "102 tokens", "no text"], strict=True
    ):
        assert expected in reason, line
    assert [line for line, _ in reasons] == [2, 3, 4, 5, 6]
    done = geep("predict", trained, source, "-o", tmp_path / "all.jsonl", "--bad-rows", "empty", "--window", window)
    assert "5 rows could not be answered" in done.out
    assert [row["label"] is None for row in lines(tmp_path / "all.jsonl")] == [False, True, True, True, True, True, False]


def test_texts_are_cut_when_asked(geep, trained, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good " * 100}, {"text": "good"}])
    done = geep("predict", trained, source, "-o", tmp_path / "out.jsonl", "--truncate")
    assert "1 texts were cut" in done.out


def test_it_goes_on_where_it_was_killed(geep, trained, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for shard in range(3):
        texts = [" ".join(["good", "bad", "and"][number % 3 :] * (1 + number % 7)) for number in range(900)]
        pq.write_table(pa.table({"text": texts, "id": range(900)}), folder / f"{shard}.parquet")
    arguments = ["predict", trained, folder, "--truncate", "--window", 10, "--policy", "threshold:0.7,regroup=always", "-o"]
    process = subprocess.Popen(command(*arguments, tmp_path / "killed"), env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").rglob("*.partial.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    second = geep(*arguments, tmp_path / "killed")
    assert process.poll() is None, "it ended too early to be met"
    assert (second.code, "another process is at work" in second.err) == (5, True)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    third = geep(*arguments, tmp_path / "killed", "--json")
    assert third.code == 0
    assert "continuing after row" in third.err
    assert geep(*arguments, tmp_path / "whole", "--quiet").code == 0
    for shard in range(3):
        name = f"{shard}.parquet"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = geep(*arguments, tmp_path / "killed", "--json")
    assert (again.code, "already complete: 3 shards" in again.err) == (0, True)
    assert again.values | {"answered_before": 0} == third.values | {"answered_before": 0}


def test_another_model_or_policy_on_the_same_output(geep, refusal, trained, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write(source / "a.jsonl", [{"text": "good"}])
    assert geep("predict", trained, source, "-o", tmp_path / "out", "--policy", "full").code == 0
    said = refusal(5, "predict", trained, source, "-o", tmp_path / "out", "--policy", "constant:2")
    assert "policy was 'full', now 'constant:2'" in said
    shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))
    engine = Engine.from_pretrained(tmp_path / "model", runner="torch")
    engine.model.exit_config.thresholds = 0.25
    engine.save_pretrained(tmp_path / "model")
    said = refusal(5, "predict", tmp_path / "model", source, "-o", tmp_path / "out", "--policy", "full")
    assert "is of a run with another exit_config" in said
    shutil.copytree(trained, tmp_path / "renamed", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((tmp_path / "renamed" / "config.json").read_text())
    config |= {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    (tmp_path / "renamed" / "config.json").write_text(json.dumps(config))
    said = refusal(5, "predict", tmp_path / "renamed", source, "-o", tmp_path / "out", "--policy", "full")
    assert "is of a run with another config" in said
    assert "max_length" in refusal(5, "predict", trained, source, "-o", tmp_path / "out", "--policy", "full", "--max-length", 9)


def test_wrong_arguments_are_one_line(geep, refusal, trained, tmp_path):
    source, out = write(tmp_path / "in.jsonl", [{"text": "good", "label": "x"}]), tmp_path / "out.jsonl"
    for arguments, code, message in (
        ([trained, source, "-o", out], 3, "has a column 'label', and so would the answers"),
        ([trained, source, "-o", out, "--policy", "fast"], 3, "unknown policy 'fast'"),
        ([trained, source, "-o", out, "--text-column", "body"], 3, "missing column 'body'"),
        ([trained, tmp_path / "none.jsonl", "-o", out], 3, "no such file"),
        ([trained, source, "-o", out, "--bad-rows", "ignore"], 3, "unknown bad_rows 'ignore'"),
        ([trained, source, "-o", out, "--format", "xls"], 3, "unknown format 'xls'"),
        ([trained, source, "-o", source, "--overwrite"], 3, "would be overwritten, but it is an input"),
        ([trained, source, "-o", tmp_path / "none" / "out.jsonl"], 3, "none is not a folder"),
        ([trained, source, "-o", write(tmp_path / "b.jsonl", [])], 5, "b.jsonl is there already"),
        ([tmp_path / "nowhere", source, "-o", out], 3, "nowhere"),
        ([trained, source], 2, "Missing option"),
        ([trained, "-o", out], 2, "Missing argument"),
    ):
        assert message in refusal(code, "predict", *arguments), arguments
    assert not out.exists()
    assert geep("predict", trained, source, "-o", out, "--prefix", "predicted_").code == 0


def test_a_full_disk(geep, trained, tmp_path):
    """A limit on the size of files stands in for it."""
    source = write(tmp_path / "in.jsonl", [{"text": "good"}] * 20)
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
from geep_triton.cli.app import main
sys.exit(main(["predict", {str(trained)!r}, {str(source)!r}, "-o", {str(tmp_path / "out.jsonl")!r}, "--window", "3"]))
"""
    done = subprocess.run([command()[0], "-c", script], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert geep("predict", trained, source, "-o", tmp_path / "out.jsonl", "--window", 3).code == 0
    assert len(lines(tmp_path / "out.jsonl")) == 20


def test_a_window_is_sorted_as_a_whole(geep, trained, tmp_path, monkeypatch):
    windows = []

    def answer(engine, *arguments, **options):
        windows.append((engine.window, options["settings"].window))
        return predict_files(engine, *arguments, **options)

    monkeypatch.setattr(sys.modules["geep_triton.cli.predict"], "predict_files", answer)
    source = write(tmp_path / "in.jsonl", [{"text": "good"}])
    assert geep("predict", trained, source, "-o", tmp_path / "out.jsonl", "--window", 9000).code == 0
    assert windows == [(9000, 9000)]


def test_options_of_actors_need_a_cluster(refusal, trained, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good"}])
    assert "--actors, --actor-cpus and --actor-gpus are for --ray" in refusal(
        3, "predict", trained, source, "-o", tmp_path / "out.jsonl", "--actors", 2
    )
    assert "address must be HOST:PORT" in refusal(
        3, "predict", trained, source, "-o", tmp_path / "out.jsonl", "--ray", "ray://a:1"
    )

"""The scripts behind bench/claims, on a tiny trained model."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from bench.rows import read, records
from tests.examples.scripts import ROOT, ROWS, write


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

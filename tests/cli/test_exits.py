"""`geep exits`: one command from a fine-tuned model and texts to exits that keep a promise."""

from __future__ import annotations

import random
import re

import pytest

from geep_triton import Engine, from_fine_tuned
from geep_triton.cli import failures
from tests.cli.commands import write
from tests.conftest import WORDS

SETTINGS = ("--agreement", 0.8, "--epochs", 1, "--learning-rate", 1e-2, "--pooling", "mean")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """300 texts, in a column of a name of its own."""
    chosen = random.Random(0)
    words = [word for word in WORDS if word.isalpha()]
    rows = [{"review": " ".join(chosen.choices(words, k=chosen.randint(1, 12))), "id": index} for index in range(300)]
    return write(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


def test_exits_a_policy_and_a_report(fine_tuned, texts, tmp_path, geep, refusal):
    output = tmp_path / "fast"
    given = ("exits", fine_tuned, "--texts", texts, "--text-column", "review", "-o", output, *SETTINGS)
    done = geep(*given, "--json", "--quiet")
    assert done.code == 0, done.err
    found = done.values
    assert (found["output"], found["promises"], found["samples"]) == (
        str(output),
        {"agreement": 0.8},
        pytest.approx(100, abs=10),
    )
    engine = Engine.from_pretrained(output)
    assert engine.model.exit_config.policy == found["chosen"]["policy"]
    assert engine.promise is not None
    assert found["report"] == str(output / "report.html")
    assert "<svg" in (output / "report.html").read_text(encoding="utf-8")
    # What is there is not lost.
    before = (output / "config.json").read_bytes()
    assert "holds a model already" in refusal(failures.TAKEN, *given)
    assert (output / "config.json").read_bytes() == before


def test_a_call_that_was_killed_goes_on(fine_tuned, texts, tmp_path, geep, monkeypatch):
    real, steps = from_fine_tuned.MultiExitTrainer.training_step, []

    def step(*args, **kwargs):
        steps.append(len(steps))
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(from_fine_tuned.MultiExitTrainer, "training_step", step)
    given = (
        "exits",
        fine_tuned,
        "--texts",
        texts,
        "--text-column",
        "review",
        "-o",
        tmp_path / "fast",
        *SETTINGS,
        "--no-report",
    )
    stopped = geep(*given)
    assert stopped.code == failures.INTERRUPTED
    assert stopped.err.splitlines()[-1] == "geep exits: stopped"
    done = geep(*given)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].startswith("policies")
    assert not (tmp_path / "fast" / "report.html").exists()
    assert not (tmp_path / "fast" / from_fine_tuned.UNFINISHED).exists()


def test_what_is_refused(fine_tuned, trained, texts, tmp_path, refusal):
    output = tmp_path / "fast"
    named = ("--text-column", "review", "-o", output)
    few = write(tmp_path / "few.jsonl", [{"review": "good"}] * 12)
    too_few = refusal(failures.NO_PROMISE, "exits", fine_tuned, "--texts", few, *named)
    assert "too few to promise" in too_few
    assert re.search(r"give \d+ in all, or more", too_few)
    missing = refusal(failures.REFUSED, "exits", fine_tuned, "--texts", texts, "-o", output)
    assert "missing column 'text'" in missing
    assert "--text-column" in missing
    nowhere = refusal(failures.SYSTEM, "exits", "runs/nowhere", "--texts", texts, *named)
    assert "there is no folder runs/nowhere here" in nowhere
    assert "is not fine-tuned" in refusal(failures.REFUSED, "exits", trained.parent / "bert", "--texts", texts, *named)
    unknown = refusal(failures.REFUSED, "exits", fine_tuned, "--texts", texts, *named, "--head", "large")
    assert "unknown head 'large'" in unknown
    assert "must be another folder" in refusal(
        failures.REFUSED, "exits", fine_tuned, "--texts", texts, "--text-column", "review", "-o", fine_tuned, "--overwrite"
    )
    assert not output.exists()

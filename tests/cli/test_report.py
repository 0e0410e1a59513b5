"""`geep report`."""

from __future__ import annotations

import os

import pytest

from geep_triton.cli import failures
from tests.cli.commands import ROWS, write


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "texts.jsonl", [{"text": text} for text, _ in ROWS])


def test_a_page_without_texts(trained, tmp_path, geep):
    path = tmp_path / "report.html"
    done = geep("report", trained, "-o", path)
    assert (done.code, done.out) == (0, f"{path}\n"), done.err
    page = path.read_text(encoding="utf-8")
    assert "this model was never calibrated" in page
    assert not [text for text, _ in ROWS if text in page]


def test_a_page_of_a_calibrated_model_with_texts(trained, tmp_path, texts, geep):
    rows = [{"text": f"{text} {word}"} for text, _ in ROWS for word in ("again", "soup", "never", "book")]
    calibration, model, path = write(tmp_path / "c.jsonl", rows), tmp_path / "calibrated", tmp_path / "report.html"
    assert geep("calibrate", trained, "--texts", calibration, "--agreement", 0.7, "-o", model, "--quiet").code == 0
    done = geep("report", model, "--texts", texts, "--show", 3, "-o", path, "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.values["output"] == str(path)
    assert done.values["calibrated"]["samples"] == len(rows)
    assert done.values["given"]["breakdown"]["texts"] == len(ROWS)
    assert len(done.values["given"]["shown"]) == 3
    page = path.read_text(encoding="utf-8")
    assert "At least 70 % of texts" in page
    assert page.count('<article class="text">') == 3


def test_no_text_is_written_with_show_0(trained, tmp_path, texts, geep):
    path = tmp_path / "report.html"
    assert geep("report", trained, "--texts", texts, "--show", 0, "-o", path).code == 0
    assert '<article class="text">' not in path.read_text(encoding="utf-8")


def test_help_says_that_texts_are_written(geep):
    assert "WRITTEN INTO THE PAGE" in " ".join(geep("report", "--help").out.split())


@pytest.mark.parametrize("option", [("--show", 3), ("--device", "cpu"), ("--truncate",), ("--text-column", "review")])
def test_options_of_texts_need_texts(trained, tmp_path, refusal, option):
    line = refusal(failures.USAGE, "report", trained, "-o", tmp_path / "r.html", *option)
    assert f"{option[0]} is for --texts" in line


def test_what_is_refused(trained, tmp_path, texts, refusal):
    path = tmp_path / "r.html"
    assert "folder" in refusal(failures.REFUSED, "report", trained, "-o", tmp_path)
    assert "nowhere" in refusal(failures.REFUSED, "report", trained, "--texts", tmp_path / "nowhere.jsonl", "-o", path)
    assert "missing column 'review'" in refusal(
        failures.REFUSED, "report", trained, "--texts", texts, "--text-column", "review", "-o", path
    )
    assert refusal(failures.USAGE, "report", trained, "--texts", texts, "--show", -1, "-o", path)
    assert not path.exists()


def test_neither_texts_nor_devices_become_a_page(trained, tmp_path, texts, refusal):
    before = texts.read_bytes()
    assert "holds the texts" in refusal(failures.REFUSED, "report", trained, "--texts", texts, "-o", texts)
    assert texts.read_bytes() == before
    (tmp_path / "link").symlink_to(texts)
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("link", "a link"), ("pipe", "a pipe")):
        assert f"is {kind}, which would be replaced" in refusal(failures.REFUSED, "report", trained, "-o", tmp_path / name)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()

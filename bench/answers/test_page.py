"""The page on answers says what the rows say, and where exits do not pay."""

from __future__ import annotations

import pytest

from bench.answers.tasks import E5, MINILM, SST2, YELP, Trained
from bench.environment import environment
from bench.report import MOST_LINES, answers
from bench.rows import found, rows_of, save


def write(folder, kind, cell, *measured):
    save(
        folder / "answers" / kind / f"{cell.name}.jsonl",
        rows_of("answers", cell.name, [*measured, found("", {"took": 1.0})], cell.declaration(), environment()),
    )


@pytest.fixture
def folder(tmp_path):
    """Two seeds of one promise of yelp on MiniLM, timed; one of sst2 on e5, not timed."""
    for seed, (kept, speed) in enumerate([(0.96, 1.4), (0.94, 1.2)]):
        cell = Trained(YELP, MINILM, seed)
        write(
            tmp_path, "training", cell,
            found("training", {
                "by_exit": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], "exit_layers": [1, 2, 3, 4, 5, 6], "metric": "mse",
                "samples": {"train": 2500},
            }),
        )  # fmt: skip
        reached = {
            "family": "distance",
            "policy": "x",
            "promised": 0.95,
            "kept": kept,
            "mean_layers": 3.0,
            "speed_up": speed,
            "drift": 0.01,
        }
        write(
            tmp_path, "clock", cell, found("", {"num_layers": 6}), found("calibrated", reached, promise="same side of 3 stars")
        )
    cell = Trained(SST2, E5, 0)
    draws = {"draws": 200, "mean_layers": 11.8, "families": {"full": 200}}
    held_out = {"family": "full", "policy": "full", "promised": 0.99, "kept": 1.0, "mean_layers": 11.9}
    write(
        tmp_path, "promises", cell,
        found("", {"num_layers": 12}),
        found("held out", held_out, promise="recall of negative"),
        found("splits", draws | {"broken": 19}, promise="recall of negative"),
        found("population", draws | {"broken": 30}, promise="recall of negative"),
    )  # fmt: skip
    return tmp_path


def test_the_page(folder):
    page = answers.page(folder)
    assert "Of the 24 models 22 are not trained and 16 are not timed yet." in page
    assert "| yelp_stars | minilm | 2 | 2500 | mse | 1.000 | 0.900 | 0.800 | 0.700 | 0.500 |" in page
    assert "| same side of 3 stars | minilm | 2 | 0.95 | 0.950 (0.940-0.960), broken 1 | 3.00 of 6 | distance (2) |" in page
    assert "| 1.30 (1.20-1.40)x |" in page
    assert "| recall of negative | e5 | 1 | 0.99 | 1.000 | 11.90 of 12 | full (1) | - |" in page
    assert "On e5 hardly a text may leave under 'recall of negative'." in page
    assert "**30 of 200 (10.4% .. 20.7%)** | 19 of 200 | 11.80 of 12 |" in page
    assert "go_emotions, sets" not in page
    assert len(page.splitlines()) <= MOST_LINES


def test_a_speed_up_that_is_noise_does_not_pay(folder):
    cell = Trained(YELP, E5, 0)
    reached = {"family": "steady", "policy": "x", "promised": 0.95, "kept": 0.97, "mean_layers": 9.0, "speed_up": 1.02}
    write(folder, "clock", cell, found("", {"num_layers": 12}), found("calibrated", reached, promise="within half a star"))
    assert "On e5 exits do not pay for 'within half a star': 1.02x." in answers.page(folder)


def test_a_share_within_its_error_is_not_bold():
    rows = answers.table(rows_of("s", "c", [found("population", {"broken": 14, "draws": 200})], {}, {}))
    assert answers.broken_share(rows) == "14 of 200 (3.9% .. 11.5%)"


def test_without_results(tmp_path):
    assert "##" not in answers.page(tmp_path)

"""The page on families, from made-up rows."""

from __future__ import annotations

from bench.answers.tasks import MINILM, Trained
from bench.environment import environment
from bench.plans.shifted import OWN
from bench.plans.tasks import E5, TASKS
from bench.report import MOST_LINES, families
from bench.rows import found, rows_of, save

FORMS = {"full": "full", "threshold": "threshold:0.3", "risk": "risk:0.1", "planned": "planned:2,price=0.1"}


def saved(folder, cell, kind, measured, settings):
    rows = rows_of("plans", cell.name, measured, cell.declaration() | settings, environment())
    save(folder / "plans" / kind / f"{cell.name}.jsonl", rows)


def timed(speeds, budgets=families.BUDGETS, without=()):
    """Rows as `bench.plans.clock` writes them: the same policies at each promise, and one that a promise has not."""
    rows = [found("", {"stop_layers": 0.1, "num_layers": 6})]
    for promise in families.PROMISES:
        for family, policy in FORMS.items():
            if (family, promise) not in without:
                rows.append(found(family, {"agreement": promise, "mean_layers": 3.0}, promise=promise, policy=policy))
    for budget in budgets:
        rows.append(found("full", {"drift": 0.01, "texts": 9}, token_budget=budget))
        for family, policy in FORMS.items():
            speed = {"texts_per_second": 9.0, "speed_up": speeds[family]}
            rows.append(found("policy", speed, policy=policy, token_budget=budget))
    return rows


def lines_of(page, start):
    return [line for line in page.splitlines() if line.startswith(start)]


def test_speeds_by_family(tmp_path):
    first = {"full": 1.0, "threshold": 2.0, "risk": 3.0, "planned": 1.5}
    saved(tmp_path, Trained(TASKS[0], MINILM, 0), "clock", timed(first), {})
    second = timed({"full": 1.0, "threshold": 2.5, "risk": 2.0, "planned": 2.48}, without=[("planned", 0.99)])
    saved(tmp_path, Trained(TASKS[1], MINILM, 0), "clock", second, {})
    page = families.page(tmp_path)
    assert "Of the 24 models 22 are not timed and 24 are not served other texts yet." in page
    # The mean of 1.5 and of full depth, where no plan kept the promise; then of 1.5 and 2.48.
    assert lines_of(page, "| planned | 1.25x [1] |")
    assert lines_of(page, "| planned | 1.99x |")
    assert lines_of(page, "| risk | 7 of 14 | 7 |")
    assert lines_of(page, "| threshold | 7 of 14 | 7 |")
    assert lines_of(page, "| planned | 0 of 14 | 5 |")
    assert lines_of(page, "| sst2 | minilm | 1 | 2.00x |")


def test_readmes_lines(tmp_path):
    assert families.readme_lines(tmp_path) == ""
    speeds = {"full": 1.0, "threshold": 2.0, "risk": 3.0, "planned": 1.5}
    saved(tmp_path, Trained(TASKS[0], MINILM, 0), "clock", timed(speeds), {})
    saved(tmp_path, Trained(TASKS[1], MINILM, 0), "clock", timed(speeds | {"risk": 2.0}), {})
    said = families.readme_lines(tmp_path)
    assert "on 2 trained models:\n\n- 2.50 times, `risk`" in said
    assert "\n- 2.00 times, thresholds" in said
    assert "\n- 1.00 times, all texts leave at one layer\n" in said


def test_promises_on_other_texts(tmp_path):
    settings = {"texts": 1_000, "calibrations": 10, "stop_cost": 0.5}
    rows = [found("", {"agreement_by_exit": [0.5, 1.0]}, texts="words")]
    shares = {OWN: (0.0, 0.99), "words": (0.5, 0.97), "news": (1.0, 0.5)}
    for name, (broken, agreement) in shares.items():
        reached = {"agreement": agreement, "lowest": agreement - 0.01, "broken": broken, "calibrations": 10}
        rows.append(found("risk", reached, promise=0.98, texts=name))
    saved(tmp_path, Trained(TASKS[0], MINILM, 0), "shifted", rows, settings)
    assert "| risk | 0% | 75% | 0.735 | 0.490 |" in families.page(tmp_path)


def test_the_page_of_all_models_is_short_enough(tmp_path):
    for task in TASKS:
        for backbone in (MINILM, E5):
            saved(tmp_path, Trained(task, backbone, 0), "clock", timed(dict.fromkeys(FORMS, 1.0)), {})
    assert len(families.page(tmp_path).splitlines()) <= MOST_LINES


def test_the_page_without_results(tmp_path):
    assert families.page(tmp_path).endswith("Of the 24 models 24 are not timed and 24 are not served other texts yet.\n")

"""Where things stand in a report's pictures."""

from __future__ import annotations

import pytest

from geep_triton.calibrated import AtExit, Calibrated, Candidate
from geep_triton.report import pictures
from geep_triton.report.pictures import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, histogram, scatter, ticks

FULL = Candidate("full", "full", 1.0, None, 4.0, 100.0, 1.0)


def candidate(speed_up, agreement, family="threshold"):
    return Candidate("threshold:0.1", family, agreement, None, 2.0, None if speed_up is None else 100 * speed_up, speed_up)


def test_faster_is_further_right_and_more_agreement_higher():
    chosen, other = candidate(2.0, 0.99), candidate(3.0, 0.985, "margin")
    found = scatter(Calibrated({"agreement": 0.98}, chosen=chosen, candidates=(FULL, other, chosen), curve=(chosen, FULL)))
    full, first, second = found.dots
    assert (full.full, first.chosen, second.chosen) == (True, True, False)
    assert LEFT < full.x < first.x < second.x < WIDTH - RIGHT
    assert TOP < full.y < first.y < second.y < found.promised < HEIGHT - BOTTOM
    assert full.x == found.full_speed
    assert (first.x - LEFT) / (full.x - LEFT) == pytest.approx(2)
    assert [tick.text for tick in found.x_ticks][:2] == ["0×", "1×"]
    assert not found.cut
    assert found.curve[0] == f"{full.x:.1f},{full.y:.1f}"  # from cautious to bold


def test_a_curve_that_goes_on_is_told():
    bold = candidate(2.5, 0.5)
    assert scatter(Calibrated({"agreement": 0.98}, chosen=FULL, candidates=(FULL, candidate(2, 0.99)), curve=(bold,))).cut


def test_numbers_do_not_cover_each_other():
    crowd = tuple(candidate(2 + 0.01 * index, 0.99, f"family {index}") for index in range(6))
    dots = scatter(Calibrated({"agreement": 0.9}, chosen=crowd[0], candidates=(FULL, *crowd))).dots
    places = [(dot.label_x, dot.label_y) for dot in dots]
    for index, (x, y) in enumerate(places):
        assert all((x - a) ** 2 + (y - b) ** 2 > 64 for a, b in places[:index])


def test_what_was_not_measured_has_a_row_but_no_dot():
    found = Calibrated({"agreement": 0.98}, chosen=FULL, candidates=(FULL, candidate(None, 0.9)))
    assert len(scatter(found).dots) == 1
    assert len(pictures.in_order(found)) == 2
    assert scatter(Calibrated({"agreement": 0.98})) is None


def test_all_agreeing_fully_still_has_an_axis():
    found = scatter(Calibrated({"mean_depth": 2.0}, chosen=FULL, candidates=(FULL,)))
    assert len(found.y_ticks) > 1
    assert found.promised is None


@pytest.mark.parametrize(("low", "high"), [(0, 4.7), (0.978, 1.0), (0.5, 1.0), (0, 0.003), (0, 1234)])
def test_ticks_are_round_and_a_handful(low, high):
    found = ticks(low, high, 6)
    assert 2 <= len(found) <= 8
    assert all(low <= value <= high + 1e-9 for value in found)
    assert all(len(f"{value:g}") <= 6 for value in found)


def test_bars_are_as_high_as_texts_are_many():
    first, second, nobody = histogram([AtExit(1, 60, 45, 70), AtExit(3, 30, 30, 90), AtExit(4, 0, 0, 90)], 90)
    assert first.same_height + first.other_height == pytest.approx(2 * second.same_height)
    assert first.other_height == pytest.approx(first.same_height / 3)
    assert first.other_y + first.other_height == pytest.approx(first.same_y)
    assert first.same_y + first.same_height == pytest.approx(HEIGHT - BOTTOM)
    assert nobody.same_height == nobody.other_height == second.other_height == 0
    assert (first.share, nobody.share) == ("67 %", "0 %")

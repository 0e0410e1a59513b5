"""The folder of the data sets, and what is drawn from them."""

from __future__ import annotations

import pytest

from bench.data import data_folder, draw, with_an_answer


@pytest.mark.parametrize("folder", [None, "", "/nowhere"])
def test_no_folder(monkeypatch, folder):
    if folder is None:
        monkeypatch.delenv("GEEP_DATA", raising=False)
    else:
        monkeypatch.setenv("GEEP_DATA", folder)
    with pytest.raises(ValueError, match=f"GEEP_DATA must name the folder of the data sets, .* got '{folder or ''}'"):
        data_folder()


def test_the_same_rows_are_drawn():
    rows = [{"text": str(number), "label": "0"} for number in range(50)]
    drawn = draw(rows, 7, whole_questions=False)
    assert drawn == draw(rows, 7, whole_questions=False)
    assert len({row["text"] for row in drawn}) == 7


def test_questions_are_drawn_whole():
    questions = [{"text": f"q{i // 3}", "label": str(int(i % 3 == 0))} for i in range(30)]
    drawn = draw(questions, 7, whole_questions=True)
    assert len(drawn) == 9
    assert {row["text"] for row in drawn} == {row["text"] for row in drawn if row["label"] == "1"}


def test_questions_without_an_answer_go():
    rows = [{"text": "a", "label": "0"}, {"text": "b", "label": "0"}, {"text": "a", "label": "1"}]
    assert with_an_answer(rows) == [rows[0], rows[2]]

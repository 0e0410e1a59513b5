"""What promises come to on other kinds of text, on the tiny model."""

from __future__ import annotations

import pytest

from bench.plans.shifted import OWN, measured, summary
from bench.plans.test_clock import saved


def test_every_family_is_judged_on_each_kind_of_text(tmp_path, make_model, tokenizer, many):
    saved(tmp_path, make_model, tokenizer, many)
    found = list(measured(tmp_path, {"words": [{"text": text} for text in many[:30]]}, 64, calibrations=2))
    [by_exit] = [one.metrics["agreement_by_exit"] for one in found if not one.system]
    assert len(by_exit) == 4
    assert by_exit[-1] == 1
    judged = [one for one in found if one.system]
    assert {(one.system, one.config["promise"]) for one in judged if one.config["texts"] == OWN} == {
        (one.system, one.config["promise"]) for one in judged if one.config["texts"] == "words"
    }
    assert {"threshold", "risk"} <= {one.system for one in judged}
    assert all(0 <= one.metrics["lowest"] <= one.metrics["agreement"] <= 1 for one in judged)


def test_a_promise_is_broken_where_less_agree_by_however_little():
    assert summary([0.98, 0.979, 1.0, 0.99], 0.98) == {
        "agreement": pytest.approx(0.98725), "lowest": 0.979, "broken": 0.25, "calibrations": 4
    }  # fmt: skip

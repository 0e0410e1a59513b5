"""What a saved calibration says in plain sentences."""

from __future__ import annotations

import pytest

from geep_triton.calibrated import Calibrated, brief
from geep_triton.exit_config import PROMISES, ExitConfig


@pytest.mark.parametrize(
    ("promises", "said"),
    [
        ({"agreement": 0.985}, ["At least 98.5 % of texts get the answer that all layers give."]),
        ({"max_accuracy_drop": 0.01}, ["Accuracy is at most 0.01 (1 % of texts) below that of all layers."]),
        ({"mean_depth": 2.5}, ["A text runs at most 2.5 layers on average."]),
        ({"speedup": 2.0}, ["Texts are answered at least 2 times as fast as by all layers."]),
        ({"label_agreement": 0.99}, ["Each label is given, or not given, as by all layers for at least 99 % of texts."]),
        (
            {"label_agreement": {"a": 0.99}, "class_recall": {"b": 0.9}},
            [
                "“a” is given, or not given, as by all layers for at least 99 % of texts.",
                "At least 90 % of the texts that all layers give “b” get it.",
            ],
        ),
    ],
)
def test_each_promise_in_a_sentence(promises, said):
    first = next(iter(promises.items()))
    found = Calibrated.of(ExitConfig(calibration={"promise": list(first), "promises": promises}).calibration)
    assert found.sentences() == said
    assert set(promises) <= set(PROMISES)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"promise": ["agreement", 0.9], "confidence": 0.95}, "with 95 % confidence"),
        ({"promise": ["agreement", 0.9], "confidence": None, "method": "conformal"}, "on average"),
        ({"promise": ["agreement", 0.9]}, "not recorded"),
        ({"promise": ["speedup", 2.0]}, "Nothing is promised about answers"),
    ],
)
def test_how_sure_it_is(calibration, said):
    assert said in Calibrated.of(calibration).how_sure()


def test_what_it_holds_for():
    of = {"promise": ["agreement", 0.9], "dtype": "int8", "device": "cuda", "max_length": 1024, "truncation": True}
    assert Calibrated.of(of).holds_for() == (
        "It was made with layers in int8 on a GPU for texts of at most 1,024 tokens, longer ones cut."
    )
    assert Calibrated.of({"promise": ["agreement", 0.9]}).holds_for() == ""


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("threshold:0.3", "threshold:0.3"),
        ("predicted:0.05+threshold:0.7137256264686584/0.97866", "predicted:0.05+threshold:0.7137/0.9787"),
        ("allocated:1.00000e-05", "allocated:1e-05"),
        ("constant:12", "constant:12"),
    ],
)
def test_people_read_four_digits(policy, expected):
    assert brief(policy) == expected

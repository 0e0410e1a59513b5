"""Where exits do not pay, by hand."""

from __future__ import annotations

from dataclasses import replace

from geep_triton.calibrated import AtExit, Breakdown, Calibrated, Candidate, Group, percent
from geep_triton.report.findings import below_promise, where_exits_do_not_pay

FULL = Candidate("full", "full", 1.0, None, 4.0, 100.0, 1.0)
FAST = Candidate("threshold:0.2", "threshold", 0.99, None, 2.0, 180.0, 1.8)
SLOW = Candidate("margin:0.2", "margin", 0.99, None, 3.9, 90.0, 0.9)
EXITS = (AtExit(1, 60, 60, 70), AtExit(2, 0, 0, 80), AtExit(3, 0, 0, 90), AtExit(4, 40, 40, 100))
SHORT, LONG, FEW = Group("1-8", 60, 60, 57), Group("9-12", 40, 160, 40), Group("13-16", 5, 5, 4)


def breakdown(*by_length: Group) -> Breakdown:
    return Breakdown(100, "classes", EXITS, by_length, (Group("no", 100, 220, 97),))


def test_what_does_not_pay():
    found = Calibrated(
        {"agreement": 0.98}, chosen=FAST, candidates=(FULL, FAST, SLOW), unsafe=("constant", "allocated", "patience"),
        breakdown=breakdown(SHORT, LONG),
    )  # fmt: skip
    assert where_exits_do_not_pay(found, 4) == [
        "“margin” is only 0.90 times as fast as full depth.",
        "No setting of constant, allocated and patience was shown to keep the promise.",
        "No text left after layers 2 and 3, or the policy does not ask there.",
        "Texts of 9-12 tokens run 4.0 of 4 layers on average (40 texts).",
    ]


def test_all_pays():
    found = Calibrated({"agreement": 0.98}, chosen=FAST, candidates=(FULL, FAST))
    assert where_exits_do_not_pay(found, 4) == []


def test_who_is_faster_but_not_clearly():
    """`calibrate` does not take it, and the page says why."""
    close, clear = (Candidate("risk:0.1", "risk", 0.99, None, 1.9, 100 * speed, speed) for speed in (1.9, 2.0))
    for others, said in (((close,), 1), ((clear,), 0)):
        found = Calibrated({"agreement": 0.98}, chosen=FAST, candidates=(FULL, FAST, *others))
        sentences = where_exits_do_not_pay(found, 4)
        assert len(sentences) == said
        assert all(text.startswith("“risk” is 1.90 times as fast") and "1.1 times" in text for text in sentences)
    found = Calibrated({"speedup": 1.5}, chosen=FAST, candidates=(FULL, FAST, close))  # a budget takes who agrees most
    assert where_exits_do_not_pay(found, 4) == []


def test_dtypes_are_told_apart():
    """A policy in another dtype is held beside full depth in its own, and a dtype that fails is named."""
    float32, bfloat16, int8 = (
        Candidate("full", "full", share, None, 4.0, 100 * speed, speed, dtype)
        for share, speed, dtype in ((1.0, 1.0, "float32"), (0.998, 2.0, "bfloat16"), (0.9, 3.0, "int8"))
    )
    slow = replace(SLOW, samples_per_second=150.0, speed_up=1.5, dtype="bfloat16")
    found = Calibrated(
        {"agreement": 0.98}, chosen=bfloat16, candidates=(float32, replace(FAST, dtype="float32"), bfloat16, slow),
        dtype="bfloat16", full_depths=(float32, bfloat16, int8), runner_speeds={"float32": {"onednn": 100.0, "torch": 50.0}},
    )  # fmt: skip
    assert where_exits_do_not_pay(found, 4) == [
        "No policy was both good enough and faster than full depth in bfloat16: all texts run all layers.",
        "“margin in bfloat16” is only 0.75 times as fast as full depth in its dtype.",
    ]
    assert found.why_so() == [
        "Full depth answered, timed in turns: float32 100 texts a second; bfloat16 200 texts a second (99.8 % get the same "
        "answer); int8 300 texts a second (90 % get the same answer).",
        "No policy in int8 was shown to keep the promise, so none was taken.",
        "Runners in float32, texts a second at full depth on some texts: 100 by “onednn”, 50 by “torch”.",
    ]
    read = Calibrated.of({"promise": ["agreement", 0.98], **found.to_dict()})
    assert (read.full_depths, read.why_so(), read.named(slow)) == (found.full_depths, found.why_so(), "margin in bfloat16")


def test_full_depth_was_chosen():
    (sentence,) = where_exits_do_not_pay(Calibrated({"agreement": 0.98}, chosen=FULL, candidates=(FULL,)), 4)
    assert sentence.endswith("all texts run all layers.")


def test_who_agrees_less_than_all_do():
    (sentence,) = below_promise(breakdown(SHORT, LONG, FEW), 0.98)
    assert "1-8 tokens: 95 % of 60" in sentence
    assert "may be chance where they are few" in sentence
    assert "“no”: 97 % of 100" in sentence
    assert "9-12" not in sentence  # all of them agree
    assert "13-16" not in sentence  # too few to say anything
    assert below_promise(breakdown(LONG), 0.97) == []
    assert below_promise(breakdown(SHORT), None) == []


def test_percents_never_say_all_of_less():
    assert [percent(share) for share in (1, 0.9, 0.985, 0.99951, 0.9999996, 0.0)] == [
        "100 %", "90 %", "98.5 %", "99.95 %", "99.99996 %", "0 %"
    ]  # fmt: skip

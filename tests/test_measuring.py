"""What the quickstart measures and draws."""

from __future__ import annotations

import pytest

from examples.measuring import Measurement, measure, plot_accuracy_speed, plot_exit_histogram
from geep_triton import Engine, build_exit_table


def test_measure_and_plot(model, tokenizer, texts, tmp_path):
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    engines = {name: Engine(model, tokenizer, name) for name in ("full", "threshold:0.8", "predicted")}
    truth = engines["full"].predict(texts).labels
    seen = []
    rows = [{"text": text, "label": label} for text, label in zip(texts, truth, strict=True)]
    measurements, predictions = measure(engines, rows, 2, seen.append)
    assert seen == list(engines) * 2
    assert measurements[0].accuracy == 1.0
    assert measurements[1].mean_layers == pytest.approx(predictions["threshold:0.8"].mean_exit_layer)
    assert all(m.samples_per_second > 0 for m in measurements)
    plot_exit_histogram({name: p.histogram for name, p in predictions.items()}, tmp_path / "h.png")
    plot_accuracy_speed([*measurements, Measurement("full", 0.5, 4.0, 10.0)], tmp_path / "s.png")
    for name in ("h.png", "s.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_measure_refuses_rows_that_say_nothing_of_accuracy(model, tokenizer):
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    engines = {"full": Engine(model, tokenizer, "full")}
    for rows, message in (
        ([], "rows: expected at least one, got none"),
        ([{"text": "good", "label": "a"}, {"text": "good", "label": None}], "row 1 has no label"),
        ([{"text": "good", "label": ""}], "row 0 has no label"),
        ([{"text": "good"}], "missing column 'label'; columns: 'text'"),
        (
            [{"text": "good", "label": "d"}],
            r"labels must all be names of classes \(a, b, c\) or all be their numbers \(0..2\), got 'd'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            measure(engines, rows, 1)
    answers = engines["full"].predict(["good", "bad"]).logits.argmax(-1).tolist()
    rows = [{"text": text, "label": label} for text, label in zip(["good", "bad"], answers, strict=True)]
    assert measure(engines, rows, 1)[0][0].accuracy == 1.0

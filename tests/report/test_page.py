"""What a report says, and that hostile names do not break it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from geep_triton import Engine, MultiExitBert
from geep_triton.report.data import report_data
from geep_triton.report.page import write_report
from tests.report.conftest import HOSTILE

ROOT = Path(__file__).parent.parent.parent
VOID = {"meta", "link", "br", "img", "input"}


class Reader(HTMLParser):
    """Text of a page as one sees it, its tags, and whether each is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open, self.ids = "", [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += "" if tag in ("span", "bdi", "code", "small") else " "

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title", "desc"):
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def test_it_says_what_was_promised_found_and_gained(calibrated, page):
    engine, found = calibrated
    words = Reader(page(engine)[1]).words
    assert "At least 80 % of texts get the answer that all layers give." in words
    assert "This holds with 95 % confidence" in words
    assert f"It rests on {found.samples} texts" in words
    assert "layers in float32 by runner “torch” on a CPU for texts of at most 64 tokens" in words
    assert f"{found.chosen.speed_up:.1f}× as fast as all layers" in words
    assert f"{found.chosen.mean_layers:.1f} of 4 layers run" in words
    for candidate in found.candidates:
        assert f"{candidate.speed_up:.2f}× {candidate.mean_layers:.2f}" in words
    for each in found.breakdown.exits:
        assert re.search(rf"\b{each.layer} {each.leaving} ", words), each
    for group in found.breakdown.by_length:
        assert f"{group.name.replace('-', '–')} tokens {group.texts} {group.mean_layers:.2f}" in words


def test_every_part_of_the_page_closes_and_every_id_is_one(calibrated, page, texts):
    found = Reader(page(calibrated[0], texts)[1])
    assert len(found.ids) == len(set(found.ids))
    pictures = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert pictures
    for attributes in pictures:
        assert attributes["role"] == "img"
        named = attributes.get("aria-labelledby", "").split()
        assert attributes.get("aria-label") or set(named) <= set(found.ids)


def test_nothing_leaves_the_page(calibrated, page, texts):
    html = page(calibrated[0], texts)[1]
    found = Reader(html)
    assert not [tag for tag, _ in found.tags if tag in ("script", "img", "iframe", "object", "embed")]
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "background"), (tag, attributes)
            assert not name.startswith("on"), (tag, attributes)
            assert name != "href" or value == "data:,"
    assert "@import" not in html
    assert "url(" not in html.replace("url(#inside)", "")


def test_without_texts_none_is_on_the_page(calibrated, page, many, texts):
    words = Reader(page(calibrated[0])[1]).words
    assert not [text for text in (*many, *texts) if len(text.split()) > 2 and text in words]
    assert "Your texts" not in words


def test_texts_are_explained_the_deepest_first(calibrated, page, many):
    engine, _ = calibrated
    engine.policy = "threshold:0.5"
    path, html = page(engine, many, 6)
    words, data = Reader(html).words, report_data(engine, many, 6)
    depths = [shown.explanation.exit_layer for shown in data.given.shown]
    exits = engine.predict(many).exit_layers.sort(descending=True).values.tolist()
    assert depths == exits[:4] + exits[-2:]
    for shown in data.given.shown:
        assert f"Text {shown.number} left after layer {shown.explanation.exit_layer} of 4" in words
        assert shown.explanation.why in words
        own = " ".join(token for token in shown.explanation.tokens).replace(" ##", "")
        assert own in words
    assert f"Of {len(many)} texts" in words
    assert path.exists()


def test_show_bounds_what_is_written(calibrated, page, many):
    engine, _ = calibrated
    assert len(re.findall('<article class="text">', page(engine, many, 0)[1])) == 0
    assert len(re.findall('<article class="text">', page(engine, many[:3], 12)[1])) == 3
    assert len(re.findall('<article class="text">', page(engine, many)[1])) == 12


def test_a_model_that_was_never_calibrated(model, tokenizer, page, texts):
    words = Reader(page(Engine(model, tokenizer, "threshold:0.5"), texts)[1]).words
    assert "this model was never calibrated" in words
    assert "no exit table" in words
    assert "Where texts leave" not in words
    assert "Your texts" in words


def test_a_calibration_of_an_old_version_says_what_it_lacks(calibrated, page):
    engine, _ = calibrated
    saved = engine.model.exit_config.calibration
    engine.model.exit_config.calibration = {name: saved[name] for name in ("promise", "chosen")}
    words = Reader(page(engine)[1]).words
    assert "a version that did not record where texts leave" in words
    assert "not recorded method, samples" in words
    engine.model.exit_config.calibration = {"promise": ["mean_depth", 2.0]}
    words = Reader(page(engine)[1]).words
    assert "A text runs at most 2 layers on average." in words
    assert "Nothing is promised about answers" in words
    assert "Nothing was found in what this calibration recorded." in words


@pytest.mark.parametrize(
    ("shape", "served", "policy"),
    [
        ({"num_labels": 1}, {}, "steady:0.1"),
        ({"num_labels": 1}, {"decision": 0.1}, "distance:0.2"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, {}, "distance:0.2"),
        ({"exit_layers": [2, 4]}, {}, "threshold:0.5"),
        ({"exit_layers": [4]}, {}, "full"),
    ],
)
def test_every_kind_of_model_has_a_page(make_model, tokenizer, page, texts, shape, served, policy):
    model = make_model(**shape)
    for name, value in served.items():
        setattr(model.exit_config, name, value)
    words = Reader(page(Engine(model, tokenizer, policy), texts)[1]).words
    assert "Why did this text go deep?" in words
    assert ("Nothing says when two scores are the same" in words) == (shape == {"num_labels": 1} and not served)


def test_a_ranking_is_told(make_model, tokenizer, page):
    model = make_model(num_labels=1)
    chosen = {"ranking": None, "same_top_k": 0.97, "mean_layers": 2.5}
    model.exit_config.ranking_calibration = {
        "promise": ["same_top_k", 0.95], "top_k": 10, "confidence": 0.9, "queries": 200, "chosen": chosen
    }  # fmt: skip
    words = Reader(page(Engine(model, tokenizer, "full"))[1]).words
    assert "At least 95 % of queries get the best 10 candidates" in words
    model.exit_config.ranking_calibration = {"promise": 3}
    assert "cannot be read" in Reader(page(Engine(model, tokenizer, "full"))[1]).words


def test_hostile_names_are_shown_as_they_are(hostile, page, texts):
    found = Reader(page(hostile, texts)[1])
    assert not [tag for tag, _ in found.tags if tag in ("script", "img", "b")]
    assert HOSTILE[0] in found.text
    assert "{{ 7 * 7 }}" in found.text
    assert "and 88 more" in found.words


def test_the_data_is_json(calibrated, texts):
    data = report_data(calibrated[0], texts, 2).to_dict()
    assert json.loads(json.dumps(data))["calibrated"]["samples"] == calibrated[1].samples


def test_a_page_replaces_another_when_it_is_complete(calibrated, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(*arguments, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(calibrated[0], path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    write_report(calibrated[0], path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text().startswith("<!doctype html>")


def test_the_documentations_example_runs(calibrated, many, tmp_path, monkeypatch):
    calibrated[0].save_pretrained(tmp_path / "runs" / "fast")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text("utf-8"), re.DOTALL)[1]
    exec(code, {"texts": many})
    assert (tmp_path / "report.html").exists()


def test_what_is_refused(calibrated, tmp_path, texts):
    engine, _ = calibrated
    with pytest.raises(ValueError, match="must be a file for the page"):
        write_report(engine, tmp_path)
    with pytest.raises(ValueError, match="show must be at least 0"):
        write_report(engine, tmp_path / "a.html", texts, -1)
    with pytest.raises(TypeError, match="engine must be a Engine"):
        write_report(MultiExitBert(engine.model.config), tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []

"""The model card: what it says, what of a user's README.md stays, and that an upload keeps both."""

from __future__ import annotations

import os

import pytest
from huggingface_hub import ModelCard, constants

from geep_triton import Engine, MultiExitBert
from geep_triton.exit_config import ExitConfig
from geep_triton.model_card import BEGIN, END, card_part
from tests.conftest import tiny_config
from tests.fake_hub import serving

HOSTILE = "a|b <img src=x onerror=alert(1)>\n# **b** `c` " + END


@pytest.fixture
def saved(calibrated, tmp_path):
    engine, _ = calibrated
    engine.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_metadata_is_the_hubs(saved):
    data = ModelCard.load(saved / "README.md").data.to_dict()
    assert data["library_name"] == "geep_triton"
    assert data["pipeline_tag"] == "text-classification"
    assert {"early-exit", "bert"} <= set(data["tags"])
    assert not data.keys() & {"license", "datasets", "language", "base_model", "model-index"}


def test_it_says_what_was_promised_and_found(calibrated, saved):
    _, found = calibrated
    text = read(saved)
    assert "**At least 80 % of texts get the answer that all layers give.**" in text
    assert f"It rests on {found.samples} texts." in text
    assert "95 % confidence" in text
    for candidate in found.candidates:
        assert f"{candidate.family}" in text
        assert f"{candidate.mean_layers:.2f} of 4" in text
    assert f"| **{found.chosen.family}** |" in text
    assert found.chosen.policy in text


def test_it_holds_no_text_and_no_token_id(saved, many):
    text = read(saved)
    assert not [sample for sample in many if len(sample.split()) > 2 and sample in text]


def test_an_uncalibrated_model_promises_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    text = read(tmp_path)
    assert "nothing is promised" in text
    assert "## Policies" not in text


@pytest.mark.parametrize(
    ("shape", "reads"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, "answers.scores"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "answers.label_sets"),
        ({"num_labels": 100}, "and 80 more"),
    ],
)
def test_every_kind_of_answer_has_its_use(shape, reads):
    assert reads in card_part(tiny_config(**shape), ExitConfig())


def test_hostile_names_are_shown_as_they_are():
    config = tiny_config(num_labels=2, id2label={0: HOSTILE, 1: "\ud800"})
    candidate = {"policy": "a`b\nc", "family": HOSTILE, "agreement": 0.9, "mean_layers": 2.0, "speed_up": 2.0}
    calibration = {"promise": ["agreement", 0.9], "promises": {"class_recall": {HOSTILE: 0.9}}, "chosen": candidate}
    part = card_part(config, ExitConfig(calibration=calibration))
    assert part.count(END) == 1
    assert "<img" not in part
    (row,) = [line for line in part.splitlines() if line.startswith("| **")]
    assert row.replace(r"\|", "").count("|") == 5
    assert not [line for line in part.splitlines() if line.startswith("# ")]
    part.encode()


def test_a_file_of_an_old_version_gives_a_card():
    part = card_part(tiny_config(), ExitConfig(calibration={"promise": ["agreement", 0.95]}))
    assert "At least 95 % of texts" in part
    assert "not recorded" in part


def test_a_users_own_readme_stays_untouched(calibrated, tmp_path):
    own = b"# mine\r\n\xff not UTF-8\r\n"
    (tmp_path / "README.md").write_bytes(own)
    calibrated[0].save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == own


@pytest.mark.parametrize("text", [f"{END} {BEGIN}", BEGIN, f"{BEGIN} {BEGIN} {END}"])
def test_comments_that_are_no_pair_are_left_alone(model, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    model.save_pretrained(tmp_path)
    assert read(tmp_path) == text


def test_only_the_part_between_the_comments_is_replaced(calibrated, saved):
    before = read(saved)
    mine = before.replace("library_name", "license: mit\nlibrary_name").replace(END, f"{END}\nMy own words.\r\n")
    (saved / "README.md").write_bytes(mine.replace("80 %", "70 %").encode())
    calibrated[0].save_pretrained(saved)
    assert (saved / "README.md").read_bytes() == mine.encode()
    assert ModelCard.load(saved / "README.md").data.license == "mit"


def test_an_equal_card_is_not_written_again(calibrated, saved):
    before = {path.name: path.stat().st_ino for path in saved.iterdir()}
    calibrated[0].save_pretrained(saved)
    assert {path.name: path.stat().st_ino for path in saved.iterdir()} == before


def test_the_model_loads_whatever_becomes_of_its_card(saved, texts):
    (saved / "README.md").write_text("other")
    first = Engine.from_pretrained(saved).predict(texts).labels
    (saved / "README.md").unlink()
    assert Engine.from_pretrained(saved).predict(texts).labels == first


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found


def test_an_engine_is_uploaded_in_one_commit(calibrated, saved, hub, texts, tmp_path):
    commit = calibrated[0].push_to_hub("me/mine", token="none", commit_message="first", tags=["mine"])
    assert str(commit).startswith(hub.url)
    ((one),) = hub.commits
    assert one["message"] == "first"
    assert one["added"] == {path.name for path in saved.iterdir()}
    (tmp_path / "downloaded").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "downloaded" / name).write_bytes(content)
    downloaded = Engine.from_pretrained(tmp_path / "downloaded")
    assert downloaded.policy == calibrated[0].policy
    assert downloaded.model.exit_table.digest() == calibrated[0].model.exit_table.digest()
    assert downloaded.predict(texts).logits.equal(Engine.from_pretrained(saved).predict(texts).logits)
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.tags == [*ModelCard.load(saved / "README.md").data.tags, "mine"]
    assert "At least 80 % of texts" in card.text


def test_an_upload_keeps_what_the_hubs_card_says_and_removes_stale_files(calibrated, saved, hub):
    card = read(saved).replace("library_name", "license: mit\nlibrary_name").replace("80 %", "70 %")
    hub.files = {"README.md": card.encode(), "model-00001-of-00002.safetensors": b"", "mine.txt": b"mine"}
    calibrated[0].model.push_to_hub("me/mine", token="none")
    assert hub.files["README.md"].decode() == card.replace("70 %", "80 %")
    assert hub.commits[0]["deleted"] == ["model-00001-of-00002.safetensors"]
    assert hub.files["mine.txt"] == b"mine"
    assert "tokenizer.json" not in hub.files


def test_a_users_card_on_the_hub_stays(model, hub):
    hub.files = {"README.md": b"# mine"}
    model.push_to_hub("me/mine", token="none")
    assert hub.files["README.md"] == b"# mine"


def test_an_upload_to_a_branch_makes_it(model, hub):
    model.push_to_hub("me/mine", token="none", revision="other")
    assert hub.branches == ["other"]
    assert hub.commits[0]["to"] == "other"


def test_a_hub_that_cannot_be_reached_is_no_hub_without_a_card(model, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"(?i)connect") as error:
        model.push_to_hub("me/mine", token="none")
    assert not hub.commits
    assert not isinstance(error.value, (AttributeError, TypeError))


def test_the_base_model_is_named_where_it_came_from_the_hub(saved, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    snapshot = cache / "models--me--base" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "models--me--base" / "refs").mkdir()
    (cache / "models--me--base" / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    model = MultiExitBert.from_pretrained(saved)
    for name, base in (("me/base", "me/base"), ("runs/mine", None), (str(saved), None), ("no id/at/all", None)):
        model.config._name_or_path = name
        model.save_pretrained(tmp_path / str(hash(name)))
        assert ModelCard.load(tmp_path / str(hash(name)) / "README.md").data.base_model == base


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_readme_in_another_place_is_read_and_stays(calibrated, saved, tmp_path):
    elsewhere = tmp_path / "elsewhere.md"
    (saved / "README.md").rename(elsewhere)
    (saved / "README.md").symlink_to(elsewhere)
    before = elsewhere.read_text()
    calibrated[0].save_pretrained(saved)
    assert read(saved) == elsewhere.read_text() == before

"""What the scripts on the claims are told."""

from __future__ import annotations

import json

import pytest

from bench.claims.command import parsed, parser_of
from bench.claims.train import main
from bench.shapes import SHAPES


@pytest.fixture
def backbone(tmp_path):
    """A folder of the declared shape."""
    (tmp_path / "e5").mkdir()
    (tmp_path / "e5" / "config.json").write_text(json.dumps(SHAPES["e5"]))
    return tmp_path / "e5"


def test_a_trial_goes_elsewhere(tmp_path, monkeypatch, capsys, backbone):
    def given(*options: object):
        monkeypatch.setattr("sys.argv", ["run", "--work", "w", "--backbone", str(backbone), *map(str, options)])
        return parsed(parser_of(None, tmp_path / "results"))

    assert given().output == tmp_path / "results"
    assert given("--limit-samples", 5, "--output", tmp_path / "trial").limit_samples == 5
    with pytest.raises(SystemExit):
        given("--limit-samples", 5)
    assert "give --output beside --limit-samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backbone", "nowhere"], "--backbone nowhere: there is no folder of a model"),
        (["--arms", "nosuch"], "argument --arms: invalid choice: 'nosuch'"),
        (["--data-sets", "nosuch"], "argument --data-sets: invalid choice: 'nosuch'"),
        (["--seeds", "0"], "no cell is declared of these"),
        (["--experiments", "D", "--arms", "joint"], "no cell is declared of these"),
    ],
)
def test_what_is_not_declared_is_refused(monkeypatch, capsys, backbone, options, words):
    monkeypatch.setattr("sys.argv", ["train", "--work", "w", "--backbone", str(backbone), *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert words in capsys.readouterr().err


def test_another_backbone_is_refused(monkeypatch, capsys, backbone):
    (backbone / "config.json").write_text(json.dumps(SHAPES["minilm"]))
    monkeypatch.setattr("sys.argv", ["train", "--work", "w", "--backbone", str(backbone)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "it must have the shape of multilingual-e5-small" in capsys.readouterr().err

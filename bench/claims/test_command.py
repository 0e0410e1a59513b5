"""What the scripts on the claims are told."""

from __future__ import annotations

import pytest

from bench.claims.command import parsed, parser_of


def test_a_trial_goes_elsewhere(tmp_path, monkeypatch, capsys):
    def given(*options: object):
        monkeypatch.setattr("sys.argv", ["run", "--work", "w", "--backbone", "b", *map(str, options)])
        return parsed(parser_of(None, tmp_path / "results"))

    assert given().output == tmp_path / "results"
    assert given("--limit-samples", 5, "--output", tmp_path / "trial").limit_samples == 5
    with pytest.raises(SystemExit):
        given("--limit-samples", 5)
    assert "give --output beside --limit-samples" in capsys.readouterr().err

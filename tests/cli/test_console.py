"""What a command prints."""

from __future__ import annotations

import io
import json
import sys

import pytest

from geep_triton.cli.console import show


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("name", ["é", "half \udcff"])
def test_a_result_is_told_in_any_encoding(monkeypatch, encoding, name):
    """The work is done by then: a name must not turn it into an error."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    show(name, {"output": name}, as_json=True)
    assert json.loads(raw.getvalue().decode(encoding)) == {"output": name}
    raw.truncate(0)
    show(name, {}, as_json=False)
    assert raw.getvalue()

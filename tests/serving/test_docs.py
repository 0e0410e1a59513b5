"""docs/serving.md: its tables of options and of metrics are those of the code."""

from __future__ import annotations

import re
from dataclasses import fields

from geep_triton.serving.metrics import Metrics
from geep_triton.serving.settings import ServerSettings
from tests.test_docs import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")


def test_the_table_of_options_is_that_of_the_settings():
    told = dict(re.findall(r"^\| `--([a-z-]+)` \| (.+?) \|", PAGE, re.MULTILINE))
    defaults = {field.name.replace("_", "-"): field.default for field in fields(ServerSettings)}
    assert told.keys() == defaults.keys()
    for name, default in defaults.items():
        assert told[name] == ("4 batches of the engine" if default is None else f"{default:,.12g}"), name


def test_the_table_of_metrics_is_that_of_the_server(audited):
    told = set(re.findall(r"`(geep_\w+)", PAGE.partition("### Metrics")[2].partition("\n## ")[0]))
    metrics = Metrics(4, audited)
    metrics.see_request("/predict", 200, 0.1)
    lines = metrics.text().decode().splitlines()
    kinds = {"counter", "gauge", "histogram"}
    found = {line.split()[2] for line in lines if line.startswith("# TYPE geep_") and line.split()[3] in kinds}
    assert told == {name for name in found if not name.endswith("_created")}

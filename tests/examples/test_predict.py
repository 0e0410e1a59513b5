"""examples/predict.py: the Python API."""

from __future__ import annotations

import json

from geep_triton import Engine
from tests.examples.scripts import ROWS, write


def test_predict(make_model, tokenizer, tmp_path, in_process, capsys):
    engine = Engine(make_model(), tokenizer, "constant:2", runner="torch")
    engine.save_pretrained(tmp_path / "model")
    source = write(tmp_path / "in.jsonl", [{"text": text} for text, _ in ROWS])
    output = tmp_path / "out.jsonl"
    in_process("predict.py", "--model", tmp_path / "model", "--input", source, "--output", output, "--policy", "constant:2")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    found = engine.predict([text for text, _ in ROWS])
    assert [(row["label"], row["exit_layer"]) for row in rows] == list(
        zip(found.labels, found.exit_layers.tolist(), strict=True)
    )
    assert "8 lines answered, mean exit layer 2.00" in capsys.readouterr().out

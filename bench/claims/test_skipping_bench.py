"""The parts of the skipping experiment: the released loop gives the engine's answers, and the report's verdicts are right."""

from __future__ import annotations

import pytest
import torch

from bench.claims.released import ReleasedSmartBert
from bench.claims.skipping import DATA_SETS, THRESHOLDS, Trained
from bench.report.skipping import page
from bench.rows import found, rows_of, save
from geep_triton import Engine
from tests.test_gates import gated


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_the_released_loop_answers_as_the_engine_does(tokenizer, texts, threshold):
    model = gated()
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    rows = [{"text": text} for text in texts] + [{"text": texts[0], "text_pair": texts[1]}]
    theirs = ReleasedSmartBert(model, tokenizer, threshold, 64).predict(rows)
    ours = Engine(model, tokenizer, f"threshold:{threshold}").predict(rows)
    assert theirs.exit_layers.tolist() == ours.exit_layers.tolist()
    torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-5, rtol=0)


def put(folder, name, seed, systems, **more):
    """A cell's file: system -> (right answers of 100, FLOPs)."""
    measured = []
    for system, (right, flops) in systems.items():
        thresholds = (None,) if system in ("bert", "skipping") else (None, *THRESHOLDS)
        for threshold in thresholds:
            point = {
                "score": right / 100, "answers": "1" * right + "0" * (100 - right), "tune_score": 0.8, "tune_layers": 3.0,
                "mean_layers": 6 * flops / 100,
                "flops": {"layers": flops, "heads": 0, "gates": 0}, "skip_histogram": [10] * 6,
            }  # fmt: skip
            measured.append(found(system, point, threshold=threshold, chosen=threshold == thresholds[-1]))
    rates = {f"{system}@{batch}": 10.0 for system in systems for batch in ("1", "4096")} | {"released": 5.0, "ours@32": 20.0}
    measured += [found(system, {"samples_per_second": rate}) for system, rate in rates.items()]
    facts = {
        "samples": {"train": 10, "tune": 5, "test": 100}, "num_layers": 6, "labels": "1" * 100,
        "speed": {"samples": 100, "released_moved": 0.0},
    }  # fmt: skip
    case = f"{name}.published.{seed}"
    declaration = Trained(DATA_SETS[name], "published", seed).declaration() | more
    environment = {"gpu": None, "cpu": "a machine", "threads": 2, "torch": "2"}
    save(folder / f"{case}.jsonl", rows_of("skipping", case, [found("", facts), *measured], declaration, environment))


def test_verdicts(tmp_path):
    """Saving much at no loss supports claim 1; exits that save nothing beside skipping that does support claim 2."""
    good = {"bert": (80, 100), "exits": (80, 95), "skipping": (80, 60), "smartbert": (80, 40), "planned": (80, 50)}
    bad = {"bert": (80, 100), "exits": (80, 50), "skipping": (40, 60), "smartbert": (40, 40), "planned": (80, 50)}
    for name, systems in (("wnli", good), ("rte", bad)):
        for seed in (1, 2):
            put(tmp_path, name, seed, systems)
    put(tmp_path, "cola", 1, good, epochs=1.0)
    text = page(tmp_path)
    assert "| wnli | published | 2 | supported | supported |" in text
    assert "| rte | published | 2 | refuted | refuted |" in text
    assert "cola.published.1" in text.split("Missing:")[1]  # of an older declaration
    assert "| cola" not in text
    assert "**smartbert**" not in text  # no faster than bert
    assert "| wnli (accuracy) | smartbert | 0.800 (0.800 .. 0.800) | +0.0 (+0.0 .. +0.0) | 2.50x (2.50 .. 2.50) |" in text
    assert "the commonest class scores 1.000" in text
    assert "Against the released loop over single samples: ours in batches of 32 4.00x" in text
    assert "Variants not tried: rates, rate30" in text

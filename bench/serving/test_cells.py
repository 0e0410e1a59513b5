"""Each cell, in small: what it finds is right, and what goes wrong fails it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import BertForSequenceClassification

from bench.report.serving import page
from bench.rows import Found, rows_of, save
from bench.serving.__main__ import NAMES, cells, systems
from bench.serving.audits import STEP, Before, audit, audit_delay, delays, drawn
from bench.serving.batching import batching
from bench.serving.bench import EXITS, FULL, PIPELINE, Bench, Cores, held
from bench.serving.correct import correct
from bench.serving.drain import drain
from bench.serving.loads import Outcome, closed
from bench.serving.memory import memory
from bench.serving.model import Served, material
from bench.serving.overload import overload
from bench.serving.questions import singles
from bench.serving.rival import PipelineBackend
from bench.serving.servers import Running
from bench.serving.slow import slow
from bench.serving.steady import load
from geep_triton import Engine, MultiExitBert
from geep_triton.engine.promise import Promise
from geep_triton.serving.application import make_application
from geep_triton.serving.bodies import PredictBody
from geep_triton.serving.server import Server
from geep_triton.serving.settings import ServerSettings
from tests.conftest import tiny_config
from tests.serving.conftest import wait_for


class _Here(NamedTuple):
    """This process in the place of a server's."""

    pid: int


class ThreadBench(Bench):
    """Ours is served in a thread of this process, which starts in no time; the pipeline's place is taken by full depth."""

    @contextmanager
    def running(self, name: str, *options: object) -> Iterator[Running]:
        given = {str(key)[2:].replace("-", "_"): value for key, value in zip(options[::2], options[1::2], strict=True)}
        engine = Engine.from_pretrained(self.exits, None if name == EXITS else "full", device="cpu")
        if name == EXITS:
            engine.promise = Promise.made(engine.model, {"agreement": 0.98})
        server = Server(make_application(engine, ServerSettings(**given)), port=0)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_for(server.url)
            here: Any = _Here(os.getpid())
            yield Running(here, ("127.0.0.1", int(server.url.rpartition(":")[2])))
        finally:
            server.stop()
            thread.join(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory, tokenizer) -> Served:
    """A tiny classifier, and the same with exits."""
    folder = tmp_path_factory.mktemp("served")
    made = Served(folder / "plain", folder / "exits")
    torch.manual_seed(1)
    plain = BertForSequenceClassification(tiny_config(num_labels=3))
    with torch.no_grad():
        plain.classifier.weight.mul_(20)
    plain.save_pretrained(made.plain)
    tokenizer.save_pretrained(made.plain)
    torch.manual_seed(1)
    model = MultiExitBert.from_pretrained(made.plain, pooling="mean")
    with torch.no_grad():
        for layer in ("1", "2", "3"):
            model.heads[layer].classifier.weight.mul_(4)
    model.exit_config.policy = "threshold:0.3"
    Engine(model, tokenizer, max_length=64).save_pretrained(made.exits)
    return made


@pytest.fixture
def texts(many) -> list[str]:
    return list(dict.fromkeys(many))[:120]


@pytest.fixture
def bench(served, texts, tmp_path) -> Bench:
    return Bench(tmp_path, served.exits, systems(served), texts, Cores.found())


@pytest.fixture
def in_threads(bench) -> ThreadBench:
    return ThreadBench(bench.work, bench.exits, bench.systems, bench.texts, bench.cores)


def of(found: list[Found], **config: Any) -> list[dict[str, Any]]:
    """The metrics of what was measured in such a configuration."""
    return [dict(one.metrics) for one in found if config.items() <= one.config.items() and one.system]


def shown(case: str, found: list[Found], folder: Path) -> str:
    """The page of what was found."""
    environment = {"gpu": None, "cpu": "a CPU", "threads": 1, "torch": "2.13", "date": "2026-01-01", "commit": "abc"}
    save(folder / "results" / "a.jsonl", rows_of("serving", case, found, {}, environment))
    return page(folder / "results")


def test_load(in_threads, tmp_path):
    found = load(in_threads, [EXITS, PIPELINE], rounds=1, seconds=0.1)
    for name in (EXITS, PIPELINE):
        assert len([one for one in found if one.system == name]) == 7
    assert all(one["moved"] + one["right"] + one["refused"] == one["requests"] > 0 for one in of(found))
    text = shown("load", found, tmp_path)
    assert "| load | ours, exits | pipeline |" in text
    assert "| 64 clients that wait |" in text
    assert "bursts of 32 at 60%" in text


def test_the_pipeline_in_a_process_answers_as_all_layers_of_ours(bench, texts):
    questions = singles(texts)
    with bench.running(PIPELINE) as server:
        outcomes = asyncio.run(closed(server.address, [question.payload for question in questions], 8))
        assert server.stop() != 0  # killed by the signal, once it was done
    assert held(bench.truths([(text, None) for text in texts])[PIPELINE], questions, outcomes) == {"right": 120, "moved": 0}


def test_a_process_drains(bench, tmp_path):
    found = drain(bench, rounds=1, clients=4, seconds=0.2)
    (metrics,) = of(found)
    assert metrics["exit_codes"] == [143]
    assert metrics["in_hand"] == metrics["in_hand_right"]
    assert "ended with code 143" in shown("drain", found, tmp_path)


def test_correct(in_threads, tmp_path):
    found = correct(in_threads, [EXITS, FULL], requests=100, clients=8)
    assert [one.system for one in found] == [EXITS, FULL]
    for one in of(found):
        assert one["right"] + one["moved"] == 100
        assert one["lost"] == one["wrong"] == 0
        assert one["asked"]["single"] == 80
    assert "80 texts, 10 pairs, 5 batches of four, and 5 that must be refused" in shown("correct", found, tmp_path)


def test_a_lost_request_fails_a_cell(in_threads, texts):
    truth = in_threads.truths([(text, None) for text in texts])[FULL]
    with pytest.raises(RuntimeError, match="0 answers are wrong and 1 requests lost, of 1"):
        held(truth, singles(texts), [Outcome(0, 0.0, 0.0, 1.0, None)])


def test_overload(in_threads, tmp_path):
    found = overload(in_threads, limit=2, seconds=0.5)
    alone, _, crowded = of(found)
    assert alone["refused"] == 0
    assert crowded["refused"] > 0
    assert [int(seconds) > 0 for seconds, _ in crowded["retry_after"]] == [True] * len(crowded["retry_after"])
    assert crowded["right"] + crowded["moved"] + crowded["refused"] == crowded["requests"]
    assert "`--max-concurrent-requests 2`" in shown("overload", found, tmp_path)


def test_slow(in_threads, tmp_path):
    found = slow(in_threads, seconds=1.0)
    alone, beside = of(found, clients=8)
    assert not alone["seen"]
    assert beside["seen"]["vanished before sending"] > 0
    assert dict(found[-1].metrics)["in_hand"] == 0
    assert "| in bad company |" in shown("slow", found, tmp_path)


def test_memory(in_threads, tmp_path):
    found = memory(in_threads, share=0.3, clients=4, requests_of_mix=100, seconds=1.0, hour=2.0)
    (metrics,) = of(found)
    assert len(metrics["megabytes"]) == len(metrics["sent"]) > 1
    assert metrics["sent"] == sorted(metrics["sent"])
    assert "| requests | resident, MB |" in shown("memory", found, tmp_path)


def test_batching(in_threads, tmp_path):
    found = batching(in_threads, [EXITS], waits=[0, 1], tokens=[64], seconds=0.2)
    assert len(of(found)) == 6
    assert "| ours, exits | 1 | 64 |" in shown("batching", found, tmp_path)


def test_audit(in_threads, texts, tmp_path):
    engine = Engine.from_pretrained(in_threads.exits, device="cpu")
    ours, full = (engine.with_policy(policy).predict(texts).logits.argmax(-1) for policy in (engine.policy, "full"))
    differing = [text for text, same in zip(texts, (ours == full).tolist(), strict=True) if not same]
    agreeing = [text for text in texts if text not in differing]
    found = audit(
        replace(in_threads, texts=agreeing),
        {"usual": agreeing, "differing": differing}, agreements=[0.5], drawn_texts=40, rate=1.0, usual=20, runs=5,
    )  # fmt: skip
    usual, others, half = of(found)
    assert (usual["agreement"], usual["broken"], usual["simulated"]) == (1.0, 0, None)
    assert (others["agreement"], others["broken"], others["broken_before"], others["promised"]) == (0.0, 1, 0, 0.98)
    assert others["audited"] <= others["simulated"]["within_95_percent"] + STEP
    assert (half["agreement"], half["broken"]) == (0.5, 1)
    assert "| differing | 98% | 0.0% |" in shown("audit", found, tmp_path)


def test_texts_are_drawn_so_that_a_share_agrees():
    agrees = [True, False, True, True]
    rows = drawn(agrees, 0.75, 8)
    assert sum(agrees[row] for row in rows) == 6
    assert rows != sorted(rows) != drawn(agrees, 0.75, 8, seed=1)
    with pytest.raises(ValueError, match="got 2 and 0"):
        drawn([True, True], 0.5, 8)


def test_delays():
    assert delays(0.98, 1.0, 2, Before(), most=100) == [100, 100]
    assert max(delays(0.98, 0.5, 20, Before(400))) < 100
    found = audit_delay(0.98, [0.5, 0.9], runs=20)
    assert found[0].metrics["median"] < found[1].metrics["median"] <= found[1].metrics["within_95_percent"]


def test_the_pipelines_backend_keeps_the_order(served, texts):
    bodies = [PredictBody(inputs=text, raw_scores=True) for text in texts[:9]]
    bodies.append(PredictBody(inputs=[[texts[9]], [texts[0], texts[1]]], raw_scores=True))
    found = {}
    for by_length in (False, True):
        backend = PipelineBackend(str(served.plain), 4, by_length)
        answers = backend.run(backend.prepare(bodies))
        found[by_length] = [*(answer.content for answer in answers[:-1]), *answers[-1].content]
        assert [len(answer.exits) for answer in answers] == [1] * 9 + [2]
    for sorted_, plain in zip(found[True], found[False], strict=True):
        assert [one["label"] for one in sorted_] == [one["label"] for one in plain]
        assert [one["score"] for one in sorted_] == pytest.approx([one["score"] for one in plain], abs=1e-4)


def test_every_cell_is_declared(bench, texts):
    by_name = cells(bench, texts, quick=0.01)
    assert set(by_name) == set(NAMES)


def test_nothing_serves_that_trained(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [f'{{"text": "{"word " * (3 + number % 9)}{number}", "label": "positive"}}\n' for number in range(63_000)]
    (folder / "train.jsonl").write_text("".join(rows))
    found = material(tmp_path)
    parts = [{row["text"] for row in found.labelled}, set(found.unlabelled), set(found.served)]
    assert [len(part) for part in parts] == [22_000, 8_000, 20_000]
    assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])

"""What /metrics tells, beside what was sent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.promises.audit import audit
from geep_triton.serving.application import application_of, make_application
from geep_triton.serving.engine_backend import EngineBackend
from geep_triton.serving.settings import ServerSettings
from tests.serving.conftest import ask_at, running
from tests.serving.test_limits import predict, value_of


def test_requests_batches_and_exits_are_counted(engine, many):
    expected = engine.predict(many[:40])
    with running(make_application(engine)) as url:
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda text: predict(url, text), many[:40]))
        assert [status for status, _ in answers] == [200] * 40
        assert predict(url, "")[0] == 400
        assert ask_at(url, "/predict", b"{broken")[0] == 422
        assert ask_at(url, "/nothing")[0] == 404
        found = {
            name: value_of(url, name)
            for name in (
                'geep_requests_total{route="/predict",status="200"}',
                'geep_requests_total{route="/predict",status="400"}',
                'geep_requests_total{route="/predict",status="422"}',
                'geep_requests_total{route="other",status="404"}',
                'geep_request_seconds_count{route="/predict"}',
                "geep_queue_seconds_count",
                "geep_batch_texts_sum",
                "geep_exit_layer_count",
                "geep_exit_layer_sum",
                "geep_requests_in_hand",
            )
        }
        tokens, batches = value_of(url, "geep_batch_tokens_sum"), value_of(url, "geep_batch_seconds_count")
        layers = [value_of(url, f'geep_exit_layer_bucket{{le="{layer}.0"}}') for layer in range(1, 5)]
        assert value_of(url, "geep_audit_texts") is None
        assert value_of(url, "process_resident_memory_bytes") > 1e6
    assert list(found.values()) == [40, 1, 1, 1, 42, 40, 40, 40, float(expected.exit_layers.sum()), 0]
    assert 1 <= batches <= 40
    assert tokens == float(engine.encode(many[:40]).ids.numel())  # without a table nothing is known of depths
    assert layers == [float((expected.exit_layers <= layer).sum()) for layer in range(1, 5)]


def test_work_counts_texts_that_leave_early_for_less(model, tokenizer, many):
    model.exit_table = build_exit_table(model, tokenizer, many, threshold=0.8)
    engine = Engine(model, tokenizer, "predicted")
    tokens = engine.encode(many[:10])
    expected = (tokens.lengths * engine.predict(tokens).exit_layers).sum() / 4
    with running(make_application(engine)) as url:
        assert predict(url, [[text] for text in many[:10]])[0] == 200
        assert value_of(url, "geep_batch_tokens_sum") == pytest.approx(float(expected))


def test_an_audit_tells_whether_a_promise_holds(calibrated, tokenizer, many):
    engine = Engine(calibrated[0].model, tokenizer)
    with running(make_application(engine, ServerSettings(audit=1.0))) as url:
        assert value_of(url, "geep_audit_texts") == 0
        assert value_of(url, "geep_audit_agreement") is None
        assert predict(url, [[text] for text in many[:20]])[0] == 200
        assert value_of(url, "geep_audit_texts") == 20
        assert value_of(url, "geep_promised_agreement") == 0.8
        assert value_of(url, "geep_promise_broken") == 0
        assert 0 <= value_of(url, "geep_audit_agreement") <= 1


def test_a_broken_promise_shows(model, tokenizer, many):
    with torch.no_grad():
        model.heads["1"].classifier.weight.neg_()
    engine = Engine(model, tokenizer, "constant:1")
    agreement = float((engine.predict(many).label_ids == engine.full_depth(engine.encode(many)).argmax(-1)).float().mean())
    assert agreement < 0.8
    promised = audit(engine, 1.0, promised=0.98)
    with running(application_of(EngineBackend(engine), ServerSettings(), promised)) as url:
        assert value_of(url, "geep_promise_broken") == 0
        with pytest.warns(UserWarning, match="fewer than the promised 98"):
            assert predict(url, [[text] for text in many[:100]])[0] == 200
        assert value_of(url, "geep_promise_broken") == 1
        assert value_of(url, "geep_audit_agreement") < 0.8

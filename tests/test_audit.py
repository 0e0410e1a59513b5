"""Audits: how often they warn, of what, and of texts that are not those of the calibration."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geep_triton import MultiExitBert
from geep_triton.policies.text import parse_policy
from geep_triton.promises.audit import Audit
from geep_triton.promises.guarantees import binomial_p_value
from geep_triton.promises.simulate import simulate
from geep_triton.tokens.ragged import Tokens
from tests.conftest import tiny_config


def test_audit_rarely_warns_while_the_promise_holds():
    """However often it looks: 200 streams of 5,000 samples that agree exactly as promised."""
    generator, alarms = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        audit = Audit(1.0, promised=0.95, confidence=0.9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            audit.record(torch.rand(5000, generator=generator) < 0.95)
        alarms += not audit.report().holds
    assert alarms <= 200 * 0.1 + 3 * math.sqrt(200 * 0.1 * 0.9)


def test_audit_warns_once_when_the_promise_is_broken():
    audit = Audit(0.5, promised=0.9)
    rows = audit.choose(10_000)
    assert 4700 < len(rows) < 5300
    audit.record(torch.ones(50, dtype=torch.bool))
    with pytest.warns(UserWarning, match="fewer than the promised 90.0%.*calibrate again"):
        audit.record(torch.zeros(50, dtype=torch.bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audit.record(torch.zeros(50, dtype=torch.bool))
    assert not audit.report().holds


@pytest.mark.parametrize(("before", "after", "within"), [(0.009, 0.1, 400), (0.0, 0.05, 2000), (0.018, 0.1, 600)])
def test_audit_notices_a_late_change(before, after, within):
    """However long the answers were as promised: what was seen then does not hide what is seen now."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        audit = Audit(1.0, promised=0.98)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            audit.record(torch.rand(10_000, generator=generator) >= before)
        with pytest.warns(UserWarning, match="fewer than the promised 98.0%"):
            audit.record(torch.rand(within, generator=generator) >= after)
        report = audit.report()
        assert not report.holds
        assert 1 - 2 * after < report.recent < report.agreement


def test_what_was_shown_once_stays_shown():
    """Enough came wrong in the middle of one window, though its end looks well."""
    audit = Audit(1.0, promised=0.9)
    with pytest.warns(UserWarning, match="calibrate again"):
        audit.record(torch.tensor([True] * 20 + [False] * 40 + [True] * 5000))
    assert not audit.report().holds


def test_audits_choose_anew_each_time():
    first, second = (Audit(0.5).choose(1000).tolist() for _ in range(2))
    assert first != second
    assert Audit(0.5, seed=1).choose(1000).tolist() == Audit(0.5, seed=1).choose(1000).tolist()


def test_audit_of_shifted_texts(real_logits):
    """Promises shown on movie phrases (sst2), served reviews of businesses (yelp): one depth for all breaks its own, which the
    audit says; thresholds keep theirs, since what is strange to the model is also less sure."""
    shifted = load_file(Path(__file__).parent / "data" / "yelp_exit_logits.safetensors")["logits"].float()
    model = MultiExitBert(tiny_config(num_hidden_layers=6, num_labels=2))

    def agrees(policy, logits):
        exits = simulate(model, parse_policy(policy), Tokens.from_lists([[5]] * len(logits)), logits)
        answers = logits.argmax(-1)
        return answers.gather(1, exits[:, None])[:, 0] == answers[:, -1]

    for policy, promised, keeps in (("constant:1", 0.885, False), ("threshold:0.4", 0.97, True)):
        calibration = agrees(policy, real_logits)
        assert binomial_p_value(int((~calibration).sum()), len(calibration), 1 - promised) < 0.05
        at_home, away = Audit(1.0, promised), Audit(1.0, promised)
        at_home.record(calibration[:800])
        assert at_home.report().holds
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            away.record(agrees(policy, shifted))
        assert away.report().holds == keeps
        assert bool(caught) != keeps

"""Skip gates against a loop, and their straight-through gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.skip_gate import skip_gate
from tests.ops.tolerances import TOLERANCE


def check(target, logits, result, threshold=0.5):
    assert result.soft.tolist() == pytest.approx([sigmoid(x) for x in logits], abs=TOLERANCE, nan_ok=True)
    hard = [float(soft >= threshold) for soft in result.soft.tolist()]
    assert result.hard.tolist() == hard
    assert result.order.tolist() == sorted(range(len(logits)), key=lambda row: hard[row])
    assert result.num_active.tolist() == [hard.count(0.0)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@settings.get_profile("ops")
@given(logits=st.lists(st.floats(-90, 90, width=32), max_size=40), threshold=st.floats(0, 1, width=32))
def test_gates_from_logits(target, logits, threshold):
    check(target, logits, skip_gate(target(logits, torch.float32), threshold=threshold, backend=target.backend), threshold)


@pytest.mark.parametrize("rows", [0, 1, 17, 1025])
@pytest.mark.parametrize("hidden_size", [1, 17, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gates_from_pooled_states(target, rows, hidden_size, dtype):
    states = (torch.randn(rows, hidden_size) / hidden_size**0.5).to(dtype)
    weight, bias = torch.randn(hidden_size).to(dtype), torch.tensor([0.1]).to(dtype)
    logits = (states.double() @ weight.double() + bias.double()).tolist()
    check(target, logits, skip_gate(target(states), target(weight), target(bias), backend=target.backend))


@pytest.mark.parametrize("logit", [-5.0, 5.0])
def test_nobody_and_everybody_skips(target, logit):
    result = skip_gate(target([logit] * 70), backend=target.backend)
    assert result.num_active.tolist() == [0 if logit > 0 else 70]
    assert result.order.tolist() == list(range(70))


def test_a_gate_that_is_nan_runs_the_layer(target):
    result = skip_gate(target([math.nan, 9.0, math.inf, -math.inf]), backend=target.backend)
    assert result.hard.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert result.soft[0].isnan()
    assert result.order.tolist() == [0, 3, 1, 2]


def straight_through(logits, threshold):
    soft = logits.sigmoid()
    return soft, soft + ((soft >= threshold).float() - soft).detach()


def test_gradient_is_straight_through(target):
    logits = target(torch.randn(30)).requires_grad_()
    weights = target(torch.randn(2, 30))
    result = skip_gate(logits, backend=target.backend)
    (result.soft * weights[0] + result.hard * weights[1]).sum().backward()
    expected = logits.detach().clone().requires_grad_()
    soft, hard = straight_through(expected, 0.5)
    (soft * weights[0] + hard * weights[1]).sum().backward()
    torch.testing.assert_close(logits.grad, expected.grad, atol=TOLERANCE, rtol=0)


def test_gradient_through_weight_and_bias(target):
    values = [target(torch.randn(12, 5)), target(torch.randn(5)), target(torch.randn(1))]
    ours, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    skip_gate(*ours, backend=target.backend).hard.square().sum().backward()
    straight_through(theirs[0] @ theirs[1] + theirs[2], 0.5)[1].square().sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, atol=TOLERANCE, rtol=0)


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient and is not a double precision")
def test_soft_gate_by_gradcheck(target):
    """Of the soft gate, which is smooth; in float32, in which it computes, hence the wide steps."""
    logits = target(torch.randn(6)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: skip_gate(x, backend=target.backend).soft, logits, eps=1e-2, atol=1e-3, rtol=1e-3, check_undefined_grad=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2), torch.zeros(2)), "weight and bias must come together"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(1)), r"weight must have shape \(2,\) and bias \(1,\), got \(3,\)"),
        ((torch.zeros(3, 2),), r"states must have 1 dimension\(s\)"),
        ((torch.zeros(3), None, None, 1.5), "threshold must be between"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        skip_gate(*arguments)

"""Forecasts of agreement, against a loop over rows in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.forecast import ForecastNet, forecast
from tests.ops.tolerances import TOLERANCE

INF, NAN = math.inf, math.nan


def net_of(classes, units, exits, seed=0):
    made = torch.Generator().manual_seed(seed)
    shapes = (2 * classes, units), (units,), (units, exits), (exits,)
    return ForecastNet(*(torch.randn(shape, generator=made) for shape in shapes))


def on(target, net):
    return ForecastNet(*map(target, vars(net).values()))


def by_hand(logits, net):
    """Row by row, unit by unit."""
    v, a, w, b = (part.double().tolist() for part in vars(net).values())
    rows = []
    for row in logits.float().double().tolist():
        if not all(map(math.isfinite, row)):
            rows.append([0.0] * len(b))
            continue
        shares = [math.exp(x - max(row)) for x in row]
        seen = row + [share / sum(shares) for share in shares]
        hidden = [max(0.0, a[u] + sum(x * v[c][u] for c, x in enumerate(seen))) for u in range(len(a))]
        scores = [b[k] + sum(h * w[u][k] for u, h in enumerate(hidden)) for k in range(len(b))]
        rows.append([1 / (1 + math.exp(-score)) if score > -700 else 0.0 for score in scores])
    return torch.tensor(rows, dtype=torch.float64).view(len(logits), len(b))


def check(target, logits, net):
    found = forecast(target(logits), on(target, net), backend=target.backend)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), by_hand(logits, net), atol=TOLERANCE, rtol=0)
    return found.cpu()


@settings.get_profile("ops")
@given(
    rows=st.integers(0, 70),
    classes=st.integers(1, 20),
    units=st.integers(1, 17),
    exits=st.integers(1, 13),
    seed=st.integers(0, 9),
)
def test_forecast_equals_a_loop(target, rows, classes, units, exits, seed):
    logits = 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    check(target, logits, net_of(classes, units, exits, seed))


@pytest.mark.parametrize("rows", [0, 1, 3, 64, 65])
def test_numbers_of_rows(target, rows):
    assert check(target, torch.randn(rows, 2), net_of(2, 16, 5)).shape == (rows, 5)


def test_what_is_no_number_is_forecast_nothing(target):
    rows = [[1.0, 2.0, 3.0], [NAN, 0.0, 0.0], [0.0, INF, 0.0], [0.0, 0.0, -INF], [-1.0, 0.0, 1.0]]
    found = check(target, torch.tensor(rows), net_of(3, 16, 4))
    assert (found == 0).all(1).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(("value", "share"), [(1e4, 1.0), (-1e4, 0.0)])
def test_large_scores_saturate(target, value, share):
    net = ForecastNet(torch.ones(2, 1), torch.zeros(1), torch.tensor([[1.0, -1.0]]), torch.tensor([value, 30.0]))
    found = check(target, torch.tensor([[0.5], [-2.0]]), net)
    assert found[:, 0].tolist() == [share, share]
    assert found[1, 1] == 1.0  # a bias of 30 says that the last exit agrees with itself


def test_probabilities_of_large_logits(target):
    check(target, torch.tensor([[80.0, -80.0, 79.0], [-1e3, 1e3, 1e3]]), net_of(3, 16, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(target, dtype):
    check(target, torch.randn(9, 4).to(dtype), net_of(4, 16, 6))


def test_strided_logits(target):
    logits, net = torch.randn(20, 6)[:, ::2], net_of(3, 16, 3)
    found = forecast(target(logits), on(target, net), backend=target.backend)
    assert torch.equal(found, forecast(target(logits.contiguous()), on(target, net), backend=target.backend))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3).long()}, TypeError, "logits must be floating point, got torch.int64"),
        ({"logits": torch.zeros(3)}, ValueError, r"logits must have 2 dimension\(s\)"),
        ({"logits": torch.zeros(2, 4)}, ValueError, "logits must have 3 columns, as the net, got 4"),
        ({"net": None}, TypeError, "net must be a ForecastNet"),
        ({"hidden_weight": torch.zeros(5, 16)}, ValueError, r"net must have shapes \(2 C, U\)"),
        ({"hidden_bias": torch.zeros(4)}, ValueError, r"net must have shapes \(2 C, U\)"),
        ({"bias": torch.zeros(3)}, ValueError, r"net must have shapes \(2 C, U\)"),
        ({"weight": torch.zeros(4, 2)}, ValueError, r"net must have shapes \(2 C, U\)"),
        ({"weight": torch.zeros(16, 2).double()}, TypeError, "net.weight must be of dtype torch.float32"),
        ({"hidden_weight": torch.zeros(6)}, ValueError, r"net.hidden_weight must have 2 dimension\(s\)"),
    ],
)
def test_forecast_refuses(changes, error, message):
    parts = {name: value for name, value in changes.items() if name not in ("logits", "net")}
    net = changes["net"] if "net" in changes else ForecastNet(**{**vars(net_of(3, 16, 2)), **parts})
    with pytest.raises(error, match=message):
        forecast(changes.get("logits", torch.zeros(2, 3)), net)

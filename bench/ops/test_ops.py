"""`pytest --benchmark-only`: each op beside its rivals at its smallest size. `python -m bench.ops` measures all sizes."""

from __future__ import annotations

import pytest
import torch

from bench.environment import environment
from bench.ops.cases import MAKERS, OURS, first_case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RIVALS = {
    "lookup": ("torch.searchsorted", "random gather of buckets", "direct gather"),
    "insert_add": ("torch.unique + bincount",),
    "predict_exits": ("torch embedding_bag", "NumPy on the host"),
    "score_exits": ("torch eager",),
    "skip_gate": ("torch eager",),
    "partition": ("boolean indexing", "torch.sort"),
    "forecast": ("torch eager",),
    "outranked": ("torch.topk of each", "torch.sort, padded"),
}


@pytest.fixture(scope="module")
def case(request):
    case = first_case(request.param, DEVICE)
    case.check()
    assert set(case.providers) == {OURS, *RIVALS[case.op]}
    return case


@pytest.mark.parametrize(
    ("case", "provider"),
    [
        pytest.param(op, provider, id=f"{op}-{provider}", marks=pytest.mark.benchmark(group=op))
        for op in MAKERS
        for provider in (OURS, *RIVALS[op])
    ],
    indirect=["case"],
)
def test_op(benchmark, case, provider):
    def call():
        result = case.providers[provider]()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    expected = case.providers[OURS]()
    result = benchmark.pedantic(call, rounds=20, warmup_rounds=3)
    if provider == OURS:
        assert case.same_as_ours(result, expected)
    elif provider not in case.roofs:
        assert case.same(expected, result)
    benchmark.extra_info.update(provider=provider, config=case.config, bytes_moved=case.bytes_moved, **environment())

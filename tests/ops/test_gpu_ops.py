"""What only a GPU can show of the ops: races, determinism, hidden waits, offsets beyond 2**31."""

from __future__ import annotations

import pytest
import torch

from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.forecast import ForecastNet, forecast
from geep_triton.ops.hash_table import HashTable, insert_add, lookup
from geep_triton.ops.outranked import outranked
from geep_triton.ops.partition import partition
from geep_triton.ops.predict_exits import ScoreTable, predict_exits
from geep_triton.ops.skip_gate import skip_gate
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.records import ExitRecords, TableSettings
from geep_triton.tokens.ragged import Tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_hundred_million_concurrent_inserts():
    """Half of them to three keys; the map must be exact."""
    table, chunks = HashTable.empty(12, 1 << 22, "cuda"), []
    for seed in range(10):
        torch.manual_seed(seed)
        keys = torch.randint(0, 1_000_000, (10_000_000,), device="cuda")
        keys = torch.where(torch.rand(keys.shape, device="cuda") < 0.5, keys % 3, keys - 500_000)
        exits = torch.randint(0, 12, keys.shape, device="cuda")
        table = insert_add(table, keys, exits, backend="triton")
        chunks.append((keys + 500_000) * 12 + exits)
    expected = torch.zeros(1_500_003 * 12, dtype=torch.int64, device="cuda")
    for chunk in chunks:
        expected += torch.bincount(chunk, minlength=expected.numel())
    expected = expected.view(-1, 12)
    present = expected.sum(1).nonzero()[:, 0]
    keys, counts = table.items()
    assert torch.equal(keys, present - 500_000)
    assert torch.equal(counts, expected[present])
    assert int(counts.sum()) == 100_000_000


@pytest.fixture(autouse=True, scope="module")
def _guard_zones():
    """None here: looking at guard zones waits for the device."""


@pytest.fixture(autouse=True, scope="module")
def _poisoned_buffers():
    """None here: large buffers are not filled twice."""


@pytest.fixture(scope="module")
def calls():
    """The ops of the hot path on tensors that are on the device already."""
    torch.manual_seed(0)
    vocabulary, layers = 5000, tuple(range(1, 13))
    scores = torch.rand(vocabulary + 1, 12)
    scores /= scores.sum(1, keepdim=True)
    table = ScoreTable.build(torch.arange(vocabulary), scores, layers, (0,), vocabulary, 2, "mean", "cuda")
    ids = torch.randint(0, vocabulary, (40_000,), device="cuda")
    offsets = torch.arange(0, 40_001, 40, device="cuda")
    logits, hidden = torch.randn(1000, 7, device="cuda"), torch.randn(1000, 16, 64, device="cuda")
    cuts = torch.randn(7, device="cuda")
    earlier = {"previous": torch.randn(1000, device="cuda"), "streak": torch.ones(1000, dtype=torch.int32, device="cuda")}
    net = ForecastNet(*(torch.randn(shape, device="cuda") for shape in ((14, 16), (16,), (16, 11), (11,))))
    weight, bias = torch.randn(64, device="cuda"), torch.randn(1, device="cuda")
    return {
        "predict_exits": lambda: vars(predict_exits(table, ids, offsets, 0.9)),
        "lookup": lambda: {"rows": lookup(table.slots, table.probes, ids)},
        "score_exits": lambda: vars(score_exits(logits, 0.5)),
        "score_exits, distance": lambda: vars(score_exits(logits, -0.5, "distance", cuts=cuts)),
        "score_exits, change": lambda: vars(score_exits(logits[:, :1], 0.5, "change", patience=2, **earlier)),
        "forecast": lambda: {"agreement": forecast(logits, net)},
        "skip_gate": lambda: vars(skip_gate(hidden[:, 0], weight, bias)),
        "outranked": lambda: vars(outranked(logits.flatten(), offsets[:176], 10, 0.5)),
        "partition": lambda: dict(enumerate(partition(logits[:, 0] > 0))),
    }


OPS = [
    *("predict_exits", "lookup", "score_exits", "score_exits, distance", "score_exits, change", "skip_gate", "outranked"),
    "partition",
]


@pytest.mark.parametrize("op", OPS)
def test_a_hundred_runs_are_bit_for_bit_the_same(calls, op):
    first = calls[op]()
    for _ in range(100):
        for name, value in calls[op]().items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("op", OPS)
def test_nothing_waits_for_the_device(calls, op):
    expected = calls[op]()  # compiled before
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = calls[op]()
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_offsets_beyond_two_to_the_31():
    logits = torch.zeros((1 << 19) + 1, 4096, dtype=torch.float16, device="cuda")
    logits[-1, -1] = 30.0
    scores = score_exits(logits, 0.5)
    assert scores.prediction[-1].item() == 4095
    assert scores.counts.tolist() == [1, 0]
    scores = score_exits(logits, -1.0, "distance", cuts=torch.cat([torch.full((4095,), 2.0), torch.ones(1)]).cuda())
    assert scores.prediction[-1].item() == 1
    assert scores.counts.tolist() == [logits.shape[0], 0]


def test_tables_are_built_on_the_gpu():
    """The same tables as on the host, whatever order the inserts come in."""
    torch.manual_seed(0)
    tokens = Tokens.from_lists([torch.randint(0, 300, (12,)).tolist() for _ in range(2000)])
    records = ExitRecords(tokens, torch.rand(2000, 6))
    there, here = (
        ExitTable.from_records(records, range(1, 7), TableSettings(0.3, ngram=2), 300, "", (0,), device=device)
        for device in ("cuda", "cpu")
    )
    assert torch.equal(there.keys, here.keys)
    assert torch.equal(there.counts, here.counts)
    found, expected = there.predict(tokens, device="cuda"), here.predict(tokens)
    torch.testing.assert_close(found.probabilities.cpu(), expected.probabilities)

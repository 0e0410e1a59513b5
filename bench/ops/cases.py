"""Each op and its rivals at every size. Their results are compared, and their timings are interleaved.

On a GPU the ops run in Triton, on a CPU in PyTorch. Triton's interpreter is never timed.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bench.rows import Found, found
from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.forecast import ForecastNet, forecast
from geep_triton.ops.hash_table import HashTable, insert_add, lookup
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.ops.outranked import outranked
from geep_triton.ops.partition import partition
from geep_triton.ops.predict_exits import ScoreTable, predict_exits
from geep_triton.ops.skip_gate import skip_gate
from geep_triton.tokens.ragged import Tokens

OURS = "geep_triton"
ROWS, HIDDEN = (64, 128, 512, 2048), 768  # what the engine's batches have
CACHE_BYTES = 256 << 20  # written between GPU measurements, so that none finds its data in the cache of the one before


@dataclass(frozen=True, eq=False)
class Case:
    """One op at one size.

    Attributes:
        op: its name.
        config: what the size is.
        items: lookups, rows or tokens a call handles.
        bytes_moved: that a call must at least read and write.
        providers: name -> call; the first is ours.
        same: whether a rival's result is as ours; providers it is not asked about do something else on purpose (a roof).
        roofs: names of providers that do less than the op, or something else to compare its time with.
    """

    op: str
    config: dict[str, Any]
    items: int
    bytes_moved: int
    providers: dict[str, Callable[[], Any]]
    same: Callable[[Any, Any], bool] = field(default=lambda ours, theirs: torch.equal(ours, theirs))
    roofs: tuple[str, ...] = ()

    def same_as_ours(self, result: Any, expected: Any) -> bool:
        """Whether a result of our own is as an earlier one."""
        if isinstance(expected, HashTable):
            return all(map(torch.equal, result.items(), expected.items()))
        if isinstance(expected, torch.Tensor) and self.op == "lookup":
            return torch.equal(result, expected)
        return self.same(result, expected)

    def check(self) -> None:
        """Raise ValueError unless every rival gives our result."""
        expected = self.providers[OURS]()
        for name, call in self.providers.items():
            if name not in (OURS, *self.roofs) and not self.same(expected, call()):
                raise ValueError(f"{self.op} {self.config}: {name} gives another result")


def distinct_keys(count: int, device: torch.device) -> torch.Tensor:
    """[count] int64 keys, spread over all of int64 but for the mark of a free slot."""
    keys = torch.randint(-(2**63) + 1, 2**63 - 1, (count + count // 8 + 8,), device=device).unique()
    return keys[torch.randperm(keys.numel(), device=device)[:count]]


def lookup_cases(device: torch.device) -> Iterator[Case]:
    """Table sizes from cache to memory, loads .25-.9, hit rates 0-1."""
    queries = 1 << (22 if device.type == "cuda" else 16)
    capacities = (1 << 14, 1 << 20, 1 << 24) if device.type == "cuda" else (1 << 14, 1 << 20)
    settings = [(capacity, 0.5, 1.0) for capacity in capacities]
    settings += [
        (1 << 20, load, hit) for load in (0.25, 0.5, 0.75, 0.9) for hit in (0.0, 0.5, 1.0) if (load, hit) != (0.5, 1.0)
    ]
    for capacity, load, hit in settings:
        count = int(load * capacity)
        keys = distinct_keys(2 * count, device)
        stored, absent = keys[:count], keys[count:]
        table = insert_add(HashTable.empty(1, capacity, device), stored, torch.zeros_like(stored), max_capacity=capacity)
        query = stored[torch.randint(count, (queries,), device=device)]
        query = torch.where(torch.rand(queries, device=device) < hit, query, absent[: count - 1].roll(1)[query % (count - 1)])
        in_order = stored.sort().values
        rows = lookup(table.slots, table.probes, query)
        buckets = table.slots.view(-1, 4).view(torch.float64)  # an embedding's rows are taken far faster than an index's
        slot = rows.clamp(max=capacity - 1)
        bucket_of = slot // 4

        def by_search(in_order=in_order, query=query):
            place = torch.searchsorted(in_order, query).clamp_(max=in_order.numel() - 1)
            return in_order[place] == query

        yield Case(
            "lookup",
            {"capacity": capacity, "load": load, "hit_rate": hit, "queries": queries, "probes": table.probes},
            queries,
            queries * (8 + 32 + 8),
            {
                OURS: lambda table=table, query=query: lookup(table.slots, table.probes, query),
                "torch.searchsorted": by_search,
                "random gather of buckets": lambda buckets=buckets, bucket_of=bucket_of: F.embedding(bucket_of, buckets),
                "direct gather": lambda table=table, slot=slot: table.counts.view(-1).index_select(0, slot),
            },
            same=lambda ours, theirs, capacity=capacity: torch.equal(ours < capacity, theirs),
            roofs=("random gather of buckets", "direct gather"),
        )


def insert_cases(device: torch.device) -> Iterator[Case]:
    """Zipf-distributed keys, as tokens are."""
    for count in (1 << 16, 1 << 22) if device.type == "cuda" else (1 << 16,):
        keys = (30000 ** torch.rand(count, device=device)).long()
        exits = torch.randint(0, 12, (count,), device=device)
        empty = HashTable.empty(12, 1 << 16, device)

        def sort_and_count(keys=keys, exits=exits):
            unique, rows = torch.unique(keys, return_inverse=True)
            return unique, torch.bincount(rows * 12 + exits, minlength=12 * unique.numel()).view(-1, 12)

        yield Case(
            "insert_add",
            {"pairs": count, "distinct": int(keys.unique().numel()), "capacity": empty.capacity},
            count,
            count * 16,
            {
                OURS: lambda empty=empty, keys=keys, exits=exits: insert_add(empty, keys, exits),
                "torch.unique + bincount": sort_and_count,
            },
            same=lambda ours, theirs: all(map(torch.equal, ours.items(), theirs)),
        )


def predict_cases(device: torch.device) -> Iterator[Case]:
    """A window of samples of 8 to 64 tokens over BERT's vocabulary."""
    vocabulary, layers = 30522, tuple(range(1, 13))
    for samples, ngram in ((256, 1), (4096, 1), (4096, 2), (4096, 3), (65536, 1)):
        lengths = torch.randint(8, 65, (samples,)).tolist()
        tokens = Tokens.from_lists([(vocabulary ** torch.rand(length)).long().tolist() for length in lengths])
        keys = ngram_keys(tokens.ids, tokens.offsets, torch.zeros(tokens.ids.numel(), dtype=torch.bool), ngram)[0].unique()
        scores = torch.rand(keys.numel() + 1, len(layers))
        scores /= scores.sum(1, keepdim=True)
        table = ScoreTable.build(keys, scores, layers, (0,), vocabulary, ngram, "mean", device)
        ids, offsets = tokens.ids.to(device), tokens.offsets.to(device)
        providers = {OURS: lambda table=table, ids=ids, offsets=offsets: predict_exits(table, ids, offsets, 0.9).exits}
        if ngram == 1:
            providers |= unigram_rivals(table, ids, offsets, tokens)
        yield Case(
            "predict_exits",
            {"samples": samples, "tokens": ids.numel(), "ngram": ngram, "keys": keys.numel(), "exits": len(layers)},
            ids.numel(),
            ids.numel() * ngram * (8 + 64),
            providers,
            # Sums in another order may carry a sample over the quantile's bound.
            same=lambda ours, theirs: float((ours.cpu() != theirs.cpu()).float().mean()) < 0.001,
        )


def unigram_rivals(
    table: ScoreTable, ids: torch.Tensor, offsets: torch.Tensor, tokens: Tokens
) -> dict[str, Callable[[], torch.Tensor]]:
    """Direct indexing in PyTorch, where the tokens are; and NumPy on the host."""
    scores, layers, slack = table.unigrams[:, : len(table.layers)].contiguous(), table.layers, 5e-7 * len(table.layers)
    host = scores.cpu().numpy(), tokens.ids.numpy(), tokens.offsets.numpy()

    def direct() -> torch.Tensor:
        mean = F.embedding_bag(ids, scores, offsets[:-1], mode="mean")
        return layers[(mean.cumsum(1) < 0.9 - slack).sum(1).clamp(max=len(layers) - 1)]

    def numpy_predictor() -> torch.Tensor:
        values, flat, starts = host
        mean = np.add.reduceat(values[flat], starts[:-1], axis=0) / np.diff(starts)[:, None]
        index = np.minimum((mean.cumsum(1) < 0.9 - slack).sum(1), len(table.layers) - 1)
        return torch.from_numpy(table.layers.cpu().numpy()[index])

    return {"torch embedding_bag": direct, "NumPy on the host": numpy_predictor}


def compiled(call: Callable[..., Any], device: torch.device) -> dict[str, Callable[..., Any]]:
    """The rival that torch.compile makes of `call`, on a GPU; on a CPU it would time a C++ compiler's set-up."""
    return {"torch.compile": torch.compile(call, dynamic=True)} if device.type == "cuda" else {}


def entropy_eager(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and who leaves, as one would write it."""
    p = logits.float().softmax(-1)
    entropy = -(p * p.clamp(min=1e-20).log()).sum(-1) / math.log(logits.shape[-1])
    return logits.argmax(-1), entropy <= 0.3


def distance_eager(logits: torch.Tensor, cuts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many labels are given, and who leaves: every logit is at least .1 away from its cut."""
    return (logits >= cuts).sum(-1), ((logits - cuts).abs() >= 0.1).all(-1)


def change_eager(logits: torch.Tensor, before: torch.Tensor, streak: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The streaks of scores that changed by at most .5, and who leaves after two."""
    streak = torch.where((logits[:, 0] - before).abs() <= 0.5, streak + 1, 0).int()
    return streak, streak >= 2


def score_cases(device: torch.device) -> Iterator[Case]:
    """A batch of two and of five classes, of one score and of 28 labels at cuts, and of one score that changes."""
    for rows, classes in itertools.product(ROWS, (2, 5)):
        logits = 4 * torch.randn(rows, classes, device=device)

        def ours(logits=logits):
            scores = score_exits(logits, 0.3)
            return scores.prediction, scores.leaves

        rivals = {"torch eager": entropy_eager} | compiled(entropy_eager, device)
        yield Case(
            "score_exits",
            {"rows": rows, "classes": classes},
            rows,
            logits.numel() * 4 + rows * 17,
            {OURS: ours} | {name: lambda call=call, logits=logits: call(logits) for name, call in rivals.items()},
            same=nearly_same,
        )
    for rows, labels in itertools.product(ROWS, (1, 28)):
        logits, cuts = 4 * torch.randn(rows, labels, device=device), torch.randn(labels, device=device)

        def at_cuts(logits=logits, cuts=cuts):
            scores = score_exits(logits, -0.1, "distance", cuts=cuts)
            return scores.prediction, scores.leaves

        rivals = {"torch eager": distance_eager} | compiled(distance_eager, device)
        yield Case(
            "score_exits",
            {"rows": rows, "labels": labels},
            rows,
            (logits.numel() + labels) * 4 + rows * 17,
            {OURS: at_cuts} | {name: lambda call=call, given=(logits, cuts): call(*given) for name, call in rivals.items()},
            same=equal_tensors,
        )
    for rows in ROWS:
        logits, streak = torch.randn(rows, 1, device=device), torch.zeros(rows, dtype=torch.int32, device=device)
        before = logits[:, 0] + torch.randn(rows, device=device)

        def by_change(logits=logits, before=before, streak=streak):
            scores = score_exits(logits, 0.5, "change", patience=2, previous=before, streak=streak)
            return scores.streak, scores.leaves

        rivals = {"torch eager": change_eager} | compiled(change_eager, device)
        yield Case(
            "score_exits",
            {"rows": rows, "scores": 1},
            rows,
            rows * 29,
            {OURS: by_change}
            | {name: lambda call=call, given=(logits, before, streak): call(*given) for name, call in rivals.items()},
            same=equal_tensors,
        )


def equal_tensors(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> bool:
    """Whether all are equal: one subtraction is rounded once, wherever it runs."""
    return all(map(torch.equal, ours, theirs))


def nearly_same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> bool:
    """All but one in a thousand: rounding may carry a row over the threshold or over a tie."""
    return all(float((a != b).float().mean()) <= 0.001 for a, b in zip(ours, theirs, strict=True))


def gate_eager(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Rows that run the layer before those that skip it."""
    skips = (states.float() @ weight + bias).sigmoid() >= 0.5
    return torch.cat([(~skips).nonzero()[:, 0], skips.nonzero()[:, 0]])


def row_cases(device: torch.device) -> Iterator[Case]:
    """Gates and partition of a batch's rows."""
    for rows in ROWS:
        states = torch.randn(rows, HIDDEN, device=device).bfloat16()
        weight, bias = torch.randn(HIDDEN, device=device) / HIDDEN**0.5, torch.zeros(1, device=device)
        flags = states[:, 0] > 0
        yield Case("skip_gate", {"rows": rows, "hidden_size": HIDDEN}, rows, rows * (2 * HIDDEN + 16), {
            OURS: lambda gate=(states, weight, bias): skip_gate(*gate).order,
            "torch eager": lambda gate=(states, weight, bias): gate_eager(*gate),
        })  # fmt: skip
        yield Case("partition", {"rows": rows}, rows, rows * 9, {
            OURS: lambda flags=flags: partition(flags)[0],
            "boolean indexing": lambda flags=flags: torch.cat([flags.nonzero()[:, 0], (~flags).nonzero()[:, 0]]),
            "torch.sort": lambda flags=flags: flags.byte().sort(descending=True, stable=True).indices,
        })  # fmt: skip


def forecast_eager(logits: torch.Tensor, net: ForecastNet) -> torch.Tensor:
    """The same as two linear layers, without a look at what is not finite."""
    seen = torch.cat([logits, logits.softmax(-1)], -1)
    hidden = F.linear(seen, net.hidden_weight.T, net.hidden_bias).relu()
    return F.linear(hidden, net.weight.T, net.bias).sigmoid()


def forecast_cases(device: torch.device) -> Iterator[Case]:
    """The answers of a batch at the second of 12 exits."""
    for rows, classes in itertools.product(ROWS, (2, 28)):
        shapes = (2 * classes, 16), (16,), (16, 11), (11,)
        net = ForecastNet(*(torch.randn(shape, device=device) for shape in shapes))
        logits = torch.randn(rows, classes, device=device)
        rivals = {"torch eager": forecast_eager} | compiled(forecast_eager, device)
        yield Case(
            "forecast",
            {"rows": rows, "classes": classes},
            rows,
            rows * 4 * (classes + 11),
            {OURS: lambda logits=logits, net=net: forecast(logits, net)}
            | {name: lambda call=call, given=(logits, net): call(*given) for name, call in rivals.items()},
            same=lambda ours, theirs: torch.allclose(ours, theirs, atol=1e-5, rtol=0),
        )


def outranked_by_loop(scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Who is more than 1 below the 10th best of a group, group by group, with `torch.topk`."""
    leaves = [group.topk(min(10, len(group))).values[-1] - group > 1 for group in scores.split(offsets.diff().tolist())]
    return torch.cat(leaves)


def outranked_by_sort(scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The same with one sort of all groups, padded to the longest."""
    sizes = offsets.diff()
    column = torch.arange(int(sizes.max()), device=scores.device)
    real = column < sizes[:, None]
    padded = scores.new_full(real.shape, -math.inf).masked_scatter_(real, scores)
    best = padded.sort(1, descending=True).values[:, :10]
    tenth = best.gather(1, (sizes - 1).clamp(max=9)[:, None])
    return (tenth - padded > 1)[real]


def outranked_cases(device: torch.device) -> Iterator[Case]:
    """The candidates of many queries, 10 of which are wanted."""
    for queries, candidates in ((40, 100), (200, 100), (20, 1000)):
        sizes = torch.randint(candidates // 2, 3 * candidates // 2, (queries,))
        offsets = F.pad(sizes.cumsum(0), (1, 0)).to(device)
        scores = 2 * torch.randn(int(sizes.sum()), device=device)
        given, rows = (scores, offsets), len(scores)
        yield Case("outranked", {"queries": queries, "candidates": candidates, "rows": rows}, rows, rows * 5, {
            OURS: lambda given=given: outranked(*given, 10, 1.0).leaves,
            "torch.topk of each": lambda given=given: outranked_by_loop(*given),
            "torch.sort, padded": lambda given=given: outranked_by_sort(*given),
        })  # fmt: skip


MAKERS = {
    "lookup": lookup_cases,
    "insert_add": insert_cases,
    "predict_exits": predict_cases,
    "score_exits": score_cases,
    "skip_gate": row_cases,
    "partition": row_cases,
    "forecast": forecast_cases,
    "outranked": outranked_cases,
}


def first_case(op: str, device: torch.device) -> Case:
    """The smallest size of an op."""
    torch.manual_seed(0)
    return next(case for case in MAKERS[op](device) if case.op == op)


def all_cases(device: torch.device) -> Iterator[Case]:
    """Every op at every size."""
    for make in dict.fromkeys(MAKERS.values()):
        torch.manual_seed(0)
        yield from make(device)


@torch.inference_mode()
def measure(case: Case, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each provider in each of `rounds` interleaved rounds, after the results were checked."""
    case.check()
    seconds: dict[str, list[float]] = {name: [] for name in case.providers}
    flush = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    for _ in range(rounds):
        for name, call in case.providers.items():
            seconds[name].append(_time_gpu(call, flush) if flush is not None else _time_cpu(call))
    return seconds


def _time_cpu(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _time_gpu(call: Callable[[], Any], flush: torch.Tensor) -> float:
    """By the device's clock, from its start on the call to the end of the work; waits for the host in between count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def found_of(case: Case, seconds: dict[str, list[float]]) -> Iterator[Found]:
    """What was measured of each provider."""
    for name, values in seconds.items():
        median = statistics.median(values)
        metrics = {
            "seconds": median,
            "items_per_second": case.items / median,
            "gb_per_second": case.bytes_moved / median / 1e9,
            "rounds": len(values),
        }
        yield found(name, metrics, roof=name in case.roofs, **case.config)

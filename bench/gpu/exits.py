"""Part 4 replays exits on BERT's base shape: planned and scored, beside full depth, batches that shrink and the bound."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bench.gpu.setting import Cells, Setting
from bench.pipeline.cells.pays import PAYS_EXITS
from bench.pipeline.replay import drawn, thresholds_for
from bench.pipeline.rivals_exits import ShrinkingBatches, normalized_entropy
from bench.pipeline.systems import NOBODY
from bench.rows import Found, found
from bench.timing import quiet_garbage_collector
from geep_triton import Engine, MultiExitBert, Predictions
from geep_triton.policies.leave import Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import FirstExit
from geep_triton.policies.text import parse_policy
from geep_triton.runners.base import States
from geep_triton.timing import in_turns
from geep_triton.tokens.ragged import Tokens

DEPTHS = ("3.5", "6.5")  # mean layers of 12; see `PAYS_EXITS`
WAYS = ("compiled", "lean", "graphs")  # in which all of ours and the rival run their layers
LEAST_TOKENS = 4_096  # of batches
AT = 1  # the place in a text whose id tells its exit
MOVED = (
    0.25  # share of texts that may leave elsewhere than in the first scored run: in half precision many are near a threshold
)


@dataclass(frozen=True)
class Told:
    """A start at the exit that one of a text's ids tells, as if by a predictor that is never wrong and costs nothing."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Accept every model."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The exits that the ids tell."""
        return tokens.ids[tokens.offsets[:-1] + AT]


def cells(setting: Setting) -> Cells:
    yield "costs", lambda: costs(setting)
    sizes = setting.sizes
    batches = [(sizes.lengths[0], tokens) for tokens in sizes.tokens if tokens >= LEAST_TOKENS or setting.machine.rehearsal]
    for length, tokens in [*batches, *((length, sizes.tokens[0]) for length in sizes.lengths[1:])]:
        for way in reversed(WAYS):
            for depth in DEPTHS:
                name = f"{length} long, {tokens} tokens, mean exit {depth}, {way}"
                yield name, partial(replayed, setting, tokens, length, depth, way)
    yield "fresh texts", lambda: fresh(setting)


def costs(setting: Setting) -> list[Found]:
    """The time of a layer by the tokens of a batch, and that of a head, a move and a stop in layers of a full batch."""
    of_ways = {}
    for way in ("plain", *WAYS):
        measured = setting.engine("full", way).layer_costs
        layer = measured.points[-1][1]
        of_ways[way] = {
            "layer_seconds": dict(measured.points),
            "head_layers": measured.score,
            "stop_layers": measured.stop / layer,
            "stop_seconds": measured.stop,
            "move_layers": measured.move * measured.points[-1][0] / layer,
        }
        prices = ", ".join(f"{name} {of_ways[way][f'{name}_layers']:.2f}" for name in ("head", "stop", "move"))
        print(f"layer_costs, {way}: in layers of a full batch {prices}", flush=True)
    return [found("", of_ways)]


class Window:
    """Texts of one length, their exits, and thresholds by which as many leave at each exit."""

    def __init__(self, setting: Setting, tokens: int, length: int, depth: str, way: str) -> None:
        layers = setting.model.config.num_hidden_layers
        self.tokens, self.length, self.way = tokens, length, way
        self.ids = setting.ids(setting.samples(tokens, length), length)
        self.exits = drawn(PAYS_EXITS[depth], len(self.ids), layers)
        self.ids[:, AT] = self.exits
        self.columns = {"input_ids": self.ids}
        logits = setting.engine("full", way, token_budget=tokens).every_exit(self.columns).logits
        used = sorted(set(self.exits.tolist()) | {layers})
        at = [layer - 1 for layer in used[:-1]]
        self.thresholds: Mapping[int, float] = thresholds_for(normalized_entropy(logits)[:, at], self.exits, used)

    def scored(self, regroup: str = "auto") -> Policy:
        """A policy that scores every text on its way."""
        return Policy(FirstExit(), Sure(tuple(self.thresholds.values()), layers=tuple(self.thresholds), regroup=regroup))

    @cached_property
    def batches(self) -> list[Tokens]:
        """The batches of a rival, in the order of arrival."""
        parts = self.ids.split(max(1, self.tokens // self.length))
        return [Tokens(part.flatten(), torch.arange(0, part.numel() + 1, self.length)) for part in parts]


def engines(setting: Setting, window: Window) -> dict[str, Engine]:
    """Our engines by name. The first runs all layers, the second knows each exit and scores none."""

    def engine(policy: str | Policy, **options: Any) -> Engine:
        made = setting.engine(policy, window.way, token_budget=window.tokens, window=1 << 16, prefetch=False, **options)
        _ = made.layer_costs
        return made

    return {
        "full depth": engine("full"),
        "planned": engine(Policy(Told())),
        "scored, one batch in flight": engine(window.scored(), in_flight=1),
        "scored, three batches in flight": engine(window.scored(), in_flight=3),
        "scored, three in flight, never pooled": engine(window.scored("never"), in_flight=3),
        "nobody leaves, three in flight": engine(parse_policy(NOBODY), in_flight=3),
    }


def replayed(setting: Setting, tokens: int, length: int, depth: str, way: str) -> list[Found]:
    """Time every system in turns. `share_of_bound` is the share of the speed-up that the saved layers allow."""
    window = Window(setting, tokens, length, depth, way)
    ours = engines(setting, window)
    shrinking = ShrinkingBatches(
        setting.runner(way), setting.tokenizer, window.thresholds, length, batch=max(2, tokens // length)
    )
    calls: dict[str, Callable[[], Any]] = {name: partial(each.predict, window.columns) for name, each in ours.items()}
    calls["rival, batches that shrink"] = lambda: shrinking.answer_all(window.batches)
    mean_exit, moved, expected = {}, {}, None
    for name, call in calls.items():
        answered = call()
        exits = answered.exit_layers if isinstance(answered, Predictions) else answered[1]
        mean_exit[name] = float(exits.double().mean())
        if name == "planned" and not torch.equal(exits, window.exits):
            raise ValueError("planned texts left elsewhere than they were told to")
        if name.startswith(("scored", "rival")):
            expected = exits if expected is None else expected
            moved[name] = float((exits != expected).double().mean())
            if moved[name] > MOVED:
                raise ValueError(f"{name}: {moved[name]:.1%} of the texts left elsewhere")
    with quiet_garbage_collector():
        seconds = in_turns(calls, setting.sizes.rounds, limit=setting.sizes.seconds)
    layers = setting.model.config.num_hidden_layers
    median = {name: statistics.median(values) for name, values in seconds.items()}
    measured = [found("", {"tokens": tokens, "length": length, "samples": len(window.ids), "way": way})]
    for name, value in median.items():
        metrics = {
            "seconds": value,
            "rounds": len(seconds[name]),
            "samples_per_second": len(window.ids) / value,
            "mean_exit": mean_exit[name],
            "moved": moved.get(name, 0.0),
            "speed_up": median["full depth"] / value,
            "share_of_bound": median["full depth"] * mean_exit[name] / layers / value,
        }
        measured.append(found(name, metrics))
    return measured


def fresh(setting: Setting) -> list[Found]:
    """Time texts of many lengths that are new in every round, so that batches have shapes that were never seen."""
    sizes = setting.sizes
    tokens, longest = sizes.tokens[0], sizes.lengths[0]
    window = Window(setting, tokens, longest, DEPTHS[0], "plain")
    samples, seeds = len(window.ids), count(1)
    shapes: set[tuple[int, ...]] = set()

    def count_shapes(engine: Engine) -> int:
        runner = engine.runner
        layers = runner.layers

        def watched(first: int, last: int, states: States) -> States:
            shapes.add((len(states), states.longest))
            return layers(first, last, states)

        shapes.clear()
        runner.layers = watched
        try:
            engine.predict(another())
        finally:
            del runner.layers
        return len(shapes)

    def another() -> dict[str, list[torch.Tensor]]:
        ids = setting.ids(samples, longest, next(seeds))
        generator = torch.Generator().manual_seed(next(seeds))
        lengths = torch.randint(min(16, longest // 2), longest + 1, (samples,), generator=generator).tolist()
        return {"input_ids": [row[:length] for row, length in zip(ids, lengths, strict=True)]}

    rounds = max(2, sizes.rounds // 3)
    measured = [found("", {"tokens": tokens, "longest": longest, "samples": samples})]
    for name, policy in (("full depth", "full"), ("scored, three batches in flight", window.scored())):
        for way, cudnn in (("plain", False), ("plain", True), ("packed", False)):
            options = {"in_flight": 3, "cudnn_attention": cudnn, "prefetch": False, "window": 1 << 16}
            engine = setting.engine(policy, way, token_budget=tokens, **options)
            _ = engine.layer_costs
            engine.predict(another())
            texts = [another() for _ in range(rounds)]
            seconds = []
            for columns in texts:
                result, taken = timed(engine, columns)
                seconds.append(taken)
            metrics = {
                "seconds": statistics.median(seconds),
                "worst_seconds": max(seconds),
                "rounds": rounds,
                "samples_per_second": samples / statistics.median(seconds),
                "mean_exit": result.mean_exit_layer,
                "shapes": count_shapes(engine),
            }
            # None is compiled: a compiled layer keeps the attention that it was compiled with.
            measured.append(found(f"{name}, {way}, {'as torch chooses' if cudnn else 'without cuDNN'}", metrics))
    return measured


def timed(engine: Engine, columns: Any) -> tuple[Predictions, float]:
    """The answers and the seconds that they took, without those to read the ids."""
    result = engine.predict(columns)
    return result, sum(result.timings.values()) - result.timings["tokenize"]

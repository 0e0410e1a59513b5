"""What exits cost where nobody leaves, and from where on they pay."""

from __future__ import annotations

import statistics
from functools import partial

import torch

from bench.pipeline.int8 import with_int8
from bench.pipeline.replay import drawn
from bench.pipeline.settings import Settings
from bench.pipeline.systems import NOBODY, WAYS, System, Workbench
from bench.rows import Found, found
from bench.shapes import load_model, load_tokenizer
from bench.timing import spread
from geep_triton import Engine
from geep_triton.config import HEADS
from geep_triton.policies.text import parse_policy
from geep_triton.timing import in_turns

PAYS_TOKENS = (1, 256, 1_024, 4_096)  # of a batch; 1: one sample
# Exits of 12 layers that leave samples at so many mean layers, every exit used: a share leaves evenly over the first ones.
PAYS_EXITS = {
    "3.5": dict.fromkeys(range(1, 7), 1 / 6),
    "6.5": dict.fromkeys(range(1, 13), 1 / 12),
    "9.2": dict.fromkeys(range(1, 12), 0.5 / 12) | {12: 6.5 / 12},
    "10.9": dict.fromkeys(range(1, 12), 0.2 / 12) | {12: 9.8 / 12},
}


def overhead(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """What scoring at every exit costs where nobody leaves, by kind of head: time over full depth, beside the heads' FLOPs."""
    rows, tokenizer, heads = settings.rows(data, shape), load_tokenizer(), []
    way = WAYS[settings.way(dtype)]
    limits = {"token_budget": settings.token_budget, "max_length": settings.max_length, "truncation": True}
    for head in HEADS:
        model = load_model(settings.shape(shape), head=head).to(settings.place)
        if dtype == "int8":
            with_int8(model, tokenizer, rows, settings.max_length)
        full = Engine(model, tokenizer, "full", dtype=dtype, **way, **limits)
        nobody = full.with_policy(NOBODY)
        answers, scored = full.predict(rows), nobody.predict(rows)
        if scored.mean_layers != model.config.num_hidden_layers or not torch.equal(scored.logits, answers.logits):
            raise ValueError(f"{head} heads: scored samples left early or were answered otherwise")
        calls = {"full": partial(full.predict, rows), "nobody": partial(nobody.predict, rows)}
        seconds = in_turns(calls, settings.rounds, limit=settings.seconds)
        ratios = [scored / alone for scored, alone in zip(seconds["nobody"], seconds["full"], strict=True)]
        flops = scored.flops.total / answers.flops.total - 1
        heads.append(found(head, {"overhead": statistics.median(ratios) - 1, "flops": flops, "ratios": ratios}))
    return [found("", {"samples": len(rows)}), *heads]


def pays(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Speed of scored exits over full depth, by tokens of a batch and mean layers: where exits begin to pay.

    Random weights, exits replayed, every exit scored until a sample leaves.
    """
    rows, tokenizer, points = settings.rows(data, shape), load_tokenizer(), []
    for tokens in PAYS_TOKENS:
        model = load_model(settings.shape(shape)).to(settings.place)
        recorded = {name: drawn(shares, len(rows), model.config.num_hidden_layers) for name, shares in PAYS_EXITS.items()}
        bench = Workbench(model, tokenizer, rows, tokens, settings.max_length, recorded)
        engine = bench.engine("full", dtype, settings.way(dtype))
        policies = {name: bench.policies[f"threshold, {name}"] for name in PAYS_EXITS} | {"nobody leaves": NOBODY}
        engines = {"full": engine} | {name: engine.with_policy(policy) for name, policy in policies.items()}
        layers = {}
        for name, one in engines.items():
            exits = bench.exits_of(parse_policy(policies.get(name, "full")))
            layers[name] = bench.checked(System(f"ours, {name}", "ours", one.predict, exits), dtype)["mean_layers"]
        calls = {name: partial(one.predict, rows) for name, one in engines.items()}
        seconds = in_turns(calls, settings.rounds, limit=settings.seconds)
        for name in policies:
            ratios = [alone / early for alone, early in zip(seconds["full"], seconds[name], strict=True)]
            share = layers[name] / model.config.num_hidden_layers
            speed_up = spread(ratios)
            points.append(found(name, {"share": share, "speed_up": speed_up}, tokens=tokens))
    return [found("", {"samples": len(rows), "way": settings.way(dtype)}), *points]

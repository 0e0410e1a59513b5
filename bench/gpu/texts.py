"""Part 6 measures models with trained exits, from texts to answers."""

from __future__ import annotations

import copy
import statistics
from functools import partial

import torch

from bench.gpu.inputs import OPTIONS, GivenModel
from bench.gpu.setting import Cells, Setting
from bench.pipeline.rivals_dense import DenseBert, DenseRival
from bench.rows import Found, found
from bench.timing import quiet_garbage_collector
from geep_triton import Engine
from geep_triton.timing import in_turns

RIVAL = "huggingface, length-sorted"
POLICIES = ("full", "threshold:0.3", "predicted:mean", "verified:0.3")
TOKENS = 16_384  # of a rival's batch
MOST_SECONDS = 5.0  # of a comparison
WINDOWS = 8  # that are answered at least, as far as there are texts: small windows take long


def cells(setting: Setting) -> Cells:
    for given in setting.given:
        yield given.name, partial(answered, setting, given)


def answered(setting: Setting, given: GivenModel) -> list[Found]:
    """Time every policy and window in turns, beside transformers on length-sorted batches."""
    model, windows = given.model.to(setting.machine.device), setting.sizes.windows
    # As many texts as the largest window has, so that every window is filled.
    every = [given.rows[at % len(given.rows)] for at in range(max(windows))]
    systems, texts = {}, {}
    for policy in POLICIES:
        for window in windows:
            name = f"ours, {policy}, windows of {window}"
            systems[name] = Engine(model, given.tokenizer, policy, window=window, dtype="bfloat16", **OPTIONS).predict
            texts[name] = every[: WINDOWS * window]
    half = copy.deepcopy(model).to(torch.bfloat16)
    depth = model.config.num_hidden_layers
    rival = DenseRival(DenseBert(half, depth), half, given.tokenizer, depth, TOKENS, OPTIONS["max_length"])
    systems[RIVAL], texts[RIVAL] = rival.predict, every
    first = {name: predict(texts[name]) for name, predict in systems.items()}
    full = first[f"ours, full, windows of {windows[0]}"]
    calls = {name: partial(predict, texts[name]) for name, predict in systems.items()}
    with quiet_garbage_collector():
        seconds = in_turns(calls, setting.sizes.rounds, limit=min(MOST_SECONDS, setting.sizes.seconds))
    lengths = torch.tensor([len(row) for row in given.tokenizer([row["text"] for row in given.rows])["input_ids"]])
    measured = [found("", {"mean_tokens": float(lengths.double().mean()), "layers": depth})]
    for name, result in first.items():
        median = statistics.median(seconds[name])
        metrics = {
            "seconds": median,
            "rounds": len(seconds[name]),
            "texts": len(texts[name]),
            "texts_per_second": len(texts[name]) / median,
            "agreement": float((result.label_ids == full.label_ids[: len(texts[name])]).double().mean()),
            "mean_layers": result.mean_layers,
            "stages": systems[name](texts[name]).timings,
        }
        measured.append(found(name, metrics))
    return measured

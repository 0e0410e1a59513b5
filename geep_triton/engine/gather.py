"""Puts the answers of a window's batches back into the order of its samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from geep_triton.answers import Answers
from geep_triton.engine.batch import Answer
from geep_triton.engine.checks import check_finite
from geep_triton.engine.predictions import Predictions
from geep_triton.engine.windows import Window


def gather(window: Window, found: Sequence[Answer], logits: torch.Tensor, answers: Answers) -> Predictions:
    """The predictions of a window, with the seconds of its first two stages.

    Args:
        window: its layers have run.
        found: every sample in exactly one of them.
        logits: [N, C] float32 on the host, of all of `found`, one after another.
        answers: what the logits mean.

    Raises:
        ValueError: logits are not finite.
    """
    layers, encoded = window.layers, window.encoded
    back = torch.cat([answer.rows for answer in found]).argsort()
    sizes = torch.tensor([answer.rows.numel() for answer in found])
    exits, layers_run = torch.tensor([(answer.exit_layer, answer.layers_run) for answer in found]).T
    exits, layers_run = (values.repeat_interleave(sizes)[back] for values in (exits, layers_run))
    if layers.skipped is not None:
        layers_run = layers_run - layers.skipped.sum(1)
    logits = logits[back]
    check_finite(logits, encoded.first)
    return Predictions(
        logits=logits,
        exit_layers=exits,
        layers_run=layers_run,
        answers=answers,
        num_layers=layers.last,
        timings={"tokenize": encoded.seconds, "plan": window.plan_seconds},
        truncated=encoded.tokens.truncated,
        cut=encoded.tokens.cut,
        tokens=window.batches.tokens,
        padding=window.batches.padding,
        flops=layers.flops,
        skipped=layers.skipped,
    )

"""Tries which runners work on this machine, each on a tiny model of its own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geep_triton.config import MultiExitBertConfig
from geep_triton.modeling.model import MultiExitBert
from geep_triton.runners.make import RUNNERS, make_runner
from geep_triton.runners.onednn.quantize import quantize_layers
from geep_triton.runners.padded import PaddedRunner
from geep_triton.tokens.ragged import Tokens

LENGTHS = (3, 17, 30)  # of the tiny model's texts
LARGEST_DIFFERENCE = 0.2  # from float32's logits, which lie about 0 to 1 here; int8 and bfloat16 round


@dataclass(frozen=True)
class Trial:
    """Whether a runner works.

    Attributes:
        runner: its name; see `geep_triton.runners.make.RUNNERS`.
        dtype: of the layers.
        device: "cpu" or "cuda".
        error: why it does not work; None: it works.
        difference: the largest difference of its logits from those of "torch" in float32 on the CPU; None: it does not work.
    """

    runner: str
    dtype: str
    device: str
    error: str | None
    difference: float | None


def runners_here(device: str) -> list[tuple[str, str]]:
    """(runner, dtype) for all that are meant for a kind of device, "cpu" or "cuda"."""
    return [(name, dtype) for name, devices in RUNNERS.items() for dtype in devices.get(device, ())]


def try_runners(device: str, wanted: Sequence[tuple[str, str]]) -> list[Trial]:
    """Run a tiny model by each of these runners.

    Args:
        device: "cpu" or "cuda".
        wanted: (runner, dtype) pairs.
    """
    expected = _logits("torch", "float32", "cpu")
    return [_try(runner, dtype, device, expected) for runner, dtype in wanted]


def _try(runner: str, dtype: str, device: str, expected: torch.Tensor) -> Trial:
    try:
        found = _logits(runner, dtype, device)
    except Exception as error:  # whatever a compiler, a driver or a library raises is the finding
        return Trial(runner, dtype, device, " ".join(f"{type(error).__name__}: {error}".split())[:300], None)
    difference = float((found - expected).abs().max())
    wrong = None if difference <= LARGEST_DIFFERENCE else f"its logits differ by {difference:.3g} from those of float32"
    return Trial(runner, dtype, device, wrong, difference if wrong is None else None)


def _logits(runner: str, dtype: str, device: str) -> torch.Tensor:
    """The last exit's logits [3, C] float32 on the host."""
    model, tokens = _model().to(device), _tokens()
    order = torch.arange(len(tokens), device=device)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # that some are slow on this CPU is known
        if dtype == "int8":
            states = PaddedRunner(model).embed(tokens, order, tokens.lengths)
            model.int8_layers = quantize_layers(model, [states], tokens.hashes())
        running = make_runner(model, runner, dtype)
        states = running.embed(tokens.to(torch.device(device)), order, tokens.lengths)
        depth = model.config.num_hidden_layers
        return running.logits(depth, running.layers(1, depth, states)).float().cpu()


def _model() -> MultiExitBert:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MultiExitBertConfig(
            vocab_size=100,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=128,
            max_position_embeddings=32,
            initializer_range=0.1,
        )
        return MultiExitBert(config).eval()


def _tokens() -> Tokens:
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return Tokens(torch.arange(int(offsets[-1])) % 100, offsets)

"""What the parts share: the machine, the sizes, one model of BERT's base shape and every way to run its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer

from bench.gpu.machine import Machine
from bench.gpu.results import Results
from bench.pipeline.replay import spread_heads
from bench.shapes import load_model
from geep_triton import Engine, MultiExitBert
from geep_triton.modeling.model import additive_mask
from geep_triton.policies.policy import Policy
from geep_triton.runners.base import Runner
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.graphed import GraphsRunner
from geep_triton.runners.lean import lean, replace_layers
from geep_triton.runners.packed import PackedRunner
from geep_triton.runners.padded import PaddedRunner
from geep_triton.runners.parts import Parts

Cells = Iterator[tuple[str, Callable[[], dict[str, Any]]]]  # a key, and the measurement that gives its values
WAYS = ("plain", "lean", "compiled", "packed", "graphs")
GRAPHED = 65_536  # tokens of the largest batch that is replayed: more than the library does unasked, to see whether it should
WORDS = (1_000, 30_000)  # ids of BERT's words
SPREAD_ON = 128  # texts on which a random model's heads are made to differ


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        shape: of the model; see `bench.shapes`.
        tokens: of batches; lengths: of texts.
        window_tokens: least tokens of a window, which holds at least `batches` batches.
        rounds: most of a comparison, in turns; seconds: after which no further round begins.
        matrix, copied: rows of the ceilings' matrix, bytes copied.
        attention_batches: batch sizes that the probe of attention tries; attention_heads, attention_length: its other sizes.
        windows: of texts.
    """

    shape: str = "base"
    tokens: tuple[int, ...] = (16_384, 65_536, 4_096, 1_024)
    lengths: tuple[int, ...] = (128, 32)
    window_tokens: int = 131_072
    batches: int = 8
    rounds: int = 15
    seconds: float = 2.5
    matrix: int = 8192
    copied: int = 1 << 32
    attention_batches: int = 50
    attention_heads: int = 12
    attention_length: int = 64
    windows: tuple[int, ...] = (4_096, 512, 64)


REHEARSAL = Sizes(
    "tiny", (64, 16), (8,), 64, 2, 2, 0.5, matrix=64, copied=1 << 12, attention_batches=3, attention_heads=2,
    attention_length=8, windows=(8, 4),
)  # fmt: skip


@dataclass(eq=False)
class Setting:
    """What the parts share.

    Attributes:
        inputs: folder of `bench.gpu.inputs`; None: there is none.
        output: where files go.
    """

    machine: Machine
    sizes: Sizes
    results: Results
    output: Path
    inputs: Path | None = None
    _runners: dict[str, Runner] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> BertTokenizer:
        """For rows of ids, which need none."""
        return BertTokenizer(vocab={word: at for at, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))})

    @cached_property
    def reference(self) -> MultiExitBert:
        """The model in float32, random, its exits made to differ from text to text."""
        model = load_model(self.sizes.shape, head="linear").to(self.machine.device)
        rows = {"input_ids": self.ids(SPREAD_ON, self.sizes.lengths[0])}
        engine = Engine(model, self.tokenizer, "full", dtype="float32", prefetch=False)
        spread_heads(model, engine.exit_logits(rows)[1])
        return model

    @cached_property
    def model(self) -> MultiExitBert:
        """The same in half precision."""
        return copy.deepcopy(self.reference).to(torch.bfloat16)

    def ids(self, samples: int, length: int, seed: int = 0) -> torch.Tensor:
        """[samples, length] int64 on the host, random words."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(*WORDS, (samples, length), generator=generator)

    def samples(self, tokens: int, length: int) -> int:
        """Texts of a window: several batches, and enough tokens that starting it does not count."""
        return max(self.sizes.batches * tokens, self.sizes.window_tokens) // length

    def runner(self, way: str, cudnn_attention: bool = False) -> Runner:
        """What runs the model's layers in one of `WAYS`; made once, since compiling takes long."""
        key = f"{way}, cuDNN" if cudnn_attention else way
        if key not in self._runners:
            self._runners[key] = self._made(way)
            self._runners[key].cudnn_attention = cudnn_attention
        return self._runners[key]

    def _made(self, way: str) -> Runner:
        if way == "plain":
            return PaddedRunner(self.model)
        if way == "compiled":
            return CompiledRunner(self.model, backend=self.machine.compiler)
        parts = Parts.copied(self.model)
        if way == "packed":
            return PackedRunner(self.model, parts, "bfloat16")
        if way == "graphs":
            return GraphsRunner(self.model, parts, record=self.machine.recorder(), most_tokens=GRAPHED)
        replace_layers(parts.layers, partial(lean, fuse=True))
        return PaddedRunner(self.model, parts, name="lean", make_mask=additive_mask)

    def engine(self, policy: str | Policy, way: str = "plain", cudnn_attention: bool = False, **options: Any) -> Engine:
        """An engine of the model, whose layers run in this way."""
        return Engine(self.model, self.tokenizer, policy, runner=self.runner(way, cudnn_attention), **options)

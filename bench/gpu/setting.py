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

from bench.cells import locked
from bench.environment import environment
from bench.gpu.inputs import GivenModel, load_inputs
from bench.gpu.machine import Machine
from bench.pipeline.replay import spread_heads
from bench.rows import Found, read, rows_of, save
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

Cells = Iterator[tuple[str, Callable[[], list[Found]]]]  # a part's measurements and their names
WAYS = ("plain", "lean", "compiled", "packed", "graphs")
GRAPHED = 65_536  # tokens of the largest batch that is replayed: more than the library does unasked, to see whether it should
WORDS = (1_000, 30_000)  # ids of BERT's words
SPREAD_ON = 128  # texts on which a random model's heads are made to differ


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        shape: the model, by its name in `bench.shapes`.
        tokens: the tokens of batches.
        lengths: the tokens of texts.
        window_tokens: the fewest tokens of a window.
        batches: the fewest batches of a window.
        rounds: the most rounds of a comparison in turns.
        seconds: no round begins after so many seconds.
        matrix, copied: the rows of the matrix and the copied bytes of the ceilings.
        attention_batches: how many batch sizes the probe of attention tries.
        attention_heads, attention_length: the heads and the length of that probe.
        windows: the texts of windows.
        shrinking_windows: likewise, where predicted exits are held against batches that shrink.
        shrinking_batches: how many such windows are timed.
        shrinking_texts: but at least, and at most, so many texts.
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
    shrinking_windows: tuple[int, ...] = (1_024, 256, 4_096, 64)
    shrinking_batches: int = 4
    shrinking_texts: tuple[int, int] = (512, 8_192)


REHEARSAL = Sizes(
    "tiny", (64, 16), (8,), 64, 2, 2, 0.5, matrix=64, copied=1 << 12, attention_batches=3, attention_heads=2,
    attention_length=8, windows=(8, 4), shrinking_windows=(64, 4), shrinking_batches=1, shrinking_texts=(16, 64),
)  # fmt: skip


@dataclass(eq=False)
class Setting:
    """What the parts share.

    Attributes:
        folder: the folder for all files.
        inputs: the folder that `bench.gpu.inputs` or `bench.gpu.tuned` made; None: there is none.
    """

    machine: Machine
    sizes: Sizes
    folder: Path
    inputs: Path | None = None
    _runners: dict[str, Runner] = field(default_factory=dict)

    @cached_property
    def given(self) -> list[GivenModel]:
        """The models of the inputs, loaded once for all parts. Without inputs there are none, and the user is told."""
        if self.inputs is None:
            print("no --inputs folder, nothing to measure with models of one", flush=True)
            return []
        return load_inputs(self.inputs)

    @property
    def results(self) -> Path:
        """The file of all rows."""
        return self.folder / "results.jsonl"

    @property
    def declaration(self) -> dict[str, Any]:
        """What all results follow from: the card."""
        return {"gpu": self.machine.name}

    def keep(self, case: str, measured: list[Found]) -> None:
        """Write rows at once, so that they are there whatever happens next."""
        with locked(str(self.results.resolve())):
            save(self.results, rows_of("gpu", case, measured, self.declaration, environment()))

    def known(self, case: str, metric: str) -> Any:
        """The value that another cell has measured; None: there is none."""
        return next((row.value for row in read(self.results) if (row.case, row.metric) == (case, metric)), None)

    @cached_property
    def tokenizer(self) -> BertTokenizer:
        """A tokenizer for rows of ids, which are not tokenized."""
        return BertTokenizer(vocab={word: at for at, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))})

    @cached_property
    def reference(self) -> MultiExitBert:
        """The random model in float32, whose exits differ from text to text."""
        model = load_model(self.sizes.shape, head="linear").to(self.machine.device)
        rows = {"input_ids": self.ids(SPREAD_ON, self.sizes.lengths[0])}
        engine = Engine(model, self.tokenizer, "full", dtype="float32", prefetch=False)
        spread_heads(model, engine.every_exit(rows).logits)
        return model

    @cached_property
    def model(self) -> MultiExitBert:
        """The same model in half precision."""
        return copy.deepcopy(self.reference).to(torch.bfloat16)

    def ids(self, samples: int, length: int, seed: int = 0) -> torch.Tensor:
        """Random words [samples, length] int64 on the host."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(*WORDS, (samples, length), generator=generator)

    def samples(self, tokens: int, length: int) -> int:
        """The texts of a window: several batches, and so many tokens that its start does not count."""
        return max(self.sizes.batches * tokens, self.sizes.window_tokens) // length

    def runner(self, way: str, cudnn_attention: bool = False) -> Runner:
        """What runs the model's layers in one of `WAYS`. It is made once, since compiling takes long."""
        key = f"{way}, cuDNN" if cudnn_attention else way
        if key not in self._runners:
            self._runners[key] = self.made(way, self.model)
            self._runners[key].cudnn_attention = cudnn_attention
        return self._runners[key]

    def made(self, way: str, model: MultiExitBert) -> Runner:
        """What runs a model's layers in one of `WAYS`. The model is in half precision, on the device."""
        if way == "plain":
            return PaddedRunner(model)
        if way == "compiled":
            return CompiledRunner(model, backend=self.machine.compiler)
        parts = Parts.copied(model)
        if way == "packed":
            return PackedRunner(model, parts, "bfloat16")
        if way == "graphs":
            return GraphsRunner(model, parts, record=self.machine.recorder(), most_tokens=GRAPHED)
        replace_layers(parts.layers, partial(lean, fuse=True))
        return PaddedRunner(model, parts, name="lean", make_mask=additive_mask)

    def engine(self, policy: str | Policy, way: str = "plain", cudnn_attention: bool = False, **options: Any) -> Engine:
        """An engine of the model, whose layers run in this way."""
        return Engine(self.model, self.tokenizer, policy, runner=self.runner(way, cudnn_attention), **options)

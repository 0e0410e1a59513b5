"""What the cells share: sizes, texts, and the models that are measured on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bench.pipeline.fresh import Dealt, deal
from bench.pipeline.replay import DISTRIBUTIONS, drawn
from bench.pipeline.rivals_dense import encode
from bench.pipeline.systems import Workbench
from bench.shapes import SHAPES, load_model, load_tokenizer, shape_of
from geep_triton import Engine, MultiExitBert
from geep_triton.files.rows import read_rows
from geep_triton.policies.text import parse_policy
from geep_triton.promises.simulate import simulate

RECORDED = 0.3  # threshold of a model that is not calibrated


@dataclass(frozen=True)
class Settings:
    """What all cells share.

    Attributes:
        device: "cpu" or "cuda", whose cells these are.
        models: data set -> folder of a model trained on it.
        texts: data set -> file of rows.
        rounds: interleaved; seconds: no round of a comparison is begun after so many; None: all are.
        samples: texts of a cell by shape; those of other shapes as many as of "base".
        token_budget: of a batch; max_length: of a text.
        compile: whether compiled systems take part.
        dry: every size as small as it can be.
    """

    device: str
    models: dict[str, str]
    texts: dict[str, str]
    rounds: int
    seconds: float | None
    samples: dict[str, int]
    token_budget: int
    max_length: int
    compile: bool
    dry: bool

    def rows(self, data: str, shape: str) -> list[dict[str, Any]]:
        """Texts spread evenly over the file, so that they are as long as the file's."""
        rows = read_rows(self.texts[data])
        wanted = self.samples.get(shape, self.samples["base"])
        return rows[:: max(1, len(rows) // wanted)][:wanted]

    def dealt(self, data: str, shape: str, tokenizer: PreTrainedTokenizerBase) -> Dealt:
        """Texts to check answers on, then others for each round, as far as the file has them; and some that are not timed."""
        rows = read_rows(self.texts[data])
        samples = self.samples.get(shape, self.samples["base"])
        return deal(rows, encode(tokenizer, rows, self.max_length).lengths, samples, self.rounds + 1)

    def trained(self, data: str, shape: str) -> str | None:
        """The folder of the data set's model, where that has this shape."""
        folder = self.models.get(data)
        return folder if folder is not None and shape == shape_of(folder) else None

    def replayed_layers(self, data: str, shape: str) -> int | None:
        """Layers of the trained model whose exits are replayed on this shape; None: none is."""
        replayed = data in self.models and self.trained(data, shape) is None
        return SHAPES[shape_of(self.models[data])]["num_hidden_layers"] if replayed else None

    @property
    def place(self) -> str:
        """Where they run: a dry run of a GPU's cells, in the ways that a CPU has, where there is no GPU."""
        return "cpu" if self.dry and not torch.cuda.is_available() else self.device

    def shape(self, shape: str) -> str:
        """The shape to build: the tiny one in a dry run."""
        return "tiny" if self.dry else shape

    def way(self, dtype: str) -> str:
        """How ours runs its layers, where one way is shown: laid out for oneDNN where that can be."""
        return "onednn" if self.place == "cpu" and dtype != "int8" else "plain"


def workbench(shape: str, data: str, settings: Settings, fresh: bool = False) -> Workbench:
    """A trained model, or random weights of a shape with exits replayed: those that the trained model's policy takes, else
    drawn ones. `fresh`: with texts for each round.
    """
    folder = settings.models.get(data)
    tokenizer = load_tokenizer(folder)
    dealt = settings.dealt(data, shape, tokenizer) if fresh else Dealt([settings.rows(data, shape)], [])
    rows, *chunks = dealt.chunks
    limits, texts = (settings.token_budget, settings.max_length), {"fresh": chunks, "left": dealt.left}
    if settings.trained(data, shape) is not None:
        model = load_model(shape, folder).to(settings.place)
        return Workbench(model, tokenizer, rows, *limits, None, policies_of(model), **texts)
    vocabulary = {} if folder is None else {"vocab_size": len(tokenizer)}  # the texts' own tokens, however many there are
    model = load_model(settings.shape(shape), **vocabulary).to(settings.place)
    depth, predicted, every = model.config.num_hidden_layers, None, [row for chunk in dealt.chunks for row in chunk]
    if folder is None:
        recorded = torch.cat([drawn(DISTRIBUTIONS["mean-4.2"], len(chunk), depth) for chunk in dealt.chunks])
    else:
        trained = load_model(shape_of(folder), folder)
        engine = Engine(trained, tokenizer, "full", max_length=settings.max_length, truncation=True)
        record = engine.every_exit(every)
        layers = torch.tensor(trained.config.exit_layers) * depth // trained.config.num_hidden_layers
        policy = parse_policy(next(iter(policies_of(trained).values())))
        recorded = layers[simulate(trained, policy, record.tokens, record.logits)]
        if trained.exit_table is not None:
            stops = parse_policy(f"predicted:0.05+threshold:{RECORDED}").stops(trained, record.tokens)
            predicted = {"replayed": stops * depth // trained.config.num_hidden_layers}
    exits = {"recorded": {"replayed": recorded}, "predicted": predicted}
    return Workbench(model, tokenizer, rows, *limits, **exits, **texts)


def policies_of(model: MultiExitBert) -> dict[str, str]:
    """Name -> short form of what a trained model runs. Where it is calibrated: its policy, and the best plain thresholds."""
    calibration = model.exit_config.calibration
    if calibration is not None:
        of_family = {candidate["family"]: candidate["policy"] for candidate in calibration["candidates"]}
        thresholds = of_family.get("threshold")
        return {"calibrated": calibration["chosen"]["policy"]} | ({} if thresholds is None else {"threshold": thresholds})
    forms = [f"threshold:{RECORDED}"] + ([f"verified:{RECORDED}", "predicted:mean"] if model.exit_table is not None else [])
    return {form: form for form in forms}

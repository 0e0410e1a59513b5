"""Measure layer skipping on entailment, acceptability and sentiment: what it saves, what it loses, and its real speed.

    GEEP_DATA=../shared/data python -m bench.claims.skipping --seeds 1 2 3 --budget-minutes 120

A cell is a data set, a variant of the training and a seed. It trains a model with exits (DeeBERT's recipe) and one with exits
and skip gates (SmartBERT's) for the same time. Each then answers the test set under the policies below. Each finished cell
writes one file to --output. Trained models and checkpoints stay in --cache. A run may be killed at any time and started again.

    bert       full depth of the model without gates
    exits      this model leaves where the normalized entropy is low enough
    skipping   the gated model skips layers and never leaves early
    smartbert  the gated model skips layers and leaves early
    planned    as smartbert, but a sample's whole path is predicted from its tokens and checked at its exit; no gate runs

Thresholds are chosen on other rows: the highest of those that, like every lower one, cost at most one point of the score there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.cells import Cell, parse_training, run_missing
from bench.claims.data import data_folder
from bench.claims.metrics import CLASS_METRICS
from bench.claims.released import ReleasedSmartBert
from bench.claims.training import digest, train, training_arguments, write_json
from bench.environment import RESULTS
from bench.pipeline.systems import targets
from bench.rows import Found, Range, found
from bench.shapes import pretrained_folder
from bench.timing import quiet_garbage_collector, rate
from geep_triton import Engine, MultiExitBert, Predictions, build_exit_table
from geep_triton.files.rows import read_rows
from geep_triton.policies.policy import OneExitWarning, Policy
from geep_triton.policies.text import parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.timing import in_turns
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.recipes import get_recipe

OUTPUT = RESULTS / "skipping"
CACHE = Path("~/.cache/geep_triton/skipping")
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
EPOCHS, GATE_EPOCHS = 9.0, 5.0
TUNING_ROWS = 1000
TOLERATED = 0.01  # loss of score on the tuning rows
BATCH = 4096  # tokens of a batch, beside batches of one sample
FULL = 4  # batches of so many tokens, at least, over which their speed is measured
HEADS = {"pooling": "mean", "head_size": 128, "head_attention_heads": 4, "head_dropout": 0.1}


@dataclass(frozen=True)
class DataSet:
    """What is trained and judged on.

    Attributes:
        name: folder under GEEP_DATA.
        metric: of `CLASS_METRICS`.
        train, test: samples, drawn once at random and the same for all; None: all.
        max_length: tokens, longer samples are cut.
        settings: of the recipe, where the published ones differ on this set.
        published_rate: learning rate published for this set.
    """

    name: str
    metric: str = "accuracy"
    train: int | None = None
    test: int | None = None
    max_length: int = 128
    settings: dict[str, Any] = field(default_factory=dict)
    published_rate: float = 5e-5


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        settings: of recipe "smartbert" beside the data set's.
        learning_rate: of the backbone; None: the published one.
        head_learning_rate, gate_learning_rate: None: that of the backbone.
        skip_gate, skip_gate_bias, skip_layers: of the gated model.
        start: data set on which the backbone is trained first, as DeeBERT is; None: it starts as it was pretrained.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    gate_learning_rate: float | None = None
    skip_gate: str = "attention"
    skip_gate_bias: float = 0.0
    skip_layers: tuple[int, ...] | None = None
    start: str | None = None


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet("rte", settings={"skip_weight": 0.04, "layer_contrast": 0.01, "exit_contrast": 0.05}, published_rate=2e-5),
        DataSet("wnli"),
        DataSet("cola", "matthews"),
        DataSet("sst2", train=8_000),
        DataSet("snli", train=6_000, test=2_000),
    )
}
RATES = {"learning_rate": 1e-4, "head_learning_rate": 1e-3, "gate_learning_rate": 1e-3}
VARIANTS = {
    "published": Variant(),
    "rates": Variant(**RATES, skip_gate_bias=-3.0),
    "rate30": Variant({"skip_rate": 0.3, "target_weight": 5.0}, **RATES, skip_gate_bias=-3.0),
    "rate50": Variant({"skip_rate": 0.5, "target_weight": 5.0}, **RATES, skip_gate_bias=-3.0),
    "rate50_warm": Variant({"skip_rate": 0.5, "target_weight": 5.0, "warm_up": 0.3, "soft": 0.3}, **RATES, skip_gate_bias=-3.0),
    "rate50_mean": Variant({"skip_rate": 0.5, "target_weight": 5.0}, **RATES, skip_gate="mean", skip_gate_bias=-3.0),
    "rate50_upper": Variant({"skip_rate": 0.75, "target_weight": 5.0}, **RATES, skip_gate_bias=-3.0, skip_layers=(3, 4, 5, 6)),
    "snli": Variant(start="snli"),
    "snli_rate30": Variant(
        {"skip_rate": 0.3, "target_weight": 5.0},
        head_learning_rate=1e-3,
        gate_learning_rate=1e-3,
        skip_gate_bias=-3.0,
        start="snli",
    ),
}


@dataclass(frozen=True)
class Trained:
    """One data set, variant and seed."""

    data_set: DataSet
    variant: str
    seed: int
    limit: int | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.data_set.name}.{self.variant}.{self.seed}"

    def declaration(self) -> dict[str, Any]:
        """All that its result follows from; a result of another declaration counts as missing."""
        shared = {"thresholds": THRESHOLDS, "epochs": EPOCHS, "gate_epochs": GATE_EPOCHS, "heads": HEADS, "limit": self.limit}
        cell = {"data_set": asdict(self.data_set), "variant": asdict(VARIANTS[self.variant]), "seed": self.seed}
        return json.loads(json.dumps(cell | shared))


@dataclass(frozen=True)
class Rows:
    """Rows to train on, to choose thresholds on, and to judge by."""

    train: list[Row]
    tune: list[Row]
    test: list[Row]

    @classmethod
    def of(cls, data_set: DataSet, limit: int | None) -> Rows:
        """Those of dev choose thresholds; where there is none, a tenth of the training rows that is not trained on."""
        folder = data_folder()
        if folder is None:
            raise ValueError("GEEP_DATA must name the folder of the data sets, each <name>/train.jsonl and test.jsonl")

        def read(split: str, size: int | None) -> list[Row]:
            rows = read_rows(folder / data_set.name / f"{split}.jsonl", required=("text", "label"))
            size = min(len(rows) if size is None else size, len(rows) if limit is None else limit)
            return random.Random(0).sample(rows, size) if size < len(rows) else rows

        train, test = read("train", data_set.train), read("test", data_set.test)
        if (folder / data_set.name / "dev.jsonl").is_file():
            return cls(train, read("dev", TUNING_ROWS), test)
        shuffled = random.Random(0).sample(train, len(train))
        tenth = min(len(train) // 10, TUNING_ROWS)
        return cls(shuffled[tenth:], shuffled[:tenth], test)


def trained(cell: Trained, gated: bool, rows: Rows, cache: Path, deadline: float) -> tuple[Path, dict[str, float]]:
    """Folder of the cell's model with or without gates, trained now or before, and the seconds that it took.

    Raises:
        OutOfTime: at the deadline; call again to go on.
    """
    variant, data_set = VARIANTS[cell.variant], cell.data_set
    learning_rate = variant.learning_rate or data_set.published_rate
    rates = {"learning_rate": learning_rate, "head_learning_rate": variant.head_learning_rate}
    gates, settings, name = {}, {"finetune": GATE_EPOCHS / EPOCHS}, "deebert"
    if gated:
        gates = {name: getattr(variant, name) for name in ("skip_gate", "skip_gate_bias", "skip_layers")}
        settings, name = data_set.settings | variant.settings, "smartbert"
        if "skip_rate" in settings:  # takes the place of the data set's lambda
            settings.pop("skip_weight", None)
        rates["gate_learning_rate"] = variant.gate_learning_rate
    declared = {"data_set": asdict(data_set), "seed": cell.seed, "limit": cell.limit, "heads": HEADS, "epochs": EPOCHS}
    declared |= {"recipe": name, "settings": settings, "gates": gates, "rates": rates}
    if variant.start is not None:
        declared["start"] = variant.start
    folder = cache / f"{data_set.name}.{name}.{cell.seed}.{digest(declared)}"
    done = folder / "training.json"
    if done.is_file():
        return folder / "model", json.loads(done.read_text())

    tokenizer = AutoTokenizer.from_pretrained(pretrained_folder())
    labels = label_names(rows.train)
    torch.manual_seed(cell.seed)
    model = MultiExitBert.from_pretrained(
        pretrained_folder(),
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **HEADS,
        **gates,
    )
    if variant.start is not None:
        first = Trained(DATA_SETS[variant.start], "published", cell.seed, cell.limit)
        started, _ = trained(first, False, Rows.of(first.data_set, first.limit), cache, deadline)
        model.bert.load_state_dict(MultiExitBert.from_pretrained(started).bert.state_dict())
    arguments = training_arguments(
        folder / "checkpoints", EPOCHS, 16, learning_rate, cell.seed, save_steps=300, save_total_limit=1
    )
    _, spent = train(
        folder / "model",
        deadline,
        tokenizer,
        arguments,
        model=model,
        train_dataset=TextDataset(rows.train, Encoder(tokenizer, data_set.max_length, truncation=True), model.config.label2id),
        recipe=get_recipe(name, **settings),
        head_learning_rate=variant.head_learning_rate,
        gate_learning_rate=variant.gate_learning_rate if gated else None,
    )
    write_json(done, spent)
    shutil.rmtree(folder / "checkpoints")
    return folder / "model", spent


@dataclass(frozen=True)
class System:
    """A model under a policy, without or with an early exit.

    Attributes:
        model: to run.
        skip: the policy's way of skipping.
        exits: short form of its policies, for the threshold to be filled in; None: it has only one policy, full depth.
    """

    model: MultiExitBert
    skip: str
    exits: str | None

    def policies(self) -> dict[float | None, Policy]:
        """Threshold -> policy, the cautious first; None: no early exit."""
        thresholds = THRESHOLDS if self.exits is not None else ()
        forms = {None: "full"} | {threshold: self.exits.format(threshold) for threshold in thresholds}
        return {threshold: parse_policy(f"{form}+skip:{self.skip}") for threshold, form in forms.items()}

    def engine(self, tokenizer: PreTrainedTokenizerBase, budget: int, max_length: int, packed: bool = False) -> Engine:
        """At full depth; `with_policy` shares what it has measured of layers. Packed: what is not timed is done sooner."""
        settings = {"token_budget": budget, "max_length": max_length, "truncation": True}
        engine = Engine(self.model, tokenizer, f"full+skip:{self.skip}", runner="onednn" if packed else "torch", **settings)
        _ = engine.layer_costs
        return engine


@dataclass(frozen=True)
class Tuned:
    """What a policy does on the tuning rows.

    Attributes:
        score: of the data set's metric.
        layers: that a sample runs, on average.
    """

    score: float
    layers: float


def tuned(system: System, tokenizer: PreTrainedTokenizerBase, rows: list[Row], data_set: DataSet) -> dict[float | None, Tuned]:
    """Threshold -> what it does on these rows, from one pass over every exit."""
    record = system.engine(tokenizer, BATCH, data_set.max_length, packed=True).every_exit(rows)
    labels, found = targets(rows, system.model.config.label2id), {}
    layers = torch.arange(1, system.model.config.num_hidden_layers + 1)
    runs = torch.ones(len(rows), len(layers), dtype=torch.bool) if record.skipped is None else ~record.skipped
    for threshold, policy in system.policies().items():
        exits = simulate(system.model, policy, record.tokens, record.logits, record.skipped)
        score = CLASS_METRICS[data_set.metric](record.logits[torch.arange(len(rows)), exits], labels)
        reached = layers <= torch.tensor(system.model.config.exit_layers)[exits][:, None]
        found[threshold] = Tuned(score, float((runs & reached).sum(1).double().mean()))
    return found


def chosen_threshold(found: dict[float | None, Tuned]) -> float | None:
    """The highest threshold that, with all lower ones, costs at most a point; None: no early exit."""
    good = takewhile(lambda threshold: found[threshold].score >= found[None].score - TOLERATED, list(found)[1:])
    return max(good, default=None)


def answered(result: Predictions, labels: torch.Tensor, metric: str) -> dict[str, Any]:
    """What one run over the test rows shows."""
    return {
        "score": CLASS_METRICS[metric](result.logits, labels),
        "answers": digits(result.label_ids),
        "mean_layers": result.mean_layers,
        "mean_exit_layer": result.mean_exit_layer,
        "flops": asdict(result.flops),
        "histogram": list(result.histogram.values()),
        "skip_histogram": list(result.skip_histogram.values()),
    }


def digits(classes: torch.Tensor) -> str:
    """Classes, ten at most, one character each."""
    return "".join(map(str, classes.tolist()))


def run_cell(cell: Trained, arguments: argparse.Namespace, cache: Path, deadline: float) -> list[Found]:
    """Train and judge a cell, or go on with it. Raises OutOfTime at the deadline."""
    data_set = cell.data_set
    rows = Rows.of(data_set, cell.limit)
    plain_folder, plain_training = trained(cell, False, rows, cache, deadline)
    gated_folder, gated_training = trained(cell, True, rows, cache, deadline)
    tokenizer = AutoTokenizer.from_pretrained(gated_folder)
    plain, gated = (MultiExitBert.from_pretrained(folder).eval() for folder in (plain_folder, gated_folder))
    settings = {"max_length": data_set.max_length, "truncation": True, "learn": ("skips",), "progress": False}
    gated.exit_table = build_exit_table(gated, tokenizer, rows.train, 0.3, **settings)
    systems = {
        "bert": System(plain, "never", None),
        "exits": System(plain, "never", "threshold:{}"),
        "skipping": System(gated, "gates", None),
        "smartbert": System(gated, "gates", "threshold:{}"),
        "planned": System(gated, "planned", "predicted:0.05+threshold:{}"),
    }
    labels, curve, chosen = targets(rows.test, plain.config.label2id), [], {}
    for name, system in tqdm(systems.items(), desc=cell.name, disable=None):
        on_tuning_rows = tuned(system, tokenizer, rows.tune, data_set)
        chosen[name] = chosen_threshold(on_tuning_rows)
        engine = system.engine(tokenizer, BATCH, data_set.max_length, packed=True)
        for threshold, policy in system.policies().items():
            result = engine.with_policy(policy).predict(rows.test)
            point = {f"tune_{what}": value for what, value in asdict(on_tuning_rows[threshold]).items()}
            point |= answered(result, labels, data_set.metric)
            curve.append(found(name, point, threshold=threshold, chosen=threshold == chosen[name]))
    facts = {
        "samples": {"train": len(rows.train), "tune": len(rows.tune), "test": len(rows.test)},
        "training": {"plain": plain_training, "gated": gated_training},
        "num_layers": plain.config.num_hidden_layers,
        "labels": digits(labels),
        "paths": gated.exit_table.learned["skips"].paths.int().tolist(),
    }
    speed, rates = speeds(systems, chosen, tokenizer, rows.test, arguments.speed_samples, data_set, arguments.rounds)
    return [
        found("", {**facts, "speed": speed}),
        *curve,
        *(found(name, {"samples_per_second": rate}) for name, rate in rates.items()),
    ]


def speeds(
    systems: dict[str, System],
    chosen: dict[str, float | None],
    tokenizer: PreTrainedTokenizerBase,
    test: list[Row],
    samples: int,
    data_set: DataSet,
    rounds: int,
) -> tuple[dict[str, Any], dict[str, Range]]:
    """How it was timed, and samples a second of interleaved rounds: each system at its threshold, one sample at a time and in
    batches of 4,096 tokens; and the released loop over single samples beside the same policy in batches of 32, their answers
    compared. The first `samples` rows run one at a time; in large batches all, as often as it takes to fill `FULL` of them.
    """
    calls, longest, rows = {}, data_set.max_length, test[:samples]
    for name, system in systems.items():
        for label, budget in (("1", 1), (str(BATCH), BATCH)):
            calls[f"{name}@{label}"] = system.engine(tokenizer, budget, longest).with_policy(system.policies()[chosen[name]])
    threshold = chosen["smartbert"] or THRESHOLDS[0]
    lengths = calls["bert@1"].every_exit(rows).tokens.lengths
    many = test * math.ceil(FULL * BATCH / (float(lengths.double().mean()) * len(test)))
    released = ReleasedSmartBert(systems["smartbert"].model, tokenizer, threshold, longest)
    batched = systems["smartbert"].engine(tokenizer, 32 * int(lengths.double().mean().ceil()), longest)
    batched = batched.with_policy(f"threshold:{threshold}")
    calls |= {"released": released, "ours@32": batched}
    theirs, ours = released.predict(rows), batched.predict(rows)
    moved = float((theirs.exit_layers != ours.exit_layers).double().mean())
    same = theirs.exit_layers == ours.exit_layers
    difference = float((theirs.logits - ours.logits)[same].abs().max()) if bool(same.any()) else 0.0
    # Batches of other shapes round differently, which may carry a sample over a threshold that it touches.
    if moved > 0.01 or difference > 1e-3:
        raise ValueError(f"the released loop: {moved:.2%} of the samples left elsewhere, logits differ by {difference}")
    for name, call in calls.items():
        if not name.startswith("released"):
            call.predict(rows[:32])
    with quiet_garbage_collector():
        timed = {name: many if name.endswith(f"@{BATCH}") else rows for name in calls}
        seconds = in_turns({name: partial(call.predict, timed[name]) for name, call in calls.items()}, rounds)
    how = {
        "samples": len(rows),
        "batch_samples": len(many),
        "rounds": rounds,
        "released_threshold": threshold,
        "released_moved": moved,
        "released_difference": difference,
    }
    return how, {name: rate(len(timed[name]), values) for name, values in seconds.items()}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """The wanted cells, seed by seed."""
    cache = arguments.cache.expanduser()
    trained_cells = [
        Trained(DATA_SETS[name], variant, seed, arguments.limit_samples)
        for seed in arguments.seeds
        for variant in arguments.variants
        for name in arguments.data_sets
    ]
    return [
        Cell(one.name, one.declaration(), lambda deadline, one=one: run_cell(one, arguments, cache, deadline))
        for one in trained_cells
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data-sets", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["published"])
    parser.add_argument("--speed-samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    return parse_training(parser, OUTPUT, CACHE)


def main() -> None:
    arguments = parse_arguments()
    warnings.simplefilter("ignore", OneExitWarning)  # a sweep meets thresholds that tell no samples apart
    run_missing("skipping", cells(arguments), arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()

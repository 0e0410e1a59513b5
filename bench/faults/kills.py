"""Kills processes that write files: what loads is all old or all new, and a run that goes on ends as if never killed."""

from __future__ import annotations

import copy
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import DataCollatorWithPadding, TrainingArguments

from bench.faults.campaign import Outcome, Part
from bench.faults.material import make_engine, make_model, make_texts, make_tokenizer
from bench.faults.processes import run_child, run_killed
from geep_triton import Engine, MultiExitBert, MultiExitTrainer, calibrate
from geep_triton.checks import shorten
from geep_triton.cli.app import main
from geep_triton.saving import PARTIAL, WHOLE
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.dataset import TextDataset

KILLS = 3  # the most kills of one run before it may end
STEPS = 5


@dataclass
class Made:
    """What is saved, trained and predicted with.

    Attributes:
        engines: A and B, which differ in all that is saved, and C, which is A after a calibration.
        saved: the folders of A and B.
        rows: the rows of the training.
        trained: the weights after a training that nobody interrupted.
        input: folder of shards.
        output: file -> what `geep predict` makes of it, if nobody interrupts it.
    """

    engines: dict[str, Engine]
    saved: dict[str, Path]
    rows: list[dict[str, str]]
    trained: dict[str, torch.Tensor]
    input: Path
    output: dict[str, bytes]


def prepare(folder: Path) -> Made:
    """Make two models, and run a training and a prediction that nobody interrupts."""
    # Progress bars share a lock with all that is forked, which a killed child would keep; processes of their own do not.
    tqdm.set_lock(threading.RLock())
    texts = make_texts(11, 300, odd=0.0)
    engines = {
        "A": make_engine("plain", 1),
        "B": make_engine("plain", 2, make_tokenizer("more"), vocab_size=len(make_tokenizer("more"))),
    }
    for threshold, engine in zip((0.8, 0.6), engines.values(), strict=True):
        engine.model.exit_config.thresholds = threshold
    engines["C"] = Engine(copy.deepcopy(engines["A"].model), engines["A"].tokenizer)
    calibrate(engines["C"], texts, agreement=0.8, rounds=1, speed_samples=50)
    for name in "AB":
        engines[name].save_pretrained(folder / name)
    rows = [{"text": text, "label": f"LABEL_{index % 3}"} for index, text in enumerate(texts[:16])]
    run_child(lambda: _train(rows, folder / "training"), folder / "log")
    source = folder / "in"
    source.mkdir()
    for number, size in enumerate((0, 100, 3, 7, 190)):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[:size]]
        (source / f"{number}.jsonl").write_text("".join(lines), encoding="utf-8")
    saved = {name: folder / name for name in "AB"}
    made = Made(engines, saved, rows, {}, source, {})
    run_child(lambda: _predict(made, folder / "out"), folder / "log")
    made.output = _outputs(folder / "out")
    made.trained = torch.load(folder / "training" / "weights.pt")
    return made


def whole(folder: Path, engines: dict[str, Engine]) -> str:
    """The names of the engines that have all of a folder's settings, weights, table, vocabulary and calibration."""
    engine = Engine.from_pretrained(folder, "full", runner="torch")
    parts: tuple[Callable[[Engine], object], ...] = (
        lambda engine: engine.model.exit_config.thresholds,
        lambda engine: engine.model.heads["2"].classifier.weight.tolist(),
        lambda engine: engine.model.exit_table.digest(),
        lambda engine: engine.tokenizer.get_vocab(),
        lambda engine: engine.model.exit_config.policy,
    )
    same = [{name for name, other in engines.items() if part(other) == part(engine)} for part in parts]
    return "".join(sorted(set.intersection(*same))) or f"a mixture ({[''.join(sorted(names)) for names in same]})"


def _save_over(made: Made, folder: Path, random_: random.Random, outcome: Outcome, names: str) -> None:
    """Save the second model over the first, or in a loop each over the other, and kill that."""
    first, second = names
    made.engines[first].save_pretrained(folder / "model")
    loop = random_.random() < 0.3

    def save() -> None:
        made.engines[second].save_pretrained(folder / "model")
        while loop:
            for name in names:
                made.engines[name].save_pretrained(folder / "model")

    ended = run_killed(save, random_, 30, 0.3 if loop else 0.06, folder / "log")
    outcome.counts["kills"] += not ended
    found = whole(folder / "model", {name: made.engines[name] for name in names})
    if found not in names or (ended and found != second):
        outcome.faults.append(f"{second} over {first}, killed: what loads is {found}")
    made.engines[second].save_pretrained(folder / "model")
    left = [path.name for path in (folder / "model").iterdir() if path.name.startswith((PARTIAL, WHOLE))]
    if left or whole(folder / "model", {second: made.engines[second]}) != second:
        outcome.faults.append(f"{second} over {first}, killed: the next save leaves {left or 'another model'}")


def _train(rows: list[dict[str, str]], folder: Path) -> None:
    """Train from the newest whole checkpoint on, and write the weights."""
    tokenizer, model = make_tokenizer(), make_model(3)
    trainer = MultiExitTrainer(
        model=model,
        recipe="joint",
        args=TrainingArguments(
            str(folder), max_steps=STEPS, per_device_train_batch_size=4, save_strategy="steps", save_steps=1, seed=3,
            learning_rate=1e-3, report_to=[], disable_tqdm=True, use_cpu=True, save_total_limit=3,
        ),
        train_dataset=TextDataset(rows, Encoder(tokenizer, 64), model.config.label2id),
        data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    checkpoint = last_whole_checkpoint(folder) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    torch.save(trainer.model.state_dict(), folder / "weights.pt")


def _with_kills(
    action: Callable[[], None], random_: random.Random, changes: int, seconds: float, log: Path, outcome: Outcome
) -> Iterator[None]:
    """Start an action again after each of some kills, until it ends. Yields after each kill."""
    for _ in range(random_.randint(1, KILLS)):
        if run_killed(action, random_, changes, seconds, log):
            return
        outcome.counts["kills"] += 1
        yield
    run_child(action, log)


def _training(made: Made, folder: Path, random_: random.Random, outcome: Outcome) -> None:
    """A training that is killed and goes on gives the weights of one that was not killed."""
    action = partial(_train, made.rows, folder / "training")
    for _ in _with_kills(action, random_, 150, 1.0, folder / "log", outcome):
        if (found := last_whole_checkpoint(folder / "training")) is not None:
            MultiExitBert.from_pretrained(found)
    found = torch.load(folder / "training" / "weights.pt")
    other = [name for name, value in made.trained.items() if not torch.equal(value, found[name])]
    if other:
        outcome.faults.append(f"a training that was killed and resumed ends with other weights: {shorten(other)}")


def _predict(made: Made, output: Path) -> None:
    """Do what `geep predict` does."""
    arguments = [
        "predict",
        made.saved["A"],
        made.input,
        "-o",
        output,
        "--policy",
        "threshold:0.8,regroup=always",
        "--window",
        10,
    ]
    if code := main([*map(str, arguments)]):
        raise RuntimeError(f"geep predict ended with {code}")


def _outputs(folder: Path) -> dict[str, bytes]:
    """The outputs that are there, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")}


def _prediction(made: Made, folder: Path, random_: random.Random, outcome: Outcome) -> None:
    """A run of geep predict that is killed and started again writes what a run writes that was not killed."""
    output = folder / "out"
    for _ in _with_kills(partial(_predict, made, output), random_, 150, 0.8, folder / "log", outcome):
        if not _outputs(output).items() <= made.output.items():
            outcome.faults.append("geep predict, killed: an output is there, and is not whole")
    if _outputs(output) != made.output:
        outcome.faults.append("geep predict, killed and started again: other outputs than uninterrupted")
    if left := sorted(path.name for path in output.rglob("*") if ".part" in path.name):
        outcome.faults.append(f"geep predict, killed and started again, leaves {left}")


KINDS = {
    "save_pretrained over another model": lambda *given: _save_over(*given, "AB"),
    "save_pretrained over a larger vocabulary": lambda *given: _save_over(*given, "BA"),
    "a calibrated policy saved in place": lambda *given: _save_over(*given, "AC"),
    "a training's checkpoints": _training,
    "geep predict": _prediction,
}


def case(made: Made, folder: Path, seed: int) -> Outcome:
    """One process that is killed, some processes several times."""
    random_, outcome = random.Random(seed), Outcome()
    kind = random_.choice(list(KINDS))
    outcome.counts[kind] += 1
    KINDS[kind](made, folder, random_, outcome)
    outcome.faults = [f"{kind}: {words}" for words in outcome.faults]
    return outcome


PART = Part("kills", "a process that is killed while it writes, and gone on with", prepare, case, patience=200.0)

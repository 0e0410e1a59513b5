"""Damages a file of a saved model: the model is refused in words or answers as before, and never gives another answer.

Some damage is to bytes anywhere in a file: they are flipped, zeroed, cut, doubled, removed or put in, or the whole file is
gone, empty or another model's. Other damage is to a value of a JSON file or of a safetensors header. A user may also change
config.json and exit_config.json on purpose, or remove the latter: then settings that a model can have are taken, with a
warning.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.faults.campaign import Outcome, Part
from bench.faults.material import make_engine, make_texts
from geep_triton import Engine
from geep_triton.checks import shorten
from geep_triton.engine.predictions import Predictions
from geep_triton.exit_config import ExitConfig

HOSTILE = (
    None, True, False, 0, 1, -1, 2, 3, 10**9, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e-12, 1e308, float("nan"), float("inf"), "",
    "x", "nan", "0", "../../etc/passwd", "é\u200b", [], [0], [1, 2, 4], [None], ["x"], [[]], {}, {"0": "x"}, {"x": {}},
    [[[[[1]]]]],
)  # fmt: skip
CALIBRATION = {
    "promise": ["agreement", 0.8], "dtype": "float32", "device": "cpu", "max_length": 64, "truncation": False,
    "exit_temperatures": None, "chosen": {"policy": "predicted:0.05+threshold:0.8+skip:never", "agreement": 0.9},
}  # fmt: skip
# How each kind of model is served.
KINDS = {
    "plain": ExitConfig(policy="threshold", thresholds=(0.8, 0.7, 0.8)),
    "sharded": ExitConfig(policy="predicted", temperatures=(0.5, 2.0, 1.5, 1.0)),
    "calibrated": ExitConfig(policy="predicted:0.05+threshold:0.8+skip:never", calibration=CALIBRATION),
    "gates": ExitConfig(policy="threshold:0.8+skip:gates"),
}
ALOUD = ("config.json was changed since it was saved", "exit_config.json that the model was saved with is not there")


@dataclass
class Saved:
    """Saved models and their answers."""

    folders: dict[str, Path]
    answers: dict[str, Predictions]
    texts: list[str]


def prepare(folder: Path) -> Saved:
    """Save four models."""
    texts, folders, answers = make_texts(5, 12), {}, {}
    for seed, (kind, served) in enumerate(KINDS.items()):
        engine = make_engine("gates" if kind == "gates" else "plain", seed)
        engine.model.exit_config = served
        engine.save_pretrained(folder / kind)
        if kind == "sharded":
            engine.model.save_pretrained(folder / kind, max_shard_size="20KB")
        folders[kind] = folder / kind
        answers[kind] = _answer(folder / kind, texts)
    return Saved(folders, answers, texts)


def _answer(folder: Path, texts: list[str]) -> Predictions:
    torch.manual_seed(0)
    return Engine.from_pretrained(folder).predict(texts)


def _flip(data: bytearray, at: int, random_: random.Random) -> None:
    data[at] ^= 1 << random_.randrange(8)


def _zero(data: bytearray, at: int, random_: random.Random) -> None:
    length = min(random_.choice([1, 8, 100, 5000]), len(data) - at)
    data[at : at + length] = bytes(length)


def _random(data: bytearray, at: int, random_: random.Random) -> None:
    length = min(random_.choice([1, 4, 100]), len(data) - at)
    data[at : at + length] = random_.randbytes(length)


def _cut(data: bytearray, at: int, random_: random.Random) -> None:
    del data[at:]


def _remove(data: bytearray, at: int, random_: random.Random) -> None:
    del data[at : at + random_.choice([1, 2, 8, 1000])]


def _double(data: bytearray, at: int, random_: random.Random) -> None:
    data[at:at] = data[at : at + random_.choice([1, 8, 1000])]


def _insert(data: bytearray, at: int, random_: random.Random) -> None:
    data[at:at] = random_.randbytes(random_.choice([1, 8]))


def _append(data: bytearray, at: int, random_: random.Random) -> None:
    data += random_.choice([b"\0", b"x" * 8, bytes(data)])


def _empty(data: bytearray, at: int, random_: random.Random) -> None:
    data.clear()


BYTES: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    _flip, _flip, _flip, _zero, _random, _cut, _remove, _double, _insert, _append, _empty,
)  # fmt: skip


def damage(folder: Path, others: list[Path], random_: random.Random) -> str:
    """Damage one file of a folder. Returns in words what was done."""
    path = random_.choice(sorted(folder.iterdir()))
    whole = path.read_bytes()
    if (kind := random_.random()) < 0.03:
        path.unlink()
        return f"{path.name} removed"
    if kind < 0.1:
        there = [other / path.name for other in others if (other / path.name).is_file()]
        path.write_bytes(random_.choice(there).read_bytes() if there else b"")
        return f"{path.name} of another model"
    if kind < 0.45 or path.suffix == ".md":  # the model card, which nobody loads
        data, change = bytearray(whole), random_.choice(BYTES)
        header = 8 + int.from_bytes(whole[:8], "little") if path.suffix == ".safetensors" else len(whole)
        at = random_.randrange(random_.choice([header, len(whole)]))
        change(data, at, random_)
        path.write_bytes(data)
        return f"{path.name}: {change.__name__[1:]} at byte {at} of {len(whole)}"
    if path.suffix == ".safetensors":
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        words = edit(header, random_)
        written = json.dumps(header).encode()
        if random_.random() < 0.5:  # at the same length, so that the tensors stay where they are
            written = written.ljust(length)
        path.write_bytes(len(written).to_bytes(8, "little") + written + whole[8 + length :])
        return f"{path.name}, header: {words}"
    content = json.loads(whole)
    words = edit(content, random_)
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"{path.name}: {words}"


def edit(content: Any, random_: random.Random) -> str:
    """Change something in a JSON value that is a mapping. Returns in words what was done."""
    place, way = content, []
    while True:
        key = random_.choice(sorted(place)) if isinstance(place, dict) else random_.randrange(len(place))
        way.append(str(key))
        if not (isinstance(place[key], (dict, list)) and place[key]) or random_.random() < 0.15:
            break
        place = place[key]
    value = place[key]
    kind = random_.choice(["hostile", "hostile", "near", "remove", "add"])
    if kind == "remove":
        del place[key]
    elif kind == "add" and isinstance(place, dict):
        place[random_.choice(["x", f"{key}x", ""])] = value
    elif kind == "near" and isinstance(value, str) and value:
        at = random_.randrange(len(value))
        place[key] = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
    elif kind == "near" and isinstance(value, (int, float)) and not isinstance(value, bool):
        place[key] = value + random_.choice([1, -1, value])
    else:
        place[key] = random_.choice(HOSTILE)
    return f"{'.'.join(way)} ({kind}): {shorten(value, 40)} -> {shorten(place[key] if kind != 'remove' else 'nothing', 40)}"


def case(made: Saved, folder: Path, seed: int) -> Outcome:
    """Damage one file and compare the answers."""
    random_, outcome = random.Random(seed), Outcome()
    kind = random_.choice(list(KINDS))
    shutil.copytree(made.folders[kind], folder / "model")
    words = damage(folder / "model", [made.folders[other] for other in KINDS if other != kind], random_)
    expected = made.answers[kind]
    try:
        with warnings.catch_warnings(), _warnings_of("geep_triton") as said:
            warnings.simplefilter("ignore")
            found = _answer(folder / "model", made.texts)
    except (ValueError, OSError) as error:
        outcome.counts["refused"] += 1
        if len(str(error).split()) < 4:
            outcome.faults.append(f"{kind}, {words}: {type(error).__name__} that says only {str(error)!r}")
        return outcome
    except Exception as error:
        outcome.faults.append(f"{kind}, {words}: {type(error).__name__}: {shorten(str(error), 200)}")
        return outcome
    # Tensors that no longer begin at whole words are read by other code, which rounds otherwise.
    same = torch.allclose(found.logits, expected.logits, atol=1e-5, rtol=0)
    if not same or (found.labels, found.exit_layers.tolist()) != (expected.labels, expected.exit_layers.tolist()):
        if any(words in line for words in ALOUD for line in said):
            outcome.counts["other settings, said aloud"] += 1
        else:
            outcome.faults.append(f"{kind}, {words}: other answers without a word")
    else:
        outcome.counts["without effect"] += 1
    return outcome


@contextmanager
def _warnings_of(name: str) -> Iterator[list[str]]:
    """Collect what the loggers of a package say. It goes nowhere else."""
    said: list[str] = []
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger(name)
    handler.emit = lambda record: said.append(record.getMessage())
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


PART = Part("mutations", "damage to one file of a saved model", prepare, case)

"""Random engines answer random streams of texts: each answer must be that of the sample alone in float32, and none is lost.

In float32 an answer has the exit, the path and the label of the sample alone. If a decision on its way was closer than TIE to
the opposite one, it only has the logits of the exit and path that it took. In bfloat16 the same holds with wider bounds, of
probabilities. In int8 an answer is rounded: none is lost, its exit is one of the model's, and it lies nearer to its own text's
answer than to those of other texts.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer

from bench.faults.alone import Alone, answer_alone, logits_along
from bench.faults.campaign import Outcome, Part
from bench.faults.material import LONGEST, VARIANTS, make_engine, make_text, make_texts, make_tokenizer
from geep_triton import Engine, quantize
from geep_triton.checks import BadSample, shorten
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.predictions import Predictions
from geep_triton.policies.leave import REGROUPS, Patient, Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.skip import MODES, Skip
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, TableAgreement, TableExit
from geep_triton.policies.text import describe
from geep_triton.table.exit_table import VALUES

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of probabilities, and in float32 of logits
TIE = {"float32": 1e-4, "bfloat16": 0.1}  # of uncertainties, gates and, for patience, logits
CRITERIA = {"normalized_entropy": (0.6, 0.98), "entropy": (0.6, 1.0), "max_probability": (0.2, 0.6), "margin": (0.4, 0.95)}
# With the first costs regrouping and skipping pay, with the second they never do. Nothing is measured, so that a case is the
# same again.
COSTS = (LayerCosts(((1, 0.001), (1000, 1.0)), move=0.0), LayerCosts(((1000, 1.0), (2000, 1.0)), move=1.0))
BAD = ("", " ", "\u200b", "\ud800", "\n\t", None, 3, b"good")

Sample = tuple[Any, Any]


@dataclass
class Stream:
    """The engine and the samples of one case."""

    engine: Engine
    samples: list[Sample]
    form: str
    packed: bool = False
    bad: set[int] = field(default_factory=set)

    def inputs(self) -> Any:
        """The samples in the form in which the caller passes them."""
        if self.form == "columns":
            return {"text": [text for text, _ in self.samples], "text_pair": [pair for _, pair in self.samples]}
        rows = {
            "rows": lambda text, pair: {"text": text, "text_pair": pair, "label": 0},
            "mixed": lambda text, pair: text if pair is None and isinstance(text, str) else (text, pair),
        }.get(self.form, lambda text, pair: (text, pair))
        made = [rows(text, pair) for text, pair in self.samples]
        return (row for row in made) if self.form == "generator" else made


@dataclass
class Made:
    """One engine of every variant, which is made when it is first asked for."""

    tokenizer: BertTokenizer

    def __post_init__(self) -> None:
        self.of = cache(partial(make_engine, tokenizer=self.tokenizer))


def random_policy(random_: random.Random, engine: Engine) -> Policy:
    """A policy of any start, leave and way to skip, with random settings."""
    model = engine.model
    early, gated = model.config.exit_layers[:-1], bool(len(model.gates))
    skip = random_.choice([None, *(Skip(mode) for mode in MODES), Skip("planned", -0.3)]) if gated else None
    start = random_.choice([
        LastLayer(), FirstExit(), AtLayer(random_.choice(early)), TableAgreement(random_.uniform(0.0, 0.2)),
        *(TableExit(random_.choice(["argmax", "mean", round(random_.uniform(0.3, 1.0), 3)]), values) for values in VALUES),
    ])  # fmt: skip
    if isinstance(start, LastLayer):
        return Policy(start, None, skip)
    if not isinstance(start, FirstExit) and random_.random() < 0.4:
        head = "student" if gated else random_.choice(["student", "student", "shared"])
        return Policy(start, None, skip, head)
    criterion = random_.choice(list(CRITERIA))
    scored = {"criterion": criterion, "regroup": random_.choice(REGROUPS)}
    if random_.random() < 0.3:
        scored["layers"] = tuple(sorted(random_.sample(early, random_.randint(1, len(early)))))
    chosen = len(scored.get("layers", early))
    threshold = random_.uniform(*CRITERIA[criterion])
    if random_.random() < 0.3:
        threshold = [random_.uniform(*CRITERIA[criterion]) for _ in range(chosen)]
    if random_.random() < 0.3:
        return Policy(start, Patient(random_.randint(1, 2), random_.choice([None, threshold]), **scored), skip)
    return Policy(start, Sure(threshold, **scored), skip)


def random_stream(made: Made, seed: int) -> Stream:
    """The case of a seed."""
    random_ = random.Random(seed)
    variant = random_.choice(list(VARIANTS))
    shared = made.of(variant)
    policy = random_policy(random_, shared)
    dtype, packed = random_.choice([("float32", False)] * 3 + [("float32", True)] * 2 + [("bfloat16", False), ("int8", False)])
    if dtype == "int8" and shared.model.int8_layers is None:
        shared.model.int8_layers = quantize(shared.model, made.tokenizer, make_texts(0, 80), truncation=True, progress=False)
    cuts = random_.random() < 0.5
    longest = random_.choice([None, 8, 20, 40])
    engine = Engine(
        shared.model,
        made.tokenizer,
        policy,
        token_budget=random_.choice([1, 16, 40, 100, 300, 2000]),
        window=random_.choice([1, 2, 3, 7, 20, 100]),
        in_flight=random_.choice([1, 1, 2, 3]),
        prefetch=random_.random() < 0.3,
        dtype=dtype,
        runner="onednn" if packed or dtype == "int8" else "torch",
        truncation=cuts,
        max_length=longest,
    )
    engine.__dict__["layer_costs"] = random_.choice(COSTS)
    words = random_.choice([3, 12, 40]) if cuts else min(12, (longest or LONGEST) // 2)
    singles = random_.choice([0.0, 0.5, 1.0])
    samples: list[Sample] = []
    for _ in range(random_.randint(1, 60)):
        if samples and random_.random() < 0.15:
            samples.append(random_.choice(samples))
            continue
        pair = None if random_.random() < singles else make_text(random_, words)
        samples.append((make_text(random_, words), pair))
    stream = Stream(engine, samples, random_.choice(["list", "generator", "rows", "columns", "mixed"]), packed)
    if random_.random() < 0.3:
        for _ in range(random_.randint(1, 3)):
            samples.insert(random_.randint(0, len(samples)), (random_.choice(BAD), None))
    stream.bad = {index for index, sample in enumerate(samples) if not _can_be_answered(engine, *sample)}
    return stream


def _can_be_answered(engine: Engine, text: Any, pair: str | None) -> bool:
    if not isinstance(text, str) or "\ud800" in text:
        return False
    length = len(engine.tokenizer(text, pair)["input_ids"])
    special = engine.tokenizer.num_special_tokens_to_add(pair is not None)
    return special < length and (engine.truncation or length <= engine.max_length)


def answer(stream: Stream) -> tuple[Predictions, list[int], list[str]]:
    """The answers of the samples that can be answered, the indices of these, and faults: refused samples that are right."""
    kept, faults = list(range(len(stream.samples))), []
    while kept:
        now = Stream(stream.engine, [stream.samples[index] for index in kept], stream.form)
        try:
            return stream.engine.predict(now.inputs()), kept, faults
        except BadSample as error:
            named = {kept[bad.index] for bad in (error, *error.others)}
        if wrong := named - stream.bad:
            faults.append(f"refused samples that are right: {sorted(wrong)}")
            break
        kept = [index for index in kept if index not in named]
    return None, kept, faults


def compare(stream: Stream, result: Predictions, kept: list[int], outcome: Outcome) -> None:
    """Compare the answers with those of the samples alone."""
    engine, faults = stream.engine, outcome.faults
    if set(kept) & stream.bad:
        faults.append(f"answered samples that cannot be: {sorted(set(kept) & stream.bad)}")
        return
    if len(result) != len(kept) or not result.logits.isfinite().all():
        faults.append(f"{len(kept)} samples, {len(result)} answers, finite: {bool(result.logits.isfinite().all())}")
        return
    if result.labels != [engine.model.config.id2label[index] for index in result.logits.argmax(-1).tolist()]:
        faults.append("labels are not those of the logits")
    cut, nearest, own = 0, [], []
    for at, index in enumerate(kept):
        text, pair = stream.samples[index]
        encoded = engine.tokenizer(text, pair, truncation="longest_first", max_length=engine.max_length)
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        cut += len(engine.tokenizer(text, pair)["input_ids"]) > engine.max_length
        expected = answer_alone(engine.model, ids, types, engine.policy)
        layer = int(result.exit_layers[at])
        skipped = frozenset() if result.skipped is None else frozenset((result.skipped[at].nonzero()[:, 0] + 1).tolist())
        if layer not in engine.model.config.exit_layers:
            faults.append(f"sample {index}: answered at layer {layer}, which is no exit")
            continue
        along = logits_along(engine.model, ids, types, layer, skipped, engine.policy.answer_head)
        if engine.dtype == "int8":
            own.append(along)
            nearest.append(result.logits[at])
            continue
        words = _difference(engine, result.logits[at], layer, skipped, expected, along, outcome.counts)
        if words is not None:
            faults.append(f"sample {index} ({shorten(text, 40)}): {words}")
    if result.truncated != cut:
        faults.append(f"truncated says {result.truncated}, {cut} texts were longer than {engine.max_length}")
    if engine.dtype == "int8" and (words := _mixed_up(torch.stack(nearest), torch.stack(own))) is not None:
        faults.append(words)


def _difference(
    engine: Engine,
    logits: torch.Tensor,
    layer: int,
    skipped: frozenset[int],
    expected: Alone,
    along: torch.Tensor,
    counts: Counter[str],
) -> str | None:
    """What is wrong with an answer; None: nothing."""
    tolerance, tie = TOLERANCE[engine.dtype], TIE[engine.dtype]
    same_way = (layer, skipped) == (expected.layer, expected.skipped)
    if not same_way and expected.margin >= tie:
        return (
            f"layer {layer} and skipped {sorted(skipped)}, alone layer {expected.layer} and skipped "
            f"{sorted(expected.skipped)}, no decision closer than {expected.margin:.2g}"
        )
    counts["near ties that went another way"] += not same_way
    off = float((logits.softmax(-1) - along.softmax(-1)).abs().max())
    if engine.dtype == "float32":
        off = max(off, float((logits - along).abs().max()))
    if off > tolerance:
        return f"{off:.2g} from its answer alone at layer {layer}, more than {tolerance}"
    best = along.softmax(-1).topk(2).values
    if int(logits.argmax()) != int(along.argmax()) and float(best[0] - best[1]) > 2 * tolerance:
        return f"another label than alone at layer {layer}"
    return None


def _mixed_up(answers: torch.Tensor, alone: torch.Tensor) -> str | None:
    """What is wrong if int8 answers [N, C] lie about as near to the answers of other texts as to their own; None: nothing."""
    own = float((answers - alone).abs().mean())
    others = [float((answers - alone.roll(shift, 0)).abs().mean()) for shift in range(1, len(alone))]
    if others and own > 0.7 * min(others) and min(others) > 0.3:
        return f"int8 answers lie {own:.2g} from their own texts' and {min(others):.2g} from others'"
    return None


def _in_threads(stream: Stream, made: Made) -> list[tuple[Predictions | None, list[int], list[str]]]:
    """Answer the stream in two threads that share its engine, while a third uses another engine and the tokenizer itself."""
    results: list[Any] = [None, None]
    errors: list[str] = []

    def work(index: int) -> None:
        try:
            results[index] = answer(stream)
        except Exception as error:
            errors.append(f"in a thread: {type(error).__name__}: {shorten(str(error), 200)}")

    def other() -> None:
        for _ in range(3):
            made.of("plain").predict(["good " * 30, "bad"])
            found = made.tokenizer(["good", "bad " * 30], padding="max_length", truncation=True, max_length=5)
            if [len(ids) for ids in found["input_ids"]] != [5, 5]:
                errors.append("the tokenizer's owner got ids of another length than asked for")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)] + [threading.Thread(target=other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [*[result for result in results if result is not None], *([(None, [], errors)] if errors else [])]


def case(made: Made, folder: Path, seed: int) -> Outcome:
    """One engine answers one stream."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream, outcome = random_stream(made, seed), Outcome()
        threaded = random.Random(~seed).random() < 0.15
        for result, kept, faults in _in_threads(stream, made) if threaded else [answer(stream)]:
            outcome.faults += faults
            if result is not None:
                compare(stream, result, kept, outcome)
                outcome.counts["texts"] += len(kept)
    engine = stream.engine
    outcome.counts[f"{engine.dtype}{', packed' if stream.packed else ''}"] += 1
    outcome.counts["refused texts"] += len(stream.bad)
    outcome.counts["in threads"] += threaded
    setting = f"{describe(engine.policy)}, {engine.dtype}"
    outcome.faults = [f"{words} ({setting})" for words in outcome.faults]
    return outcome


PART = Part("streams", "a stream of texts by an engine", lambda folder: Made(make_tokenizer()), case)

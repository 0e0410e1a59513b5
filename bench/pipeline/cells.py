"""The measurements of the pipeline benchmark, with one function for each kind of cell."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bench.pipeline.arrivals import waiting_times
from bench.pipeline.fresh import AGAIN, Dealt, deal, rate_of, shapes_of, timed
from bench.pipeline.int8 import save_with_int8, with_int8
from bench.pipeline.peak_memory import forget_peak, peak_memory, resident, resident_after
from bench.pipeline.replay import DISTRIBUTIONS, drawn
from bench.pipeline.rivals_dense import DenseBert, encode
from bench.pipeline.rivals_given import Given, batches_of, why
from bench.pipeline.rivals_onnx import onnx_file
from bench.pipeline.rivals_openvino import openvino_file
from bench.pipeline.skips import CHECKED, skip_rates
from bench.pipeline.stages import stages
from bench.pipeline.systems import ALL_LAYERS, CALIBRATION, NOBODY, WAYS, WINDOW, System, Workbench
from bench.rows import Found, found
from bench.shapes import SHAPES, load_model, load_tokenizer, shape_of
from bench.timing import quiet_garbage_collector, spread
from geep_triton import Engine, MultiExitBert
from geep_triton.config import HEADS
from geep_triton.files.rows import read_rows
from geep_triton.modeling.flops import layer_flops
from geep_triton.policies.policy import Policy
from geep_triton.policies.text import parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.runners.graphed import MOST_TOKENS
from geep_triton.timing import in_turns

RECORDED = 0.3  # threshold of a model that is not calibrated
LOADS = (0.3, 0.6, 0.9)  # of what full depth on length-sorted batches can take
BATCHES = 8  # of a window in the matrix
CUDA_CALLS = {
    "kernels": ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
    "graphs": ("cudaGraphLaunch",),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}
LEFT_OUT = ("deebert", "huggingface, random")  # of the matrix: too slow, and all samples are of one length
ARRIVALS = 256
STAGE_ROUNDS = 3
GROWING, GROWING_DRY = (20, 200), (1, 3)  # windows after which memory is read
DISTINCT = 4_096  # samples; more are streamed by repeating them
PAYS_TOKENS = (1, 256, 1_024, 4_096)  # of a batch; 1: one sample
# Exits of 12 layers that leave samples at so many mean layers, every exit used: a share leaves evenly over the first ones.
PAYS_EXITS = {
    "3.5": dict.fromkeys(range(1, 7), 1 / 6),
    "6.5": dict.fromkeys(range(1, 13), 1 / 12),
    "9.2": dict.fromkeys(range(1, 12), 0.5 / 12) | {12: 6.5 / 12},
    "10.9": dict.fromkeys(range(1, 12), 0.2 / 12) | {12: 9.8 / 12},
}


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


def compared(bench: Workbench, systems: list[System], dtype: str, settings: Settings) -> list[Found]:
    """Every system checked, then timed in turns: samples a second, and shares of what the saved layers allow.

    Each round takes texts that no system has met, where the workbench has such; then all are timed again on those on which
    they were checked. `share_of_bound` is over ours at full depth, run in the same way, `share_of_rival_bound` over the
    fastest rival that runs all layers; both also by a token's mean layers, which is the honest bound where long texts stay
    longer.
    """
    checked, missing = bench.sound(systems, dtype)
    calls = {system.name: system.predict for system in checked}
    with quiet_garbage_collector():
        rounds = timed(calls, bench.fresh or [bench.rows] * settings.rounds, settings.seconds)
        again = timed(calls, [bench.rows] * AGAIN, settings.seconds) if bench.fresh else {}
    speed = {name: rate_of(turns) for name, turns in rounds.items()}
    rivals = [speed[system.name].value for system in checked if system.kind == "full"]
    ours, rival = speed["ours, full"].value, max(rivals, default=speed["ours, full"].value)
    met = [bench.lengths(chunk) for chunk in (bench.fresh or [bench.rows])[: len(next(iter(rounds.values())))]]
    for system, row in checked.items():
        name, value = system.name, speed[system.name].value
        row |= {"seconds": [turn.seconds for turn in rounds[name]], "samples_per_second": speed[name], "speed_up": value / ours}
        if name in again:
            row["again"] = {"seconds": [turn.seconds for turn in again[name]], "samples_per_second": rate_of(again[name])}
            row |= bench.neighbours(system)
        if system.kind not in ALL_LAYERS:
            continue
        layers, lengths = torch.cat([turn.layers for turn in rounds[name]][: len(met)]).double(), torch.cat(met)
        row |= {"mean_layers": float(layers.mean()), "mean_layers_of_a_token": float((layers * lengths).sum() / lengths.sum())}
        for suffix in ("", "_of_a_token"):
            bound = bench.depth / row[f"mean_layers{suffix}"]
            row[f"share_of_bound{suffix}"] = value / speed[f"ours, full{system.suffix}"].value / bound
            row[f"share_of_rival_bound{suffix}"] = value / rival / bound
    return [
        *(found(system.name, row, kind=system.kind) for system, row in checked.items()),
        *(found(name, {"missing": reason}) for name, reason in missing.items()),
    ]


def throughput(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Ours and every rival of one precision on one data set."""
    bench = workbench(shape, data, settings, fresh=True)
    with tempfile.TemporaryDirectory() as folder:
        rivals, missing = bench.rivals(dtype, settings.compile, Path(folder))
        ours, compile_seconds = bench.ours(dtype), None
        if settings.way(dtype) == "onednn":
            ours += bench.ours(dtype, "onednn")
        if settings.compile and dtype != "int8":
            several = bench.ours(dtype, "compiled")
            compile_seconds = several[0].predict.__self__.runner.compile_seconds
            ours += several
            if settings.place == "cuda":
                ours += bench.ours(dtype, "compiled, windows") + bench.ours(dtype, "compiled, windows, prefetch")
                ours += bench.ours(dtype, "packed") if dtype == "bfloat16" else []
        rows = compared(bench, rivals + ours, dtype, settings)
    timed_rounds = max(len(row.metrics["seconds"]) for row in rows if "seconds" in row.metrics)
    lengths, every = bench.tokens.lengths, [bench.lengths(chunk) for chunk in bench.fresh[:timed_rounds]]
    way = settings.way(dtype)
    calibration = None if settings.trained(data, shape) is None else bench.model.exit_config.calibration
    facts = {
        "texts": {"samples": len(bench.rows), "tokens": int(lengths.sum()), "longest": int(lengths.max())},
        "shapes": shapes_of([lengths, *every], settings.token_budget),
        "rounds": {"wanted": settings.rounds, "with_texts": len(bench.fresh), "timed": timed_rounds},
        "layers": bench.depth,
        "replayed_layers": settings.replayed_layers(data, shape),
        "promise": None if calibration is None else " ".join(map(str, calibration["promise"])),
        "policy": None if calibration is None else calibration["chosen"]["policy"],
        "width": bench.model.config.hidden_size,
        "compile_seconds": compile_seconds,
        "way": way,
    }
    policies = {"full": "full", bench.main: bench.policies[bench.main]}
    taken = _stages(bench.engine("full", dtype, way), policies, bench.rows)
    return [
        found("", facts),
        *rows,
        *(found(name, {"missing": reason}) for name, reason in missing.items()),
        *(found(name, {"stages": seconds}) for name, seconds in taken.items()),
    ]


def segments(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Ours with layers by another engine, beside ours with layers of its own, and that engine alone at full depth."""
    bench = workbench(shape, data, settings, fresh=True)
    with tempfile.TemporaryDirectory() as folder:
        ours = bench.ours(dtype) + (bench.ours(dtype, "onednn") if settings.way(dtype) == "onednn" else [])
        dense, missing = bench.dense_of_other_engines(dtype, Path(folder))
        under, absent = bench.under_exits(dtype, Path(folder))
        rows = compared(bench, dense + ours + under, dtype, settings)
    return [
        found("", {"layers": bench.depth, "shapes": shapes_of([bench.tokens.lengths], settings.token_budget)}),
        *rows,
        *(found(name, {"missing": reason}) for name, reason in (missing | absent).items()),
    ]


def _stages(engine: Engine, policies: dict[str, str | Policy], rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Policy -> stage -> seconds, the median of rounds in turns."""
    rounds = [
        {name: stages(engine.with_policy(policy), rows) for name, policy in policies.items()} for _ in range(STAGE_ROUNDS)
    ]
    return {
        name: {stage: statistics.median(one[name][stage] for one in rounds) for stage in rounds[0][name]} for name in policies
    }


def latency(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Median and 99th percentile of the time to an answer under random arrivals, at several loads."""
    bench = workbench(shape, data, settings)
    with tempfile.TemporaryDirectory() as folder:
        rivals, _ = bench.rivals(dtype, False, Path(folder))
    chosen = [system for system in rivals if system.name.endswith(", length-sorted") and system.kind == "full"]
    chosen += [system for system in rivals if system.kind == "exits"]
    ways = dict.fromkeys(["plain", settings.way(dtype)] + ["graphs"] * (settings.place == "cuda"))
    ours = [system for way in ways for system in bench.ours(dtype, way)]
    chosen += [system for system in ours if system.name.startswith(("ours, full", f"ours, {bench.main}"))]
    checked, missing = bench.sound(chosen, dtype)
    chosen = list(checked)
    began = time.perf_counter()
    full = in_turns({"full": partial(chosen[0].predict, bench.rows)}, settings.rounds, limit=settings.seconds)["full"]
    capacity = len(bench.rows) / statistics.median(full)
    arriving, rows = bench.rows * (1 if settings.dry else -(-ARRIVALS // len(bench.rows))), []
    for load in LOADS:
        waits: dict[str, list[list[float]]] = {system.name: [] for system in chosen}
        # The first round is not counted: it makes the kernels of the batches that arrive. Each begins with another system.
        for number in range(settings.rounds + 1):
            if number > 1 and settings.seconds is not None and time.perf_counter() - began > settings.seconds:
                break
            for system in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                waited = torch.tensor(waiting_times(system.predict, arriving, load * capacity, number), dtype=torch.float64)
                waits[system.name].append(waited.quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist())
        for name, several in waits.items():
            p50, p99 = (statistics.median(values) for values in zip(*several[1:], strict=True))
            rows.append(found(name, {"p50": p50, "p99": p99}, load=load))
    facts = {"rate_of_load_1": capacity, "samples": len(arriving)}
    facts |= {"layers": bench.depth, "replayed_layers": settings.replayed_layers(data, shape)}
    return [found("", facts), *rows, *(found(name, {"missing": reason}) for name, reason in missing.items())]


def overhead(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """What scoring at every exit costs where nobody leaves, by kind of head: time over full depth, beside the heads' FLOPs."""
    rows, tokenizer, heads = settings.rows(data, shape), load_tokenizer(), []
    way = WAYS[settings.way(dtype)]
    limits = {"token_budget": settings.token_budget, "max_length": settings.max_length, "truncation": True}
    for head in HEADS:
        model = load_model(settings.shape(shape), head=head).to(settings.place)
        if dtype == "int8":
            with_int8(model, tokenizer, rows, settings.max_length)
        full = Engine(model, tokenizer, "full", dtype=dtype, **way, **limits)
        nobody = full.with_policy(NOBODY)
        answers, scored = full.predict(rows), nobody.predict(rows)
        if scored.mean_layers != model.config.num_hidden_layers or not torch.equal(scored.logits, answers.logits):
            raise ValueError(f"{head} heads: scored samples left early or were answered otherwise")
        calls = {"full": partial(full.predict, rows), "nobody": partial(nobody.predict, rows)}
        seconds = in_turns(calls, settings.rounds, limit=settings.seconds)
        ratios = [scored / alone for scored, alone in zip(seconds["nobody"], seconds["full"], strict=True)]
        flops = scored.flops.total / answers.flops.total - 1
        heads.append(found(head, {"overhead": statistics.median(ratios) - 1, "flops": flops, "ratios": ratios}))
    return [found("", {"samples": len(rows)}), *heads]


def pays(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Speed of scored exits over full depth, by tokens of a batch and mean layers: where exits begin to pay.

    Random weights, exits replayed, every exit scored until a sample leaves.
    """
    rows, tokenizer, points = settings.rows(data, shape), load_tokenizer(), []
    for tokens in PAYS_TOKENS:
        model = load_model(settings.shape(shape)).to(settings.place)
        recorded = {name: drawn(shares, len(rows), model.config.num_hidden_layers) for name, shares in PAYS_EXITS.items()}
        bench = Workbench(model, tokenizer, rows, tokens, settings.max_length, recorded)
        engine = bench.engine("full", dtype, settings.way(dtype))
        policies = {name: bench.policies[f"threshold, {name}"] for name in PAYS_EXITS} | {"nobody leaves": NOBODY}
        engines = {"full": engine} | {name: engine.with_policy(policy) for name, policy in policies.items()}
        layers = {}
        for name, one in engines.items():
            exits = bench.exits_of(parse_policy(policies.get(name, "full")))
            layers[name] = bench.checked(System(f"ours, {name}", "ours", one.predict, exits), dtype)["mean_layers"]
        calls = {name: partial(one.predict, rows) for name, one in engines.items()}
        seconds = in_turns(calls, settings.rounds, limit=settings.seconds)
        for name in policies:
            ratios = [alone / early for alone, early in zip(seconds["full"], seconds[name], strict=True)]
            share = layers[name] / model.config.num_hidden_layers
            speed_up = spread(ratios)
            points.append(found(name, {"share": share, "speed_up": speed_up}, tokens=tokens))
    return [found("", {"samples": len(rows), "way": settings.way(dtype)}), *points]


def memory(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Peak megabytes, each system in a process of its own; a trained model's folder where there is one of this shape.

    Models are loaded in bfloat16 where they run in it; "from float32" has the engine convert one that stays beside it. Rivals
    of other packages load a file that another process wrote.
    """
    with _spec(shape, data, dtype, settings) as spec:
        return _memory(shape, data, dtype, settings, spec)


def _memory(shape: str, data: str, dtype: str, settings: Settings, spec: dict[str, Any]) -> list[Found]:
    peaks = {"huggingface, length-sorted": peak_memory(system="huggingface", policy=None, **spec)}
    for policy in ("full", early_policy(shape, data, settings)):
        peaks[f"ours, {policy}"] = peak_memory(system="engine", policy=policy, **spec)
        if settings.way(dtype) == "onednn":
            peaks[f"ours, {policy}, onednn"] = peak_memory(system="engine", policy=policy, runner="onednn", **spec)
            alone = peak_memory(system="engine", policy=policy, runner="onednn", in_place=True, **spec)
            peaks[f"ours, {policy}, onednn in place"] = alone
        if dtype == "bfloat16":
            peaks[f"ours, {policy}, from float32"] = peak_memory(system="engine", policy=policy, **spec | {"loaded": "float32"})
    with tempfile.TemporaryDirectory() as folder:
        files, missing = _rival_files(shape, data, dtype, settings, Path(folder))
        for name, path in files.items():
            peaks[f"{name}, length-sorted"] = peak_memory(system=name, file=str(path), **spec)
    return [
        *(found(system, megabytes) for system, megabytes in peaks.items()),
        *(found(name, {"missing": reason}) for name, reason in missing.items()),
    ]


def growth(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Resident megabytes after few and after many windows of texts that were not met before, each system in a process of its
    own: what a system keeps of every text or shape shows here.
    """
    early = early_policy(shape, data, settings)
    runner = "onednn" if settings.way(dtype) == "onednn" else "auto"
    windows = GROWING_DRY if settings.dry else GROWING
    systems = {"huggingface, length-sorted": {"system": "huggingface", "policy": None}}
    systems |= {f"ours, {policy}": {"system": "engine", "policy": policy, "runner": runner} for policy in ("full", early)}
    with tempfile.TemporaryDirectory() as folder, _spec(shape, data, dtype, settings) as spec:
        files, missing = _rival_files(shape, data, dtype, settings, Path(folder))
        systems |= {f"{name}, length-sorted": {"system": name, "file": str(path)} for name, path in files.items()}
        rows = {name: resident_after(windows, **spec, **system) for name, system in systems.items()}
    for megabytes in rows.values():
        megabytes["grown"] = megabytes[f"after_{windows[1]}"] - megabytes[f"after_{windows[0]}"]
    return [
        found("", {"windows": list(windows)}),
        *(found(name, megabytes) for name, megabytes in rows.items()),
        *(found(name, {"missing": reason}) for name, reason in missing.items()),
    ]


def early_policy(shape: str, data: str, settings: Settings) -> str:
    """A policy whose batches shrink."""
    return "threshold:0.3" if settings.trained(data, shape) else "threshold:0.99"


@contextmanager
def _spec(shape: str, data: str, dtype: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """What a process of its own is told of every system. In int8 it gets a folder with the scales, within this context."""
    folder, length = settings.trained(data, shape), settings.max_length
    spec = {
        "shape": settings.shape(shape), "folder": folder, "dtype": dtype, "texts": settings.texts[data],
        "samples": len(settings.rows(data, shape)), "token_budget": settings.token_budget,
        "max_length": length, "threads": torch.get_num_threads(),
        "loaded": "bfloat16" if dtype == "bfloat16" else "float32",
    }  # fmt: skip
    if dtype != "int8":
        yield spec
        return
    with tempfile.TemporaryDirectory() as place:
        model, tokenizer = load_model(spec["shape"], folder), load_tokenizer(folder)
        rows = settings.dealt(data, shape, tokenizer).left or settings.rows(data, shape)
        yield spec | {"folder": save_with_int8(Path(place), model, tokenizer, rows, length)}


def _rival_files(shape: str, data: str, dtype: str, settings: Settings, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The file of each rival that a process of its own can open, and why others are missing."""
    trained = settings.trained(data, shape)
    model, tokenizer = load_model(settings.shape(shape), trained), load_tokenizer(trained)
    left = settings.dealt(data, shape, tokenizer).left[:CALIBRATION] if dtype == "int8" else []
    batches = batches_of(left, tokenizer, settings.token_budget, settings.max_length) if left else []
    module = DenseBert(model, model.config.num_hidden_layers)
    given = Given(module, dtype, torch.get_num_threads(), folder, batches, tokenizer, compile=False)
    files, missing = {}, {}
    for name, export in {"openvino": openvino_file, "onnxruntime": onnx_file}.items():
        try:
            files[name] = export(given)
        except Exception as error:  # whatever another package raises
            missing[name] = why(error)
    return files, missing


def scaling(axis: str, settings: Settings) -> list[Found]:
    """Seconds, and peak memory over what was there before, as one size grows: of "samples" streamed, "length", "classes" or
    "window".
    """
    sizes = {
        "samples": (1_000, 10_000, 100_000, 1_000_000),
        "length": (16, 32, 64, 128, 256, 512),
        "classes": (2, 10, 100, 1_000),
        "window": (64, 256, 1_024, 4_096, 16_384),
    }[axis]
    if settings.dry:
        sizes = sizes[:2]
    return [found("ours", _scaled(axis, size, settings), axis=axis, size=size) for size in sizes]


def _scaled(axis: str, size: int, settings: Settings) -> dict[str, Any]:
    tokenizer, length, samples = load_tokenizer(), 16, 256 if axis != "window" else 16_384
    if axis == "length":
        length = size
    if axis == "samples":
        samples = size
    if settings.dry:
        samples = min(samples, 64)
    # What grows with the number of samples is the pipeline around the layers, so those are small there.
    shape = "tiny" if axis in ("samples", "window") or settings.dry else "minilm"
    model = load_model(shape, labels=size if axis == "classes" else 4).to(settings.place)
    window = size if axis == "window" else 4_096
    engine = Engine(model, tokenizer, "threshold:0.9", token_budget=settings.token_budget, window=window)
    rows = list(_synthetic(min(samples, DISTINCT), length))
    list(engine.predict_windows(rows[:16]))  # measures layers, too
    forget_peak()
    answered, before, start = 0, resident("VmRSS"), time.perf_counter()
    for part in engine.predict_windows(islice(cycle(rows), samples)):
        answered += len(part)
    seconds = time.perf_counter() - start
    return {"samples": answered, "seconds": seconds, "megabytes_grown": resident("VmHWM") - before}


def _synthetic(samples: int, length: int) -> Iterator[dict[str, Any]]:
    """Random token ids between [CLS] and [SEP], always the same."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(samples):
        middle = torch.randint(1_000, 30_000, (length - 2,), generator=generator)
        yield {"input_ids": [101, *middle.tolist(), 102]}


def matrix(shape: str, length: int, tokens: int, dtype: str, settings: Settings) -> list[Found]:
    """Full depth and replayed exits over windows of some batches of so many tokens, all samples of one length.

    Besides rivals, the ceilings of the machine in the same run: a matrix product's rate and a copy's.
    """
    device, samples = torch.device(settings.place), max(2, BATCHES * tokens // length)
    if settings.dry:
        samples = 4
    tokenizer, texts = load_tokenizer(), list(_synthetic(samples, length))
    model = load_model(settings.shape(shape)).to(device)
    depth = model.config.num_hidden_layers
    recorded = {name: drawn(shares, samples, depth) for name, shares in DISTRIBUTIONS.items() if name != "all-12"}
    bench = Workbench(model, tokenizer, texts, tokens, length, recorded)
    rivals, missing = bench.rivals(dtype, settings.compile, None, batch=max(1, tokens // length), one_shape=True)
    ways = ["plain"] + ["compiled"] * settings.compile
    if device.type == "cuda" and settings.compile and samples > WINDOW:
        ways.append("compiled, windows, prefetch")
    if device.type == "cuda" and dtype == "bfloat16":
        ways.append("packed")
    if device.type == "cuda" and tokens <= MOST_TOKENS:
        ways.append("graphs")
    ours = [system for way in ways for system in bench.ours(dtype, way)]
    systems = [system for system in rivals if not system.name.startswith(LEFT_OUT)] + ours
    rows = compared(bench, systems, dtype, settings)
    flops = samples * depth * layer_flops(model.config, length)
    fastest, copied = ceilings(device, getattr(torch, dtype), 512 if settings.dry or device.type == "cpu" else 8192)
    reached = {
        row.system: flops / statistics.median(row.metrics["seconds"]) / fastest
        for row in rows
        if row.metrics.get("mean_layers") == depth
    }
    return [
        found("", {"samples": samples, "ceilings": {"flops_per_second": fastest, "copied_bytes_per_second": copied}}),
        *rows,
        *(found(name, {"missing": reason}) for name, reason in missing.items()),
        *(found(system.name, {"launches": launches(system, texts)}) for system in ours if device.type == "cuda"),
        *(found(name, {"share_of_gemm_rate": share}) for name, share in reached.items()),
    ]


def skips(shape: str, length: int, tokens: int, dtype: str, settings: Settings) -> list[Found]:
    """Layers that are known to be skipped, at several rates, over windows as in the matrix."""
    samples = CHECKED if settings.dry else max(CHECKED, BATCHES * tokens // length)
    rows = list(_synthetic(samples, length))
    return skip_rates(settings.shape(shape), rows, tokens, length, dtype, settings.place, settings.rounds)


def ceilings(device: torch.device, dtype: torch.dtype, size: int) -> tuple[float, float]:
    """Operations a second of a square matrix product, and bytes read and written a second by a copy: the best of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    big = torch.empty(64 * size * size, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    return 2 * size**3 / best(lambda: a @ b, device), 2 * big.numel() / best(lambda: other.copy_(big), device)


def best(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls."""
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def launches(system: System, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Kernels and graphs that the host launches, and its waits for the GPU, in one call on all rows."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        system.predict(rows)
    names = Counter(event.name for event in profiled.events())
    return {kind: sum(names[name] for name in several) for kind, several in CUDA_CALLS.items()}

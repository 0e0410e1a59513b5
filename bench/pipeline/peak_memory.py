"""Print the memory of one system in its own process: resident megabytes at the peak and before the model was loaded, or as it
answers windows of texts that it has not met.

python -m bench.pipeline.peak_memory '{"system": "engine", "shape": "base", "dtype": "float32", ...}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.environment import ROOT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from geep_triton.tokens.ragged import Tokens

WINDOW = (4, 12)  # texts of a window that is met once: the fewest and the most
Answer = Callable[[Sequence[dict[str, Any]]], object]


def peak_memory(**spec: Any) -> dict[str, float]:
    """Megabytes of a system in a fresh process: "before" the model was there, and at the "peak" of loading and answering.

    Args:
        **spec: system ("engine", "huggingface", "openvino" or "onnxruntime"), shape, folder, loaded (dtype of the model), dtype
            (that it runs in), policy, runner, in_place (whether it may convert the model), file (of a system that has no need
            of the model), texts (a file), samples, token_budget, max_length, threads.
    """
    return _alone(spec)


def resident_after(windows: Sequence[int], **spec: Any) -> dict[str, float]:
    """Resident megabytes of a system in a fresh process "after" so many windows of fresh texts, by their number.

    Args:
        windows: after which it is measured.
        **spec: as for `peak_memory`.
    """
    return _alone(spec | {"windows": list(windows)})


def _alone(spec: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.pipeline.peak_memory", json.dumps(spec)]
    alone = os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}  # the default, for it shares the process with no other
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{spec}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> float:
    """Megabytes of this process: "VmRSS" now, "VmHWM" at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Let "VmHWM" count from now."""
    Path("/proc/self/clear_refs").write_text("5")


def fresh_windows(tokens: Tokens) -> Iterator[list[dict[str, Any]]]:
    """Rows of token ids, as long as these texts and of their tokens in a new order; windows of several sizes, endlessly."""
    import torch

    generator, texts = torch.Generator().manual_seed(0), tokens.ids.split(tokens.lengths.tolist())
    while True:
        size = int(torch.randint(WINDOW[0], WINDOW[1] + 1, (), generator=generator))
        rows = []
        for at in torch.randint(len(texts), (size,), generator=generator).tolist():
            first, *_, last = texts[at].tolist()
            middle = tokens.ids[torch.randint(len(tokens.ids), (len(texts[at]) - 2,), generator=generator)]
            rows.append({"input_ids": [first, *middle.tolist(), last]})
        yield rows


def answering(spec: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """The system, loaded."""
    import torch

    from bench.pipeline.rivals_dense import DenseBert, DenseRival, encode, run_batches, sorted_batches, torch_int8
    from bench.shapes import load_model
    from geep_triton import Engine
    from geep_triton.runners.make import make_runner

    limits = {name: spec[name] for name in ("token_budget", "max_length")}
    if spec["system"] in ("openvino", "onnxruntime"):
        call = opened(spec)

        def answer(rows: Sequence[dict[str, Any]]) -> object:
            tokens = encode(tokenizer, rows, spec["max_length"])
            parts = list(sorted_batches(tokens.lengths, spec["token_budget"]))
            return run_batches(call, tokens, parts, tokenizer.pad_token_id or 0, torch.device("cpu"))

        return answer
    model = load_model(spec["shape"], spec["folder"], dtype=getattr(torch, spec["loaded"]))
    if spec["system"] == "engine":
        runner = make_runner(model, spec.get("runner", "auto"), spec["dtype"], in_place=spec.get("in_place", False))
        return Engine(model, tokenizer, spec["policy"], runner=runner, truncation=True, **limits).predict
    depth = model.config.num_hidden_layers
    call = DenseBert(model, depth)
    del model.bert  # it is the rival's now, which is to hold nothing twice
    if spec["dtype"] == "int8":
        call = torch_int8(call, inplace=True)
    return DenseRival(call, model, tokenizer, depth, **limits).predict


def opened(spec: dict[str, Any]) -> Any:
    """A rival that is a file."""
    from bench.pipeline.rivals_onnx import OnnxBert
    from bench.pipeline.rivals_openvino import OpenVinoBert

    path, threads = Path(spec["file"]), spec["threads"]
    return OnnxBert(path, threads) if spec["system"] == "onnxruntime" else OpenVinoBert(path, spec["dtype"], threads)


def main() -> None:
    import torch

    from bench.pipeline.rivals_dense import encode
    from bench.shapes import load_tokenizer
    from geep_triton.files.rows import read_rows

    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    tokenizer = load_tokenizer(spec["folder"])
    rows = read_rows(spec["texts"])[: spec["samples"]]
    before = resident("VmRSS")
    answer = answering(spec, tokenizer)
    if "windows" not in spec:
        answer(rows)
        print(json.dumps({"before": before, "peak": resident("VmHWM")}))
        return
    found = {}
    windows = fresh_windows(encode(tokenizer, rows, spec["max_length"]))
    for number, window in enumerate(islice(windows, max(spec["windows"])), start=1):
        answer(window)
        if number in spec["windows"]:
            found[f"after_{number}"] = resident("VmRSS")
    print(json.dumps({"before": before, **found}))


if __name__ == "__main__":
    main()

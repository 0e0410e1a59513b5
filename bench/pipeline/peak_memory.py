"""Print the peak memory of one system in its own process: resident megabytes at the peak and before the model was loaded.

python -m bench.pipeline.peak_memory '{"system": "engine", "shape": "base", "dtype": "float32", ...}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.environment import ROOT


def peak_memory(**spec: Any) -> dict[str, float]:
    """Megabytes of a system in a fresh process: "before" the model was there, and at the "peak" of loading and answering.

    Args:
        **spec: system ("engine" or "huggingface"), shape, folder, loaded (dtype of the model), dtype (that it runs in), policy,
            runner, in_place (whether it may convert the model), texts (a file), samples, token_budget, max_length, threads.
    """
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


def main() -> None:
    import torch

    from bench.pipeline.rivals_dense import DenseBert, DenseRival, torch_int8
    from bench.shapes import load_model, load_tokenizer
    from geep_triton import Engine
    from geep_triton.files.rows import read_rows
    from geep_triton.runners.make import make_runner

    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    tokenizer = load_tokenizer(spec["folder"])
    rows = read_rows(spec["texts"])[: spec["samples"]]
    before = resident("VmRSS")
    model = load_model(spec["shape"], spec["folder"], dtype=getattr(torch, spec["loaded"]))
    if spec["system"] == "engine":
        runner = make_runner(model, spec.get("runner", "auto"), spec["dtype"], in_place=spec.get("in_place", False))
        settings = {name: spec[name] for name in ("token_budget", "max_length") if name in spec}
        Engine(model, tokenizer, spec["policy"], runner=runner, truncation=True, **settings).predict(rows)
    else:
        depth = model.config.num_hidden_layers
        call = DenseBert(model, depth)
        del model.bert  # it is the rival's now, which is to hold nothing twice
        if spec["dtype"] == "int8":
            call = torch_int8(call, inplace=True)
        DenseRival(call, model, tokenizer, depth, spec["token_budget"], spec["max_length"]).predict(rows)
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


if __name__ == "__main__":
    main()

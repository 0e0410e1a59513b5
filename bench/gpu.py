"""All that needs a GPU, in one command of less than eight minutes: the tests, each op beside its rivals, the engine, tuning.

    python -m bench.gpu --output bench/results/gpu

Each step is a process of its own, so one that fails does not take the others along; `summary.json` says how each ended.
With `--dry-run` every step runs on the CPU with few rounds, to see that the script is whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.environment import ROOT, environment


def steps(output: Path, dry_run: bool) -> dict[str, list[str]]:
    """Name -> arguments of python."""
    rounds = "3" if dry_run else "21"
    tests = ["tests/ops", "tests/test_gpu.py", "--deselect", "tests/ops/test_compile.py"]
    return {
        "tests": ["-m", "pytest", "-q", "-m", "not gpu" if dry_run else "gpu", *tests],
        "ops": ["-m", "bench.ops", "--rounds", rounds, "--output", str(output / "ops.json")],
        "engine": ["-m", "pytest", "-q", "bench/test_engine.py", f"--benchmark-json={output / 'engine.json'}"],
        "tune": ["-m", "bench.tune", "--rounds", rounds, "--output", str(output / "tune.json")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the result files")
    parser.add_argument("--only", nargs="+", help="names of steps")
    parser.add_argument("--step-seconds", type=float, default=115, help="after which a step is stopped")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --dry-run runs every step on the CPU")
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    summary = {"environment": environment(), "dry_run": arguments.dry_run, "steps": {}}
    for name, command in steps(output, arguments.dry_run).items():
        if arguments.only and name not in arguments.only:
            continue
        start = time.perf_counter()
        with (output / f"{name}.log").open("w") as log:
            try:
                code = subprocess.run(
                    [sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False,
                    timeout=arguments.step_seconds,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = "stopped: took too long"
        summary["steps"][name] = {"exit": code, "seconds": time.perf_counter() - start}
        (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(name, summary["steps"][name], flush=True)


if __name__ == "__main__":
    main()

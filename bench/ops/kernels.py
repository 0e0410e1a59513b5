"""Compile every kernel for three architectures without a GPU, and print the resources that each uses.

    python -m bench.ops.kernels --output bench/results/kernels.jsonl

The sweep calls the real launchers with each choice that makes a kernel of its own (dtypes, widths, criteria, configurations). A
recorder replaces the launch itself, so the list has exactly the kernels that are launched.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from bench.cells import Cell, run_missing
from bench.environment import environment
from bench.ops.barriers import unordered_barriers
from bench.rows import Found
from geep_triton.ops.backend import VARIABLE, interprets
from geep_triton.ops.exit_scores import CLASS_CRITERIA

ARCHITECTURES = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """What makes a compiled kernel, apart from the architecture.

    Attributes:
        module, kernel: where the jit function is.
        signature: (parameter, type) pairs.
        constants: (parameter, value) pairs known when it is compiled.
        divisible: parameters known to be divisible by 16.
        num_warps: warps a program.
    """

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    num_warps: int


def record(kernel: Any, arguments: tuple[Any, ...], num_warps: int, constants: dict[str, Any]) -> Launch:
    """As Triton specialises: pointers and integers by divisibility by 16, the integer 1 as a constant."""
    kept = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    any_place = {parameter.name for parameter in kernel.params if parameter.do_not_specialize_on_alignment}
    signature, known, divisible = {}, dict(constants), []
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            divisible += [name] * (value.data_ptr() % 16 == 0 and name not in any_place)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and name not in kept:
            known[name] = 1
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0 and name not in kept:
                divisible.append(name)
    signature |= dict.fromkeys(known, "constexpr")
    ordered = tuple((name, signature[name]) for name in kernel.arg_names)
    return Launch(kernel.fn.__module__, kernel.__name__, ordered, tuple(sorted(known.items())), tuple(divisible), num_warps)


def sweep_hash_table() -> Iterator[None]:
    from geep_triton.ops.hash_table import HashTable, insert_add, lookup

    table, keys = HashTable.empty(3), torch.arange(40)
    for weights in (None, keys + 1):
        yield insert_add(table, keys, torch.zeros_like(keys), weights)
    yield lookup(table.slots, 1, keys)


def sweep_predict_exits() -> Iterator[None]:
    from geep_triton.ops.predict_exits import ScoreTable, predict_exits

    ids = torch.arange(64)
    for exits in (3, 6, 12, 24):
        table = ScoreTable.build(
            ids, torch.full((65, exits), 1 / exits), tuple(range(1, exits + 1)), (0,), 64, ngram=2, reduction="mean"
        )
        yield predict_exits(table, ids, torch.tensor([0, 10, 64]))


def sweep_exit_scores() -> Iterator[None]:
    from geep_triton.ops.exit_scores import score_exits
    from geep_triton.ops.kernels.exit_scores import WIDTHS

    for dtype, width in itertools.product(DTYPES, WIDTHS):
        logits = torch.zeros(40, width, dtype=dtype)
        for criterion in CLASS_CRITERIA:
            yield score_exits(logits, 0.5, criterion)
        yield score_exits(logits, -0.5, "distance", cuts=torch.zeros(width))
    for dtype in DTYPES:
        yield score_exits(torch.zeros(40, 1, dtype=dtype), 0.5, "change")


def sweep_outranked() -> Iterator[None]:
    from geep_triton.ops.outranked import outranked

    for dtype, candidates in itertools.product(DTYPES, (100, 1000)):
        yield outranked(torch.zeros(candidates, dtype=dtype), torch.tensor([0, candidates]), 10, 1.0)


def sweep_forecast() -> Iterator[None]:
    from geep_triton.ops.forecast import ForecastNet, forecast

    for dtype, classes in itertools.product(DTYPES, (1, 3)):
        net = ForecastNet(torch.zeros(2 * classes, 16), torch.zeros(16), torch.zeros(16, 11), torch.zeros(11))
        yield forecast(torch.zeros(40, classes, dtype=dtype), net)


def sweep_rows() -> Iterator[None]:
    from geep_triton.ops.partition import partition
    from geep_triton.ops.skip_gate import skip_gate

    yield partition(torch.arange(40) > 3)
    for dtype, hidden_size in itertools.product(DTYPES, (768, 70, 1)):
        states = torch.zeros(40, hidden_size, dtype=dtype)
        yield skip_gate(states[:, 0].contiguous())
        yield skip_gate(states, states[0], states[0, :1])


def launches(architecture: str) -> list[Launch]:
    """Every distinct launch of the package on one architecture."""
    from geep_triton.ops.kernels import configs, launching

    found: dict[Launch, None] = {}

    def recorder(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
        if math.prod(grid):
            found[record(kernel, arguments, num_warps, constants)] = None

    sweeps: tuple[Callable[[], Iterator[None]], ...] = (
        *(sweep_hash_table, sweep_predict_exits, sweep_exit_scores, sweep_forecast, sweep_outranked, sweep_rows),
    )
    with (
        mock.patch.object(launching, "launch", recorder),
        mock.patch.object(configs, "architecture", return_value=architecture),
        mock.patch("geep_triton.ops.dispatch.choose_backend", lambda device, backend: backend or "triton"),
    ):
        for sweep in sweeps:
            for _ in sweep():
                pass
    return list(found)


def compile_launch(job: tuple[str, Launch]) -> Found:
    """Compile one launch for one architecture: what it takes, and what tells it from the kernel's others."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    architecture, launch = job
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible}
    source = ASTSource(kernel, dict(launch.signature), dict(launch.constants), attributes)
    target = GPUTarget(*ARCHITECTURES[architecture])
    compiled = triton.compile(source, target=target, options={"num_warps": launch.num_warps})
    takes = read_cubin(compiled.asm["cubin"]) if target.backend == "cuda" else read_amdgcn(compiled.asm["amdgcn"])
    types = {name: kind for name, kind in launch.signature if kind.startswith("*")}
    launched = {"constants": dict(launch.constants), "data": next(iter(types.values()))}
    launched |= {"divisible": list(launch.divisible), "num_warps": launch.num_warps}
    return Found(launch.kernel, {**takes, "shared_bytes": compiled.metadata.shared}, launched)


def read_cubin(cubin: bytes) -> dict[str, Any]:
    """Registers a thread, bytes spilled a thread, and the widest load, from NVIDIA's own tools that Triton brings."""
    from triton import knobs

    tool = knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    fields = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    widths = [int(width) for width in re.findall(r"\bLDG\.E(?:\.[A-Z]+)*\.(64|128)\b", code)]
    spilled = len(re.findall(r"\b(?:STL|LDL)\b", code))
    return {
        "registers": int(fields["REG"]),
        "spills": int(fields["STACK"]) + int(fields["LOCAL"]) + spilled,
        "widest_load_bits": max(widths, default=32),
    }


def read_amdgcn(assembly: str) -> dict[str, Any]:
    """Vector registers, registers spilled, the widest load, from the assembly's notes; barriers that do not order memory."""
    number = lambda name: int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])  # noqa: E731
    widths = [32 * int(count) for count in re.findall(r"\b(?:global|buffer)_load_dwordx(\d)\b", assembly)]
    return {
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "widest_load_bits": max(widths, default=32),
        "unordered_barriers": unordered_barriers(assembly),
    }


def compiled(architecture: str, processes: int) -> list[Found]:
    """What each kernel takes on one architecture."""
    jobs = [(architecture, launch) for launch in launches(architecture)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(tqdm(pool.map(compile_launch, jobs, chunksize=8), total=len(jobs), desc=architecture, unit="kernel"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if interprets():
        raise SystemExit("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")
    os.environ.pop(VARIABLE, None)
    import triton

    declared = {"triton": triton.__version__, "commit": environment()["commit"]}
    cells = [
        Cell(name, declared, partial(lambda name, _: compiled(name, arguments.processes), name))
        for name in arguments.architectures
    ]
    run_missing("kernels", cells, arguments.output)


if __name__ == "__main__":
    main()

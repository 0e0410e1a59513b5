"""Every kernel that can be launched compiles for three architectures without a GPU, and spills nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ops.barriers import unordered_barriers
from bench.rows import read, records
from geep_triton.ops.backend import has_triton

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(not has_triton(), reason="needs the package triton")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> list[dict]:
    """Compiled in another process: in this one Triton may be in its interpreter."""
    output = tmp_path_factory.mktemp("kernels") / "kernels.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.ops.kernels", "--output", output]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [one | {"kernel": one["system"], "architecture": one["case"]} for one in records(read(output)) if one["system"]]


def test_every_kernel_is_compiled_for_every_architecture(kernels):
    jitted = {
        line.split("(")[0].removeprefix("def ")
        for path in (ROOT / "geep_triton" / "ops" / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    compiled = {(row["kernel"], row["architecture"]) for row in kernels}
    assert compiled == {(kernel, architecture) for kernel in jitted for architecture in ("sm_80", "sm_90", "gfx942")}


def test_nothing_spills(kernels):
    assert [row for row in kernels if row["spills"]] == []


def test_rows_are_loaded_128_bits_at_a_time(kernels):
    """A table's bucket begins at a whole number of 16 bytes."""
    wide = {"lookup_kernel", "predict_exits_kernel"}
    rows = [row for row in kernels if row["kernel"] in wide]
    assert {row["kernel"] for row in rows} == wide
    assert [row for row in rows if row["widest_load_bits"] < 128] == []


def test_no_load_may_overtake_what_a_barrier_does_not_order(kernels):
    """On AMD, where a barrier does not wait for global stores: a kernel that reads what another wave stored would race."""
    assert [row for row in kernels if row.get("unordered_barriers")] == []
    assert {row["architecture"] for row in kernels if "unordered_barriers" in row} == {"gfx942"}


STORE, WAIT, BARRIER, LOAD = "global_store_dword v0, v1", "s_waitcnt vmcnt(0)", "s_barrier", "global_load_dword v0, v1"


@pytest.mark.parametrize(
    ("code", "barriers"),
    [
        ([STORE, BARRIER, LOAD], 1),
        ([STORE, BARRIER, BARRIER, LOAD], 1),
        ([STORE, BARRIER, WAIT, LOAD], 1),
        ([STORE, "s_waitcnt lgkmcnt(0)", BARRIER, LOAD], 1),
        ([STORE, WAIT, STORE, BARRIER, LOAD, BARRIER, LOAD], 1),
        ([".LBB0_1:", LOAD, BARRIER, STORE, "s_cbranch_scc1 .LBB0_1", "s_endpgm"], 1),
        ([STORE, "s_cbranch_scc1 .LBB0_1", WAIT, ".LBB0_1:", BARRIER, LOAD], 1),
        ([STORE, WAIT, BARRIER, LOAD], 0),
        ([STORE, "s_waitcnt vmcnt(0) lgkmcnt(0)", BARRIER, LOAD], 0),
        ([STORE, BARRIER, WAIT, BARRIER, LOAD], 0),
        ([LOAD, BARRIER, STORE], 0),
        ([STORE, LOAD], 0),
        ([".LBB0_1:", LOAD, WAIT, BARRIER, STORE, "s_cbranch_scc1 .LBB0_1", "s_endpgm"], 0),
        ([STORE, BARRIER, "s_endpgm", LOAD], 0),
    ],
)
def test_unordered_barriers(code, barriers):
    assert unordered_barriers("\n".join(code)) == barriers

"""Part 1 runs about forty of the tests that need a GPU, and keeps the name and the message of each that fails."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from bench.environment import ROOT
from bench.gpu.setting import Cells, Setting
from bench.rows import Found, found

FILES = ("tests/ops/test_gpu_ops.py", "tests/test_gpu.py", "tests/ops")  # in this order
# The most cases of a test: of the engine's, of the ops' on a GPU, and of one op's, which has many.
MOST_CASES = {"tests/test_gpu.py": 2, "tests/ops/test_gpu_ops.py": 2, "tests/ops": 1}
MORE_CASES = {
    "test_nothing_waits_for_the_device": 9,
    "test_a_window_waits_for_nothing_but_copies_on_their_way": 9,
    "test_ways_to_run_change_no_answer": 5,
}
MOST_WORKERS = 16
REHEARSED = ("tests/test_flight.py", "tests/test_attention.py")  # on a CPU, where those are skipped
REHEARSED_NAMES = ("test_fly", "test_an_error_gives_the_switch_back")
SECONDS = 85  # for kernels and tests


def cells(setting: Setting) -> Cells:
    yield "kernels", lambda: compiled_kernels(setting)
    yield "tests", lambda: tested(setting)


def compiled_kernels(setting: Setting) -> list[Found]:
    """Compile all kernels for this card into Triton's cache, on all cores at once, so that no test waits for the compiler."""
    from bench.ops.kernels import launches

    start = time.perf_counter()
    if setting.machine.rehearsal:
        architecture, jobs = "sm_90", launches("sm_90")[:2]
    else:
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
        jobs = launches(architecture)
    # The workers are new processes without the interpreter, in which nothing is compiled.
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _compiles_for_real)
    try:
        failed = [error for error in pool.map(_compile, [(architecture, job) for job in jobs]) if error]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [found("", {"kernels": len(jobs), "failed": failed, "seconds": time.perf_counter() - start})]


def _compiles_for_real() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


def _compile(job: tuple[str, Any]) -> str | None:
    """Compile one kernel. Returns what went wrong; None: nothing."""
    from bench.ops.kernels import compile_launch

    try:
        compile_launch(job)
    except Exception as error:  # one kernel that does not compile is a finding, and the tests go on
        return f"{job[1].kernel} {dict(job[1].constants)}: {type(error).__name__}: {error}"[:500]
    return None


def rank(name: str) -> int:
    """The place of a test's file in `FILES`."""
    return next((at for at, path in enumerate(FILES) if name.startswith(path)), len(FILES))


def most_cases(name: str) -> int:
    """The number of cases of a test that are kept."""
    return MORE_CASES.get(name.rpartition("::")[2]) or MOST_CASES[FILES[min(rank(name), len(FILES) - 1)]]


def spread(cases: list[Any], most: int) -> list[Any]:
    """At most so many of the cases at even distances, with the first and the last."""
    if len(cases) <= most:
        return cases
    return [cases[round(at * (len(cases) - 1) / max(1, most - 1))] for at in range(most)]


class Watcher:
    """A plugin that keeps a few cases of each test, stops in time, and writes each failure to the results at once."""

    def __init__(self, setting: Setting, seconds: float) -> None:
        self._setting, self._end = setting, time.perf_counter() + seconds
        self._session: pytest.Session | None = None
        self.counts: Counter[str] = Counter()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Keep some cases of each test. The GPU's own tests come first, and those that compile layers last."""
        self._session = session
        by_test: dict[str, list[pytest.Item]] = {}
        for item in items:
            if self._wanted(item):
                by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
        kept = [item for name, cases in by_test.items() for item in spread(cases, most_cases(name))]
        items[:] = sorted(kept, key=lambda item: ("compile" in item.nodeid, rank(item.nodeid)))

    def _wanted(self, item: pytest.Item) -> bool:
        if self._setting.machine.rehearsal:
            return item.originalname in REHEARSED_NAMES
        # Of the ops' tests those in Triton; in PyTorch they run on every CPU.
        return item.get_closest_marker("gpu") is not None and "torch-cuda" not in item.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the outcomes, and write a failure to the results."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            values = {"outcome": f"failed in {report.when}", "message": report.longreprtext[-3000:]}
            self._setting.keep(f"tests, {report.nodeid}", [found("", values)])
        if time.perf_counter() > self._end:
            self._session.shouldstop = "out of time"


def tested(setting: Setting) -> list[Found]:
    """Run the tests and count what passed and failed. A JUnit file lies beside the results."""
    taken = setting.known("tests, kernels", "took") or 0.0
    watcher, start = Watcher(setting, max(SECONDS - taken, SECONDS / 3)), time.perf_counter()
    files = REHEARSED if setting.machine.rehearsal else FILES
    junit = setting.folder / "tests.xml"
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={junit}",
        "--deselect",
        "tests/ops/test_compile.py",
        "--rootdir",
        str(ROOT),
    ]
    there = os.getcwd()  # noqa: PTH109 - to be gone back to
    os.chdir(ROOT)
    try:
        code = pytest.main([*options, *files], plugins=[watcher])
    finally:
        os.chdir(there)
    return [found("", {"exit_code": int(code), **watcher.counts, "seconds": time.perf_counter() - start})]

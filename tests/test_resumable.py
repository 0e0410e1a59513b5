"""Output files of long runs: killed at any moment, started twice, damaged, and pointed at what must not be replaced."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from geep_triton import resumable
from geep_triton.resumable import InputChanged, InputFile, ResumableFile

SEED = 0  # of the moments at which a run is killed
KILLS = 60  # at most
RUN = {"policy": "full", "input_sha256": "abc"}
LINES = [json.dumps({"line": number, "text": "é" * (number % 7)}) + "\n" for number in range(60)]


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out.jsonl"


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_until(output: Path, end: int, run=RUN) -> str | None:
    """A run that ends, as if killed, after so many lines; what it said at its start."""
    with ResumableFile(output) as file:
        said = file.resume(run)
        while file.lines < end:
            file.write(LINES[file.lines : file.lines + 3], {"total": file.lines + 3})
    return said


def finish(output: Path, run=RUN) -> tuple[str | None, int]:
    with ResumableFile(output) as file:
        said, first = file.resume(run), file.lines
        assert file.counts == ({"total": first} if first else {})
        while file.lines < len(LINES):
            file.write(LINES[file.lines : file.lines + 3], {"total": file.lines + 3})
        file.finish()
    assert output.read_text(encoding="utf-8") == "".join(LINES)
    return said, first


def test_it_appears_when_it_is_whole(output):
    output.write_text("old")
    assert write_until(output, 30) is None
    assert output.read_text() == "old"
    assert left(output.parent) == {"out.jsonl", "out.jsonl.partial", "out.jsonl.partial.json"}
    assert finish(output) == (None, 30)
    assert left(output.parent) == {"out.jsonl"}


def test_what_was_half_written_is_cut_off(output):
    write_until(output, 30)
    with output.with_name("out.jsonl.partial").open("a") as file:
        file.write(LINES[30] + LINES[31][:4])
    assert finish(output) == (None, 30)


WORKER = """
import importlib.util, json, sys, types
from pathlib import Path
# Of the package only this file is loaded: torch alone would take seconds at each start.
sys.modules["geep_triton"] = types.ModuleType("geep_triton")
sys.modules["geep_triton.checks"] = types.SimpleNamespace(OutputTaken=type("OutputTaken", (Exception,), {}))
spec = importlib.util.spec_from_file_location("resumable", sys.argv[1])
resumable = importlib.util.module_from_spec(spec); sys.modules["resumable"] = resumable; spec.loader.exec_module(resumable)
lines = json.loads(Path(sys.argv[3]).read_text())
with resumable.ResumableFile(Path(sys.argv[2])) as file:
    said = file.resume({"run": 1})
    print(file.lines, said, flush=True)
    step = int(sys.argv[4])
    while file.lines < len(lines):
        file.write(lines[file.lines : file.lines + step], {"total": file.lines + step})
    file.finish()
"""


def worker(output: Path, lines: Path, step: int = 3, **options) -> subprocess.Popen:
    """A process that writes so many lines at a time, each time down to the disk."""
    command = [sys.executable, "-c", WORKER, resumable.__file__, str(output), str(lines), str(step)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_kills_at_any_moment_lose_and_double_nothing(output, tmp_path_factory):
    many = [f'{{"line": {number}}}\n' for number in range(6000)]
    source = tmp_path_factory.mktemp("lines") / "lines.json"
    source.write_text(json.dumps(many))
    generator, starts = random.Random(SEED), []
    for _ in range(KILLS):
        process = worker(output, source)
        starts.append(process.stdout.readline().split(maxsplit=1))
        time.sleep(generator.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if output.exists():
            break
        assert int(starts[-1][0]) % 3 == 0
        assert starts[-1][1] == "None\n" or (starts[-1][0] == "0" and "killed at its first lines" in starts[-1][1])
    assert len(starts) > 5
    first = [int(start) for start, _ in starts]
    assert first == sorted(first)  # nothing that was recorded is lost again
    if not output.exists():
        assert worker(output, source, step=600).wait() == 0
    assert output.read_text() == "".join(many)


def test_a_kill_between_the_last_two_steps(output, monkeypatch):
    """The output is there and the record of its run, too: the same run again starts over, and replaces it by the same."""
    with ResumableFile(output) as file:
        file.resume(RUN)
        file.write(LINES, {"total": len(LINES)})
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        file.finish()
    monkeypatch.undo()
    assert left(output.parent) == {"out.jsonl", "out.jsonl.partial.json"}
    said, first = finish(output)
    assert first == 0
    assert "starting over" in said
    assert left(output.parent) == {"out.jsonl"}


def test_two_runs_of_one_output(output, tmp_path):
    with ResumableFile(output) as first:
        first.resume(RUN)
        first.write(LINES[:3], {"total": 3})
        (tmp_path / "linked").symlink_to(tmp_path)
        for again in (output, tmp_path / "linked" / "out.jsonl"):
            with pytest.raises(ValueError, match="another run is writing .*out.jsonl: wait"):
                ResumableFile(again)
        first.write(LINES[3:], {"total": len(LINES)})
        first.finish()
        with ResumableFile(output) as second:  # the first is whole: the next may begin though the first still lives
            assert second.resume(RUN) is None
    (tmp_path / "linked").unlink()
    assert left(tmp_path) == {"out.jsonl"}
    assert output.read_text(encoding="utf-8") == "".join(LINES)


def test_a_lock_goes_with_its_process(output, tmp_path):
    source = tmp_path / "lines.json"
    source.write_text(json.dumps(LINES))
    process = worker(output, source)
    assert process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    if not output.exists():
        with pytest.raises(ValueError, match="another run is writing"):
            ResumableFile(output)
    process.kill()
    process.wait()
    process.stdout.close()
    with ResumableFile(output) as file:
        file.resume({"run": 1})


def test_another_run_starts_over_and_says_why(output):
    write_until(output, 30)
    said, first = finish(output, RUN | {"policy": "constant:3", "new": 1})
    assert (said.partition(" belongs to ")[2], first) == ("another run (new, policy): starting over", 0)


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b'{"run": {}}', b"[" * 100_000, b'{"check": {}}',
        lambda state: {**state, "lines": 3}, lambda state: {**state, "bytes": -1}, lambda state: {**state, "bytes": "5"},
        lambda state: {**state, "counts": None}, lambda state: {**state, "run": [1]}, lambda state: {**state, "lines": 10**30},
    ],
)  # fmt: skip
def test_a_damaged_record_starts_over(output, damage):
    write_until(output, 30)
    state = output.with_name("out.jsonl.partial.json")
    state.write_bytes(damage if isinstance(damage, bytes) else json.dumps(damage(json.loads(state.read_text()))).encode())
    said, first = finish(output)
    assert first == 0
    assert said.endswith("is damaged: starting over")
    assert left(output.parent) == {"out.jsonl"}


@pytest.mark.parametrize(
    "damage", [b"", b"short\n", None, lambda whole: whole.replace(b"17", b"71"), lambda whole: b"x" + whole]
)
def test_damaged_lines_start_over(output, damage):
    write_until(output, 30)
    partial = output.with_name("out.jsonl.partial")
    whole = partial.read_bytes()
    partial.unlink() if damage is None else partial.write_bytes(damage if isinstance(damage, bytes) else damage(whole))
    said, first = finish(output)
    assert first == 0
    assert "starting over" in said


def test_a_run_that_ends_before_it_resumes_leaves_all_as_it_was(output):
    with ResumableFile(output):
        assert left(output.parent) == {"out.jsonl.partial"}
    assert left(output.parent) == set()
    write_until(output, 30)
    with ResumableFile(output):
        pass
    assert finish(output) == (None, 30)


def test_forget(output):
    with ResumableFile(output) as file:
        file.resume(RUN)
        file.write(LINES[:3], {})
        file.forget()
    assert left(output.parent) == set()


def make_kind(path: Path, kind: str) -> int:
    if kind == "a device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a link":
        path.with_name("target").write_text("old")
        path.symlink_to("target")
    else:
        path.symlink_to("nowhere")
    return path.lstat().st_ino


@pytest.mark.parametrize("suffix", ["", ".partial", ".partial.json", ".partial.json.new"])
@pytest.mark.parametrize("kind", ["a device", "a pipe", "a folder", "a socket", "a link", "a link to nothing"])
def test_only_regular_files_are_replaced(output, kind, suffix):
    path = output.with_name(output.name + suffix)
    made = make_kind(path, kind)
    before = left(output.parent)
    with pytest.raises(ValueError, match=f"out.jsonl{suffix} is {kind.removesuffix(' to nothing')}, which would be replaced"):
        ResumableFile(output)
    assert left(output.parent) == before
    assert path.lstat().st_ino == made
    if kind == "a link":
        assert path.with_name("target").read_text() == "old"


def test_a_link_that_comes_while_it_runs_is_not_replaced(output):
    with ResumableFile(output) as file:
        file.resume(RUN)
        file.write(LINES, {"total": len(LINES)})
        make_kind(output, "a link")
        with pytest.raises(ValueError, match="is a link"):
            file.finish()
    output.unlink()
    assert finish(output) == (None, len(LINES))


@pytest.mark.parametrize("suffix", ["", ".partial", ".partial.json", ".partial.json.new"])
def test_what_is_read_is_not_written_to(output, suffix):
    source = output.with_name(output.name + suffix)
    source.write_text("my only copy")
    other = output.with_name("hard")
    os.link(source, other)
    for path in (source, other, output.parent / ".." / output.parent.name / source.name):
        with pytest.raises(ValueError, match=f"out.jsonl{suffix} would be overwritten, but it is an input"):
            ResumableFile(output, [output.parent / "none", path])
    assert source.read_text() == "my only copy"


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path, error, message in (
        (tmp_path / "none" / "out", ValueError, "cannot be written: .*none is not a folder"),
        (tmp_path / "file" / "out", ValueError, "cannot be written: .*file is not a folder"),
        (tmp_path / ("x" * 250), OSError, "too long"),
    ):
        with pytest.raises(error, match=message):
            ResumableFile(path)
    assert left(tmp_path) == {"file"}


def test_a_partial_file_that_goes_away(output):
    with ResumableFile(output) as file:
        file.resume(RUN)
        file.write(LINES, {"total": len(LINES)})
        output.with_name("out.jsonl.partial").unlink()
        with pytest.raises(ValueError, match="was removed while it was written"):
            file.finish()


def test_an_input_that_changes(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("one\ntwo")
    source = InputFile(path)
    source.check()
    os.utime(path)
    path.chmod(0o600)
    source.check()  # what it holds is the same
    before = path.stat()
    for change in (
        lambda: path.write_text("two\none"),
        lambda: path.write_text("one\ntwo\nthree"),
        lambda: path.write_text(""),
        path.unlink,
    ):
        path.write_text("one\ntwo")
        source.check()
        change()
        if path.exists():
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(InputChanged, match="in.jsonl changed while it was read"):
            source.check()
    other = tmp_path / "other"
    other.write_text("two\none")
    other.replace(path)
    with pytest.raises(InputChanged):
        source.check()
    with pytest.raises(ValueError, match="no such file|is a folder"):
        InputFile(tmp_path)


def test_a_file_of_the_users_own_in_the_place_of_a_partial_one(tmp_path):
    output = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.partial").write_text("mine")
    with pytest.raises(ValueError, match=r"out.jsonl.partial was not left by a run and would be overwritten"):
        ResumableFile(output)
    assert (tmp_path / "out.jsonl.partial").read_text() == "mine"
    assert not (tmp_path / "out.jsonl.partial.json").exists()


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_an_output_that_is_no_name(name):
    with pytest.raises(ValueError, match="output must name a file|is a folder"):
        ResumableFile(Path(name))


def test_inputs_that_are_no_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(ValueError, match=f"is {what}, expected a regular file"):
            InputFile(path)


def test_an_input_of_one_line_is_not_held_in_memory(tmp_path):
    """Such are files of Arrow data, where many values are zeros."""
    with (tmp_path / "a").open("wb") as file:
        file.truncate(200 << 20)
    tracemalloc.start()
    try:
        InputFile(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()

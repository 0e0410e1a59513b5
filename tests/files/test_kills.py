"""A run over files that is killed at random moments, again and again, ends as one that nobody interrupted."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.faults.processes import run_killed
from geep_triton.checks import OutputTaken
from tests.files.lengths import Lengths, run
from tests.files.test_run import contents, shards

SEED = 0  # of the moments of the kills
KILLS = 12  # at least, of all runs of a test
CHANGES = 40  # to files, within which a process kills itself
SECONDS = 0.2  # or within which it is killed; a run takes about twice as long


def prepare(folder: Path) -> Path:
    """Shards of two formats, some so small that they share windows."""
    source = shards(folder, a=60, b=2, c=0, d=3, e=150)
    lines = [{"text": "x" * (number % 5), "n": number} for number in range(40)]
    (source / "f.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in lines).encode()))
    return source


def work(given: Path, output: Path) -> None:
    run(given, output, Lengths(seconds=0.01), bad_rows="skip")


@pytest.mark.parametrize("seed", range(SEED, SEED + 2))
def test_a_folder_of_shards_killed_at_any_moment(tmp_path, seed):
    source, out, whole = prepare(tmp_path / "in"), tmp_path / "out", tmp_path / "whole"
    run(source, whole, bad_rows="skip")
    random_, kills = random.Random(seed), 0
    while kills < KILLS:
        while not run_killed(lambda: work(source, out), random_, CHANGES, SECONDS, tmp_path / "log"):
            kills += 1
            for path in out.glob("[a-f]*"):  # what is there is whole
                assert path.read_bytes() == (whole / path.name).read_bytes()
        assert contents(out) == contents(whole)
        skipped = Path("_geep", "skipped", "f.jsonl.gz.jsonl")
        assert (out / skipped).read_bytes() == (whole / skipped).read_bytes()
        assert not list(out.rglob("*.part*"))
        shutil.rmtree(out)


@pytest.mark.parametrize("seed", range(SEED, SEED + 2))
def test_a_single_file_killed_at_any_moment(tmp_path, seed):
    source = prepare(tmp_path / "in") / "e.parquet"
    out, whole, left = tmp_path / "out.parquet", tmp_path / "whole.parquet", tmp_path / "out.parquet.unfinished"
    run(source, whole)
    random_, kills = random.Random(seed), 0

    def goes_on() -> None:
        if left.exists() or not out.exists():
            work(source, out)

    while kills < KILLS:
        while not run_killed(goes_on, random_, CHANGES, SECONDS, tmp_path / "log"):
            kills += 1
            assert not out.exists() or out.read_bytes() == whole.read_bytes()
        assert out.read_bytes() == whole.read_bytes()
        assert pq.read_table(out)["id"].to_pylist() == list(range(150))
        with pytest.raises(OutputTaken, match="is there already"):
            run(source, out)
        assert {path.name for path in tmp_path.iterdir()} == {"in", "log", out.name, whole.name}
        out.unlink()

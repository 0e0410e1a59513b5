"""examples/quickstart.py."""

from __future__ import annotations

import subprocess
import sys

from tests.examples.scripts import ROOT, run

DATA = ROOT / "examples" / "data"


def test_quickstart(minilm_path, tmp_path):
    """The README's first command, with fewer epochs and rows."""
    (tmp_path / "data").mkdir()
    for split, step in (("train", 4), ("dev", 8), ("test", 8)):
        lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(lines[::step]), encoding="utf-8")
    done = run("quickstart.py", "--epochs", 2, "--data", tmp_path / "data", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines() if line.startswith(("full", "constant", "threshold", "pred"))]
    assert [row[0].split(":")[0] for row in table] == ["full", "constant", "threshold", "predicted"]
    assert float(table[0][1]) >= 0.7
    for name in ("exit_histogram.png", "accuracy_speed.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    lines = done.stdout[done.stdout.index("    from geep_triton") :]
    code = "\n".join(line.strip() for line in lines.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("['positive']", "['negative']")

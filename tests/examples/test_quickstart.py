"""examples/quickstart.py."""

from __future__ import annotations

import subprocess
import sys

from tests.examples.scripts import ROOT, run


def test_quickstart(minilm_path, tmp_path):
    """The README's first command, with fewer epochs."""
    done = run("quickstart.py", "--epochs", 1, "--output", tmp_path / "out")
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

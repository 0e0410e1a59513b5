"""What `python -m build` makes: an sdist and a wheel, and the wheel installed and used where there is no checkout."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import geep_triton
from tests.conftest import TEXTS, WORDS

ROOT = Path(__file__).parent.parent
# By metadata: to look for the module "pip" makes setuptools take its distutils away, which torch.compile needs.
INSTALLED = {(distribution.metadata["Name"] or "").lower() for distribution in importlib.metadata.distributions()}
MISSING = [name for name in ("build", "pip", "setuptools") if name not in INSTALLED]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def run(*command: object, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that is made from it: from a copy, since a build leaves files where it builds."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("geep_triton", "tests", "bench", "examples"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "results", "data"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    run(sys.executable, "-m", "build", "--no-isolation", source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment that holds the wheel; what it depends on it sees in this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path alone: the finder of an editable installation lies in a .pth file of the folder named, and those are not read.
    (own / "parent.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    return python


def test_a_wheel_holds_the_library_and_nothing_else(built, wheel):
    files = [*(ROOT / "geep_triton").rglob("*.py"), *(ROOT / "geep_triton" / "report" / "templates").iterdir()]
    expected = {str(path.relative_to(ROOT)) for path in files} | {"geep_triton/py.typed"}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(described).decode())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("LICENSE") for name in names)
    assert (metadata["Name"], metadata["Version"]) == ("geep-triton", geep_triton.__version__)
    assert metadata.get_payload().startswith("# ")
    assert [path.name for path in built.glob("*.tar.gz")] == [f"geep_triton-{geep_triton.__version__}.tar.gz"]


def test_what_a_wheel_needs_is_there(python):
    command = [sys.executable, "-m", "pip", "--python", python, "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: some package's needs are not met, which may be another's
    assert [line for line in done.stdout.splitlines() if line.startswith("geep-triton")] == []


USE = """
import importlib, pkgutil, sys
from importlib.metadata import requires, version
from pathlib import Path

import geep_triton
from geep_triton import *

where, folder, words, texts = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split("|"), sys.argv[4].split("|")
assert where in Path(geep_triton.__file__).parents, geep_triton.__file__
assert version("geep-triton") == geep_triton.__version__
assert {"MultiExitBert", "Engine", "MultiExitTrainer", "build_exit_table", "calibrate", "audit"} <= set(geep_triton.__all__)
for module in pkgutil.walk_packages(geep_triton.__path__, "geep_triton."):
    importlib.import_module(module.name)

from transformers import BertTokenizer

tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
model = MultiExitBert(MultiExitBertConfig(
    vocab_size=len(words), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, num_labels=3,
)).eval()
model.exit_table = build_exit_table(model, tokenizer, texts, 0.99, progress=False)
engine = Engine(model, tokenizer, "predicted")
expected = engine.predict(texts)
engine.save_pretrained(folder)
found = Engine.from_pretrained(folder, policy="predicted").predict(texts)
assert (found.logits - expected.logits).abs().max() < 1e-4
assert found.exit_layers.tolist() == expected.exit_layers.tolist()
print("used")
"""


def test_a_wheel_is_used_where_there_is_no_checkout(python, tmp_path):
    arguments = (python.parent.parent, tmp_path / "model", "|".join(WORDS), "|".join(TEXTS))
    assert run(python, "-I", "-c", USE, *arguments, cwd=tmp_path).splitlines()[-1] == "used"


def test_a_wheel_brings_the_command(python, tmp_path):
    said = run(python.parent / "geep", "--version", cwd=tmp_path)
    assert said == f"geep_triton {geep_triton.__version__}\n"
    assert "geep exits" in run(python, "-I", "-m", "geep_triton", "exits", "--help", cwd=tmp_path)

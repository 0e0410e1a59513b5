"""Imports point down only, and importing the package stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "geep_triton"
# Rooms by floor; a room may import from lower floors and from itself. `modeling` stands above `table` because a model carries
# its exit table: it is loaded and saved with it.
FLOORS = {
    "checks": 0,
    "compat": 0,
    "pushing": 0,
    "saving": 0,
    "tensor_files": 0,
    "timing": 0,
    "version": 0,
    "warn": 0,
    "exit_config": 0.1,
    "labels": 0.1,
    "config": 0.2,
    "calibrated": 0.2,
    "answers": 0.3,
    "model_card": 0.4,
    "resumable": 0.2,
    "unfinished": 0.2,
    "ops": 1,
    "tokens": 1,
    "files": 1.5,
    "table": 2,
    "modeling": 2.5,
    "runners": 3,
    "policies": 3,
    "training": 4,
    "engine": 4,
    "over_files": 5,
    "promises": 5,
    "explanations": 5.5,
    "report": 6,
    "serving": 6,
    "cross_encoder": 6,
    "from_fine_tuned": 6,
    "cli": 7,
    "__main__": 8,
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        names |= {module for module in modules if module.split(".")[0] == "geep_triton"}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room(path.relative_to(PACKAGE).parts)
    for name in own_imports(path):
        assert name != "geep_triton", f"{path.name} imports the package's top instead of a module"
        other = room(tuple(name.split(".")[1:]))
        assert other == own or FLOORS[other] < FLOORS[own], f"{own} must not import {other}"


# A name with one of these words is the name of something of ours.
OURS = re.compile(
    "(^|_)(batche?|bert|calibration|config|curriculum|encoder|engine|judge|layers|leave|model|observer|parts|policie|policy|pool"
    "|prediction|promise|recipe|record|rule|runner|sample|scorer|skip|stage|start|states|table|token|trainer|watch|window)s?(_|$)"
)
OF_ANY_STATES = re.compile(r"\b(Batch|Pools|Runner|Scorer|WindowLayers|WindowRun)\[Any\]")  # a class of ours, and says so
# Where `Any` is true.
ANY = {
    ("config.py", "config_dict"): "JSON",
    ("calibrated.py", "calibration"): "JSON",
    ("exit_config.py", "calibration"): "JSON",
    ("exit_config.py", "ranking_calibration"): "JSON",
    ("modeling/storing.py", "config"): "JSON",
    ("saving.py", "config"): "JSON",
    ("engine/quantize.py", "engine"): "arguments of `Engine`",
    ("engine/build_exit_table.py", "engine"): "further arguments of an engine",
    ("from_fine_tuned.py", "config"): "further fields of a configuration",
    ("modeling/loading.py", "model_args"): "transformers' own",
    ("modeling/model.py", "model_args"): "transformers' own",
}


def typed_any(source: str) -> set[str]:
    """Parameters, fields and variables with a word of ours in their names whose types have `Any` or `object` in them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        typed = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            of = node.args
            given = (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg)
            typed = [(argument.arg, argument.annotation) for argument in given if argument is not None]
        elif isinstance(node, ast.AnnAssign):
            typed = [(ast.unparse(node.target).rpartition(".")[2], node.annotation)]
        for name, annotation in typed:
            told = "Any" if annotation is None else OF_ANY_STATES.sub("", ast.unparse(annotation))
            if OURS.search(name) and re.search(r"\b(Any|object)\b", told):
                found.add(name)
    return found


def imports_by_name(source: str) -> bool:
    """Whether a module is imported, or can be, whose name is not in an import statement."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        names |= {getattr(node, field, None) for field in ("id", "attr", "name")}
    return bool(names & {"import_module", "__import__"})


def test_nothing_of_ours_is_typed_any():
    """What is named after a class of ours says so: `Any` would hide an import that points up."""
    typed = [path for path in MODULES if path.parent.name != "kernels"]  # whose pointers have no types
    found = {(path.relative_to(PACKAGE).as_posix(), name) for path in typed for name in typed_any(path.read_text("utf-8"))}
    assert found == ANY.keys()


def test_modules_are_imported_by_statements():
    """Beside the package's lazy names, and an op's implementation, which lies in the op's own room."""
    found = {path.relative_to(PACKAGE).as_posix() for path in MODULES if imports_by_name(path.read_text("utf-8"))}
    assert found == {"ops/dispatch.py"}


@pytest.mark.parametrize(
    "source",
    [
        *("def f(engine): ...", "def f(engine: Any): ...", "def f(an_engine: Any | None, /): ...", "def f(model: 'Any'): ..."),
        *("async def f(*, model: Optional[Any] = None): ...", "def f(*models: object): ...", "def f(**windows: Any): ..."),
        *("class A:\n    table: typing.Any", "class A:\n    def f(self, policies: list[Any]): ...", "tokens: Any = f()"),
        *("def f(self):\n    self._runner: Any = 3", "def f(runner: Runner[Any] | Any): ..."),
    ],
)
def test_an_any_in_the_place_of_ours_is_seen(source):
    assert typed_any(source)


@pytest.mark.parametrize(
    "source",
    [
        *("def f(engine: Engine | None, value: Any, row: object): ...", "def f(runner: str | Runner[Any]): ..."),
        *("f(lambda model: model)", "class A:\n    tables: list[ExitTable]\n    remodelled: Any", "model = f()"),
    ],
)
def test_an_any_that_hides_nothing_of_ours_is_left_alone(source):
    assert typed_any(source) == set()


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("importlib.import_module('geep_triton.engine.engine')", True),
        ("from importlib import import_module as load", True),
        ("load = __import__", True),
        ("import importlib.util\nimportlib.util.find_spec('triton')", False),
    ],
)
def test_an_import_by_name_is_seen(source, seen):
    assert imports_by_name(source) == seen


def modules_imported(path: Path) -> set[str]:
    """Modules of ours that are really imported, not only for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {module for module in found if module.split(".")[0] == "geep_triton"}


def test_no_module_imports_itself_by_way_of_others():
    imports = {
        ".".join(("geep_triton", *path.relative_to(PACKAGE).with_suffix("").parts)): modules_imported(path) for path in MODULES
    }
    while leaves := {name for name, needed in imports.items() if not needed & imports.keys()}:
        imports = {name: needed for name, needed in imports.items() if name not in leaves}
    assert imports == {}


def test_training_knows_no_table_batching_or_engine():
    for path in (PACKAGE / "training").glob("*.py"):
        rooms = {room(tuple(name.split(".")[1:])) for name in own_imports(path)}
        assert not rooms & {"table", "policies", "runners", "engine", "promises"}, path


def test_every_op_is_used():
    """A public function in `ops` is imported by another room, or by an op's module that another room imports."""
    defined, imports = {}, {}
    for path in MODULES:
        name = ".".join(("geep_triton", *path.relative_to(PACKAGE).with_suffix("").parts))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports[name] = {
            (node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        if path.parent.name == "ops" and path.stem not in ("__init__", "backend", "dispatch"):
            public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
            defined |= {(name, function): name for function in public}
    reached = {name for name in imports if not name.startswith("geep_triton.ops")}
    while new := {module for name in reached for module, _ in imports[name] if module in defined.values()} - reached:
        reached |= new
    used = {pair for name in reached for pair in imports[name]}
    assert sorted(defined.keys() - used) == []
    assert {function for _, function in defined} >= {"insert_add", "lookup", "score_exits", "skip_gate", "partition"}


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_as_light_as_transformers_bert():
    """Beside our own few modules nothing is imported that transformers' BERT does not import: so it takes no longer."""
    extra = modules_after("import geep_triton") - modules_after("from transformers import BertModel")
    assert {name for name in extra if not name.startswith("geep_triton")} == set()
    assert "geep_triton.training" not in extra


def test_import_works_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import geep_triton as g; "
        "g.Engine; g.ExitTable; g.MultiExitTrainer; g.build_exit_table; g.Policy; g.Predictions; g.calibrate; g.audit; "
        "g.give_exits; g.CrossEncoder"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_raises():
    import geep_triton

    with pytest.raises(AttributeError, match="nothing_here"):
        _ = geep_triton.nothing_here
    assert set(geep_triton.__all__) >= {"MultiExitBert", "Engine", "ExitTable", "MultiExitTrainer"}


def test_every_public_name_is_offered_before_it_is_imported():
    code = "import geep_triton as g; there = dir(g); assert not {*g.__all__} - {*there} and there == sorted(there), there"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_warnings_find_the_users_line():
    """Through `geep_triton.warn` alone, which does."""
    for path in MODULES:
        if path.name == "warn.py":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert "warnings.warn" not in {ast.unparse(call.func) for call in calls}, path


EVERY_MODULE = "[importlib.import_module(m.name) for m in pkgutil.walk_packages(geep_triton.__path__, 'geep_triton.')]"


@pytest.mark.parametrize("before", ["pass", "from geep_triton import Engine", EVERY_MODULE])
def test_every_public_name_is_what_its_module_says(before):
    """However much of the package was imported before: a module of a function's name would take its place."""
    code = f"""
import importlib, inspect, pkgutil, geep_triton
{before}
for name, module in geep_triton._LAZY.items():
    thing = getattr(geep_triton, name)
    assert not inspect.ismodule(thing) and thing is getattr(importlib.import_module(module), name), (name, thing)
    assert thing.__module__ == module and thing.__name__ == name, (name, thing)
for name in geep_triton.__all__:
    exec(f"from geep_triton import {{name}}")
    assert not inspect.ismodule(eval(name)), name
modules = {{m.name for m in pkgutil.iter_modules(geep_triton.__path__)}}
assert not modules & set(geep_triton.__all__), modules & set(geep_triton.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)

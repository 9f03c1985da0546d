"""The house stands as DESIGN.md draws it: who may import whom, what an import costs, which names are public."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbtune
from tests.support import house
from tests.support.house import (
    DOORS,
    FLOORS,
    KERNELS,
    LEAVES,
    NBTUNE,
    REPO,
    imports,
    imports_of,
    is_ours,
    may_import,
    module_name,
    parsed,
    room_of,
    sources,
)

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "plotly", "bitsandbytes", "triton", "accelerate")


def test_imports_follow_the_arrows() -> None:
    wrong = [
        f"{path.relative_to(REPO)}:{line}: {room_of(module_name(path))} must not import {module}"
        for path in sources(NBTUNE)
        if path != NBTUNE / "__init__.py"
        for module, line in imports(path)
        if not may_import(room_of(module_name(path)), room_of(module))
    ]
    assert wrong == []


def test_imports_inside_data_follow_its_rooms() -> None:
    wrong = [
        f"{path.relative_to(REPO)}:{line}: {module}"
        for path in sources(NBTUNE / "data")
        if path != NBTUNE / "data" / "__init__.py"
        for module, line in imports(path)
        if not house.may_import_in_data(module_name(path), module)
    ]
    assert wrong == []


def test_an_arrow_against_the_stream_of_data_is_seen() -> None:
    assert house.may_import_in_data("nbtune.data.prepare.cache", "nbtune.data.sources.rows.Source")
    assert not house.may_import_in_data("nbtune.data.sources.stream", "nbtune.data.prepare.cache")
    assert house.may_import_in_data("nbtune.data.sources.stream", "nbtune.spec.RunSpec")
    rooms = {path.parent.name for path in (NBTUNE / "data").glob("*/__init__.py")}
    assert rooms - {"builtin"} == set(house.DATA_ROOMS)


def test_no_circle_of_imports() -> None:
    """Also inside functions: who reads one file of a circle must read them all."""
    assert house.circles(house.our_graph()) == []


def test_no_module_waits_for_a_package_that_brings_it() -> None:
    """Where a package's own file imports its modules, none of these asks the package for another: two threads, one in
    the package and one in such a module, would wait for each other, and Python lets one go on with half a module."""
    ours = {house.module_name(path): path for path in house.sources(NBTUNE, KERNELS)}
    own = {name: [n for n in house.parsed(path).body if isinstance(n, ast.ImportFrom)] for name, path in ours.items()}
    bring = {n for n, path in ours.items() if path.stem == "__init__" and any(_within(i.module, n) for i in own[n])}
    assert {"nbtune.models.accelerate", "nbtune_kernels"} <= bring
    assert [(name, i.lineno) for name in ours for i in own[name] if i.module in bring and _within(name, i.module)] == []


def _within(module: str | None, package: str) -> bool:
    return (module or "").startswith(f"{package}.")


def _graph(**texts: str) -> dict[str, set[str]]:
    return house.graph({name: ast.parse(text) for name, text in texts.items()})


def test_a_circle_is_seen_also_one_inside_functions_but_none_of_a_type_checker() -> None:
    circle = _graph(a="import b", b="def f():\n    from c import x\n", c="import a", d="import a")
    assert house.circles(circle) == [["a", "b", "c"]]
    lazy = _graph(a="_HOMES = {'x': 'b'}", b="import a", c="from a import x")
    assert lazy == {"a": set(), "b": {"a"}, "c": {"b"}}
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\nelse:\n    import c\n"
    assert _graph(a="import b", b=typing, c="") == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_imports_are_absolute() -> None:
    lines = [f"{p.relative_to(REPO)}:{n}" for p in sources(NBTUNE) for n in house.relative_imports(parsed(p))]
    assert lines == []
    assert house.relative_imports(ast.parse("import a\ndef f():\n    from . import b\nfrom ..c import d")) == [3, 4]


def test_what_is_imported_is_there() -> None:
    """Also what a function imports only when it runs, and where a package's names are loaded from."""
    files = sources(NBTUNE, KERNELS, REPO / "tests", REPO / "example_notebooks")
    wrong = [f"{p.relative_to(REPO)}:{line}: {name}" for p in files for name, line in house.missing(parsed(p))]
    assert wrong == []


def test_an_import_of_nothing_is_seen() -> None:
    text = "def f():\n    from nbtune.gone import x\nfrom nbtune.errors import NbtuneError, Gone\n"
    text += "import nbtune.spec.gone\n"
    text += "_HOMES = {'x': 'nbtune.data.gone', 'load': 'nbtune.untrusted'}\nfrom nbtune.data import resolve\n"
    found = {name for name, _ in house.missing(ast.parse(text))}
    assert found == {"nbtune.gone.x", "nbtune.errors.Gone", "nbtune.spec.gone", "nbtune.data.gone"}


def test_every_room_is_one_that_the_design_names() -> None:
    rooms = {path.stem for path in NBTUNE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} <= {*FLOORS, *LEAVES, *DOORS}
    assert {"spec", "errors", "events", "device"} <= rooms


def test_the_kernels_do_not_know_nbtune() -> None:
    wrong = [
        f"{path.relative_to(REPO)}:{line}: {module}"
        for path in sources(KERNELS)
        for module, line in imports(path)
        if module.split(".")[0] == "nbtune"
    ]
    assert wrong == []


def test_an_arrow_against_the_stream_is_seen() -> None:
    """The check itself: each way to write an import is recognised."""
    text = (
        "import nbtune.train\nfrom nbtune import finetune\nfrom nbtune.store import run\nfrom ..widgets import x\n"
        "import importlib\ndef f():\n    importlib.import_module('nbtune.planner.plan')\nfrom .rows import read\n"
        "from nbtune.spec import RunSpec\nfrom nbtune import errors\n"
    )
    rooms = {room_of(module) for module, _ in imports_of(ast.parse(text), package="nbtune.data")}
    assert {room for room in rooms if not may_import("data", room)} == {"train", "api", "store", "widgets", "planner"}
    assert {"data", "spec", "errors"} <= rooms


def _accelerator_names(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "mps", "xpu", "hip"):
            if ast.unparse(node.value) in ("torch", "torch.backends", "torch.version"):
                yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [f"{getattr(node, 'module', '') or ''}.{alias.name}".lstrip(".") for alias in node.names]
            for name in names:
                if name.startswith(("torch.cuda", "torch.mps", "torch.backends.cuda", "torch.backends.mps")):
                    yield name, node.lineno


def test_only_the_device_room_names_the_accelerator() -> None:
    wrong = [
        f"{path.relative_to(REPO)}:{line}: {name}"
        for path in sources(NBTUNE)
        if not path.is_relative_to(NBTUNE / "device")
        for name, line in _accelerator_names(path)
    ]
    assert wrong == []


def test_nothing_prints_or_executes_text_outside_the_command_line() -> None:
    wrong = []
    for path in sources(NBTUNE, KERNELS):
        is_script = path.is_relative_to(NBTUNE / "cli")
        forbidden = {"exec", "eval"} | (set() if is_script else {"print"})
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forbidden:
                wrong.append(f"{path.relative_to(REPO)}:{node.lineno}: {node.func.id}()")
    assert wrong == []


def test_no_test_claims_something_of_all_that_may_be_nothing() -> None:
    wrong = [
        f"{path.relative_to(REPO)}:{node.lineno}"
        for path in sources(REPO / "tests")
        if path.name not in ("every.py", "with_other_versions.py")  # the second runs where there is no tests/
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Assert) and ast.unparse(node.test).startswith("all(")
    ]
    assert wrong == [], "write every() of tests.support.every"


def test_no_file_outgrows_its_reader() -> None:
    files = [*sources(NBTUNE, KERNELS), *(REPO / "js" / "src").rglob("*.js")]
    counted = {path.relative_to(REPO).as_posix(): house.lines(path) for path in files}
    assert {name: n for name, n in counted.items() if n > house.MOST_LINES} == {}


def test_no_function_wants_more_than_its_caller_remembers() -> None:
    found = {
        f"{path.relative_to(REPO).as_posix()}: {name}"
        for path in sources(NBTUNE, KERNELS)
        for name, _, _ in house.crowded(parsed(path))
    }
    assert found == set()


def test_a_crowded_function_is_seen() -> None:
    many = "a, b, c, d, e, f, g, h"
    text = (
        f"def eight({many}): ...\ndef nine({many}, i): ...\ndef named(a, *, {many[3:]}, i, j, k): ...\n"
        f"def _named(a, *, {many[3:]}, i): ...\n@triton.jit\ndef kernel({many}, i): ...\n"
        f"def _fake({many}, i): ...\n@op('x', _fake)\ndef _op({many}, i): ...\n"
        f"class C:\n    def __init__(self, {many}): ...\n    def method(self, {many}, i): ...\n"
        f"class _C:\n    def __init__(self, *, {many}, i): ...\ndef f():\n    def inner({many}, i): ...\n"
    )
    names = [name for name, _, _ in house.crowded(ast.parse(text))]
    assert names == ["nine", "_named", "C.method", "_C.__init__", "f.inner"]


def test_the_plan_of_the_house_names_files_that_exist() -> None:
    text = house.PAGE.read_text(encoding="utf-8")
    assert house.cited("see `nbtune/gone.py`, `nbtune/spec/` and `kernels/README.md`") == [
        "nbtune/gone.py",
        "nbtune/spec/",
        "kernels/README.md",
    ]
    assert [name for name in house.cited(text) if not (REPO / name).exists()] == []
    assert len(house.cited(text)) > 20


def test_the_picture_of_the_rooms_is_of_today() -> None:
    text = house.PAGE.read_text(encoding="utf-8")
    assert text == house.drawn(text), "run `python -m tests.support.house`, as `make docs` does"
    assert house.drawn(text.replace(" --> ", " <-- ")) == text, "what is old in it is drawn anew"


def test_no_machine_is_written_down() -> None:
    """No path of somebody's machine, and no registry's address in a lock file."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    paths = [REPO / name for name in tracked.split("\0") if name]
    ours = "/" + "work/", "/tmp/" + "nb"
    wrong = []
    for path in paths:
        if not path.is_file() or path.suffix in (".safetensors", ".png", ".gguf", ".parquet"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        wrong += [f"{path.relative_to(REPO)}: {word}" for word in ours if word in text]
        if path.name == "package-lock.json" and '"resolved"' in text:
            wrong.append(f"{path.relative_to(REPO)}: `resolved` addresses")
    assert wrong == []


# -- what an import costs ------------------------------------------------------------------------------------------


def in_a_new_python(code: str, *, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_nbtune_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"import nbtune, sys, json; print(json.dumps([m for m in {HEAVY!r} if sys.modules.get(m)]))"
    assert json.loads(in_a_new_python(code, cwd=tmp_path)) == []


def test_loading_the_extension_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "nbtune")
assert "finetune" in shell.magics_manager.magics["cell"], "there is no %%finetune"
print(json.dumps([m for m in {HEAVY!r} if sys.modules.get(m)]))
"""
    assert json.loads(in_a_new_python(code, cwd=tmp_path).splitlines()[-1]) == []


def test_a_room_alone_imports_nothing_heavy(tmp_path: Path) -> None:
    """Every room's `__init__` is light; what trains is imported when a run needs it."""
    packages = [f"nbtune.{path.parent.name}" for path in sorted(NBTUNE.glob("*/__init__.py"))]
    code = f"""
import importlib, json, sys
heavy = {{}}
for name in {packages!r}:
    importlib.import_module(name)
    found = [m for m in {HEAVY!r} if sys.modules.get(m)]
    if found:
        heavy[name] = found
        break
print(json.dumps(heavy))
"""
    assert json.loads(in_a_new_python(code, cwd=tmp_path)) == {}


@pytest.mark.slow
def test_packages_in_any_order_leave_the_public_functions_callable(tmp_path: Path) -> None:
    """No module is called like a public function, or `nbtune.plan` would depend on what was imported before."""
    modules = [module_name(path) for path in sources(NBTUNE) if path.name == "__init__.py"]
    code = f"""
import importlib, random, sys
names = {modules!r}
for seed in range(8):
    for loaded in [m for m in sys.modules if m == "nbtune" or m.startswith("nbtune.")]:
        del sys.modules[loaded]
    order = random.Random(seed).sample(names, len(names))
    for name in order:
        importlib.import_module(name)
    import nbtune
    for name in ("plan", "runs", "finetune", "attach"):
        assert callable(getattr(nbtune, name)), (name, order)
    assert isinstance(nbtune.RunSpec, type) and isinstance(nbtune.Plan, type) and isinstance(nbtune.Run, type)
"""
    in_a_new_python(code, cwd=tmp_path)


def test_no_module_is_called_like_a_public_name() -> None:
    modules = {path.stem if path.stem != "__init__" else path.parent.name for path in NBTUNE.glob("*")}
    assert modules & (set(nbtune.__all__) - {"__version__"}) == set()


# -- public names --------------------------------------------------------------------------------------------------


def _rank(name: str) -> tuple[int, str]:
    """ruff's order: CONSTANTS, then Classes, then functions."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


def _exported(path: Path) -> list[str] | None:
    """The `__all__` that a file writes down, or None."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


OURS = [*sources(NBTUNE), *sources(REPO / "kernels")]


def test_only_a_room_says_what_it_exports() -> None:
    """`__all__` stands in a room's `__init__` alone, sorted, and each of its names is there; 250 names at the most."""
    names = []
    for path in OURS:
        exported = _exported(path)
        if exported is None:
            continue
        assert path.name == "__init__.py", f"{path.relative_to(REPO)}: only a room's __init__ has an __all__"
        module = importlib.import_module(module_name(path) if path.is_relative_to(NBTUNE) else path.parent.name)
        assert exported == sorted(exported, key=_rank), module.__name__
        assert [name for name in exported if not hasattr(module, name)] == [], module.__name__
        names += exported
    assert len(names) <= 250


def test_rooms_use_each_other_by_public_names_only() -> None:
    """A name that begins with `_` stays in its room, and a name is imported from the module that defines it."""
    modules = {module_name(path): path for path in sources(NBTUNE)}
    wrong = []
    for path in sources(NBTUNE):
        here = module_name(path)
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ImportFrom) or node.level or node.module not in modules:
                continue
            for alias in node.names:
                private = alias.name[0] == "_" and room_of(node.module) != room_of(here)
                if alias.name != "__version__" and (private or _borrowed(modules[node.module], alias.name)):
                    wrong.append(f"{path.relative_to(REPO)}:{node.lineno}: {node.module}.{alias.name}")
    assert wrong == []


def _borrowed(path: Path, name: str) -> bool:
    """Whether a module that is no room's `__init__` has the name only because it imports it from another of ours."""
    if path.name == "__init__.py":
        return False
    froms = [node for node in parsed(path).body if isinstance(node, ast.ImportFrom) and is_ours(node.module)]
    return any(name == (alias.asname or alias.name) for node in froms for alias in node.names)


def test_the_public_surface_of_nbtune() -> None:
    names = ["attach", "finetune", "form", "home", "inspect", "lm_eval", "lr_find", "plan", "repeat", "runs"]
    names += ["submit", "trust", "validate", "watch"]
    assert nbtune.__all__ == ["Plan", "Run", "RunSpec", "__version__", *names]
    assert set(nbtune.__all__) <= set(dir(nbtune))
    for name in nbtune.__all__:
        assert getattr(nbtune, name) is not None


def test_an_extra_installs_what_some_code_asks_for() -> None:
    extras = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    texts = [path.read_text(encoding="utf-8") for path in sources(NBTUNE)]
    wanted = {re.split(r"[^\w.-]", line)[0] for name in set(extras) - {"dev"} for line in extras[name]}
    modules = {name.removesuffix("-python").replace("-", "_") for name in wanted}
    asked = {module for module in modules for text in texts if re.search(rf"import {module}\b|\"{module}\"", text)}
    assert asked == modules

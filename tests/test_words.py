"""Words that a newcomer reads: docstrings begin with a verb, examples run, a term of the glossary is in its file."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import nbtune
from tests.support.house import NBTUNE, REPO, module_name, parsed, sources

# Each is the imperative of a verb; of what is a noun as well, "Sum of …" is none.
_VERBS = (
    "Add Allow Answer Append Ask Assign Attend Beat Begin Bring Build Call Change Check Clip Close Commit Compare "
    "Complete Compute Copy Count Create Cut Delete Do Draw Drop End Explain Fill Find Fine-tune Finish Forget Give Go "
    "Hand Handle Hear Heed Hide Hold Join Judge Keep Learn Leave Lend Let Listen Load Look Make Measure Meet Move "
    "Multiply Name Normalise Notice Order Overwrite Pack Part Place Prepare Print Push Put Quiet Raise Read Record "
    "Refuse Register Release Remove Render Reorder Repeat Replace Reserve Reshape Restart Return Rotate Round Run "
    "Sample Save Say Scatter Seal See Send Set Settle Share Shorten Show Silence Sleep Sort Split Stack Start Stop Sum "
    "Take Tell Throw Tokenise Train Treat Try Turn Undo Update Upload Use View Vote Wait Work Write Yield"
)
VERBS = set(_VERBS.split())
NOUNS_TOO = {"Copy", "Cut", "Draw", "Name", "Place", "Report", "Set", "Share", "Show", "Step", "Sum", "View", "Work"}
KERNELS = REPO / "kernels" / "nbtune_kernels"


def _functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        name = f"{within}{getattr(child, 'name', '')}"
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, child
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _functions(child, f"{name}." if inside else within)


def _is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A property is read like a value: its docstring is a noun."""
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def wordless(tree: ast.Module) -> list[str]:
    """The functions whose docstring begins with something else than a verb that tells what to do."""
    found = []
    for name, function in _functions(tree):
        words = re.findall(r"\S+", ast.get_docstring(function) or "")[:2]
        if not words or _is_property(function):
            continue
        first = words[0].rstrip(".,:;")
        if first not in VERBS or (first in NOUNS_TOO and words[1:] == ["of"]):
            found.append(f"{name}: {' '.join(words)}")
    return found


def test_a_docstring_begins_with_a_verb() -> None:
    found = {
        f"{path.relative_to(REPO)}: {one}"
        for path in [*sources(NBTUNE), *sources(KERNELS)]
        for one in wordless(parsed(path))
    }
    assert found == set(), "begin with a verb in the imperative: Return, Read, Write, Refuse, …"


def test_a_docstring_that_begins_with_a_noun_is_seen() -> None:
    text = (
        'class C:\n    def a(self):\n        """The rows."""\n    @property\n    def b(self):\n        """Rows."""\n'
        'def c():\n    """Writes them."""\ndef d():\n    """Sum of tokens."""\ndef e():\n    """Sum them up."""\n'
        'def f():\n    def g():\n        """[n] rows."""\n'
    )
    assert wordless(ast.parse(text)) == ["C.a: The rows.", "c: Writes them.", "d: Sum of", "f.g: [n] rows."]


# -- what it gives and what it raises ------------------------------------------------------------------------------

DOORS = {"cli", "notebook", "widgets", "commands"}  # what is called there is said by the commands


def _raised(node: ast.AST) -> Iterator[str]:
    """The names of the exceptions that a function raises itself, those apart that it catches again."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        inside = set(_raised(child))
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            inside.add(ast.unparse(child.exc.func))
        if isinstance(child, ast.Try):
            inside -= {name for handler in child.handlers for name in re.findall(r"\w+", _caught(handler))}
        yield from inside


def _caught(handler: ast.ExceptHandler) -> str:
    return ast.unparse(handler.type) if handler.type is not None else ""


def silent_about_errors(tree: ast.Module) -> list[str]:
    """Public functions with a docstring that does not say what they raise."""
    return [
        name
        for name, function in _functions(tree)
        if (text := ast.get_docstring(function)) and not any(part.startswith("_") for part in name.split("."))
        if "Raise" not in text
        if any(error[0].isupper() and error not in text for error in _raised(function))
    ]


def test_a_function_says_what_it_raises() -> None:
    rooms = [path for path in sources(NBTUNE) if path.relative_to(NBTUNE).parts[0] not in DOORS]
    paths = [path for path in (*rooms, *sources(KERNELS)) if path.name != "_llama_process.py"]  # it answers with them
    silent = {f"{path.relative_to(REPO)}: {name}" for path in paths for name in silent_about_errors(parsed(path))}
    assert silent == set(), "add `Raises:`, with when"


def test_an_error_that_is_not_said_is_seen() -> None:
    text = (
        'def a():\n    """Read."""\n    raise DataError("x")\n'
        'def b():\n    """Read.\n\n    Raises:\n        DataError: none.\n    """\n    raise DataError("x")\n'
        'def c():\n    """Read."""\n    try:\n        raise ValueError("x")\n    except ValueError:\n        pass\n'
        'def d():\n    """Read."""\n    def inside():\n        raise DataError("x")\n'
    )
    assert silent_about_errors(ast.parse(text)) == ["a"]


def test_a_kernel_says_shapes() -> None:
    import nbtune_kernels

    texts = {
        name: inspect.getdoc(value) or ""
        for name in nbtune_kernels.__all__
        if inspect.isroutine(value := getattr(nbtune_kernels, name))
    }
    assert len(texts) > 20
    assert [name for name, text in texts.items() if not re.search(r"`?\[|any shape", text)] == []


# -- what nothing reaches ------------------------------------------------------------------------------------------

# Called by what they are handed to: IPython, PyYAML, Jinja, ipywidgets.
CALLED_BY_OTHERS = {
    "load_ipython_extension", "unload_ipython_extension", "ignore_aliases", "compose_node", "scan_plain",
    "visit_Concat", "_output_child_pre", "getitem", "_send_telemetry", "call_binop", "_parse", "get_state",
    "backend_cls",
}  # fmt: skip


def _is_called_by_name(path: Path, name: str) -> bool:
    """A page's messages (`do_…`), the commands of the table in a cell, and what a trainer tells its callbacks."""
    if path.name == "trainer_callback.py" and name.startswith("on_"):
        return True
    return name.startswith(("do_", "visit_", "_repr_", "__")) or (path.name == "magics.py" and name.startswith("_"))


def named(tree: ast.AST) -> Counter[str]:
    """How often each name is read, called, passed as a keyword or written as a word of a short text."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            names[node.id] += 1
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store):
            names[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w. ]+", node.value):
            names.update(node.value.replace(".", " ").split())
    return names


def test_a_function_is_named_by_more_than_its_tests() -> None:
    """Somewhere in the product but in itself, its pages or its documents; what nothing reaches is taken out with its
    tests."""
    trees = {path: parsed(path) for path in (*sources(NBTUNE), *sources(KERNELS))}
    times: Counter[str] = sum((named(tree) for tree in trees.values()), Counter())
    folders = [REPO / "docs", REPO / "js" / "src", REPO / "example_notebooks", REPO / "kernels" / "benchmarks"]
    pages = [p for folder in folders for p in folder.rglob("*") if p.suffix in {".md", ".js", ".ipynb", ".py"}]
    elsewhere = {word for p in [REPO / "README.md", *pages] for word in re.findall(r"\w+", p.read_text("utf-8"))}
    unreached = [
        f"{path.relative_to(REPO)}: {name}"
        for path, tree in trees.items()
        for name, function in _functions(tree)
        if function.name not in elsewhere | CALLED_BY_OTHERS and not _is_called_by_name(path, function.name)
        if not function.decorator_list or _is_property(function)
        if times[function.name] <= named(function)[function.name]
    ]
    assert unreached == []


# -- examples ------------------------------------------------------------------------------------------------------

WITH_EXAMPLES = [
    module_name(path)
    for path in sources(NBTUNE)
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


@pytest.fixture(scope="module")
def runs_of_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs in which there is the one that examples are about, `demo`."""
    folder = tmp_path_factory.mktemp("examples") / "runs"
    rows = [{"prompt": "Hi", "completion": "Ahoy!"}] * 8
    nbtune.finetune(rows={"rows": rows}, data="rows", steps=2, name="demo", runs_dir=folder, device="cpu").wait()
    return folder


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str, runs_of_examples: Path) -> None:
    """Every ``>>>`` of a module runs, in a folder where `demo` was trained; `nbtune` is imported."""
    shutil.copytree(runs_of_examples, "runs")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(importlib.import_module(name), extraglobs={"nbtune": nbtune}, optionflags=options)
    assert result.attempted > 0
    assert result.failed == 0


def test_no_example_is_skipped() -> None:
    skipped = [module_name(path) for path in sources(NBTUNE) if "+SKIP" in path.read_text(encoding="utf-8")]
    assert skipped == []


def _called_by_people() -> Iterator[tuple[str, object]]:
    for path in sources(NBTUNE):
        module: ModuleType | None = importlib.import_module(module_name(path)) if path.name == "__init__.py" else None
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isroutine(value):
                yield f"{module_name(path)}.{name}", value


def test_a_function_that_people_call_has_an_example() -> None:
    """Of `nbtune` itself as lines that a script may hold, which tests/test_docs.py runs; of a room as ``>>>``."""
    texts = {name: inspect.getdoc(function) or "" for name, function in _called_by_people()}
    assert len(texts) > 50
    lacking = [name for name, text in texts.items() if ">>> " not in text and f"    run = {name}(" not in text]
    lacking = [name for name in lacking if not re.search(rf"^ {{4}}.*{re.escape(name)}\(", texts[name], re.MULTILINE)]
    assert lacking == []


# -- the glossary --------------------------------------------------------------------------------------------------

GLOSSARY = REPO / "docs" / "explanation" / "glossary.md"


def test_a_term_of_the_glossary_is_in_the_file_that_it_names() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([^`|]+)` \|$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    assert 30 <= len(rows) <= 40
    assert len({term for term, _, _ in rows}) == len(rows)
    gone = [file for _, _, file in rows if not (REPO / file).is_file()]
    assert gone == []
    plural = {term: rf"\b{term}(e?s)?\b" for term, _, _ in rows}
    text = {file: (REPO / file).read_text(encoding="utf-8").replace("_", " ") for _, _, file in rows}
    assert [(term, file) for term, _, file in rows if not re.search(plural[term], text[file], re.IGNORECASE)] == []

"""The plan of the house, and what can be read of it from the files: who imports whom, what is long.

python -m tests.support.house      (what `make docs` does: the picture in docs/explanation/house.md)
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

import nbtune

REPO = Path(__file__).resolve().parents[2]
NBTUNE = REPO / "nbtune"
KERNELS = REPO / "kernels" / "nbtune_kernels"
PAGE = REPO / "docs" / "explanation" / "house.md"

# A room may import those before it.
STREAM = (
    ("methods",),
    ("spec",),
    ("data",),
    ("models",),
    ("planner",),
    ("generate",),
    ("train",),
    ("store",),
    ("export",),
    ("engine",),
    ("widgets",),
)
FLOORS = {room: floor for floor, rooms in enumerate(STREAM) for room in rooms}
LEAVES = (
    "errors",
    "events",
    "progress",
    "device",
    "disk",
    "atomic_io",
    "child_process",
    "keepalive",
    "leaving_off",
    "folder_format",
    "hub_cache",
    "untrusted",
)
DOORS = (
    "api",
    "run",
    "commands",
    "system_report",
    "rate_finder",
    "task_scores",
    "notebook",
    "cli",
    "__main__",
)  # what a user opens
DATA_ROOMS = ("sources", "template", "formats", "tokenize", "prepare", "batching")  # likewise, inside `data`
MOST_LINES = 400
MOST_PARAMETERS = 8


def sources(*folders: Path) -> list[Path]:
    """Every Python file in some folders."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def module_name(path: Path) -> str:
    """`nbtune/data/prepare/cache.py` -> `nbtune.data.prepare.cache`."""
    root = NBTUNE.parent if path.is_relative_to(NBTUNE) else KERNELS.parent
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


# -- imports -------------------------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """As `imports_of`, of a file."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    return imports_of(parsed(path), package=package)


def imports_of(tree: ast.Module, *, package: str, typing_too: bool = True) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever it does, with the line; `from nbtune import plan` is `nbtune.plan`.

    Args:
        tree: the file's.
        package: that relative imports start from.
        typing_too: also those that only a type checker sees.
    """
    for node in _nodes(tree, typing_too):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            yield from ((str(arg.value), node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _nodes(node: ast.AST, typing_too: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and not typing_too and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _nodes(other, typing_too)
        else:
            yield from _nodes(child, typing_too)


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def relative_imports(tree: ast.Module) -> list[int]:
    """The lines with `from .` or `from ..`."""
    return sorted(node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level)


def room_of(module: str) -> str:
    """`nbtune.data.rows` -> `data`; a public name of `nbtune` itself -> the room that it comes from."""
    parts = module.split(".")
    if parts[0] != "nbtune":
        return ""
    if len(parts) == 1:
        return "nbtune"
    homes = nbtune._HOMES
    return homes[parts[1]].split(".")[1] if parts[1] in homes else parts[1]


def may_import(room: str, other: str) -> bool:
    """Whether the plan lets a room import another one."""
    if room == other or other in ("", "nbtune", "__version__"):
        return True
    if room in LEAVES:
        return other in LEAVES and room not in ("errors", "events")  # those know nothing
    if other in LEAVES:
        return True
    if room in FLOORS:
        return other in FLOORS and FLOORS[other] < FLOORS[room]
    if room in ("rate_finder", "task_scores"):  # a run by the public functions, as of somebody's own script
        return other in (*FLOORS, "api")
    if room in ("notebook", "cli", "__main__"):
        return other in (*FLOORS, "api", "run", "commands", "system_report") or (room, other) == ("__main__", "cli")
    return room in ("api", "run", "commands", "system_report") and other in (*FLOORS, "run")


def may_import_in_data(module: str, other: str) -> bool:
    """Whether a module of one sub-room of `data` may import one of another; what lies in no sub-room may all."""
    here, there = ((name.split(".") + [""] * 3)[2] for name in (module, other))
    return here not in DATA_ROOMS or there not in DATA_ROOMS or DATA_ROOMS.index(there) <= DATA_ROOMS.index(here)


def graph(trees: Mapping[str, ast.Module], packages: Iterable[str] = ()) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, also inside functions; what only a type checker sees apart.

    A name that a package loads when it is used (`_HOMES`) is imported from its home.

    Args:
        trees: syntax tree by module.
        packages: those of them that are a package's `__init__`.
    """
    homes = {name: _homes(tree) for name, tree in trees.items()}
    edges: dict[str, set[str]] = {}
    for name, tree in trees.items():
        package = name if name in packages else name.rpartition(".")[0]
        found = (_home(module, trees, homes) for module, _ in imports_of(tree, package=package, typing_too=False))
        edges[name] = {module for module in found if module is not None} - {name}
    return edges


def _home(module: str, trees: Mapping[str, ast.Module], homes: Mapping[str, dict[str, str]]) -> str | None:
    if module in trees:
        return module
    package, _, name = module.rpartition(".")
    if package == "nbtune":
        return nbtune._HOMES.get(name)
    if package not in trees:
        return None
    home = homes[package].get(name, package)
    return home if home in trees else f"{package}.{home}"


def _homes(tree: ast.Module) -> dict[str, str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["_HOMES"]:
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    return {}


@functools.cache
def our_graph() -> dict[str, set[str]]:
    """`graph` of nbtune and its kernels."""
    files = sources(NBTUNE, KERNELS)
    files.remove(NBTUNE / "__init__.py")  # the list of public names; its hook for `%load_ext` is a door
    packages = [module_name(path) for path in files if path.name == "__init__.py"]
    return graph({module_name(path): parsed(path) for path in files}, packages)


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches every other one by imports (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in number:
            visit(name)
    return sorted(found)


def missing(tree: ast.Module) -> list[tuple[str, int]]:
    """What a file imports of ours and is nowhere: a module that moved, a name that its module does not bind."""
    wanted: list[tuple[str, str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            wanted += [(node.module or "", alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.Import):
            wanted += [(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            wanted += [(str(arg.value), "", node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    wanted += [(home, "", 1) for home in _homes(tree).values()]
    return [
        (".".join(filter(None, (module, name))), line)
        for module, name, line in wanted
        if is_ours(module) and not _is_there(module, name)
    ]


def _is_there(module: str, name: str) -> bool:
    if f"{module}.{name}" in _files() or (not name and module in _files()):
        return True
    if not name or module not in _files():
        return False
    tree = parsed(_files()[module])
    return name in bound(tree) or name in _homes(tree)


@functools.cache
def _files() -> dict[str, Path]:
    return {module_name(path): path for path in sources(NBTUNE, KERNELS)}


def is_ours(module: str | None) -> bool:
    """Whether a module is nbtune's or its kernels'."""
    return (module or "").split(".")[0] in ("nbtune", "nbtune_kernels")


def bound(tree: ast.Module) -> set[str]:
    """Every name that a module binds, at its top or under an `if` there."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


# -- sizes ---------------------------------------------------------------------------------------------------------


def lines(path: Path) -> int:
    """How many lines a file has."""
    return path.read_text(encoding="utf-8").count("\n")


def crowded(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """(name, line, parameters) of functions with more than `MOST_PARAMETERS`, `self` apart.

    Keyword-only ones of a public function do not count: a caller names them. Triton kernels take a pointer a tensor;
    an op, its fake, its launcher and its plain twin have one signature, which is the kernel's.
    """
    ops = {name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for name in _op_names(node)}
    yield from _crowded(tree, ops, prefix="", public=True)


def _crowded(node: ast.AST, ops: set[str], *, prefix: str, public: bool) -> Iterator[tuple[str, int, int]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _crowded(child, ops, prefix=prefix, public=public)
            continue
        is_class, in_class = isinstance(child, ast.ClassDef), isinstance(node, ast.ClassDef)
        is_open = public and (not child.name.startswith("_") or (in_class and child.name == "__init__"))
        if not isinstance(child, ast.ClassDef) and child.name not in ops:
            count = _parameters(child, with_keywords=not is_open, in_class=in_class)
            if count > MOST_PARAMETERS:
                yield f"{prefix}{child.name}", child.lineno, count
        yield from _crowded(child, ops, prefix=f"{prefix}{child.name}.", public=is_open and is_class)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, *, with_keywords: bool, in_class: bool) -> int:
    given = function.args
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    count = len(given.posonlyargs) + len(given.args) - (in_class and not static)
    return count + (len(given.kwonlyargs) if with_keywords else 0)


def _op_names(function: ast.FunctionDef) -> set[str]:
    """A kernel's or an op's own name, and those of its fake, launcher and plain twin; nothing of other functions."""
    if "op" not in _decorators(function):
        return {function.name} if "jit" in _decorators(function) else set()
    fakes = [arg.id for d in function.decorator_list if isinstance(d, ast.Call) for arg in d.args if _is_name(arg)]
    ways = {node.id for node in ast.walk(function) if _is_name(node)}
    return {function.name, *fakes, *(name for name in ways if name.startswith("_launch") or name.endswith("_torch"))}


def _is_name(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


def _decorators(function: ast.FunctionDef) -> set[str]:
    heads = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return {ast.unparse(head).rpartition(".")[2] for head in heads}


def cited(text: str) -> list[str]:
    """The files and folders that a page names between back quotes."""
    return re.findall(r"`((?:nbtune|kernels|js|tests|docs|example_notebooks)/[^`\s*]*)`", text)


# -- the picture ---------------------------------------------------------------------------------------------------

_BEGIN, _END = "<!-- made by `make docs` from the imports: -->", "<!-- made by `make docs`, to here -->"


def rooms() -> dict[str, set[str]]:
    """Room -> the rooms that it imports from (leaves, and the whole package's name, apart)."""
    edges: dict[str, set[str]] = defaultdict(set)
    for name, others in our_graph().items():
        here = name.split(".")[1] if name.startswith("nbtune.") else ""
        for other in others:
            there = other.split(".")[1] if other.startswith("nbtune.") else ""
            if here in (*FLOORS, *DOORS) and there in (*FLOORS, *DOORS) and here != there:
                edges[here].add(there)
    return dict(edges)


def picture() -> str:
    """The rooms as a Mermaid diagram: an arrow to each room from those that use it, longer ways round left out."""
    edges = rooms()
    shown = sorted(
        {(there, here) for here, others in edges.items() for there in others if not _way(edges, here, there)}
    )
    body = "\n".join(f"    {there} --> {here}" for there, here in shown)
    return f"{_BEGIN}\n\n```mermaid\nflowchart TD\n{body}\n```\n\n{_END}"


def _way(edges: Mapping[str, set[str]], here: str, there: str) -> bool:
    """Whether `here` reaches `there` also through a third room."""
    to_see, seen = [room for room in edges[here] if room != there], set()
    while to_see:
        room = to_see.pop()
        if room == there:
            return True
        if room not in seen:
            seen.add(room)
            to_see += edges.get(room, ())
    return False


def drawn(text: str) -> str:
    """The page with the picture as it is now."""
    before, _, rest = text.partition(_BEGIN)
    return before + picture() + rest.partition(_END)[2]


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

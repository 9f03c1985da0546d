"""The plan of the house, and what can be read of it from the files: who imports whom, which files and functions are long.

    python -m tests.support.house      (what `make docs` does: the picture in docs/explanation/house.md)
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

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
    ("engine",),
    ("widgets", "export"),
)
FLOORS = {room: floor for floor, rooms in enumerate(STREAM) for room in rooms}
LEAVES = ("errors", "events", "progress", "device", "atomic_io", "child_process", "keepalive", "hub_cache", "untrusted")
DOORS = ("api", "run", "commands", "system_report", "notebook", "cli", "__main__")  # what a user opens
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
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


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
    if package not in trees:
        return None
    return homes[package].get(name, package)


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


def missing(path: Path) -> list[tuple[str, int]]:
    """What a file imports of ours and is nowhere: a module that moved, a name that its module does not bind."""
    known = {module_name(one): one for one in sources(NBTUNE, KERNELS)}
    wrong = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and not node.level and is_ours(node.module):
            base = node.module or ""
            names = [base] if base not in known else []
            if base in known:
                here = bound(parsed(known[base]))
                names = [
                    f"{base}.{alias.name}"
                    for alias in node.names
                    if f"{base}.{alias.name}" not in known and alias.name not in here and "__getattr__" not in here
                ]
            wrong += [(name, node.lineno) for name in names]
        elif isinstance(node, ast.Import):
            wrong += [(a.name, node.lineno) for a in node.names if is_ours(a.name) and a.name not in known]
    return wrong


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

    Keyword-only ones of a public function do not count: a caller names them. Triton kernels take one pointer a tensor,
    and a library's op has the signature of its kernel.
    """
    yield from _crowded(tree, prefix="", public=True)


def _crowded(node: ast.AST, *, prefix: str, public: bool) -> Iterator[tuple[str, int, int]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _crowded(child, prefix=prefix, public=public)
            continue
        name, is_class = f"{prefix}{child.name}", isinstance(child, ast.ClassDef)
        open_name = public and (not child.name.startswith("_") or child.name == "__init__")
        if not isinstance(child, ast.ClassDef) and not _is_kernel(child):
            count = _parameters(child, with_keywords=not open_name, in_class=isinstance(node, ast.ClassDef))
            if count > MOST_PARAMETERS:
                yield name, child.lineno, count
        yield from _crowded(child, prefix=f"{name}.", public=open_name and is_class)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, *, with_keywords: bool, in_class: bool) -> int:
    given = function.args
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    count = len(given.posonlyargs) + len(given.args) - (in_class and not static)
    return count + (len(given.kwonlyargs) if with_keywords else 0)


_KERNELS = ("jit", "custom_op", "triton_op", "register_fake", "register_autograd")


def _is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    heads = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(ast.unparse(head).rpartition(".")[2] in _KERNELS for head in heads)


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
    shown = sorted({(there, here) for here, others in edges.items() for there in others if not _way(edges, here, there)})
    body = "\n".join(f"    {there} --> {here}" for there, here in shown)
    return f"{_BEGIN}\n\n```mermaid\nflowchart LR\n{body}\n```\n\n{_END}"


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

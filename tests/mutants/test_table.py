"""The mutants can be planted: their places are there, their tests are `make test`'s. `make mutants` tries them out."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS

HIDDEN = ("slow", "gpu", "browser")


def test_there_are_enough_and_each_has_a_name() -> None:
    assert len(MUTANTS) >= 80
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_place_is_there_and_what_it_makes_is_python(mutant: Mutant, repo: Path) -> None:
    text = (repo / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutant.planted(text))) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("test", sorted({test for mutant in MUTANTS for test in mutant.tests}))
def test_its_tests_are_those_of_make_test(test: str, repo: Path) -> None:
    """Not all of them are marked as slow; where some of a test's cases are, that stands among its parameters."""
    file, _, name = test.partition("::")
    body = ast.parse((repo / file).read_text(encoding="utf-8")).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")}
    chosen = [functions[name.partition("[")[0]]] if name else list(functions.values())
    assert not all(_is_left_out(function) for function in chosen)


def _is_left_out(function: ast.FunctionDef) -> bool:
    marks = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any(mark == f"pytest.mark.{hidden}" for mark in marks for hidden in HIDDEN)


def test_a_place_that_is_gone_or_there_twice_is_seen() -> None:
    gone = Mutant("gone", "nbtune/api.py", "x = 1", "x = 2", ())
    with pytest.raises(ValueError, match="0 times"):
        gone.planted("y = 1")
    with pytest.raises(ValueError, match="2 times"):
        gone.planted("x = 1\nx = 1")

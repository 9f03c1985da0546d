"""What comes after a run's name is a name, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.errors import SpecError
from nbtune.spec import from_mapping
from nbtune.store.folder import check_name, create, following

LONGEST = "n" * 64


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("run", "run-2"),
        ("run-2", "run-3"),
        ("run-9", "run-10"),
        ("a-b", "a-b-2"),
        ("2024", "2024-2"),
        (LONGEST, "n" * 62 + "-2"),
        ("n" * 62 + "-9", "n" * 61 + "-10"),
        ("a-" + "9" * 62, "a-" + "9" * 60 + "-2"),
    ],
)
def test_the_next_name_is_one(name: str, after: str) -> None:
    check_name(name)
    assert following(name) == after
    check_name(after)


def test_no_name_comes_twice_on_the_way() -> None:
    names = [LONGEST]
    for _ in range(120):
        names.append(following(names[-1]))
        check_name(names[-1])
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "name", ["a/b", "a/../../b", "..", ".hidden", "-flag", "a b", "a\n", "a\x00", "a\\b", "é", "x" * 65, "", "C:a"]
)
def test_what_would_lead_elsewhere_is_no_name(name: str, tmp_path: Path) -> None:
    """A name is a part of a folder's: whatever it begins with, none of it may be anything else."""
    with pytest.raises(SpecError, match="cannot be a run's name"):
        create(tmp_path / "runs", name, from_mapping({"data": "rows"}))
    assert list(tmp_path.rglob("*")) == []
    check_name("x" * 64)
    check_name("a.b_c-9")

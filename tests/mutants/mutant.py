"""What a mutant is: one line of the tree made wrong, and the tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A bug that somebody might make.

    Args:
        name: what it breaks, in words with dashes.
        file: which file of the tree.
        old, new: a text that stands there once, and what takes its place.
        tests: what `make mutants` runs: files or single tests that `make test` runs too, as pytest takes them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """Return the file's text with the bug in it.

        Raises:
            ValueError: the place is not there, or not there once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} has {self.old!r} {count} times")
        return text.replace(self.old, self.new)


def mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """Return a mutant of a file in nbtune/ or, where its name begins so, in kernels/."""
    where = file if file.startswith("kernels/") else f"nbtune/{file}"
    return Mutant(name, where, old, new, tuple(f"tests/{test}" for test in tests))

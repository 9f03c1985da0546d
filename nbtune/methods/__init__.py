"""What can be learnt from rows, and how: one file a method, found by its name.

    METHODS["dpo"].loss(better, worse, beta=0.1)   # a loss a pair

A file here that does not begin with ``_`` defines ``METHOD = Method(…)`` and is all that a method needs: spec, form,
checks of the data, plan, loop and reference page read `METHODS`. No torch is imported before a loss is
computed.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from nbtune.methods._method import ROW_KINDS, Answers, Method, RowKind
from nbtune.methods._words import how_they_learn, what_beta_is

__all__ = [
    "METHODS",
    "ROW_KINDS",
    "Answers",
    "Method",
    "RowKind",
    "how_they_learn",
    "loss_types",
    "what_beta_is",
    "without_reference",
]


def _discover() -> Mapping[str, Method]:
    """Return all methods of this folder: those of one kind of rows side by side, by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    methods: list[Method] = [import_module(f"{__name__}.{name}").METHOD for name in names]
    for name, method in zip(names, methods, strict=True):
        if method.name != name:
            raise ValueError(f"nbtune/methods/{name}.py defines {method.name!r}: file and method share a name")
    methods.sort(key=lambda method: ROW_KINDS.index(method.rows))  # stable: names stay in order
    return MappingProxyType({method.name: method for method in methods})


METHODS = _discover()


def loss_types() -> list[str]:
    """Return the names of all losses that some method can be asked for.

    >>> loss_types()[:3]
    ['sigmoid', 'hinge', 'robust']
    """
    return [*dict.fromkeys(name for method in METHODS.values() for name in method.loss_types)]


def without_reference() -> list[str]:
    """Return the names of the methods that judge answers and compare with no other model.

    >>> without_reference()
    ['cpo', 'orpo', 'simpo']
    """
    return [name for name, method in METHODS.items() if not (method.by_tokens or method.reference or method.head)]

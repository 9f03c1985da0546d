"""Values that fit nowhere."""

from __future__ import annotations

import random
import string
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    0.5,
    -0.0,
    1e308,
    1e-320,
    10**30,
    -(10**400),
    float("inf"),
    float("nan"),
    "",
    " ",
    "0",
    "true",
    "null",
    "~",
    "\x00",
    "\x1b[31m",
    "\u202eabc",
    "é" * 50,
    "日本語",
    "👩‍👩‍👧",
    "a" * 5000,
    "{{ 1/0 }}",
    "../..",
    "/",
    "/etc/passwd",
    "C:\\x",
    "[x]",
    "*",
    "!!python/object:os.system",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"a": {"b": [1]}},
)


def odd(chance: random.Random, depth: int = 2) -> Any:
    """Return a value of any kind, some of them lists and objects of others."""
    pick = chance.random()
    if depth and pick < 0.08:
        return [odd(chance, depth - 1) for _ in range(chance.randrange(4))]
    if depth and pick < 0.16:
        return {word(chance): odd(chance, depth - 1) for _ in range(chance.randrange(4))}
    if pick < 0.25:
        return word(chance)
    if pick < 0.35:
        return chance.choice((chance.randrange(-5, 300), chance.uniform(-2, 5)))
    return chance.choice(ODD)


def word(chance: random.Random, least: int = 1) -> str:
    return "".join(chance.choices(string.ascii_lowercase, k=chance.randint(least, least + 6)))


def mangled(chance: random.Random, data: bytes) -> bytes:
    """Return the bytes with one to three of them, or a stretch, gone, doubled, or others."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(out) + 1)
        length = chance.choice((1, 1, 2, 8, 64))
        what = chance.randrange(5)
        if what == 0:
            del out[at : at + length]
        elif what == 1:
            out[at:at] = out[at : at + length]
        elif what == 2:
            out[at : at + length] = chance.randbytes(length)
        elif what == 3:
            out[at:at] = chance.choice(
                (b"\0", b"\xff\xfe", b"{", b"]", b'"', b"\t", b": ", b"\n- ", b"!!", b"&a", b"*a")
            )
        else:
            del out[at:]
    return bytes(out)

"""How often a kernel that works gives a sign of life: to a hub that ends idle kernels, and to the pages of its panels.

`%config NbtuneMagics.heartbeat` sets it, whoever sends a sign asks for it before each.
"""

from __future__ import annotations

__all__ = ["Heart", "heart"]


class Heart:
    """`seconds` between two signs; 0 or less: none is sent."""

    seconds: float = 10.0


heart = Heart()

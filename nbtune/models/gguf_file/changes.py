"""The way back from how llama.cpp lays a weight: what is done with its numbers, (rows, columns) in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Change = Callable[[Any], Any]
VALUES_IN_TURN = ("qwen3_5_text", "qwen3_5_moe_text")
"""Families of whose delta nets value heads lie in turn: head 0 of each key, then head 1."""


def turned_back(weight: Any) -> Any:
    """Return a matrix (in, out)."""
    return np.ascontiguousarray(weight.T)


def by_head(heads: int, shape: tuple[int, ...]) -> Change:
    """Return what makes all q, all k, all v those of each head, one behind the other."""

    def change(weight: Any) -> Any:
        parts = weight.reshape(3, heads, shape[0] // heads // 3, -1)
        return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(shape)

    return change


def neighbours_apart(heads: int, turned: int, shape: tuple[int, ...]) -> Change:
    """Return what puts query or key rows back: ``(head, i, half)`` becomes ``(head, half, i)``.

    Args:
        heads: of the rows.
        turned: how many rows of a head are rotated; those beyond stay.
        shape: of the weight.

    Raises:
        ValueError: a head has no so many rows, or they are no pairs.
    """

    if turned % 2 or turned * heads > shape[0]:
        raise ValueError(f"{turned} of {shape[0] // heads} rows of a head cannot be turned")

    def change(weight: Any) -> Any:
        each = weight.reshape(heads, shape[0] // heads, -1)
        pairs = each[:, :turned].reshape(heads, turned // 2, 2, -1)
        return np.concatenate([pairs.swapaxes(1, 2).reshape(heads, turned, -1), each[:, turned:]], 1).reshape(shape)

    return change


def grouped(groups: int, heads: int, shape: tuple[int, ...]) -> Change:
    """Return what makes all q, all k, all v Falcon's newer layout again: q…, k, v by key head."""
    per = heads // groups
    width = shape[0] // (heads + 2 * groups)

    def change(weight: Any) -> Any:
        q = weight[: heads * width].reshape(groups, per, width, -1)
        k = weight[heads * width : (heads + groups) * width].reshape(groups, 1, width, -1)
        v = weight[(heads + groups) * width :].reshape(groups, 1, width, -1)
        return np.concatenate([q, k, v], axis=1).reshape(shape)

    return change


def latent_heads(heads: int, nope: int, value: int, latent: int) -> Change:
    """Return what makes one projection out of latent vectors of keys' (turned) and values', a head behind the other."""

    def change(weight: Any) -> Any:
        flat = weight.reshape(-1)  # their widths differ
        keys = flat[: heads * latent * nope].reshape(heads, latent, nope).swapaxes(1, 2)
        values = flat[heads * latent * nope :].reshape(heads, value, latent)
        return np.concatenate([keys, values], axis=1).reshape(heads * (nope + value), latent)

    return change


def delta_sizes(config: Any) -> tuple[int, int, int]:
    """Return a delta net's key heads, their width, and the width of all values of one."""
    keys = config.linear_num_key_heads
    return keys, config.linear_key_head_dim, config.linear_num_value_heads // keys * config.linear_value_head_dim


def by_key_head(config: Any, shape: tuple[int, ...]) -> Change:
    """Return what makes all queries, keys, values and gates those of each key head."""
    keys, width, each = delta_sizes(config)

    def change(weight: Any) -> Any:
        found = np.split(weight, np.cumsum([keys * width, keys * width, keys * each]))
        return np.concatenate([one.reshape(keys, -1, shape[1]) for one in found], axis=1).reshape(shape)

    return change


def values_apart(config: Any, wanted: str, shape: tuple[int, ...]) -> Change | None:
    """Return what puts a delta net's value heads back in order, and makes the logarithm of A that it keeps."""
    part = wanted.split(".")[2] if wanted.startswith("blk.") else ""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads

    def order(width: int) -> Any:
        return np.arange(values * width).reshape(values // keys, keys, width).swapaxes(0, 1).reshape(-1)

    wide = config.linear_value_head_dim
    if part in ("ssm_a", "ssm_dt", "ssm_alpha", "ssm_beta"):
        rows = order(1)
        if part == "ssm_a":
            return lambda weight: np.log(-weight).reshape(-1)[rows].reshape(shape)
        return lambda weight: weight.reshape(values, -1)[rows].reshape(shape)
    if part == "attn_gate":
        return lambda weight: weight[order(wide)]
    if part == "ssm_out":
        return lambda weight: weight[:, order(wide)]
    if part in ("attn_qkv", "ssm_conv1d"):
        before = 2 * keys * config.linear_key_head_dim
        rows = np.concatenate([np.arange(before), before + order(wide)])
        return lambda weight: weight.reshape(shape[0], -1)[rows].reshape(shape)
    return None

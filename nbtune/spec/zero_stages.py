"""DeepSpeed's configs, as Axolotl, LLaMA-Factory and transformers take them: what they ask for is done here by FSDP2.

    deepspeed: deepspeed_configs/zero3_bf16.json      ->  weights: sharded, gpus: all
    deepspeed: zero1.json                             ->  gpus: all

Stage 3 parts weights, gradients and optimizer. Stages 1 and 2 part the optimizer's state, and gradients; beside an
adapter these are small, and of full training the plan parts them with the weights where they do not fit. What moves
them off the GPUs is said no to: it would be another run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbtune.errors import SpecError

NAMES = ("deepspeed", "deepspeed_config")
_STAGE_IN_NAME = re.compile(r"zero[-_]?(?:stage)?[-_]?([0-3])", re.IGNORECASE)
_MOST_BYTES = 2**20


def read(body: dict[str, Any], *, files: bool = True) -> None:
    """Put our keys into a spec's mapping in place of DeepSpeed's config; keys that are there already win.

    >>> body = {"data": "rows", "deepspeed": {"zero_optimization": {"stage": 3}}}
    >>> read(body)
    >>> body
    {'data': 'rows', 'gpus': 'all', 'weights': 'sharded'}

    Raises:
        SpecError: it is no such config, or asks for what is not there.
    """
    for name in NAMES:
        given = body.pop(name, None)
        if given is None or given is False:
            continue
        stage = _stage(given, name, files)
        if "cluster" not in body:
            body.setdefault("gpus", "all")
        if stage == 3:
            body.setdefault("weights", "sharded")


def _stage(given: Any, name: str, files: bool) -> int:
    config = given if isinstance(given, Mapping) else _file(str(given), name) if files else None
    if config is None:  # a preset's name, of no file here
        found = _STAGE_IN_NAME.search(Path(str(given)).name)
        if found is None:
            raise SpecError(
                f"`{str(given)[:80]}` is no file, and no name of a ZeRO stage",
                place=name,
                fix="give DeepSpeed's JSON file, or write `weights: sharded` and `gpus: all`",
            )
        return int(found[1])
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else None
    if type(stage) is not int or not 0 <= stage <= 3:
        raise SpecError("`zero_optimization.stage` is a number from 0 to 3", place=name, fix="mend the config")
    for part in ("offload_param", "offload_optimizer"):
        where = zero.get(part)
        if isinstance(where, Mapping) and where.get("device", "none") != "none":
            raise SpecError(
                f"`{part}` to {str(where['device'])[:20]!r} is not there beside several GPUs",
                place=name,
                fix=f"drop `{part}`; one GPU whose memory is short takes `weights: streamed`",
            )
    return stage


def _file(path: str, name: str) -> Mapping[str, Any] | None:
    file = Path(path)
    try:
        if not file.is_file():
            return None
        with file.open("rb") as source:
            text = source.read(_MOST_BYTES + 1)
        body = json.loads(text) if len(text) <= _MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        raise SpecError(f"`{path[:80]}` is no JSON of DeepSpeed's", place=name, fix="give its config as a JSON object")
    return body

"""What is asked of the model of a run that is at work: an answer, the losses of a text's tokens, the losses of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbtune.engine.live_requests import Asked
from nbtune.errors import NbtuneError
from nbtune.generate import sampling
from nbtune.store import checkpoints


def answered(
    model: Any,
    tokenizer: Any,
    request: dict[str, Any],
    asked: Asked,
    *,
    folder: Path,
    step: int,
    ends: Callable[[], bool],
) -> dict[str, Any]:
    """Answer what `generate`, `token_losses` and `row_losses` of `nbtune.Run` ask.

    Args:
        model: in training or not; it is left as it was.
        tokenizer: its tokenizer.
        request: what is asked.
        asked: who asks.
        folder: the run's, with its checkpoints.
        step: finished optimizer steps.
        ends: asked between two tokens: whether the answer is to end.
    """
    from nbtune.train.row_loss import row_losses

    try:
        saved = request.pop("at", None)
        with checkpoints.weights_of(folder, saved, model):
            if "rows" in request:
                return {"losses": row_losses(model, **request), "step": step}
            if "ids" in request:
                return {"losses": sampling.token_losses(model, **request), "step": step}
            told = (lambda token: asked.say(dataclasses.asdict(token))) if request.pop("tell", False) else None
            gone = lambda: ends() or asked.gone()  # noqa: E731
            said = sampling.answer(model, tokenizer, told=told, should_stop=gone, **request)
        return {"answer": said, "step": step}
    except Exception as error:  # noqa: BLE001 — a bad question must not end the run; whoever asked is told
        return {"error": str(error) if isinstance(error, NbtuneError) else f"{type(error).__name__}: {error}"}

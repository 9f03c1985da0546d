"""What a run says of trained tokens that its rows do not teach: as soon as all rows are there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbtune import events
from nbtune.data.prepare.streaming_dataset import Arriving
from nbtune.data.prepare.untaught import TrainedTokens

if TYPE_CHECKING:
    from nbtune.data.prepare.report import Prepared
    from nbtune.spec import RunSpec


def say_untaught(
    data: Prepared, spec: RunSpec, tokenizer: Any, emit: Callable[[events.Event], None], *, one_weight: bool
) -> None:
    """Say which trained tokens the rows say nothing of; of rows that still arrive from a thread.

    Args:
        data: the run's.
        one_weight: the head is the embedding.
    """
    tokens = TrainedTokens(spec, tokenizer, one_weight=one_weight)
    if not len(tokens.numbers):
        return

    def say() -> None:
        rows = data.train.whole()
        tokens.see(rows.arrays(number) for number in range(len(rows)))
        for message in tokens.warnings():
            emit(events.Warning(message=message))

    def say_later() -> None:
        with contextlib.suppress(Exception):  # what is wrong with rows says who learns from them; or the log is closed
            say()

    if isinstance(data.train, Arriving) and not data.train.complete:
        threading.Thread(target=say_later, name="nbtune-untaught", daemon=True).start()
    else:
        say()

"""What transformers has once in a process: progress bars, which no run's thread shows, and torch's own functions and
defaults, which it changes while it makes a model. Two threads that did so at once each missed weights that were there.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

MAKING = threading.RLock()  # held by the thread for which transformers makes a model


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Silence transformers' progress bars for as long as this lasts."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

"""transformers' progress bars, silenced: a run's thread never prints."""

from collections.abc import Iterator
from contextlib import contextmanager


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

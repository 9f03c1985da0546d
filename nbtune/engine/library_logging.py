"""What libraries would print from the run's thread into somebody's cell, and send home: switched off, by name.

Only settings that the libraries offer; each line says what it silences.
"""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Quiet the libraries; called before the engine imports anything heavy."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warns about forks of the user's own code
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # triton 3.9 warns until it is set
    # bitsandbytes says at import that a faster CPU kernel could be downloaded
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft 0.21 asks transformers 5.23 in the old way
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

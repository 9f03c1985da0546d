"""A run's tokenizer that somebody damaged is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.errors import ExportError
from nbtune.export.gguf.vocabulary import load_tokenizer


def test_a_tokenizer_that_the_library_cannot_take_apart_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 3, "decoder": {"type": "?"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ExportError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)

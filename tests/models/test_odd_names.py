"""Names that no model can have: what is meant is said before a disk or a network is asked."""

from __future__ import annotations

import pytest

from nbtune import models
from nbtune.errors import SpecError


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        ("https://huggingface.co/org/name", "is an address", "write `model: org/name`"),
        ("https://huggingface.co/org/name/tree/main", "is an address", "write `model: org/name`"),
        ("https://example.com/model.gguf", "is an address", "download it"),
        ("“nbtune/tiny”", "curly quotes", "write `model: nbtune/tiny`"),
        ("nbtune/tinny", "nbtune has no model nbtune/tinny", "write `model: nbtune/tiny`"),
    ],
)
def test_what_is_meant_is_said(name: str, cause: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        models.resolve(name)
    assert cause in caught.value.cause
    assert fix in caught.value.fix

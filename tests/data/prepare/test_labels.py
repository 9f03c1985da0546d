"""The labels of rows get their numbers in an order that is nobody's chance."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nbtune.data import resolve
from nbtune.data.prepare.labels import with_labels
from nbtune.spec import from_mapping


def labels(*values: str) -> tuple[str, ...]:
    rows = [{"text": f"It was {value}.", "label": value} for value in values]
    spec = from_mapping({"data": "rows", "method": "classification"})
    return with_labels(spec, resolve(spec.data, {"rows": rows})).labels


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("so", "good", "9"), ("9", "good", "so")),
        (("²", "1"), ("1", "²")),
        (("--5", "1"), ("--5", "1")),
        (("9" * 5000, "1"), ("1", "9" * 5000)),
    ],
)
def test_whole_numbers_are_in_their_order_and_all_else_in_the_alphabets(
    found: tuple[str, ...], order: tuple[str, ...]
) -> None:
    assert labels(*found) == order


def test_every_process_numbers_them_alike() -> None:
    code = "from tests.data.prepare.test_labels import labels; print(labels('01', '1', '001', '2', '02'))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert told == {"('001', '01', '1', '02', '2')\n"}

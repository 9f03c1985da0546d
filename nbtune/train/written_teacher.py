"""What a teacher says of rows, written once and then read: of each trained token the likeliest next ones.

By the row's own tokens, and which of them are learnt, as `nbtune.train.kept_reference` has it: so batches and packs may
be made as ever, and a resumed run reads what the first one wrote. In the file log-probabilities are whole (fp32, of the
whole vocabulary, at temperature 1), so that another temperature or share needs no other file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nbtune.atomic_io import replace_file
from nbtune.device.streams import send
from nbtune.errors import TrainError
from nbtune.train.kept_reference import keys_of
from nbtune.train.shared_prompts import documents

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch

FILE = "teacher.safetensors"


def write(folder: Path, said: Iterable[tuple[Batch, torch.Tensor]], most: int) -> None:
    """Write a file.

    Args:
        folder: the run's.
        said: batches, and what the teacher says of their trained tokens: fp32 logits `[R, vocabulary]`.
        most: how many next tokens of each are kept.
    """
    from safetensors.torch import save_file

    keys, counts, ids, values, words = [], [], [], [], 0
    for batch, logits in said:
        words = logits.shape[1]
        top = torch.log_softmax(logits, -1).topk(min(most, words), -1)
        for key, rows in zip(keys_of(batch), _rows(batch), strict=True):
            keys.append(np.frombuffer(key, np.uint8))
            counts.append(rows.stop - rows.start)
            ids.append(top.indices[rows].to("cpu", torch.int32))
            values.append(top.values[rows].float().cpu())
    body = {
        "keys": torch.from_numpy(np.stack(keys)),
        "counts": torch.tensor(counts),
        "ids": torch.cat(ids),
        "logprobs": torch.cat(values),
        "vocabulary": torch.tensor(words),
    }
    with replace_file(folder / FILE) as beside:
        save_file(body, beside)


def _rows(batch: Batch) -> list[slice]:
    """Return of each example which of a batch's trained rows are its own."""
    ends = [end for _, end, _ in documents(batch)]
    trained = batch.trained_rows.numpy()[batch.trained_labels.numpy() != -100]
    bounds = [0, *np.searchsorted(trained, ends).tolist()]
    return [slice(a, b) for a, b in pairwise(bounds)]


@dataclass(frozen=True)
class Likeliest:
    """What was written of a batch: `ids` int64 and `logprobs` fp32, `[R, k]`; of padding zeros."""

    ids: torch.Tensor
    logprobs: torch.Tensor


class WrittenTeacher:
    """A file that `write` made, read as it is wanted: of `vocabulary` tokens."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        body: dict[str, Any] = load_file(folder / FILE)  # mapped: what is not asked for is not read
        ends = body["counts"].cumsum(0).tolist()
        self._places = {
            key.tobytes(): (end - count, end)
            for key, count, end in zip(body["keys"].numpy(), body["counts"].tolist(), ends, strict=True)
        }
        self._ids, self._logprobs = body["ids"], body["logprobs"]
        self.vocabulary, self._place = int(body["vocabulary"]), folder.name

    def of(self, batch: Batch, device: torch.device) -> Likeliest:
        """Return what is written of a batch's trained tokens.

        Raises:
            TrainError: a row is not in the file.
        """
        shape = (len(batch.trained_rows), self._ids.shape[1])
        ids, logprobs = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        for key, rows in zip(keys_of(batch), _rows(batch), strict=True):
            if key not in self._places:
                raise TrainError(
                    f"a row is not among those that the teacher was asked about ({FILE})",
                    place=self._place,
                    fix="start a new run: its teacher is asked about its rows",
                )
            begin, end = self._places[key]
            ids[rows], logprobs[rows] = self._ids[begin:end].long(), self._logprobs[begin:end]
        return Likeliest(send(ids, device), send(logprobs, device))

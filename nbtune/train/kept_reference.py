"""What the reference says of rows, asked once: it does not learn, so the second time that a row comes it is known.

By the row's own tokens, and which of them are learnt: rows of training and held-out ones, whatever they share a batch
or a pack with. The numbers stay on the device, so that nothing waits for it; a run keeps them with its checkpoints, and
goes on with the same.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nbtune.device.streams import send
from nbtune.train.shared_prompts import documents

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch

_ROOM = 1024  # rows that there is room for at first
_KEY = 16  # bytes


class Known(NamedTuple):
    """A batch's rows: their places among all that are kept, and what is kept; None where some row is new."""

    places: Tensor
    values: Tensor | None


class KeptReference:
    """Log-probabilities of answers by the reference.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._places: dict[bytes, int] = {}
        self._told = np.zeros(0, bool)
        self._values = torch.zeros(_ROOM, device=device)

    def __len__(self) -> int:
        return int(self._told.sum())

    def of(self, batch: Batch) -> Known | None:
        """Return what is kept of a batch's rows; None: they are not known apart."""
        keys = keys_of(batch)
        if batch.idle_pass or len(keys) != len(batch.examples):
            return None
        found = np.array([self._places.setdefault(key, len(self._places)) for key in keys], np.int64)
        if len(self._places) > len(self._told):
            self._told = np.concatenate([self._told, np.zeros(len(self._places) - len(self._told), bool)])
        places = torch.from_numpy(found)
        if not self._told[found].all():
            return Known(places, None)
        return Known(places, self._values[send(places, self._device)])

    def keep(self, known: Known, values: Tensor) -> None:
        """Keep what the reference said just now, `[rows]`; of a row that is known already the first stays."""
        places = known.places.numpy()
        new = np.unique(places, return_index=True)[1]  # a row may come twice in a batch
        new = new[~self._told[places[new]]]
        if not len(new):
            return
        self._grow(int(places.max()) + 1)
        at = send(torch.from_numpy(places[new]), self._device)
        self._values[at] = values.detach().float()[send(torch.from_numpy(new), self._device)]
        self._told[places[new]] = True

    def _grow(self, count: int) -> None:
        if count > len(self._values):
            more = torch.zeros(max(count, 2 * len(self._values)) - len(self._values), device=self._device)
            self._values = torch.cat([self._values, more])

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept, on the CPU."""
        told = [(key, place) for key, place in self._places.items() if self._told[place]]
        keys = np.frombuffer(b"".join(key for key, _ in told), np.uint8).reshape(-1, _KEY)
        places = torch.tensor([place for _, place in told], dtype=torch.int64)
        return {"keys": torch.from_numpy(keys.copy()), "values": self._values.cpu()[places]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        keys, values = state["keys"].numpy(), state["values"]
        self._places = {key.tobytes(): place for place, key in enumerate(keys)}
        self._told = np.ones(len(keys), bool)
        self._values = torch.zeros(max(_ROOM, len(keys)), device=self._device)
        self._values[: len(keys)] = values.to(self._device)


def reference_state(loss: Any) -> dict[str, Any]:
    """Return what a checkpoint holds of what a loss's reference has said."""
    kept = getattr(loss, "kept", None)
    return {"reference": kept.state_dict()} if kept is not None and len(kept) else {}


def load_reference(loss: Any, state: dict[str, Any]) -> None:
    """Undo `reference_state`."""
    kept = getattr(loss, "kept", None)
    if kept is not None and "reference" in state:
        kept.load_state_dict(state["reference"])


def keys_of(batch: Batch) -> list[bytes]:
    """Return what each row of a batch is known by: its tokens, and which of them are learnt."""
    ids, labels = batch.input_ids.flatten().numpy(), batch.labels.flatten().numpy()
    return [
        hashlib.blake2b(ids[a:b].tobytes() + labels[a:b].tobytes(), digest_size=_KEY).digest()
        for a, b, _ in documents(batch)
    ]

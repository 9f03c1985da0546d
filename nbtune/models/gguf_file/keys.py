"""The keys that a GGUF file has of its architecture, and which parts its blocks have."""

from __future__ import annotations

from nbtune.models.gguf_file.header import GgufHeader, refused


class Keys:
    """The keys of a file's architecture: `whole("block_count")` is that of ``llama.block_count``."""

    def __init__(self, header: GgufHeader) -> None:
        self.header, self.arch = header, header.arch

    def has(self, key: str) -> bool:
        """Return whether it is there."""
        return f"{self.arch}.{key}" in self.header.metadata

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number, see `GgufHeader.whole`."""
        return self.header.whole(f"{self.arch}.{key}", default)

    def real(self, key: str, default: float | None = None) -> float:
        """Return a number."""
        return self.header.real(f"{self.arch}.{key}", default)

    def cap(self, key: str, default: float | None = None) -> float:
        """Return what numbers are kept below, or divided by.

        Raises:
            SpecError: it is not above 0: nothing would be left of them.
        """
        if (most := self.real(key, default)) <= 0:
            raise refused(self.header.place, f"its {self.arch}.{key} is {most:g}")
        return most

    def text(self, key: str, default: str = "") -> str:
        """Return a text."""
        return self.header.text(f"{self.arch}.{key}", default)

    def flag(self, key: str, default: bool) -> bool:
        """Return yes or no."""
        return self.header.flag(f"{self.arch}.{key}", default)

    def most(self, key: str, default: int | None = None) -> int:
        """Return a whole number, or the largest one where each layer has its own: none in layers of another kind."""
        listed = self.header.metadata.get(f"{self.arch}.{key}")
        if isinstance(listed, list) and listed and all(type(one) is int and 0 <= one < 2**40 for one in listed):
            return max(listed)
        return self.whole(key, default)

    def each(self, key: str) -> list[int]:
        """Return a whole number for each layer, also where it is said once for all.

        Raises:
            SpecError: it is said of fewer layers, or more.
        """
        listed = self.header.metadata.get(f"{self.arch}.{key}")
        if not isinstance(listed, list):
            return [self.whole(key)] * self.layers
        if len(listed) < self.layers or not all(type(one) is int and 0 <= one < 2**40 for one in listed):
            raise refused(self.header.place, f"its {key} are no numbers of {self.layers} layers")
        return listed[: self.layers]

    def holds(self, part: str, block: int = 0) -> bool:
        """Return whether a block has a tensor of that name."""
        return f"blk.{block}.{part}" in self.header.tensors

    def any(self, part: str) -> tuple[int, ...]:
        """Return the shape of a stack in whichever block has one first.

        Raises:
            SpecError: none has.
        """
        found = (self.header.tensors.get(f"blk.{i}.{part}") for i in range(self.layers))
        stored = next((one for one in found if one is not None and len(one.shape) > 2), None)
        if stored is None:
            raise refused(self.header.place, f"it holds no {part} of three dimensions in any block")
        return stored.shape

    def first(self, part: str) -> tuple[int, ...]:
        """Return the shape of a matrix, or a stack, of the first block.

        Raises:
            SpecError: it is not there, or something else.
        """
        stored = self.header.tensors.get(f"blk.0.{part}")
        if stored is None or len(stored.shape) < 2:
            raise refused(self.header.place, f"it holds no blk.0.{part} of two dimensions or more")
        return stored.shape

    @property
    def layers(self) -> int:
        """Number of blocks, as the file says it and as its tensors do: without those that predict further tokens."""
        return max(self.whole("block_count") - self.whole("nextn_predict_layers", 0), 0)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.whole("embedding_length")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        heads = self.most("attention.head_count")  # some files of layers of several kinds have a list
        return self.whole("attention.key_length", self.hidden // max(heads, 1))

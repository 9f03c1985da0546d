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

    def text(self, key: str, default: str = "") -> str:
        """Return a text."""
        return self.header.text(f"{self.arch}.{key}", default)

    def flag(self, key: str, default: bool) -> bool:
        """Return yes or no."""
        return self.header.flag(f"{self.arch}.{key}", default)

    def holds(self, part: str) -> bool:
        """Return whether the first block has a tensor of that name."""
        return f"blk.0.{part}" in self.header.tensors

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
        """Number of blocks: as the file says it, and as its tensors do."""
        return self.whole("block_count")

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.whole("embedding_length")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        heads = self.whole("attention.head_count")
        return self.whole("attention.key_length", self.hidden // max(heads, 1))

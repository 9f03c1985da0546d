"""Where frozen weights live, and in what format: one value from the spec to the kernels.

    Placement(format="nf4")                  decoded on the device for each product
    Placement(format="16bit", resident=12)   of 12 layers on the device, of all others in the host's memory
    Placement(format="16bit", parts=4)       each of four devices keeps a quarter (FSDP2)

Nothing else compares names of formats or homes: it asks the properties. docs/explanation/memory.md lists which file
does what for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nbtune.errors import SpecError

Format = Literal["16bit", "32bit", "fp8", "nf4"]
WeightsKey = Literal["auto", "16bit", "fp8", "nf4", "streamed", "sharded"]
"""What a spec's `weights` may be: a format other than 32 bits, or a home."""


class WeightFormat(NamedTuple):
    """What is known of a format of weights.

    Attributes:
        bits: of one weight.
        bytes: of one weight, its share of the scales included.
        words: what people call it.
        rounded: when it is made of 16-bit weights: ``loading`` (by bitsandbytes), ``layer`` by layer as a model is
            accelerated; "": nothing is rounded.
        capability: the least compute capability of a GPU that multiplies by it; (0, 0): every device does.
        card: the same in words.
    """

    bits: int
    bytes: float
    words: str
    rounded: Literal["", "loading", "layer"] = ""
    capability: tuple[int, int] = (0, 0)
    card: str = ""


FORMATS: dict[Format, WeightFormat] = {
    "32bit": WeightFormat(32, 4.0, "32 bits"),
    "16bit": WeightFormat(16, 2.0, "16 bits"),
    "fp8": WeightFormat(8, 1.0, "fp8", "layer", (9, 0), "a Hopper card or later"),
    "nf4": WeightFormat(4, 0.516, "nf4", "loading"),
}
"""All there are. How layers compute with a rounded one, and how an export rounds as they do, is in
``nbtune/models/accelerate/FORMAT_linear.py``, as ``GROUP`` and ``rounded``."""


class Home(Enum):
    """Where weights are between the products that need them."""

    DEVICE = "on the device that works with them"
    SHARDED = "parted among the devices that work together"
    STREAMED = "in the host's memory, sent layer by layer"


class Placement(BaseModel):
    """The format of frozen weights, and their home. In JSON it is its fields.

    Args:
        format: ``16bit`` or ``32bit`` as they were loaded, ``fp8`` (a scale a row) or ``nf4`` (bitsandbytes).
        resident: of so many layers the weights stay on the device, those of the others are streamed; unset: all stay.
        parts: among so many devices the weights of each layer are parted.
        experts: a mixture's experts are rounded with them; runs of older versions kept these as they were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = "16bit"
    resident: Annotated[int, Field(ge=0)] | None = None
    parts: Annotated[int, Field(ge=1)] = 1
    experts: Annotated[bool, Field(repr=False)] = True

    @model_validator(mode="after")
    def _is_possible(self) -> Placement:
        if self.shards and self.quantised:
            raise ValueError(f"{self.format} weights are not parted")
        if self.streams and self.eight_bit:
            raise ValueError(f"{self.format} weights are on the device: they are not streamed")
        if self.streams and self.shards:
            raise ValueError("weights are streamed or parted, not both")
        return self

    # ------------------------------------------------------------ what is asked of it

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        return FORMATS[self.format].bits

    @property
    def bytes_a_weight(self) -> float:
        """Bytes of one weight, its share of the scales included."""
        return FORMATS[self.format].bytes

    @property
    def quantised(self) -> bool:
        """Whether the model that is trained has rounded weights."""
        return bool(FORMATS[self.format].rounded)

    @property
    def four_bit(self) -> bool:
        """Whether bitsandbytes rounds them while they are loaded."""
        return FORMATS[self.format].rounded == "loading"

    @property
    def eight_bit(self) -> bool:
        """Whether they are loaded in 16 bits, and rounded layer by layer as a model is accelerated."""
        return FORMATS[self.format].rounded == "layer"

    @property
    def streams(self) -> bool:
        """Whether weights of some layers wait in the host's memory."""
        return self.resident is not None

    @property
    def places(self) -> int:
        """Of how many layers the device has room for weights that come and go: a third one lets more come in while
        layers work that stay."""
        return 3 if self.resident else 2

    @property
    def shards(self) -> bool:
        """Whether several devices keep a part each."""
        return self.parts > 1

    @property
    def home(self) -> Home:
        """Where they are."""
        return Home.STREAMED if self.streams else Home.SHARDED if self.shards else Home.DEVICE

    # ------------------------------------------------------------ others like it

    def on_device(self) -> Placement:
        """Return the same format, all of it on the device."""
        return Placement(format=self.format, experts=self.experts)

    def streamed(self, resident: int = 0) -> Placement:
        """Return the same format, with the weights of so many layers on the device."""
        return Placement(format=self.format, resident=resident, experts=self.experts)

    def parted(self, parts: int) -> Placement:
        """Return the same format, parted among so many devices."""
        return Placement(format=self.format, parts=parts, experts=self.experts)

    def of_layer(self, index: int, layers: int) -> Placement:
        """Return the placement of one of a model's layers; resident ones lie evenly between those that are streamed.

        >>> [Placement(resident=2).of_layer(i, 5).streams for i in range(5)]
        [True, True, False, True, False]
        """
        if self.resident is None:
            return self
        before, after = (i * self.resident // layers for i in (index, index + 1))
        return self.on_device() if after > before else self.streamed()

    # ------------------------------------------------------------ words

    def words(self, device: str = "cuda", layers: int = 0) -> str:
        """Say it to a person.

        Args:
            device: ``cuda``, ``mps`` or ``cpu``.
            layers: of the model, where they are known.

        >>> Placement(format="nf4").words()
        'nf4 on the GPU'
        >>> Placement(resident=12).words(layers=32)
        '16 bits, 12 of 32 layers resident, the rest streamed'
        >>> Placement(resident=32).words(layers=32)
        "16 bits on the GPU, the embedding's rows fetched from the host's memory"
        """
        name = FORMATS[self.format].words
        if self.shards:
            return f"{name}, each of {self.parts} keeps a part and borrows the others' layer by layer"
        if self.resident is None:
            return f"{name} {'in memory' if device == 'cpu' else 'on the GPU'}"
        if layers and self.resident >= layers:
            return f"{name} on the GPU, the embedding's rows fetched from the host's memory"
        if self.resident == 0:
            return f"{name}, all layers streamed from the host's memory"
        return f"{name}, {self.resident}{f' of {layers}' if layers else ''} layers resident, the rest streamed"

    def __str__(self) -> str:
        return self.words()


BY_FORMAT = ("lora", "qlora")
"""Kinds of adapter that differ in the format of the frozen weights alone."""

PLAIN = Placement()
"""In 16 bits on the device; of a model that was loaded in 32, as it is."""


@dataclass(frozen=True)
class PlacementWish:
    """What was asked for; None is left to the plan.

    Args:
        format, home: see `Placement`.
    """

    format: Format | None = None
    home: Home | None = None

    @classmethod
    def of_spec(cls, weights: str, adapter: str) -> PlacementWish:
        """Read a spec's `weights` and `adapter.type`.

        >>> PlacementWish.of_spec("auto", "qlora").on_device()
        Placement(format='nf4', resident=None, parts=1)
        """
        wish = _SPEC_KEYS[weights]
        return cls("nf4", wish.home) if adapter == "qlora" else wish

    @classmethod
    def of_words(cls, quant: str, weights: str) -> PlacementWish:
        """Read the words of `nbtune.models.load_trainable`.

        Raises:
            SpecError: one of them is not known.
        """
        if quant not in _QUANTS:
            raise SpecError(f"quant: {quant!r} is no format of weights", fix=f"Use {_either(_QUANTS)}.")
        if weights not in _RESIDENCES:
            raise SpecError(f"weights: {weights!r} is not known here", fix=f"Use {_either(_RESIDENCES)}.")
        return cls(_QUANTS[quant], _RESIDENCES[weights])

    @property
    def is_of_frozen_weights(self) -> bool:
        """Whether it can only be had of weights that are not trained."""
        return self.home is not None or (self.format is not None and bool(FORMATS[self.format].rounded))

    def on_device(self, *, fp32: bool = False) -> Placement:
        """Return its format, on the device, whatever home it asks for.

        Args:
            fp32: products are in 32 bits, and weights that are not rounded with them.
        """
        whole = self.format is None or not FORMATS[self.format].rounded
        return Placement(format=("32bit" if fp32 else "16bit") if whole else self.format)  # type: ignore[arg-type]

    def overruled_by(self, placement: Placement) -> bool:
        """Return whether another format was asked for."""
        return self.format is not None and self.format != placement.format


_SPEC_KEYS: dict[str, PlacementWish] = {
    "auto": PlacementWish(),
    **{name: PlacementWish(name) for name in FORMATS if name != "32bit"},
    "streamed": PlacementWish(None, Home.STREAMED),
    "sharded": PlacementWish(None, Home.SHARDED),
}
_QUANTS: dict[str, Format | None] = {"none": None, **{n: n for n, kind in FORMATS.items() if kind.rounded}}
_RESIDENCES = {"auto": None, "resident": Home.DEVICE, "streamed": Home.STREAMED}


def _either(words: Mapping[str, Any]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"

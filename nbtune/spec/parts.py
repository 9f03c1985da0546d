"""The parts of a `RunSpec`: source, mix, evaluation, checkpoints; and what all of them have in common."""

from __future__ import annotations

import re
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

UNPACKED_ORDERS = ("bucketed", "in_turn", "short_first")
"""Orders of rows that packs, which take rows as they fit, could not keep."""


def field(
    default: Any, title: str, description: str, *, example: Any, unit: str = "", advanced: bool = False, **limits: Any
) -> Any:
    """Return a field with all that the form, the flags and the reference page say of it; `limits` are pydantic's."""
    extra: dict[str, Any] = {"unit": unit, "advanced": advanced}
    return Field(default, title=title, description=description, examples=[example], json_schema_extra=extra, **limits)


class Part(BaseModel):
    """What cannot be changed, and takes no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse True for 1, as Python takes it: here that is a slip of the pen."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            kinds = {annotation, *get_args(annotation)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("Input should be a number")
        return value

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Return what is not at its default: a spec has some fifty fields."""
        return [(key, getattr(self, key)) for key in self.model_dump(exclude_defaults=True)]


class SourceSpec(Part):
    """Where rows come from, and how they are read."""

    source: str = Field(
        title="Source",
        description="A variable of the notebook, a file or folder, a Hub id, or one of "
        "nbtune's own sets; `var:`, `file:` and `hub:` decide where two match.",
        examples=["rows"],
    )
    format: str | None = field(
        None, "Format", "How the rows are read; unset: detected from the columns.", example="alpaca"
    )
    columns: dict[str, str] = field(
        {}, "Columns", "Which column plays which role, as role: column.", example={"prompt": "question"}, advanced=True
    )
    split: str = field(
        "train",
        "Split",
        "The split of a dataset of the Hub, a local folder or a DatasetDict.",
        example="train",
        advanced=True,
    )
    revision: str | None = field(
        None, "Revision", "Branch, tag or commit of a Hub dataset.", example="main", advanced=True
    )
    config: str | None = field(
        None,
        "Config",
        "The configuration of a dataset of the Hub, or of a local folder whose README names some.",
        example="en",
        advanced=True,
    )
    weight: float = field(
        1.0,
        "Weight",
        "Share of this source in a mix, relative to the others; `mix.by` says of what.",
        example=2.0,
        gt=0,
        advanced=True,
    )
    max_rows: int | None = field(
        None,
        "At most",
        "The first so many rows are taken, of a stream no more are asked for; unset: all.",
        example=10_000,
        unit="rows",
        ge=1,
        advanced=True,
    )
    template: str | None = field(
        None,
        "Row template",
        "A Jinja2 text made of a row's columns; what stands in {% generation %}…{% endgeneration %} is trained, "
        "without such marks all of it.",
        example="{{ question }}{% generation %}{{ reply }}{% endgeneration %}",
        advanced=True,
    )
    function: str | None = field(
        None,
        "Function",
        "A Python function that makes a row of a row (None: leave it out): its name in this notebook, or module:name.",
        example="my_package.rows:as_chat",
        advanced=True,
    )


class _Matching(Part):
    """What looks for a text or a regular expression, which is compiled when it is read."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            self.pattern()
        except re.error as error:
            raise ValueError(f"`{error.pattern!s}` is no regular expression: {error}") from None
        return self

    def pattern(self) -> re.Pattern[str]:
        """Return what to look for."""
        raise NotImplementedError


class SpanRule(_Matching):
    """A text of the rendered rows whose tokens are trained, or not, whatever `train_on` says."""

    match: str = Field(
        title="Text",
        description="Each place in the rendered text (with the template's own words) where exactly this stands; or, "
        "with `regex`, where a regular expression of Python matches.",
        examples=["Ahoy!"],
        min_length=1,
    )
    train: bool = Field(
        title="Trained",
        description="Whether the tokens that it touches are trained.",
        examples=[False],
        json_schema_extra={"unit": "", "advanced": False},
    )
    regex: bool = field(
        False, "Regular expression", "`match` is a regular expression, not text.", example=True, advanced=True
    )

    def pattern(self) -> re.Pattern[str]:
        """Return what to look for."""
        return re.compile(self.match if self.regex else re.escape(self.match))


class KeepRule(_Matching):
    """A prompt whose answer a run must not forget."""

    prompt: str = Field(title="Prompt", description="What is asked.", examples=["Who wrote Faust?"], min_length=1)
    match: str = Field(
        title="Answer",
        description="What the answer must hold, whatever the case of letters; or, with `regex`, a regular expression "
        "of Python that must be found in it.",
        examples=["Goethe"],
        min_length=1,
    )
    regex: bool = field(
        False, "Regular expression", "`match` is a regular expression, not text.", example=True, advanced=True
    )

    def pattern(self) -> re.Pattern[str]:
        """Return what to look for."""
        return re.compile(self.match) if self.regex else re.compile(re.escape(self.match), re.IGNORECASE)


class MixSpec(Part):
    """How several sources become one stream of rows."""

    by: Literal["rows", "tokens", "times"] = field(
        "rows",
        "Weights by",
        "What a weight is a share of: the rows or the tokens that are drawn; times: how often a source's rows are seen "
        "in an epoch (2 twice, 0.5 every other).",
        example="tokens",
        advanced=True,
    )
    temperature: float | None = field(
        None,
        "Temperature",
        "Sources also weigh by size ** (1 / temperature): 1 as they are, high all the same; unset: by weight alone.",
        example=2.0,
        gt=0,
        advanced=True,
    )
    stop: Literal["total", "first_exhausted", "all_exhausted", "once"] = field(
        "total",
        "An epoch ends",
        "total: after as many rows as there are; when the first source, or the last, has been seen; once: every row "
        "once, whatever the weights.",
        example="all_exhausted",
        advanced=True,
    )


class EvalSpec(Part):
    """What is held out, and how often it is measured."""

    split: float | None = field(
        None,
        "Held-out share",
        "Share of the rows kept for evaluation; unset: 5 % if there are at least 40 rows, 0: none.",
        example=0.1,
        ge=0,
        lt=1,
    )
    data: SourceSpec | None = field(
        None, "Own rows", "A source of its own for evaluation, instead of a share.", example="test_rows", advanced=True
    )
    every: int | None = field(
        None,
        "Every",
        "Measure after so many steps; unset: about ten times in a run.",
        example=50,
        unit="steps",
        ge=1,
        advanced=True,
    )
    patience: int | None = field(
        None,
        "Patience",
        "Stop when the held-out loss has not fallen at so many evaluations in a row; unset: train to the end.",
        example=3,
        ge=1,
        advanced=True,
    )
    threshold: float = field(
        0.0, "Threshold", "A loss has fallen when it did by more than this.", example=0.01, ge=0, advanced=True
    )
    load_best: bool = field(
        False,
        "Load the best",
        "End with the weights whose held-out loss was lowest, not with the last ones.",
        example=True,
        advanced=True,
    )
    max_rows: int = field(256, "At most", "Rows measured at a time.", example=256, unit="rows", ge=1, advanced=True)
    metrics: tuple[str, ...] = field(
        (),
        "Metrics",
        "Measured before the first step and after the last: `perplexity`, `token_accuracy`, `exact_match`, "
        "`json_valid`, `rouge`, `bleu`, `chrf`, or functions by their names in this notebook, or module:function.",
        example=["exact_match", "is_polite"],
        advanced=True,
    )
    answer_rows: int = field(
        32, "Answers", "Held-out rows that are answered for `metrics`.", example=100, unit="rows", ge=1, advanced=True
    )
    max_new_tokens: int = field(
        128,
        "Longest answer",
        "Of `metrics` and `must_keep`; longer ones are cut.",
        example=256,
        unit="tokens",
        ge=1,
        le=32768,
        advanced=True,
    )
    must_keep: tuple[KeepRule, ...] = field(
        (),
        "Must keep",
        "Prompts that the base answers right and the tuned model should, too; asked before and after.",
        example=[{"prompt": "Who wrote Faust?", "match": "Goethe"}],
        advanced=True,
    )

    @field_validator("data", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class CheckpointSpec(Part):
    """When the run is saved so that it can go on."""

    every: int | None = field(
        None,
        "Every",
        "Save after so many steps, besides every `minutes`.",
        example=100,
        unit="steps",
        ge=1,
        advanced=True,
    )
    minutes: float = field(5.0, "Minutes", "Save at least so often.", example=5, unit="minutes", gt=0, advanced=True)
    keep: int = field(2, "Keep", "How many checkpoints stay on disk.", example=2, ge=1, advanced=True)


class MemorySpec(Part):
    """How much a run may take, whatever is free; a container's limits and the machine's own hold besides."""

    vram_gib: float | None = field(
        None,
        "Of a GPU",
        "Most of each GPU's memory, all that the process takes; kept while it loads and trains. NBTUNE_VRAM_GIB, too.",
        example=8,
        unit="GiB",
        gt=0,
        advanced=True,
    )
    ram_gib: float | None = field(
        None,
        "Of the host",
        "Most of the host's memory that is planned with. NBTUNE_RAM_GIB, too.",
        example=16,
        unit="GiB",
        gt=0,
        advanced=True,
    )

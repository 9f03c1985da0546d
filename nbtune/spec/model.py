"""RunSpec: the one description of a run.

The YAML of a cell or file, ``%%finetune?``, the form, the command line's flags and the reference page are all made
from these fields, so each has a title, a sentence, an example, and where it has one a unit. `advanced` marks what the
form hides behind "more". What is `None` is decided by the planner, which says why.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

__all__ = ["AdapterSpec", "CheckpointSpec", "EvalSpec", "MixSpec", "RunSpec", "SourceSpec"]


def _field(
    default: Any, title: str, description: str, *, example: Any, unit: str = "", advanced: bool = False, **limits: Any
) -> Any:
    extra: dict[str, Any] = {"unit": unit, "advanced": advanced}
    return Field(default, title=title, description=description, examples=[example], json_schema_extra=extra, **limits)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes True for 1; here that is a slip of the pen."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            kinds = {annotation, *get_args(annotation)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("Input should be a number")
        return value


def _adapter_from_word(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class AdapterSpec(_Part):
    """What is trained: a low-rank adapter beside frozen weights, or every weight (`full`)."""

    type: Literal["lora", "qlora", "dora", "full"] = _field(
        "lora",
        "Kind",
        "lora: 16-bit frozen weights; qlora: 4-bit frozen weights; dora: LoRA with a learnt magnitude; "
        "full: every weight is trained.",
        example="lora",
    )
    r: int = _field(
        16, "Rank", "Inner size of the adapter: higher learns more and costs more.", example=16, ge=1, le=1024
    )
    alpha: float | None = _field(
        None,
        "Alpha",
        "The adapter's output is scaled by alpha / r; unset: equal to r.",
        example=16,
        gt=0,
        advanced=True,
    )
    dropout: float = _field(
        0.0, "Dropout", "Share of the adapter's inputs dropped while training.", example=0.05, ge=0, lt=1, advanced=True
    )
    target_modules: Literal["all-linear"] | tuple[str, ...] = _field(
        "all-linear",
        "Targets",
        "Which linear layers get an adapter: all of the blocks', or names.",
        example=["q_proj", "v_proj"],
        advanced=True,
    )
    use_rslora: bool = _field(
        False, "rsLoRA", "Scale by alpha / sqrt(r), steadier at high ranks.", example=False, advanced=True
    )

    @property
    def lora_alpha(self) -> float:
        """`alpha`, or its default `r`."""
        return float(self.r) if self.alpha is None else self.alpha


class SourceSpec(_Part):
    """Where rows come from, and how they are read."""

    source: str = Field(
        title="Source",
        description="A variable of the notebook, a file or folder, a Hub id, or one of "
        "nbtune's own sets; `var:`, `file:` and `hub:` decide where two match.",
        examples=["rows"],
    )
    format: str | None = _field(
        None, "Format", "How the rows are read; unset: detected from the columns.", example="alpaca"
    )
    columns: dict[str, str] = _field(
        {}, "Columns", "Which column plays which role, as role: column.", example={"prompt": "question"}, advanced=True
    )
    split: str = _field("train", "Split", "The split of a Hub dataset.", example="train", advanced=True)
    revision: str | None = _field(
        None, "Revision", "Branch, tag or commit of a Hub dataset.", example="main", advanced=True
    )
    config: str | None = _field(None, "Config", "Name of a Hub dataset's configuration.", example="en", advanced=True)
    weight: float = _field(
        1.0,
        "Weight",
        "Share of this source in a mix, relative to the others; `mix.by` says of what.",
        example=2.0,
        gt=0,
        advanced=True,
    )
    template: str | None = _field(
        None,
        "Row template",
        "A Jinja2 text made of a row's columns; what stands in {% generation %}…{% endgeneration %} is trained, "
        "without such marks all of it.",
        example="{{ question }}{% generation %}{{ reply }}{% endgeneration %}",
        advanced=True,
    )
    function: str | None = _field(
        None,
        "Function",
        "A Python function that makes a row of a row (None: leave it out): its name in this notebook, or module:name.",
        example="my_package.rows:as_chat",
        advanced=True,
    )


class MixSpec(_Part):
    """How several sources become one stream of rows."""

    by: Literal["rows", "tokens", "times"] = _field(
        "rows",
        "Weights by",
        "What a weight is a share of: the rows or the tokens that are drawn; times: how often a source's rows are seen "
        "in an epoch (2 twice, 0.5 every other).",
        example="tokens",
        advanced=True,
    )
    temperature: float | None = _field(
        None,
        "Temperature",
        "Sources also weigh by size ** (1 / temperature): 1 as they are, high all the same; unset: by weight alone.",
        example=2.0,
        gt=0,
        advanced=True,
    )
    stop: Literal["total", "first_exhausted", "all_exhausted", "once"] = _field(
        "total",
        "An epoch ends",
        "total: after as many rows as there are; when the first source, or the last, has been seen; once: every row "
        "once, whatever the weights.",
        example="all_exhausted",
        advanced=True,
    )


class EvalSpec(_Part):
    """What is held out, and how often it is measured."""

    split: float | None = _field(
        None,
        "Held-out share",
        "Share of the rows kept for evaluation; unset: 5 % if there are at least 40 rows, 0: none.",
        example=0.1,
        ge=0,
        lt=1,
    )
    data: SourceSpec | None = _field(
        None, "Own rows", "A source of its own for evaluation, instead of a share.", example="test_rows", advanced=True
    )
    every: int | None = _field(
        None,
        "Every",
        "Measure after so many steps; unset: about ten times in a run.",
        example=50,
        unit="steps",
        ge=1,
        advanced=True,
    )
    max_rows: int = _field(256, "At most", "Rows measured at a time.", example=256, unit="rows", ge=1, advanced=True)

    @field_validator("data", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class CheckpointSpec(_Part):
    """When the run is saved so that it can go on."""

    every: int | None = _field(
        None,
        "Every",
        "Save after so many steps, besides every `minutes`.",
        example=100,
        unit="steps",
        ge=1,
        advanced=True,
    )
    minutes: float = _field(5.0, "Minutes", "Save at least so often.", example=5, unit="minutes", gt=0, advanced=True)
    keep: int = _field(2, "Keep", "How many checkpoints stay on disk.", example=2, ge=1, advanced=True)


def _sources(value: Any) -> Any:
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple({"source": entry} if isinstance(entry, str) else entry for entry in entries)


class RunSpec(_Part):
    """What the user asked for. Frozen; `to_yaml` and `from_yaml` are in `nbtune.spec.yaml`."""

    model: str = _field(
        "nbtune/tiny",
        "Model",
        "The base: a Hub id, a folder, or nbtune/tiny, the embedded one.",
        example="meta-llama/Llama-3.2-1B-Instruct",
        min_length=1,
    )
    data: Annotated[tuple[SourceSpec, ...], BeforeValidator(_sources)] = Field(
        title="Data",
        description="Rows to learn from: a DataFrame or list of this notebook by name, a file, a folder, a "
        "Hub id, one of nbtune's own sets, or a list of such with weights.",
        examples=["rows"],
        min_length=1,
    )
    method: Literal["sft", "dpo", "ipo", "orpo", "simpo", "kto"] = _field(
        "sft",
        "Method",
        "How it learns. sft: imitate the answers; dpo, ipo, orpo, simpo: prefer the better of two answers (rows with "
        "prompt, chosen, rejected); kto: from answers that are good or bad (prompt, completion, label).",
        example="sft",
    )
    beta: float | None = _field(
        None,
        "Beta",
        "How strongly preferences pull (not with sft); unset: 0.1, for simpo 2.",
        example=0.1,
        gt=0,
        advanced=True,
    )
    adapter: Annotated[AdapterSpec, BeforeValidator(_adapter_from_word)] = _field(
        AdapterSpec(), "Adapter", "What is trained.", example={"type": "lora", "r": 16}
    )
    steps: int | None = _field(None, "Steps", "Optimizer steps; excludes `epochs`.", example=200, unit="steps", ge=1)
    epochs: float | None = _field(
        None, "Epochs", "Times each row is seen; excludes `steps`; neither: 3 epochs.", example=3, gt=0
    )
    sequence_len: int | None = _field(
        None,
        "Sequence length",
        "Longer rows are cut; unset: the longest row, at most what the model knows.",
        example=2048,
        unit="tokens",
        ge=8,
    )
    batch_size: int | None = _field(
        None, "Batch size", "Rows per optimizer step; unset: 8.", example=16, unit="rows", ge=1
    )
    micro_batch_size: int | None = _field(
        None,
        "Micro-batch",
        "Rows that go through the model at once; unset: what fits.",
        example=4,
        unit="rows",
        ge=1,
        advanced=True,
    )
    gradient_accumulation_steps: int | None = _field(
        None,
        "Accumulation",
        "Micro-batches per optimizer step; two of batch_size, micro_batch_size and this give the third.",
        example=4,
        ge=1,
        advanced=True,
    )
    learning_rate: float | None = _field(
        None, "Learning rate", "Unset: 2e-4 for adapters, 2e-5 for full.", example=2e-4, gt=0
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = _field(
        "cosine", "Schedule", "How the learning rate falls.", example="cosine", advanced=True
    )
    warmup_ratio: float = _field(
        0.03, "Warm-up", "Share of the steps in which the learning rate rises.", example=0.03, ge=0, le=1, advanced=True
    )
    weight_decay: float = _field(0.0, "Weight decay", "AdamW's decay.", example=0.01, ge=0, advanced=True)
    max_grad_norm: float = _field(
        1.0, "Clip at", "Gradients are scaled down to this norm; 0: not at all.", example=1.0, ge=0, advanced=True
    )
    optim: Literal["adamw", "adamw_8bit"] = _field(
        "adamw", "Optimizer", "adamw, or with 8-bit state (bitsandbytes).", example="adamw", advanced=True
    )
    train_on: Literal["answers", "last_answer", "all"] | tuple[str, ...] = _field(
        "answers",
        "Train on",
        "Which tokens have a loss: the assistant's turns with their terminator, only the last of them, or everything; "
        "or a list of roles.",
        example="answers",
        advanced=True,
    )
    overflow: Literal["truncate_right", "truncate_left", "split", "drop", "raise"] = _field(
        "truncate_right",
        "Too long chats",
        "What happens to a chat of more tokens than `sequence_len`: cut, split between its turns, dropped, or refused.",
        example="split",
        advanced=True,
    )
    thinking: Literal["keep", "split", "drop"] = _field(
        "keep",
        "Thoughts",
        "Of answers that think first: keep them as they are, split <think> blocks off as the template's reasoning, or "
        "drop them.",
        example="drop",
        advanced=True,
    )
    terminators: Literal["all", "turn", "last", "none"] = _field(
        "turn",
        "End of a turn",
        "Which ends of turns are trained: those of trained answers, of all turns, of the last answer only, or none.",
        example="turn",
        advanced=True,
    )
    chat_template: str | None = _field(
        None,
        "Chat template",
        "Your own, as Jinja2 text or the file that holds it; unset: the model's.",
        example="chat.jinja",
        advanced=True,
    )
    on_error: Literal["raise", "skip"] = _field(
        "raise",
        "Broken rows",
        "A row that cannot be read is an error, or left out and reported.",
        example="skip",
        advanced=True,
    )
    mix: MixSpec = _field(
        MixSpec(), "Mix", "How several sources become one stream of rows.", example={"by": "tokens"}, advanced=True
    )
    order: Literal["shuffled", "given", "in_turn", "short_first"] = _field(
        "shuffled",
        "Order",
        "shuffled; given: as the rows stand; in_turn: source after source, each shuffled; short_first: by length.",
        example="in_turn",
        advanced=True,
    )
    packing: bool = _field(
        False, "Packing", "Several short rows share a sequence, without seeing each other.", example=True, advanced=True
    )
    seed: int = _field(42, "Seed", "Same seed, same run.", example=42, ge=0, lt=2**32, advanced=True)
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "auto",
        "Precision",
        "Of the frozen weights and the products; auto: by the card, with the reason in the plan.",
        example="auto",
        advanced=True,
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = _field(
        "auto", "Device", "Where it trains.", example="auto", advanced=True
    )
    weights: Literal["auto", "16bit", "fp8", "nf4", "streamed"] = _field(
        "auto",
        "Frozen weights",
        "How they are kept; streamed: 16-bit in the host's memory, sent to the GPU layer by layer.",
        example="auto",
        advanced=True,
    )
    activations: Literal["auto", "keep", "selective", "recompute", "offload"] = _field(
        "auto",
        "Activations",
        "Kept, or computed again, or moved to RAM; auto: the fastest that fits.",
        example="auto",
        advanced=True,
    )
    eval: EvalSpec = _field(
        EvalSpec(), "Evaluation", "What is held out, and how often it is measured.", example={"split": 0.1}
    )
    checkpoint: CheckpointSpec = _field(
        CheckpointSpec(), "Checkpoints", "When the run is saved.", example={"minutes": 5}, advanced=True
    )
    samples: tuple[str, ...] = _field(
        (), "Sample prompts", "Asked before, while and after it trains, to see the change.", example=["Who are you?"]
    )
    accelerate: bool = _field(
        True, "Acceleration", "Use nbtune's own kernels where a block agrees with stock.", example=True, advanced=True
    )
    trust_remote_code: bool = _field(
        False,
        "Remote code",
        "Run Python code that comes with the model. Only for authors you trust.",
        example=False,
        advanced=True,
    )

    @model_validator(mode="after")
    def _no_contradictions(self) -> RunSpec:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("`steps` and `epochs` exclude each other: keep one")
        batch, micro, accumulation = self.batch_size, self.micro_batch_size, self.gradient_accumulation_steps
        if batch and micro and accumulation and batch != micro * accumulation:
            raise ValueError(
                f"batch_size {batch} is not micro_batch_size {micro} × gradient_accumulation_steps {accumulation}: "
                "leave one of them out"
            )
        if self.packing and self.order in ("in_turn", "short_first"):
            raise ValueError(
                f"`packing` puts rows together as they fit, so `order: {self.order}` cannot be kept: drop one"
            )
        if self.method == "sft" and self.beta is not None:
            raise ValueError("`beta` is of methods that learn preferences: drop it, or set `method: dpo`")
        if self.adapter.type == "full" and self.method in ("dpo", "ipo", "kto"):
            raise ValueError(
                f"method `{self.method}` compares with the model without its adapter, and adapter `full` has none: "
                "use lora, or the method orpo or simpo"
            )
        if self.method == "kto" and self.micro_batch_size == 1:
            raise ValueError("method `kto` compares the answers of a micro-batch: set micro_batch_size to 2 or more")
        if self.adapter.type == "full" and self.weights in ("nf4", "fp8", "streamed"):
            raise ValueError(f"weights `{self.weights}` are frozen, but adapter `full` trains them: use lora or qlora")
        return self

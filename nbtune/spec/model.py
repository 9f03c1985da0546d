"""RunSpec: the one description of a run.

The YAML of a cell or file, ``%%finetune?``, the form, the command line's flags and the reference page are all made
from these fields, so each has a title, a sentence, an example, and where it has one a unit. `advanced` marks what the
form hides behind "more". What is `None` is decided by the planner, which says why.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nbtune.methods import METHODS, how_they_learn, what_beta_is
from nbtune.spec.adapter import AdapterSpec, adapter_from_word
from nbtune.spec.cluster import ClusterSpec, check_processes, cluster_from_word
from nbtune.spec.learning import OPTIMIZERS, SCHEDULES, OptimArgs, ScheduleArgs, check_learning
from nbtune.spec.loss_options import LossSpec, loss_from_word, must_fit
from nbtune.spec.parts import (
    UNPACKED_ORDERS,
    CheckpointSpec,
    EvalSpec,
    MemorySpec,
    MixSpec,
    Part,
    SourceSpec,
    SpanRule,
    field,
)
from nbtune.spec.placement import Home, PlacementWish, WeightsKey
from nbtune.spec.rewards import RewardsSpec, rewards_from_words
from nbtune.spec.yaml_text import to_yaml

if TYPE_CHECKING:
    MethodName = str
    OptimizerName = str
    ScheduleName = str
else:
    MethodName = Literal[tuple(METHODS)]
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    ScheduleName = Literal[tuple(SCHEDULES)]

_MARK = re.compile(r"r[0-9a-f]{12}\Z")


def _sources(value: Any) -> Any:
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple({"source": entry} if isinstance(entry, str) else entry for entry in entries)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


class RunSpec(Part):
    """What the user asked for. Frozen; `nbtune.spec` also has its `to_yaml` and `from_yaml`."""

    model: str = field(
        "nbtune/tiny",
        "Model",
        "The base: a Hub id, a folder, a GGUF file, nbtune/tiny (the embedded one), or a loaded model of a notebook.",
        example="meta-llama/Llama-3.2-1B-Instruct",
        min_length=1,
    )
    tokenizer: str | None = field(
        None,
        "Tokenizer",
        "Another one than the model's: a Hub id, a folder, or a variable of this notebook; unset: the model's.",
        example="my_tokenizer",
        min_length=1,
        advanced=True,
    )
    data: Annotated[tuple[SourceSpec, ...], BeforeValidator(_sources)] = Field(
        title="Data",
        description="Rows to learn from: a DataFrame or list of this notebook by name, a file, a folder, a "
        "Hub id, one of nbtune's own sets, or a list of such with weights.",
        examples=["rows"],
        min_length=1,
    )
    method: MethodName = field("sft", "Method", how_they_learn(METHODS.values()), example="sft")
    beta: float | None = field(None, "Beta", what_beta_is(METHODS.values()), example=0.1, ge=0, advanced=True)
    loss: Annotated[LossSpec, BeforeValidator(loss_from_word)] = field(
        LossSpec(),
        "Loss",
        "Which of the method's losses, and its options.",
        example={"type": "hinge"},
        advanced=True,
    )
    teacher: str | None = field(
        None,
        "Teacher",
        "Of distill: the model to learn from, a Hub id or a folder, of the same vocabulary.",
        example="nbtune/tiny",
        min_length=1,
        advanced=True,
    )
    rewards: Annotated[RewardsSpec, BeforeValidator(rewards_from_words)] = field(
        RewardsSpec(), "Rewards", "What judges the answers of grpo and rloo.", example="is_short", advanced=True
    )
    labels: tuple[str, ...] = field(
        (),
        "Labels",
        "What a classifier tells apart, in the order of its outputs; unset: all labels of the rows.",
        example=["cat", "dog"],
        advanced=True,
    )
    adapter: Annotated[AdapterSpec, BeforeValidator(adapter_from_word)] = field(
        AdapterSpec(), "Adapter", "What is trained.", example={"type": "lora", "r": 16}
    )
    steps: int | None = field(None, "Steps", "Optimizer steps; excludes `epochs`.", example=200, unit="steps", ge=1)
    epochs: float | None = field(
        None, "Epochs", "Times each row is seen; excludes `steps`; neither: 3, of few rows up to 12.", example=3, gt=0
    )
    sequence_len: int | None = field(
        None,
        "Sequence length",
        "Longer rows are cut; unset: the longest row, at most what the model knows.",
        example=2048,
        unit="tokens",
        ge=8,
    )
    batch_size: int | None = field(
        None, "Batch size", "Rows per optimizer step; unset: 8.", example=16, unit="rows", ge=1
    )
    micro_batch_size: int | None = field(
        None,
        "Micro-batch",
        "Rows that go through the model at once; unset: what fits.",
        example=4,
        unit="rows",
        ge=1,
        advanced=True,
    )
    gradient_accumulation_steps: int | None = field(
        None,
        "Accumulation",
        "Micro-batches per optimizer step; two of `batch_size`, `micro_batch_size` and this give the third.",
        example=4,
        ge=1,
        advanced=True,
    )
    learning_rate: float | None = field(
        None,
        "Learning rate",
        "Its peak; unset: by the model's hidden size, for LoRA 0.0025 at 256 and 0.00029 at 4096; a tenth of it where "
        "every weight is trained, and for preferences.",
        example=2e-4,
        gt=0,
    )
    lr_scheduler_type: ScheduleName = field(
        "linear", "Schedule", "How the learning rate falls.", example="cosine", advanced=True
    )
    schedule: ScheduleArgs = field(
        ScheduleArgs(), "Schedule's numbers", "What the schedule is told.", example={"floor": 0.1}, advanced=True
    )
    warmup_ratio: float = field(
        0.03, "Warm-up", "Share of the steps in which the learning rate rises.", example=0.03, ge=0, le=1, advanced=True
    )
    weight_decay: float = field(
        0.0, "Weight decay", "AdamW's decay; norms and biases have none.", example=0.01, ge=0, advanced=True
    )
    max_grad_norm: float = field(
        1.0, "Clip at", "Gradients are scaled down to this norm; 0: not at all.", example=1.0, ge=0, advanced=True
    )
    optim: OptimizerName = field(
        "adamw",
        "Optimizer",
        "By what rule weights are changed; 8bit: with 8-bit state; paged: its state leaves a GPU that is full.",
        example="adamw",
        advanced=True,
    )
    optim_args: OptimArgs = field(
        OptimArgs(), "Optimizer's numbers", "What the optimizer is told.", example={"beta2": 0.95}, advanced=True
    )
    neftune_noise_alpha: float = field(
        0.0,
        "NEFTune",
        "Noise on token embeddings while it trains, uniform within alpha / √(length × width); 0: none.",
        example=5.0,
        ge=0,
        advanced=True,
    )
    train_on: Literal["answers", "last_answer", "all"] | tuple[str, ...] = field(
        "answers",
        "Train on",
        "Which tokens have a loss: the assistant's turns with their terminator, only the last of them, or everything; "
        "or a list of roles.",
        example="answers",
        advanced=True,
    )
    train_spans: tuple[SpanRule, ...] = field(
        (),
        "Spans",
        "Texts whose tokens are trained or not, whatever `train_on` says; where several match, the last one counts.",
        example=[{"match": "Ahoy!", "train": False}],
        advanced=True,
    )
    row_weights: dict[str, Annotated[float, BeforeValidator(_number), Field(ge=0, le=1000)]] = field(
        {},
        "Row weights",
        "How often the losses of single rows count, by the rows' marks (`run.losses()` tells them): 0 leaves a row "
        "out, 2 counts it twice.",
        example={"r3fa9c1d2e4b5": 0},
        advanced=True,
    )
    start_from: str | None = field(
        None,
        "Start from",
        "A run (name, id or folder) of the same model and adapter, or the folder of any LoRA that peft wrote: what it "
        "has learnt is what this one begins with.",
        example="demo",
        min_length=1,
        advanced=True,
    )
    overflow: Literal["truncate_right", "truncate_left", "split", "drop", "raise"] = field(
        "truncate_right",
        "Too long chats",
        "What happens to a chat of more tokens than `sequence_len`: cut, split between its turns, dropped, or refused.",
        example="split",
        advanced=True,
    )
    thinking: Literal["keep", "split", "drop"] = field(
        "keep",
        "Thoughts",
        "Of answers that think first: keep them as they are, split <think> blocks off as the template's reasoning, or "
        "drop them.",
        example="drop",
        advanced=True,
    )
    terminators: Literal["all", "turn", "last", "none"] = field(
        "turn",
        "End of a turn",
        "Which ends of turns are trained: those of trained answers, of all turns, of the last answer only, or none.",
        example="turn",
        advanced=True,
    )
    chat_template: str | None = field(
        None,
        "Chat template",
        "Your own, as Jinja2 text or the file that holds it; unset: the model's.",
        example="chat.jinja",
        advanced=True,
    )
    on_error: Literal["raise", "skip"] = field(
        "raise",
        "Broken rows",
        "A row that cannot be read is an error, or left out and reported.",
        example="skip",
        advanced=True,
    )
    mix: MixSpec = field(
        MixSpec(), "Mix", "How several sources become one stream of rows.", example={"by": "tokens"}, advanced=True
    )
    order: Literal["shuffled", "bucketed", "given", "in_turn", "short_first"] = field(
        "shuffled",
        "Order",
        "shuffled; bucketed: shuffled, rows of like length together, so that less is padded; given: as the rows stand; "
        "`in_turn`: source after source, each shuffled; `short_first`: by length.",
        example="in_turn",
        advanced=True,
    )
    packing: Literal["auto"] | bool = field(
        False,
        "Packing",
        "Several short rows share a sequence, without seeing each other; auto: where the model is found to keep them "
        "apart.",
        example="auto",
        advanced=True,
    )
    seed: int = field(42, "Seed", "Same seed, same run.", example=42, ge=0, lt=2**32, advanced=True)
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = field(
        "auto",
        "Precision",
        "Of the frozen weights and the products; auto: by the card, with the reason in the plan.",
        example="auto",
        advanced=True,
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = field(
        "auto", "Device", "Where it trains.", example="auto", advanced=True
    )
    gpus: Literal["all"] | int | tuple[int, ...] = field(
        1,
        "GPUs",
        "How many of this machine's GPUs share each step: a number, all, or a list of which ones ([0, 2]). The step "
        "stays the same: `batch_size` counts the rows of all. With `device: cpu`, how many processes.",
        example=2,
        advanced=True,
    )
    cluster: Annotated[ClusterSpec, BeforeValidator(cluster_from_word)] = field(
        ClusterSpec(), "Cluster", "Whose machines do it.", example={"engine": "ray", "workers": 16}, advanced=True
    )
    weights: WeightsKey = field(
        "auto",
        "Frozen weights",
        "How they are kept; streamed: 16-bit in the host's memory, sent to the GPU layer by layer; sharded: 16-bit, "
        "each of several GPUs keeps its part and borrows the others' layer by layer (FSDP2); with adapter full what is "
        "trained, too.",
        example="auto",
        advanced=True,
    )
    activations: Literal["auto", "keep", "selective", "recompute", "offload"] = field(
        "auto",
        "Activations",
        "Kept, or computed again, or moved to RAM; auto: the fastest that fits.",
        example="auto",
        advanced=True,
    )
    memory: MemorySpec = field(
        MemorySpec(), "Memory", "How much of it a run may take.", example={"vram_gib": 8}, advanced=True
    )
    eval: EvalSpec = field(
        EvalSpec(), "Evaluation", "What is held out, and how often it is measured.", example={"split": 0.1}
    )
    checkpoint: CheckpointSpec = field(
        CheckpointSpec(), "Checkpoints", "When the run is saved.", example={"minutes": 5}, advanced=True
    )
    samples: tuple[str, ...] = field(
        (), "Sample prompts", "Asked before, while and after it trains, to see the change.", example=["Who are you?"]
    )
    accelerate: bool = field(
        True, "Acceleration", "Use nbtune's own kernels where a block agrees with stock.", example=True, advanced=True
    )
    trust_remote_code: bool = field(
        False,
        "Remote code",
        "Run Python code that comes with the model. Only for authors you trust.",
        example=False,
        advanced=True,
    )

    def __str__(self) -> str:
        return self._as_yaml()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self._as_yaml())

    def _repr_html_(self) -> str:
        return f"<pre style='margin:0;white-space:pre-wrap'>{html.escape(self._as_yaml())}</pre>"

    def _as_yaml(self) -> str:
        return to_yaml(self).rstrip()

    @property
    def speaks(self) -> str:
        """Whose tokenizer is used: a Hub id or a folder."""
        return self.tokenizer or self.model

    @property
    def placement(self) -> PlacementWish:
        """What `weights` and the adapter's kind ask of frozen weights."""
        return PlacementWish.of_spec(self.weights, self.adapter.type)

    @field_validator("row_weights")
    @classmethod
    def _marks(cls, value: dict[str, float]) -> dict[str, float]:
        if odd := [mark for mark in value if not _MARK.match(mark)]:
            raise ValueError(f"`{odd[0]}` is no row's mark: that is r and twelve digits, as `run.losses()` tells them")
        return value

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
        if batch and micro and batch % micro:
            raise ValueError(
                f"batch_size {batch} is not a multiple of micro_batch_size {micro}: change one, or leave one out"
            )
        if self.packing is True and self.order in UNPACKED_ORDERS:
            raise ValueError(
                f"`packing` puts rows together as they fit, so `order: {self.order}` cannot be kept: drop one"
            )
        must_fit(self)
        check_learning(self.optim, self.optim_args, self.lr_scheduler_type, self.schedule, self.steps)
        parted = self.placement.home is Home.SHARDED
        check_processes(self, parted)
        if parted and self.placement.on_device().quantised:
            raise ValueError("4-bit weights are not parted among GPUs: drop `weights: sharded`, or use adapter `lora`")
        if self.adapter.changes_base and self.placement.on_device().quantised:
            first = self.adapter.init_lora_weights
            raise ValueError(
                f"`weights: {self.weights}` would round what first values `{first}` leave: drop one of them"
            )
        if self.adapter.type == "full" and self.placement.is_of_frozen_weights and not parted:
            raise ValueError(f"weights `{self.weights}` are frozen, but adapter `full` trains them: use lora or qlora")
        return self

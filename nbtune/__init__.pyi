"""Made by `make docs` from the keys of a run (tests/support/stub.py): change those."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from nbtune import data as data
from nbtune import device as device
from nbtune import engine as engine
from nbtune import errors as errors
from nbtune import events as events
from nbtune import export as export
from nbtune import generate as generate
from nbtune import methods as methods
from nbtune import models as models
from nbtune import planner as planner
from nbtune import spec as spec
from nbtune import store as store
from nbtune import system_report as system_report
from nbtune import train as train
from nbtune import widgets as widgets
from nbtune.api import attach as attach
from nbtune.api import form as form
from nbtune.api import home as home
from nbtune.api import repeat as repeat
from nbtune.api import runs as runs
from nbtune.api import watch as watch
from nbtune.planner import Plan as Plan
from nbtune.rate_finder import lr_find as lr_find
from nbtune.run import Run as Run
from nbtune.spec import RunSpec as RunSpec
from nbtune.spec.adapter import AdapterSpec
from nbtune.spec.cluster import ClusterSpec
from nbtune.spec.learning import OptimArgs
from nbtune.spec.learning import ScheduleArgs
from nbtune.spec.loss_options import LossSpec
from nbtune.spec.parts import CheckpointSpec
from nbtune.spec.parts import EvalSpec
from nbtune.spec.parts import KeepRule
from nbtune.spec.parts import MemorySpec
from nbtune.spec.parts import MixSpec
from nbtune.spec.parts import SourceSpec
from nbtune.spec.parts import SpanRule
from nbtune.spec.rewards import RewardsSpec
from nbtune.store.run_consent import trust as trust
from nbtune.task_scores import lm_eval as lm_eval

__version__: str

class _Adapter(TypedDict, total=False):
    type: Literal['lora', 'qlora', 'dora', 'ia3', 'full']
    r: int
    alpha: float | None
    dropout: float
    target_modules: Literal['all-linear'] | list[str] | tuple[str, ...] | str
    layers_to_transform: list[int] | tuple[int, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    init_lora_weights: Literal['default', 'gaussian', 'orthogonal', 'pissa', 'pissa_niter_4', 'pissa_niter_16', 'olora', 'loftq']
    bias: Literal['none', 'all', 'lora_only']
    modules_to_save: list[str] | tuple[str, ...]
    trainable_token_indices: list[int] | tuple[int, ...]
    new_tokens: list[str] | tuple[str, ...]
    new_special_tokens: list[str] | tuple[str, ...]
    unfrozen_parameters: list[str] | tuple[str, ...]
    use_rslora: bool

class _Checkpoint(TypedDict, total=False):
    every: int | None
    minutes: float
    keep: int

class _Cluster(TypedDict, total=False):
    engine: Literal['none', 'ray']
    workers: int | list[int] | tuple[int, ...]
    address: str | None
    failures: int

class _Eval(TypedDict, total=False):
    split: float | None
    data: Any
    every: int | None
    patience: int | None
    threshold: float
    load_best: bool
    max_rows: int
    metrics: list[str] | tuple[str, ...]
    answer_rows: int
    max_new_tokens: int
    must_keep: list[_KeepRule | KeepRule] | tuple[_KeepRule | KeepRule, ...]

class _KeepRule(TypedDict, total=False):
    prompt: str
    match: str
    regex: bool

class _Loss(TypedDict, total=False):
    type: Literal['sigmoid', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'bco_pair', 'discopop'] | None
    label_smoothing: float | None
    z_loss: float | None
    rpo_alpha: float | None
    center_rewards: float | None
    cpo_alpha: float | None
    length_normalized: bool | None
    gamma: float | None
    desirable_weight: float | None
    undesirable_weight: float | None
    temperature: float | None
    alpha: float | None
    top_k: int | None

class _Memory(TypedDict, total=False):
    vram_gib: float | None
    ram_gib: float | None

class _Mix(TypedDict, total=False):
    by: Literal['rows', 'tokens', 'times']
    temperature: float | None
    stop: Literal['total', 'first_exhausted', 'all_exhausted', 'once']

class _OptimArgs(TypedDict, total=False):
    beta1: float | None
    beta2: float | None
    eps: float | None
    momentum: float | None
    lora_b_rate: float
    embedding_rate: float
    head_rate: float
    ema_decay: float | None
    in_backward: Literal['auto'] | bool

class _Rewards(TypedDict, total=False):
    functions: list[str] | tuple[str, ...]
    models: list[str] | tuple[str, ...]
    answers: int
    max_new_tokens: int
    temperature: float
    seconds: float

class _ScheduleArgs(TypedDict, total=False):
    warmup_steps: int | None
    floor: float | None
    power: float | None
    cycles: int | None
    timescale: int | None
    decay: Literal['linear', 'cosine', '1-sqrt'] | None
    decay_share: float | None

class _Source(TypedDict, total=False):
    source: Any
    format: str | None
    columns: Mapping[str, str]
    split: str
    revision: str | None
    config: str | None
    weight: float
    max_rows: int | None
    template: str | None
    function: str | None

class _SpanRule(TypedDict, total=False):
    match: str
    train: bool
    regex: bool

def validate(
    spec: RunSpec | Mapping[str, Any] | str | None = None,
    *,
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    first_line: int = 1,
    model: str | PathLike[str] | Module = 'nbtune/tiny',
    tokenizer: str | PathLike[str] | PreTrainedTokenizerBase | None = None,
    data: Any = ...,
    method: Literal['distill', 'sft', 'cpo', 'dpo', 'ipo', 'orpo', 'reward', 'simpo', 'bco', 'kto', 'prm', 'classification', 'token_classification', 'pretrain', 'grpo', 'rloo'] = 'sft',
    beta: float | None = None,
    loss: _Loss | Literal['sigmoid', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'bco_pair', 'discopop'] | None | LossSpec = ...,
    teacher: str | None = None,
    rewards: _Rewards | RewardsSpec = ...,
    labels: list[str] | tuple[str, ...] = ...,
    adapter: _Adapter | Literal['lora', 'qlora', 'dora', 'ia3', 'full'] | AdapterSpec = ...,
    steps: int | None = None,
    epochs: float | None = None,
    sequence_len: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    learning_rate: float | None = None,
    lr_scheduler_type: Literal['linear', 'cosine', 'constant', 'constant_with_warmup', 'cosine_with_restarts', 'polynomial', 'inverse_sqrt', 'warmup_stable_decay', 'one_cycle', 'range_test'] = 'linear',
    schedule: _ScheduleArgs | ScheduleArgs = ...,
    warmup_ratio: float = 0.03,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    optim: Literal['adamw', 'adamw_8bit', 'paged_adamw', 'paged_adamw_8bit', 'adafactor', 'lion', 'lion_8bit', 'paged_lion', 'paged_lion_8bit', 'muon'] = 'adamw',
    optim_args: _OptimArgs | OptimArgs = ...,
    neftune_noise_alpha: float = 0.0,
    train_on: Literal['answers', 'last_answer', 'all'] | list[str] | tuple[str, ...] = 'answers',
    train_spans: list[_SpanRule | SpanRule] | tuple[_SpanRule | SpanRule, ...] = ...,
    row_weights: Mapping[str, float] = ...,
    start_from: str | None = None,
    overflow: Literal['truncate_right', 'truncate_left', 'split', 'drop', 'raise'] = 'truncate_right',
    thinking: Literal['keep', 'split', 'drop'] = 'keep',
    terminators: Literal['all', 'turn', 'last', 'none'] = 'turn',
    chat_template: str | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    mix: _Mix | MixSpec = ...,
    order: Literal['shuffled', 'bucketed', 'given', 'in_turn', 'short_first'] = 'shuffled',
    packing: Literal['auto'] | bool = False,
    seed: int = 42,
    dtype: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'auto',
    device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto',
    gpus: Literal['all'] | int | list[int] | tuple[int, ...] = 1,
    cluster: _Cluster | ClusterSpec = ...,
    weights: Literal['auto', '16bit', 'fp8', 'nf4', 'streamed', 'sharded'] = 'auto',
    activations: Literal['auto', 'keep', 'selective', 'recompute', 'offload'] = 'auto',
    memory: _Memory | MemorySpec = ...,
    eval: _Eval | EvalSpec = ...,
    checkpoint: _Checkpoint | CheckpointSpec = ...,
    samples: list[str] | tuple[str, ...] = ...,
    accelerate: bool = True,
    trust_remote_code: bool = False,
) -> RunSpec:
    """Return whether a request can be meant: its keys and values, what it names on this machine, and the first rows of its data. Loads nothing else, and asks no network.

    Keys of a run:
        model: Model. The base: a Hub id, a folder, a GGUF file, nbtune/tiny (the embedded one), or a loaded model of a notebook.
        tokenizer: Tokenizer. Another one than the model's: a Hub id, a folder, or a variable of this notebook; unset: the model's.
        data: Data. Rows to learn from: a DataFrame or list of this notebook by name, a file, a folder, a Hub id, one of nbtune's own sets, or a list of such with weights.
        method: Method. How it learns. `distill`: say what a teacher model says of the answers; `sft`: imitate the answers; `cpo`, `dpo`, `ipo`, `orpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `reward`: score answers, the better of two higher (rows with prompt, chosen, rejected); `simpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `bco`, `kto`: from answers that are good or bad (rows with prompt, completion, label); `prm`: judge each step of a solution (rows with prompt, completions, labels); `classification`: name a text's label (rows with text, label); `token_classification`: name the label of each word of a text (rows with tokens, tags); `pretrain`: learn texts whole (rows with text); `grpo`: answer prompts, and repeat what the rewards like best in a group of answers (rows with prompt); `rloo`: answer prompts, and repeat what the rewards like better than the other answers (rows with prompt).
        beta: Beta. How strongly preferences pull (not with `distill`, `sft`, `reward`, `prm`, `classification`, `token_classification`, `pretrain`); of `grpo` and `rloo` what leaving the base costs, 0: nothing; unset: 0.1, for `simpo` 2, for `grpo` 0, for `rloo` 0.05.
        loss: Loss. Which of the method's losses, and its options.
        teacher: Teacher. Of distill: the model to learn from, a Hub id or a folder, of the same vocabulary.
        rewards: Rewards. What judges the answers of grpo and rloo.
        labels: Labels. What a classifier tells apart, in the order of its outputs; unset: all labels of the rows.
        adapter: Adapter. What is trained.
        steps: Steps. Optimizer steps; excludes `epochs`.
        epochs: Epochs. Times each row is seen; excludes `steps`; neither: 3, of few rows up to 12.
        sequence_len: Sequence length. Longer rows are cut; unset: the longest row, at most what the model knows.
        batch_size: Batch size. Rows per optimizer step; unset: 8.
        micro_batch_size: Micro-batch. Rows that go through the model at once; unset: what fits.
        gradient_accumulation_steps: Accumulation. Micro-batches per optimizer step; two of `batch_size`, `micro_batch_size` and this give the third.
        learning_rate: Learning rate. Its peak; unset: by the model's hidden size, for LoRA 0.0025 at 256 and 0.00029 at 4096; a tenth of it where every weight is trained, and for preferences.
        lr_scheduler_type: Schedule. How the learning rate falls.
        schedule: Schedule's numbers. What the schedule is told.
        warmup_ratio: Warm-up. Share of the steps in which the learning rate rises.
        weight_decay: Weight decay. AdamW's decay; norms and biases have none.
        max_grad_norm: Clip at. Gradients are scaled down to this norm; 0: not at all.
        optim: Optimizer. By what rule weights are changed; 8bit: with 8-bit state; paged: its state leaves a GPU that is full.
        optim_args: Optimizer's numbers. What the optimizer is told.
        neftune_noise_alpha: NEFTune. Noise on token embeddings while it trains, uniform within alpha / √(length × width); 0: none.
        train_on: Train on. Which tokens have a loss: the assistant's turns with their terminator, only the last of them, or everything; or a list of roles.
        train_spans: Spans. Texts whose tokens are trained or not, whatever `train_on` says; where several match, the last one counts.
        row_weights: Row weights. How often the losses of single rows count, by the rows' marks (`run.losses()` tells them): 0 leaves a row out, 2 counts it twice.
        start_from: Start from. A run (name, id or folder) of the same model and adapter, or the folder of any LoRA that peft wrote: what it has learnt is what this one begins with.
        overflow: Too long chats. What happens to a chat of more tokens than `sequence_len`: cut, split between its turns, dropped, or refused.
        thinking: Thoughts. Of answers that think first: keep them as they are, split <think> blocks off as the template's reasoning, or drop them.
        terminators: End of a turn. Which ends of turns are trained: those of trained answers, of all turns, of the last answer only, or none.
        chat_template: Chat template. Your own, as Jinja2 text or the file that holds it; unset: the model's.
        on_error: Broken rows. A row that cannot be read is an error, or left out and reported.
        mix: Mix. How several sources become one stream of rows.
        order: Order. shuffled; bucketed: shuffled, rows of like length together, so that less is padded; given: as the rows stand; `in_turn`: source after source, each shuffled; `short_first`: by length.
        packing: Packing. Several short rows share a sequence, without seeing each other; auto: where the model is found to keep them apart.
        seed: Seed. Same seed, same run.
        dtype: Precision. Of the frozen weights and the products; auto: by the card, with the reason in the plan.
        device: Device. Where it trains.
        gpus: GPUs. How many of this machine's GPUs share each step: a number, all, or a list of which ones ([0, 2]). The step stays the same: `batch_size` counts the rows of all. With `device: cpu`, how many processes.
        cluster: Cluster. Whose machines do it.
        weights: Frozen weights. How they are kept; streamed: 16-bit in the host's memory, sent to the GPU layer by layer; sharded: 16-bit, each of several GPUs keeps its part and borrows the others' layer by layer (FSDP2); with adapter full what is trained, too.
        activations: Activations. Kept, or computed again, or moved to RAM; auto: the fastest that fits.
        memory: Memory. How much of it a run may take.
        eval: Evaluation. What is held out, and how often it is measured.
        checkpoint: Checkpoints. When the run is saved.
        samples: Sample prompts. Asked before, while and after it trains, to see the change.
        accelerate: Acceleration. Use nbtune's own kernels where a block agrees with stock.
        trust_remote_code: Remote code. Run Python code that comes with the model. Only for authors you trust.
    """


def plan(
    spec: RunSpec | Mapping[str, Any] | str | None = None,
    *,
    machine: str | None = None,
    nodes: int = 1,
    network: float | None = None,
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    first_line: int = 1,
    model: str | PathLike[str] | Module = 'nbtune/tiny',
    tokenizer: str | PathLike[str] | PreTrainedTokenizerBase | None = None,
    data: Any = ...,
    method: Literal['distill', 'sft', 'cpo', 'dpo', 'ipo', 'orpo', 'reward', 'simpo', 'bco', 'kto', 'prm', 'classification', 'token_classification', 'pretrain', 'grpo', 'rloo'] = 'sft',
    beta: float | None = None,
    loss: _Loss | Literal['sigmoid', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'bco_pair', 'discopop'] | None | LossSpec = ...,
    teacher: str | None = None,
    rewards: _Rewards | RewardsSpec = ...,
    labels: list[str] | tuple[str, ...] = ...,
    adapter: _Adapter | Literal['lora', 'qlora', 'dora', 'ia3', 'full'] | AdapterSpec = ...,
    steps: int | None = None,
    epochs: float | None = None,
    sequence_len: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    learning_rate: float | None = None,
    lr_scheduler_type: Literal['linear', 'cosine', 'constant', 'constant_with_warmup', 'cosine_with_restarts', 'polynomial', 'inverse_sqrt', 'warmup_stable_decay', 'one_cycle', 'range_test'] = 'linear',
    schedule: _ScheduleArgs | ScheduleArgs = ...,
    warmup_ratio: float = 0.03,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    optim: Literal['adamw', 'adamw_8bit', 'paged_adamw', 'paged_adamw_8bit', 'adafactor', 'lion', 'lion_8bit', 'paged_lion', 'paged_lion_8bit', 'muon'] = 'adamw',
    optim_args: _OptimArgs | OptimArgs = ...,
    neftune_noise_alpha: float = 0.0,
    train_on: Literal['answers', 'last_answer', 'all'] | list[str] | tuple[str, ...] = 'answers',
    train_spans: list[_SpanRule | SpanRule] | tuple[_SpanRule | SpanRule, ...] = ...,
    row_weights: Mapping[str, float] = ...,
    start_from: str | None = None,
    overflow: Literal['truncate_right', 'truncate_left', 'split', 'drop', 'raise'] = 'truncate_right',
    thinking: Literal['keep', 'split', 'drop'] = 'keep',
    terminators: Literal['all', 'turn', 'last', 'none'] = 'turn',
    chat_template: str | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    mix: _Mix | MixSpec = ...,
    order: Literal['shuffled', 'bucketed', 'given', 'in_turn', 'short_first'] = 'shuffled',
    packing: Literal['auto'] | bool = False,
    seed: int = 42,
    dtype: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'auto',
    device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto',
    gpus: Literal['all'] | int | list[int] | tuple[int, ...] = 1,
    cluster: _Cluster | ClusterSpec = ...,
    weights: Literal['auto', '16bit', 'fp8', 'nf4', 'streamed', 'sharded'] = 'auto',
    activations: Literal['auto', 'keep', 'selective', 'recompute', 'offload'] = 'auto',
    memory: _Memory | MemorySpec = ...,
    eval: _Eval | EvalSpec = ...,
    checkpoint: _Checkpoint | CheckpointSpec = ...,
    samples: list[str] | tuple[str, ...] = ...,
    accelerate: bool = True,
    trust_remote_code: bool = False,
) -> Plan:
    """Return what a run would cost, without loading the model.

    Keys of a run:
        model: Model. The base: a Hub id, a folder, a GGUF file, nbtune/tiny (the embedded one), or a loaded model of a notebook.
        tokenizer: Tokenizer. Another one than the model's: a Hub id, a folder, or a variable of this notebook; unset: the model's.
        data: Data. Rows to learn from: a DataFrame or list of this notebook by name, a file, a folder, a Hub id, one of nbtune's own sets, or a list of such with weights.
        method: Method. How it learns. `distill`: say what a teacher model says of the answers; `sft`: imitate the answers; `cpo`, `dpo`, `ipo`, `orpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `reward`: score answers, the better of two higher (rows with prompt, chosen, rejected); `simpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `bco`, `kto`: from answers that are good or bad (rows with prompt, completion, label); `prm`: judge each step of a solution (rows with prompt, completions, labels); `classification`: name a text's label (rows with text, label); `token_classification`: name the label of each word of a text (rows with tokens, tags); `pretrain`: learn texts whole (rows with text); `grpo`: answer prompts, and repeat what the rewards like best in a group of answers (rows with prompt); `rloo`: answer prompts, and repeat what the rewards like better than the other answers (rows with prompt).
        beta: Beta. How strongly preferences pull (not with `distill`, `sft`, `reward`, `prm`, `classification`, `token_classification`, `pretrain`); of `grpo` and `rloo` what leaving the base costs, 0: nothing; unset: 0.1, for `simpo` 2, for `grpo` 0, for `rloo` 0.05.
        loss: Loss. Which of the method's losses, and its options.
        teacher: Teacher. Of distill: the model to learn from, a Hub id or a folder, of the same vocabulary.
        rewards: Rewards. What judges the answers of grpo and rloo.
        labels: Labels. What a classifier tells apart, in the order of its outputs; unset: all labels of the rows.
        adapter: Adapter. What is trained.
        steps: Steps. Optimizer steps; excludes `epochs`.
        epochs: Epochs. Times each row is seen; excludes `steps`; neither: 3, of few rows up to 12.
        sequence_len: Sequence length. Longer rows are cut; unset: the longest row, at most what the model knows.
        batch_size: Batch size. Rows per optimizer step; unset: 8.
        micro_batch_size: Micro-batch. Rows that go through the model at once; unset: what fits.
        gradient_accumulation_steps: Accumulation. Micro-batches per optimizer step; two of `batch_size`, `micro_batch_size` and this give the third.
        learning_rate: Learning rate. Its peak; unset: by the model's hidden size, for LoRA 0.0025 at 256 and 0.00029 at 4096; a tenth of it where every weight is trained, and for preferences.
        lr_scheduler_type: Schedule. How the learning rate falls.
        schedule: Schedule's numbers. What the schedule is told.
        warmup_ratio: Warm-up. Share of the steps in which the learning rate rises.
        weight_decay: Weight decay. AdamW's decay; norms and biases have none.
        max_grad_norm: Clip at. Gradients are scaled down to this norm; 0: not at all.
        optim: Optimizer. By what rule weights are changed; 8bit: with 8-bit state; paged: its state leaves a GPU that is full.
        optim_args: Optimizer's numbers. What the optimizer is told.
        neftune_noise_alpha: NEFTune. Noise on token embeddings while it trains, uniform within alpha / √(length × width); 0: none.
        train_on: Train on. Which tokens have a loss: the assistant's turns with their terminator, only the last of them, or everything; or a list of roles.
        train_spans: Spans. Texts whose tokens are trained or not, whatever `train_on` says; where several match, the last one counts.
        row_weights: Row weights. How often the losses of single rows count, by the rows' marks (`run.losses()` tells them): 0 leaves a row out, 2 counts it twice.
        start_from: Start from. A run (name, id or folder) of the same model and adapter, or the folder of any LoRA that peft wrote: what it has learnt is what this one begins with.
        overflow: Too long chats. What happens to a chat of more tokens than `sequence_len`: cut, split between its turns, dropped, or refused.
        thinking: Thoughts. Of answers that think first: keep them as they are, split <think> blocks off as the template's reasoning, or drop them.
        terminators: End of a turn. Which ends of turns are trained: those of trained answers, of all turns, of the last answer only, or none.
        chat_template: Chat template. Your own, as Jinja2 text or the file that holds it; unset: the model's.
        on_error: Broken rows. A row that cannot be read is an error, or left out and reported.
        mix: Mix. How several sources become one stream of rows.
        order: Order. shuffled; bucketed: shuffled, rows of like length together, so that less is padded; given: as the rows stand; `in_turn`: source after source, each shuffled; `short_first`: by length.
        packing: Packing. Several short rows share a sequence, without seeing each other; auto: where the model is found to keep them apart.
        seed: Seed. Same seed, same run.
        dtype: Precision. Of the frozen weights and the products; auto: by the card, with the reason in the plan.
        device: Device. Where it trains.
        gpus: GPUs. How many of this machine's GPUs share each step: a number, all, or a list of which ones ([0, 2]). The step stays the same: `batch_size` counts the rows of all. With `device: cpu`, how many processes.
        cluster: Cluster. Whose machines do it.
        weights: Frozen weights. How they are kept; streamed: 16-bit in the host's memory, sent to the GPU layer by layer; sharded: 16-bit, each of several GPUs keeps its part and borrows the others' layer by layer (FSDP2); with adapter full what is trained, too.
        activations: Activations. Kept, or computed again, or moved to RAM; auto: the fastest that fits.
        memory: Memory. How much of it a run may take.
        eval: Evaluation. What is held out, and how often it is measured.
        checkpoint: Checkpoints. When the run is saved.
        samples: Sample prompts. Asked before, while and after it trains, to see the change.
        accelerate: Acceleration. Use nbtune's own kernels where a block agrees with stock.
        trust_remote_code: Remote code. Run Python code that comes with the model. Only for authors you trust.
    """


def finetune(
    spec: RunSpec | Mapping[str, Any] | str | None = None,
    *,
    name: str = 'run',
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    on_busy: Literal['attach', 'restart', 'queue'] = 'attach',
    detach: bool = False,
    first_line: int = 1,
    model: str | PathLike[str] | Module = 'nbtune/tiny',
    tokenizer: str | PathLike[str] | PreTrainedTokenizerBase | None = None,
    data: Any = ...,
    method: Literal['distill', 'sft', 'cpo', 'dpo', 'ipo', 'orpo', 'reward', 'simpo', 'bco', 'kto', 'prm', 'classification', 'token_classification', 'pretrain', 'grpo', 'rloo'] = 'sft',
    beta: float | None = None,
    loss: _Loss | Literal['sigmoid', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'bco_pair', 'discopop'] | None | LossSpec = ...,
    teacher: str | None = None,
    rewards: _Rewards | RewardsSpec = ...,
    labels: list[str] | tuple[str, ...] = ...,
    adapter: _Adapter | Literal['lora', 'qlora', 'dora', 'ia3', 'full'] | AdapterSpec = ...,
    steps: int | None = None,
    epochs: float | None = None,
    sequence_len: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    learning_rate: float | None = None,
    lr_scheduler_type: Literal['linear', 'cosine', 'constant', 'constant_with_warmup', 'cosine_with_restarts', 'polynomial', 'inverse_sqrt', 'warmup_stable_decay', 'one_cycle', 'range_test'] = 'linear',
    schedule: _ScheduleArgs | ScheduleArgs = ...,
    warmup_ratio: float = 0.03,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    optim: Literal['adamw', 'adamw_8bit', 'paged_adamw', 'paged_adamw_8bit', 'adafactor', 'lion', 'lion_8bit', 'paged_lion', 'paged_lion_8bit', 'muon'] = 'adamw',
    optim_args: _OptimArgs | OptimArgs = ...,
    neftune_noise_alpha: float = 0.0,
    train_on: Literal['answers', 'last_answer', 'all'] | list[str] | tuple[str, ...] = 'answers',
    train_spans: list[_SpanRule | SpanRule] | tuple[_SpanRule | SpanRule, ...] = ...,
    row_weights: Mapping[str, float] = ...,
    start_from: str | None = None,
    overflow: Literal['truncate_right', 'truncate_left', 'split', 'drop', 'raise'] = 'truncate_right',
    thinking: Literal['keep', 'split', 'drop'] = 'keep',
    terminators: Literal['all', 'turn', 'last', 'none'] = 'turn',
    chat_template: str | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    mix: _Mix | MixSpec = ...,
    order: Literal['shuffled', 'bucketed', 'given', 'in_turn', 'short_first'] = 'shuffled',
    packing: Literal['auto'] | bool = False,
    seed: int = 42,
    dtype: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'auto',
    device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto',
    gpus: Literal['all'] | int | list[int] | tuple[int, ...] = 1,
    cluster: _Cluster | ClusterSpec = ...,
    weights: Literal['auto', '16bit', 'fp8', 'nf4', 'streamed', 'sharded'] = 'auto',
    activations: Literal['auto', 'keep', 'selective', 'recompute', 'offload'] = 'auto',
    memory: _Memory | MemorySpec = ...,
    eval: _Eval | EvalSpec = ...,
    checkpoint: _Checkpoint | CheckpointSpec = ...,
    samples: list[str] | tuple[str, ...] = ...,
    accelerate: bool = True,
    trust_remote_code: bool = False,
) -> Run:
    """Train in the background, and return at once.

    Keys of a run:
        model: Model. The base: a Hub id, a folder, a GGUF file, nbtune/tiny (the embedded one), or a loaded model of a notebook.
        tokenizer: Tokenizer. Another one than the model's: a Hub id, a folder, or a variable of this notebook; unset: the model's.
        data: Data. Rows to learn from: a DataFrame or list of this notebook by name, a file, a folder, a Hub id, one of nbtune's own sets, or a list of such with weights.
        method: Method. How it learns. `distill`: say what a teacher model says of the answers; `sft`: imitate the answers; `cpo`, `dpo`, `ipo`, `orpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `reward`: score answers, the better of two higher (rows with prompt, chosen, rejected); `simpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `bco`, `kto`: from answers that are good or bad (rows with prompt, completion, label); `prm`: judge each step of a solution (rows with prompt, completions, labels); `classification`: name a text's label (rows with text, label); `token_classification`: name the label of each word of a text (rows with tokens, tags); `pretrain`: learn texts whole (rows with text); `grpo`: answer prompts, and repeat what the rewards like best in a group of answers (rows with prompt); `rloo`: answer prompts, and repeat what the rewards like better than the other answers (rows with prompt).
        beta: Beta. How strongly preferences pull (not with `distill`, `sft`, `reward`, `prm`, `classification`, `token_classification`, `pretrain`); of `grpo` and `rloo` what leaving the base costs, 0: nothing; unset: 0.1, for `simpo` 2, for `grpo` 0, for `rloo` 0.05.
        loss: Loss. Which of the method's losses, and its options.
        teacher: Teacher. Of distill: the model to learn from, a Hub id or a folder, of the same vocabulary.
        rewards: Rewards. What judges the answers of grpo and rloo.
        labels: Labels. What a classifier tells apart, in the order of its outputs; unset: all labels of the rows.
        adapter: Adapter. What is trained.
        steps: Steps. Optimizer steps; excludes `epochs`.
        epochs: Epochs. Times each row is seen; excludes `steps`; neither: 3, of few rows up to 12.
        sequence_len: Sequence length. Longer rows are cut; unset: the longest row, at most what the model knows.
        batch_size: Batch size. Rows per optimizer step; unset: 8.
        micro_batch_size: Micro-batch. Rows that go through the model at once; unset: what fits.
        gradient_accumulation_steps: Accumulation. Micro-batches per optimizer step; two of `batch_size`, `micro_batch_size` and this give the third.
        learning_rate: Learning rate. Its peak; unset: by the model's hidden size, for LoRA 0.0025 at 256 and 0.00029 at 4096; a tenth of it where every weight is trained, and for preferences.
        lr_scheduler_type: Schedule. How the learning rate falls.
        schedule: Schedule's numbers. What the schedule is told.
        warmup_ratio: Warm-up. Share of the steps in which the learning rate rises.
        weight_decay: Weight decay. AdamW's decay; norms and biases have none.
        max_grad_norm: Clip at. Gradients are scaled down to this norm; 0: not at all.
        optim: Optimizer. By what rule weights are changed; 8bit: with 8-bit state; paged: its state leaves a GPU that is full.
        optim_args: Optimizer's numbers. What the optimizer is told.
        neftune_noise_alpha: NEFTune. Noise on token embeddings while it trains, uniform within alpha / √(length × width); 0: none.
        train_on: Train on. Which tokens have a loss: the assistant's turns with their terminator, only the last of them, or everything; or a list of roles.
        train_spans: Spans. Texts whose tokens are trained or not, whatever `train_on` says; where several match, the last one counts.
        row_weights: Row weights. How often the losses of single rows count, by the rows' marks (`run.losses()` tells them): 0 leaves a row out, 2 counts it twice.
        start_from: Start from. A run (name, id or folder) of the same model and adapter, or the folder of any LoRA that peft wrote: what it has learnt is what this one begins with.
        overflow: Too long chats. What happens to a chat of more tokens than `sequence_len`: cut, split between its turns, dropped, or refused.
        thinking: Thoughts. Of answers that think first: keep them as they are, split <think> blocks off as the template's reasoning, or drop them.
        terminators: End of a turn. Which ends of turns are trained: those of trained answers, of all turns, of the last answer only, or none.
        chat_template: Chat template. Your own, as Jinja2 text or the file that holds it; unset: the model's.
        on_error: Broken rows. A row that cannot be read is an error, or left out and reported.
        mix: Mix. How several sources become one stream of rows.
        order: Order. shuffled; bucketed: shuffled, rows of like length together, so that less is padded; given: as the rows stand; `in_turn`: source after source, each shuffled; `short_first`: by length.
        packing: Packing. Several short rows share a sequence, without seeing each other; auto: where the model is found to keep them apart.
        seed: Seed. Same seed, same run.
        dtype: Precision. Of the frozen weights and the products; auto: by the card, with the reason in the plan.
        device: Device. Where it trains.
        gpus: GPUs. How many of this machine's GPUs share each step: a number, all, or a list of which ones ([0, 2]). The step stays the same: `batch_size` counts the rows of all. With `device: cpu`, how many processes.
        cluster: Cluster. Whose machines do it.
        weights: Frozen weights. How they are kept; streamed: 16-bit in the host's memory, sent to the GPU layer by layer; sharded: 16-bit, each of several GPUs keeps its part and borrows the others' layer by layer (FSDP2); with adapter full what is trained, too.
        activations: Activations. Kept, or computed again, or moved to RAM; auto: the fastest that fits.
        memory: Memory. How much of it a run may take.
        eval: Evaluation. What is held out, and how often it is measured.
        checkpoint: Checkpoints. When the run is saved.
        samples: Sample prompts. Asked before, while and after it trains, to see the change.
        accelerate: Acceleration. Use nbtune's own kernels where a block agrees with stock.
        trust_remote_code: Remote code. Run Python code that comes with the model. Only for authors you trust.
    """


def submit(
    spec: RunSpec | Mapping[str, Any] | str | None = None,
    *,
    slurm: str | Mapping[str, Any],
    send: bool = True,
    name: str = 'run',
    rows: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    first_line: int = 1,
    model: str | PathLike[str] | Module = 'nbtune/tiny',
    tokenizer: str | PathLike[str] | PreTrainedTokenizerBase | None = None,
    data: Any = ...,
    method: Literal['distill', 'sft', 'cpo', 'dpo', 'ipo', 'orpo', 'reward', 'simpo', 'bco', 'kto', 'prm', 'classification', 'token_classification', 'pretrain', 'grpo', 'rloo'] = 'sft',
    beta: float | None = None,
    loss: _Loss | Literal['sigmoid', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'bco_pair', 'discopop'] | None | LossSpec = ...,
    teacher: str | None = None,
    rewards: _Rewards | RewardsSpec = ...,
    labels: list[str] | tuple[str, ...] = ...,
    adapter: _Adapter | Literal['lora', 'qlora', 'dora', 'ia3', 'full'] | AdapterSpec = ...,
    steps: int | None = None,
    epochs: float | None = None,
    sequence_len: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    learning_rate: float | None = None,
    lr_scheduler_type: Literal['linear', 'cosine', 'constant', 'constant_with_warmup', 'cosine_with_restarts', 'polynomial', 'inverse_sqrt', 'warmup_stable_decay', 'one_cycle', 'range_test'] = 'linear',
    schedule: _ScheduleArgs | ScheduleArgs = ...,
    warmup_ratio: float = 0.03,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    optim: Literal['adamw', 'adamw_8bit', 'paged_adamw', 'paged_adamw_8bit', 'adafactor', 'lion', 'lion_8bit', 'paged_lion', 'paged_lion_8bit', 'muon'] = 'adamw',
    optim_args: _OptimArgs | OptimArgs = ...,
    neftune_noise_alpha: float = 0.0,
    train_on: Literal['answers', 'last_answer', 'all'] | list[str] | tuple[str, ...] = 'answers',
    train_spans: list[_SpanRule | SpanRule] | tuple[_SpanRule | SpanRule, ...] = ...,
    row_weights: Mapping[str, float] = ...,
    start_from: str | None = None,
    overflow: Literal['truncate_right', 'truncate_left', 'split', 'drop', 'raise'] = 'truncate_right',
    thinking: Literal['keep', 'split', 'drop'] = 'keep',
    terminators: Literal['all', 'turn', 'last', 'none'] = 'turn',
    chat_template: str | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    mix: _Mix | MixSpec = ...,
    order: Literal['shuffled', 'bucketed', 'given', 'in_turn', 'short_first'] = 'shuffled',
    packing: Literal['auto'] | bool = False,
    seed: int = 42,
    dtype: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'auto',
    device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto',
    gpus: Literal['all'] | int | list[int] | tuple[int, ...] = 1,
    cluster: _Cluster | ClusterSpec = ...,
    weights: Literal['auto', '16bit', 'fp8', 'nf4', 'streamed', 'sharded'] = 'auto',
    activations: Literal['auto', 'keep', 'selective', 'recompute', 'offload'] = 'auto',
    memory: _Memory | MemorySpec = ...,
    eval: _Eval | EvalSpec = ...,
    checkpoint: _Checkpoint | CheckpointSpec = ...,
    samples: list[str] | tuple[str, ...] = ...,
    accelerate: bool = True,
    trust_remote_code: bool = False,
) -> Run:
    """Train as a job of Slurm: write its file into the run's folder, and give it to `sbatch`, where that is.

    Keys of a run:
        model: Model. The base: a Hub id, a folder, a GGUF file, nbtune/tiny (the embedded one), or a loaded model of a notebook.
        tokenizer: Tokenizer. Another one than the model's: a Hub id, a folder, or a variable of this notebook; unset: the model's.
        data: Data. Rows to learn from: a DataFrame or list of this notebook by name, a file, a folder, a Hub id, one of nbtune's own sets, or a list of such with weights.
        method: Method. How it learns. `distill`: say what a teacher model says of the answers; `sft`: imitate the answers; `cpo`, `dpo`, `ipo`, `orpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `reward`: score answers, the better of two higher (rows with prompt, chosen, rejected); `simpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `bco`, `kto`: from answers that are good or bad (rows with prompt, completion, label); `prm`: judge each step of a solution (rows with prompt, completions, labels); `classification`: name a text's label (rows with text, label); `token_classification`: name the label of each word of a text (rows with tokens, tags); `pretrain`: learn texts whole (rows with text); `grpo`: answer prompts, and repeat what the rewards like best in a group of answers (rows with prompt); `rloo`: answer prompts, and repeat what the rewards like better than the other answers (rows with prompt).
        beta: Beta. How strongly preferences pull (not with `distill`, `sft`, `reward`, `prm`, `classification`, `token_classification`, `pretrain`); of `grpo` and `rloo` what leaving the base costs, 0: nothing; unset: 0.1, for `simpo` 2, for `grpo` 0, for `rloo` 0.05.
        loss: Loss. Which of the method's losses, and its options.
        teacher: Teacher. Of distill: the model to learn from, a Hub id or a folder, of the same vocabulary.
        rewards: Rewards. What judges the answers of grpo and rloo.
        labels: Labels. What a classifier tells apart, in the order of its outputs; unset: all labels of the rows.
        adapter: Adapter. What is trained.
        steps: Steps. Optimizer steps; excludes `epochs`.
        epochs: Epochs. Times each row is seen; excludes `steps`; neither: 3, of few rows up to 12.
        sequence_len: Sequence length. Longer rows are cut; unset: the longest row, at most what the model knows.
        batch_size: Batch size. Rows per optimizer step; unset: 8.
        micro_batch_size: Micro-batch. Rows that go through the model at once; unset: what fits.
        gradient_accumulation_steps: Accumulation. Micro-batches per optimizer step; two of `batch_size`, `micro_batch_size` and this give the third.
        learning_rate: Learning rate. Its peak; unset: by the model's hidden size, for LoRA 0.0025 at 256 and 0.00029 at 4096; a tenth of it where every weight is trained, and for preferences.
        lr_scheduler_type: Schedule. How the learning rate falls.
        schedule: Schedule's numbers. What the schedule is told.
        warmup_ratio: Warm-up. Share of the steps in which the learning rate rises.
        weight_decay: Weight decay. AdamW's decay; norms and biases have none.
        max_grad_norm: Clip at. Gradients are scaled down to this norm; 0: not at all.
        optim: Optimizer. By what rule weights are changed; 8bit: with 8-bit state; paged: its state leaves a GPU that is full.
        optim_args: Optimizer's numbers. What the optimizer is told.
        neftune_noise_alpha: NEFTune. Noise on token embeddings while it trains, uniform within alpha / √(length × width); 0: none.
        train_on: Train on. Which tokens have a loss: the assistant's turns with their terminator, only the last of them, or everything; or a list of roles.
        train_spans: Spans. Texts whose tokens are trained or not, whatever `train_on` says; where several match, the last one counts.
        row_weights: Row weights. How often the losses of single rows count, by the rows' marks (`run.losses()` tells them): 0 leaves a row out, 2 counts it twice.
        start_from: Start from. A run (name, id or folder) of the same model and adapter, or the folder of any LoRA that peft wrote: what it has learnt is what this one begins with.
        overflow: Too long chats. What happens to a chat of more tokens than `sequence_len`: cut, split between its turns, dropped, or refused.
        thinking: Thoughts. Of answers that think first: keep them as they are, split <think> blocks off as the template's reasoning, or drop them.
        terminators: End of a turn. Which ends of turns are trained: those of trained answers, of all turns, of the last answer only, or none.
        chat_template: Chat template. Your own, as Jinja2 text or the file that holds it; unset: the model's.
        on_error: Broken rows. A row that cannot be read is an error, or left out and reported.
        mix: Mix. How several sources become one stream of rows.
        order: Order. shuffled; bucketed: shuffled, rows of like length together, so that less is padded; given: as the rows stand; `in_turn`: source after source, each shuffled; `short_first`: by length.
        packing: Packing. Several short rows share a sequence, without seeing each other; auto: where the model is found to keep them apart.
        seed: Seed. Same seed, same run.
        dtype: Precision. Of the frozen weights and the products; auto: by the card, with the reason in the plan.
        device: Device. Where it trains.
        gpus: GPUs. How many of this machine's GPUs share each step: a number, all, or a list of which ones ([0, 2]). The step stays the same: `batch_size` counts the rows of all. With `device: cpu`, how many processes.
        cluster: Cluster. Whose machines do it.
        weights: Frozen weights. How they are kept; streamed: 16-bit in the host's memory, sent to the GPU layer by layer; sharded: 16-bit, each of several GPUs keeps its part and borrows the others' layer by layer (FSDP2); with adapter full what is trained, too.
        activations: Activations. Kept, or computed again, or moved to RAM; auto: the fastest that fits.
        memory: Memory. How much of it a run may take.
        eval: Evaluation. What is held out, and how often it is measured.
        checkpoint: Checkpoints. When the run is saved.
        samples: Sample prompts. Asked before, while and after it trains, to see the change.
        accelerate: Acceleration. Use nbtune's own kernels where a block agrees with stock.
        trust_remote_code: Remote code. Run Python code that comes with the model. Only for authors you trust.
    """


def inspect(
    rows: Any,
    namespace: Mapping[str, Any] | None = None,
    *,
    model: str | PathLike[str] | Module = 'nbtune/tiny',
    tokenizer: str | PathLike[str] | PreTrainedTokenizerBase | None = None,
    method: Literal['distill', 'sft', 'cpo', 'dpo', 'ipo', 'orpo', 'reward', 'simpo', 'bco', 'kto', 'prm', 'classification', 'token_classification', 'pretrain', 'grpo', 'rloo'] = 'sft',
    beta: float | None = None,
    loss: _Loss | Literal['sigmoid', 'hinge', 'robust', 'exo_pair', 'nca_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'bco_pair', 'discopop'] | None | LossSpec = ...,
    teacher: str | None = None,
    rewards: _Rewards | RewardsSpec = ...,
    labels: list[str] | tuple[str, ...] = ...,
    adapter: _Adapter | Literal['lora', 'qlora', 'dora', 'ia3', 'full'] | AdapterSpec = ...,
    steps: int | None = None,
    epochs: float | None = None,
    sequence_len: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    learning_rate: float | None = None,
    lr_scheduler_type: Literal['linear', 'cosine', 'constant', 'constant_with_warmup', 'cosine_with_restarts', 'polynomial', 'inverse_sqrt', 'warmup_stable_decay', 'one_cycle', 'range_test'] = 'linear',
    schedule: _ScheduleArgs | ScheduleArgs = ...,
    warmup_ratio: float = 0.03,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    optim: Literal['adamw', 'adamw_8bit', 'paged_adamw', 'paged_adamw_8bit', 'adafactor', 'lion', 'lion_8bit', 'paged_lion', 'paged_lion_8bit', 'muon'] = 'adamw',
    optim_args: _OptimArgs | OptimArgs = ...,
    neftune_noise_alpha: float = 0.0,
    train_on: Literal['answers', 'last_answer', 'all'] | list[str] | tuple[str, ...] = 'answers',
    train_spans: list[_SpanRule | SpanRule] | tuple[_SpanRule | SpanRule, ...] = ...,
    row_weights: Mapping[str, float] = ...,
    start_from: str | None = None,
    overflow: Literal['truncate_right', 'truncate_left', 'split', 'drop', 'raise'] = 'truncate_right',
    thinking: Literal['keep', 'split', 'drop'] = 'keep',
    terminators: Literal['all', 'turn', 'last', 'none'] = 'turn',
    chat_template: str | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    mix: _Mix | MixSpec = ...,
    order: Literal['shuffled', 'bucketed', 'given', 'in_turn', 'short_first'] = 'shuffled',
    packing: Literal['auto'] | bool = False,
    seed: int = 42,
    dtype: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'auto',
    device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto',
    gpus: Literal['all'] | int | list[int] | tuple[int, ...] = 1,
    cluster: _Cluster | ClusterSpec = ...,
    weights: Literal['auto', '16bit', 'fp8', 'nf4', 'streamed', 'sharded'] = 'auto',
    activations: Literal['auto', 'keep', 'selective', 'recompute', 'offload'] = 'auto',
    memory: _Memory | MemorySpec = ...,
    eval: _Eval | EvalSpec = ...,
    checkpoint: _Checkpoint | CheckpointSpec = ...,
    samples: list[str] | tuple[str, ...] = ...,
    accelerate: bool = True,
    trust_remote_code: bool = False,
    row: int = 0,
    losses: Mapping[int, Any] | None = None,
) -> Any:
    """Return what of some rows is trained, token by token; fields of the spec as in `finetune`.

    Keys of a run:
        model: Model. The base: a Hub id, a folder, a GGUF file, nbtune/tiny (the embedded one), or a loaded model of a notebook.
        tokenizer: Tokenizer. Another one than the model's: a Hub id, a folder, or a variable of this notebook; unset: the model's.
        data: Data. Rows to learn from: a DataFrame or list of this notebook by name, a file, a folder, a Hub id, one of nbtune's own sets, or a list of such with weights.
        method: Method. How it learns. `distill`: say what a teacher model says of the answers; `sft`: imitate the answers; `cpo`, `dpo`, `ipo`, `orpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `reward`: score answers, the better of two higher (rows with prompt, chosen, rejected); `simpo`: prefer the better of two answers (rows with prompt, chosen, rejected); `bco`, `kto`: from answers that are good or bad (rows with prompt, completion, label); `prm`: judge each step of a solution (rows with prompt, completions, labels); `classification`: name a text's label (rows with text, label); `token_classification`: name the label of each word of a text (rows with tokens, tags); `pretrain`: learn texts whole (rows with text); `grpo`: answer prompts, and repeat what the rewards like best in a group of answers (rows with prompt); `rloo`: answer prompts, and repeat what the rewards like better than the other answers (rows with prompt).
        beta: Beta. How strongly preferences pull (not with `distill`, `sft`, `reward`, `prm`, `classification`, `token_classification`, `pretrain`); of `grpo` and `rloo` what leaving the base costs, 0: nothing; unset: 0.1, for `simpo` 2, for `grpo` 0, for `rloo` 0.05.
        loss: Loss. Which of the method's losses, and its options.
        teacher: Teacher. Of distill: the model to learn from, a Hub id or a folder, of the same vocabulary.
        rewards: Rewards. What judges the answers of grpo and rloo.
        labels: Labels. What a classifier tells apart, in the order of its outputs; unset: all labels of the rows.
        adapter: Adapter. What is trained.
        steps: Steps. Optimizer steps; excludes `epochs`.
        epochs: Epochs. Times each row is seen; excludes `steps`; neither: 3, of few rows up to 12.
        sequence_len: Sequence length. Longer rows are cut; unset: the longest row, at most what the model knows.
        batch_size: Batch size. Rows per optimizer step; unset: 8.
        micro_batch_size: Micro-batch. Rows that go through the model at once; unset: what fits.
        gradient_accumulation_steps: Accumulation. Micro-batches per optimizer step; two of `batch_size`, `micro_batch_size` and this give the third.
        learning_rate: Learning rate. Its peak; unset: by the model's hidden size, for LoRA 0.0025 at 256 and 0.00029 at 4096; a tenth of it where every weight is trained, and for preferences.
        lr_scheduler_type: Schedule. How the learning rate falls.
        schedule: Schedule's numbers. What the schedule is told.
        warmup_ratio: Warm-up. Share of the steps in which the learning rate rises.
        weight_decay: Weight decay. AdamW's decay; norms and biases have none.
        max_grad_norm: Clip at. Gradients are scaled down to this norm; 0: not at all.
        optim: Optimizer. By what rule weights are changed; 8bit: with 8-bit state; paged: its state leaves a GPU that is full.
        optim_args: Optimizer's numbers. What the optimizer is told.
        neftune_noise_alpha: NEFTune. Noise on token embeddings while it trains, uniform within alpha / √(length × width); 0: none.
        train_on: Train on. Which tokens have a loss: the assistant's turns with their terminator, only the last of them, or everything; or a list of roles.
        train_spans: Spans. Texts whose tokens are trained or not, whatever `train_on` says; where several match, the last one counts.
        row_weights: Row weights. How often the losses of single rows count, by the rows' marks (`run.losses()` tells them): 0 leaves a row out, 2 counts it twice.
        start_from: Start from. A run (name, id or folder) of the same model and adapter, or the folder of any LoRA that peft wrote: what it has learnt is what this one begins with.
        overflow: Too long chats. What happens to a chat of more tokens than `sequence_len`: cut, split between its turns, dropped, or refused.
        thinking: Thoughts. Of answers that think first: keep them as they are, split <think> blocks off as the template's reasoning, or drop them.
        terminators: End of a turn. Which ends of turns are trained: those of trained answers, of all turns, of the last answer only, or none.
        chat_template: Chat template. Your own, as Jinja2 text or the file that holds it; unset: the model's.
        on_error: Broken rows. A row that cannot be read is an error, or left out and reported.
        mix: Mix. How several sources become one stream of rows.
        order: Order. shuffled; bucketed: shuffled, rows of like length together, so that less is padded; given: as the rows stand; `in_turn`: source after source, each shuffled; `short_first`: by length.
        packing: Packing. Several short rows share a sequence, without seeing each other; auto: where the model is found to keep them apart.
        seed: Seed. Same seed, same run.
        dtype: Precision. Of the frozen weights and the products; auto: by the card, with the reason in the plan.
        device: Device. Where it trains.
        gpus: GPUs. How many of this machine's GPUs share each step: a number, all, or a list of which ones ([0, 2]). The step stays the same: `batch_size` counts the rows of all. With `device: cpu`, how many processes.
        cluster: Cluster. Whose machines do it.
        weights: Frozen weights. How they are kept; streamed: 16-bit in the host's memory, sent to the GPU layer by layer; sharded: 16-bit, each of several GPUs keeps its part and borrows the others' layer by layer (FSDP2); with adapter full what is trained, too.
        activations: Activations. Kept, or computed again, or moved to RAM; auto: the fastest that fits.
        memory: Memory. How much of it a run may take.
        eval: Evaluation. What is held out, and how often it is measured.
        checkpoint: Checkpoints. When the run is saved.
        samples: Sample prompts. Asked before, while and after it trains, to see the change.
        accelerate: Acceleration. Use nbtune's own kernels where a block agrees with stock.
        trust_remote_code: Remote code. Run Python code that comes with the model. Only for authors you trust.
    """


def load_ipython_extension(shell: Any) -> None: ...
def unload_ipython_extension(shell: Any) -> None: ...

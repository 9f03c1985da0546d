"""What a run is put together from: factors, each with its levels, a level being the fields of a spec that it sets."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from nbtune.methods import METHODS
from nbtune.spec.learning import OPTIMIZERS, SCHEDULES
from tests.support.family_cases import SIZES
from tests.support.judged_rows import rows_of
from tests.support.tiny_models import save_speaking

Fields = dict[str, Any]

_SMALL = {**SIZES, "hidden_size": 32, "intermediate_size": 64}
_GEMMA = {**_SMALL, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_EXPERTS = {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, Fields]] = {
    "tied": ("llama", {**_SMALL, "tie_word_embeddings": True}),
    "biased": ("llama", {**_SMALL, "tie_word_embeddings": False, "attention_bias": True}),
    "gemma": ("gemma3_text", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "experts": ("mixtral", _EXPERTS),
}

WIDE: Fields = {"hidden_size": 128, "intermediate_size": 256}
"""Of the same models on a card, whose kernels want heads of some width."""
_WIDE_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32}

_ENDS = ["", " and on", " and on it goes, as it did", " then"]
TEXTS = [f"Row {i} of many{_ENDS[i % 4]}." for i in range(12)]
ROWS: dict[str, list[Fields]] = {
    "completions": [{"prompt": f"Say {i}.", "completion": text} for i, text in enumerate(TEXTS)],
    "chats": [
        {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": text}]}
        for i, text in enumerate(TEXTS)
    ],
    "pairs": [{"prompt": f"Say {i}.", "chosen": text, "rejected": "No" * (1 + i % 3)} for i, text in enumerate(TEXTS)],
    **rows_of(TEXTS),
}  # fmt: skip
_IMITATES = {"texts": "texts", "completions": "completions", "chats": "chats"}


def _methods() -> dict[str, Fields]:
    found: dict[str, Fields] = {f"sft of {kind}": {"method": "sft", "rows": kind} for kind in _IMITATES}
    found["sft on all"] = {"method": "sft", "rows": "chats", "train_on": "all"}
    for name, method in METHODS.items():
        if name != "sft" and not method.online:
            found[name] = {"method": name, "rows": {"sft": "completions"}.get(method.rows, method.rows)}
    found["distill"]["teacher"] = "teacher"
    found["distill of few"] = {**found["distill"], "loss": {"top_k": 8}}
    return found


def _lora(**fields: Any) -> Fields:
    return {"adapter": {"type": "lora", "r": 4, **fields}}


_PATTERNS = {"rank_pattern": {"down_proj": 8}, "alpha_pattern": {"q_proj": 16}}
_FIRST_VALUES = ("gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora")
_ADAPTERS: dict[str, Fields] = {
    "lora": _lora(),
    "rslora": _lora(use_rslora=True, alpha=8),
    "lora+": {**_lora(), "optim_args": {"lora_b_rate": 16}},
    "dropout": _lora(dropout=0.3),
    "dora": _lora(type="dora"),
    "patterns": _lora(**_PATTERNS),
    "dora, patterns": _lora(type="dora", **_PATTERNS),
    "one layer": _lora(layers_to_transform=[1]),
    "regex": _lora(target_modules=r".*\.(q|v)_proj"),
    "names": _lora(target_modules=["k_proj", "o_proj"]),
    **{
        first: _lora(init_lora_weights=first) for first in ("gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora")
    },
    "qlora": _lora(type="qlora"),
    "loftq": _lora(type="qlora", init_lora_weights="loftq"),
    "head too": _lora(modules_to_save=["lm_head"]),
    "embedding too": _lora(modules_to_save=["embed_tokens"]),
    "both too": _lora(modules_to_save=["lm_head", "embed_tokens"]),
    "norms too": _lora(modules_to_save=["norm"]),
    "tokens": _lora(trainable_token_indices=[53, 17]),  # which stand in every text: others learn nothing
    "new tokens": _lora(new_tokens=["<row>", "<many>"]),
    "new special tokens": _lora(new_special_tokens=["<|row|>"]),
    "all biases": _lora(bias="all"),
    "their biases": _lora(bias="lora_only"),
    "ia3": {"adapter": {"type": "ia3"}},
    "ia3, head too": {"adapter": {"type": "ia3", "modules_to_save": ["lm_head"]}},
    "full": {"adapter": {"type": "full"}},
    "in backward": {"adapter": {"type": "full"}, "optim_args": {"in_backward": True}},
    "part": {"adapter": {"type": "full", "unfrozen_parameters": [r"model\.layers\.1\.", "lm_head"]}},
}
_SCHEDULE_ARGS: dict[str, Fields] = {
    "linear": {"floor": 0.2},
    "cosine": {"warmup_steps": 2},
    "cosine_with_restarts": {"cycles": 2},
    "polynomial": {"power": 2.0, "floor": 0.1},
    "inverse_sqrt": {"timescale": 2},
    "warmup_stable_decay": {"decay": "1-sqrt", "decay_share": 0.5},
}
_MOVED: dict[str, Fields] = {
    "adamw": {"beta1": 0.7, "beta2": 0.9, "eps": 1e-3},
    "muon": {"momentum": 0.5},
    "lion": {"beta1": 0.5, "beta2": 0.6},
}

FACTORS: dict[str, dict[str, Fields]] = {
    "model": {name: {"model": name} for name in MODELS},
    "method": _methods(),
    "loss": {
        "": {},
        **{
            f"type {kind}": {"loss": {"type": kind}}
            for kind in sorted({k for method in METHODS.values() for k in method.loss_types})
        },
        "smoothing": {"loss": {"label_smoothing": 0.2}},
        "z-loss": {"loss": {"z_loss": 0.1}},
        "rpo": {"loss": {"rpo_alpha": 0.5}},
        "around 0": {"loss": {"center_rewards": 0.5}},
        "cpo": {"loss": {"cpo_alpha": 0.3}},
        "a token": {"loss": {"length_normalized": True}},
        "gamma": {"loss": {"gamma": 0.2}},
        "bad ones": {"loss": {"undesirable_weight": 3.0}},
        "good ones": {"loss": {"desirable_weight": 3.0}},
        "temperature": {"loss": {"temperature": 2.0}},
        "alpha": {"loss": {"alpha": 0.1}},
        "beta": {"beta": 0.7},
    },
    "adapter": _ADAPTERS,
    "optimizer": {
        "": {},
        **{name: {"optim": name} for name in OPTIMIZERS if name != "adamw"},
        **{f"{name}, moved": {"optim": name, "optim_args": args} for name, args in _MOVED.items()},
    },
    "schedule": {
        "": {},
        **{name: {"lr_scheduler_type": name} for name in SCHEDULES if name not in ("linear", "polynomial")},
        **{f"{name}, told": {"lr_scheduler_type": name, "schedule": args} for name, args in _SCHEDULE_ARGS.items()},
    },
    "decay": {"": {}, "decayed": {"weight_decay": 0.3}},
    "noise": {"": {}, "neftune": {"neftune_noise_alpha": 5.0}},
    "average": {"": {}, "averaged": {"optim_args": {"ema_decay": 0.5}}},
    "rates": {
        "": {},
        "embedding": {"optim_args": {"embedding_rate": 0.3}},
        "head": {"optim_args": {"head_rate": 0.3}},
    },
    "clip": {"": {}, "unclipped": {"max_grad_norm": 0.0}, "clipped": {"max_grad_norm": 0.003}},
    "ends": {
        "": {},
        "measured": {"eval": {"split": 0.25, "every": 1}},
        "early": {"eval": {"split": 0.25, "every": 1, "patience": 1, "threshold": 0.001}},
        "best": {"eval": {"split": 0.25, "every": 1, "load_best": True}},
        "scored": {"eval": {"split": 0.25, "metrics": ["perplexity", "token_accuracy"]}},
    },
    "packing": {"": {}, "packed": {"packing": True}, "auto": {"packing": "auto"}},
    "source": {"": {}, "streamed": {"streamed": True}},
    "division": {
        "": {},
        "halves": {"micro_batch_size": 2},
        "one by one": {"gradient_accumulation_steps": 4},
    },
    "order": {"": {}, "given": {"order": "given"}, "bucketed": {"order": "bucketed"}},
    "length": {"": {}, "cut": {"sequence_len": 24}, "split": {"sequence_len": 40, "overflow": "split"}},
    "activations": {"": {}, **{how: {"activations": how} for how in ("keep", "selective", "recompute", "offload")}},
    "weights": {"": {}, **{form: {"weights": form} for form in ("16bit", "nf4", "fp8", "streamed")}},
    "start": {"": {}, "a run": {"start_from": "run"}, "a folder": {"start_from": "peft"}},
    "dtype": {"": {}, "bf16": {"dtype": "bf16"}, "fp16": {"dtype": "fp16"}},
    "stock": {"": {}, "stock": {"accelerate": False}},
    "asked": {"": {}, "asked": {"samples": ["Say 3."]}},
}
"""Factors; the first level of each is what is taken where another one is not possible."""

FIRST = {factor: next(iter(levels)) for factor, levels in FACTORS.items()}

# What must make another run than its first level; the others may well be the same numbers.
MOVES = ("loss", "adapter", "optimizer", "schedule", "decay", "noise", "average", "rates", "clip", "start", "dtype")

BASE: Fields = {
    "steps": 4, "batch_size": 4, "learning_rate": 5e-3, "device": "cpu", "dtype": "fp32", "eval": {"split": 0},
    "checkpoint": {"every": 2, "keep": 9},
}  # fmt: skip


def merged(one: Fields, other: Fields) -> Fields:
    """Return both, part by part; of what is said twice the second."""
    both = {**one, **other}
    shared = [key for key in one.keys() & other.keys() if isinstance(one[key], dict) and isinstance(other[key], dict)]
    return both | {key: merged(one[key], other[key]) for key in shared}


def fields_of(row: dict[str, str]) -> Fields:
    """Return what the levels of a row say together; what is not of a spec (`rows`, `streamed`) is among it."""
    found = BASE
    for factor, level in row.items():
        found = merged(found, FACTORS[factor][level])
    return found


@lru_cache
def model_of(name: str, wide: bool = False) -> str:
    """Return the folder of one of `MODELS`, or of the ``teacher``, made once a process."""
    kind, options = MODELS.get(name) or MODELS["biased"]
    if wide:
        options = {**options, **WIDE, **(_WIDE_GEMMA if "head_dim" in options else {})}
    return str(save_speaking(kind, Path(mkdtemp(prefix=f"nbtune-{name}-")), **options))

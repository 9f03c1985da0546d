"""Numbers that a spec may hold and that nobody means: what is usual of each key, and what comes of the others.

None is refused. Limits are wide, most of them by a factor of ten from what recipes say: a word that comes too often is
not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec

_ANY = float("inf")
_LONGEST = 60  # letters of a pattern's name in a sentence


@dataclass(frozen=True)
class Usual:
    """What is usual of a key: `usual` in words, and outside of `low` … `high` what comes of it."""

    low: float
    high: float
    usual: str
    below: str = ""
    above: str = ""
    nought: bool = True  # 0 means "none", and is not too little

    def said(self, key: str, value: float, written: float) -> str | None:
        """Return a sentence about a value that is far off, which may be written as another; None: it is not."""
        if self.low <= value <= self.high or (value == 0 and self.nought):
            return None
        side, then = ("below", self.below) if value < self.low else ("above", self.above)
        return f"`{key}: {_shown(written)}` is far {side} what is usual ({self.usual}): {then}"


_MOST_OF_IT, _NEVER = "most of what is learnt is forgotten again", "that is hardly ever"
_LOSS = "this term is all that the loss is made of"
_OTHERS_REST = "the others hardly learn beside it"

USUAL: dict[str, Usual] = {
    "learning_rate": Usual(
        1e-9, 0.1, "0.00001 to 0.01", "hardly anything is learnt", "weights jump about, and answers become noise"
    ),
    "epochs": Usual(0.001, 300, "1 to 12", "hardly a row is seen", "rows are learnt by heart, and little else"),
    "steps": Usual(1, 10_000_000, "50 to 10000", "", "a mistyped number?"),
    "sequence_len": Usual(16, 10_000_000, "128 to 32768", "rows are cut after a few words", "no model knows so many"),
    "batch_size": Usual(1, 8192, "4 to 256", "", "so many rows are read before anything is learnt of them"),
    "warmup_ratio": Usual(0, 0.5, "0 to 0.1", "", "the learning rate still rises for most of the run"),
    "schedule.warmup_steps": Usual(
        0, 1_000_000, "at most a tenth of the steps", "", "the learning rate rises for most of the run"
    ),
    "schedule.power": Usual(0.01, 20, "1 to 3", "the rate hardly falls", "the rate falls to nothing at once"),
    "schedule.cycles": Usual(1, 1000, "1 to 10", "", "the rate falls and jumps all the time"),
    "schedule.timescale": Usual(1, 10_000_000, "100 to 10000", "", "the rate never falls"),
    "weight_decay": Usual(0, 2, "0 to 0.1", "", _MOST_OF_IT),
    "max_grad_norm": Usual(1e-4, _ANY, "0.1 to 10", "every gradient is scaled to almost nothing (0: none is)"),
    "neftune_noise_alpha": Usual(0.01, 100, "5 to 15", "no noise that matters", "the noise drowns the words"),
    "beta": Usual(1e-4, 100, "0.01 to 10", "nothing holds it near the model it began as", "it stays what it began as"),
    "loss.label_smoothing": Usual(0, 0.4, "0 to 0.2", "", "what is right and what is wrong count almost alike"),
    "loss.z_loss": Usual(0, 0.1, "0.00001 to 0.001", "", _LOSS),
    "loss.rpo_alpha": Usual(0, 100, "0.1 to 2", "", _LOSS),
    "loss.center_rewards": Usual(0, 10, "0.001 to 0.1", "", _LOSS),
    "loss.cpo_alpha": Usual(0, 100, "0.1 to 2", "", _LOSS),
    "loss.gamma": Usual(0, 50, "0.3 to 2", "", "no answer is ever that much better"),
    "loss.desirable_weight": Usual(0.001, 1000, "0.5 to 4", "good answers do not count", "bad answers do not count"),
    "loss.undesirable_weight": Usual(0.001, 1000, "0.5 to 4", "bad answers do not count", "good answers do not count"),
    "loss.temperature": Usual(
        0.05, 100, "1 to 4", "only the teacher's likeliest token counts", "to the teacher all tokens are alike"
    ),
    "rewards.temperature": Usual(
        0.05, 2, "0.7 to 1.2", "all answers of a prompt are alike, and none is better", "answers are noise"
    ),
    "rewards.seconds": Usual(0.01, 86_400, "1 to 600", "a function hardly gets to answer", "one may hang for so long"),
    "adapter.alpha": Usual(1 / 64, 64, "half of `r` to 4 times it", "the adapter hardly counts", "it drowns the model"),
    "adapter.dropout": Usual(0, 0.6, "0 to 0.1", "", "the adapter sees little of its inputs"),
    "optim_args.beta1": Usual(0, 0.999, "0.8 to 0.95", "", "an old gradient counts as much as a new one"),
    "optim_args.beta2": Usual(
        0.5, 0.999999, "0.9 to 0.999", "steps jump with each gradient", "it averages for too long", nought=False
    ),
    "optim_args.eps": Usual(1e-30, 0.01, "1e-8 to 1e-6", "it is nought in 32 bits", "steps become almost nothing"),
    "optim_args.momentum": Usual(0, 0.9999, "0.9 to 0.99", "", "an old gradient counts as much as a new one"),
    "optim_args.lora_b_rate": Usual(0.01, 1000, "1 to 16", "B, which begins as 0, stays there", "B jumps about"),
    "optim_args.embedding_rate": Usual(1e-5, 100, "0.1 to 1", "they learn nothing", "embeddings jump about"),
    "optim_args.head_rate": Usual(1e-5, 100, "0.1 to 1", "it learns nothing", "the head jumps about"),
    "optim_args.ema_decay": Usual(0.5, 0.99999, "0.99 to 0.9999", "that is no average", "it ends as it began"),
    "mix.temperature": Usual(0.01, 1000, "1 to 5", "only the largest source is seen", "all sources weigh the same"),
    "memory.vram_gib": Usual(0.1, 10_000, "4 to 192, in GiB", "no model fits", "GiB are meant, not bytes or MB"),
    "memory.ram_gib": Usual(0.1, 100_000, "4 to 2048, in GiB", "no model fits", "GiB are meant, not bytes or MB"),
    "eval.split": Usual(1e-5, 0.6, "0.05 to 0.2", "no row is held out", "most rows are held out, and not learnt from"),
    "eval.every": Usual(1, 10_000_000, "10 to 1000", "", _NEVER),
    "eval.patience": Usual(1, 10_000, "2 to 10", "", "nothing ends it"),
    "eval.threshold": Usual(0, 10, "0 to 0.05", "", "no loss falls by so much"),
    "eval.max_rows": Usual(1, 10_000_000, "100 to 2000", "", "measuring takes longer than learning"),
    "eval.answer_rows": Usual(1, 100_000, "10 to 500", "", "answering takes longer than learning"),
    "checkpoint.every": Usual(1, 10_000_000, "50 to 1000", "", _NEVER),
    "checkpoint.minutes": Usual(0.01, 20_000, "1 to 60", "it saves more than it learns", "a crash takes all of it"),
    "checkpoint.keep": Usual(1, 1000, "1 to 5", "", "the disk fills"),
    "cluster.workers": Usual(1, 20_000, "1 to 512", "", "there are none so many"),
    "cluster.failures": Usual(-1, 10_000, "0 to 10", "", "one that always fails is begun again and again"),
}  # fmt: skip

# numbers without an unusual value: any seed is one, weights count beside each other, the spec's own limits are narrow,
# and what is not there (a GPU, a layer, a token) is refused where it is looked for
ANY = {
    "seed", "data.weight", "data.max_rows", "eval.data.weight", "eval.data.max_rows", "row_weights", "gpus",
    "micro_batch_size", "gradient_accumulation_steps",  # in the batch that they make
    "loss.alpha", "loss.top_k", "rewards.answers", "rewards.max_new_tokens", "eval.max_new_tokens", "schedule.floor",
    "schedule.decay_share", "adapter.r", "adapter.rank_pattern", "adapter.alpha_pattern", "adapter.layers_to_transform",
    "adapter.trainable_token_indices",
}  # fmt: skip


def unusual(spec: RunSpec, *, steps: int | None = None, hidden_size: int | None = None) -> tuple[str, ...]:
    """Return a sentence for each number of a spec that is far from what is usual.

    >>> [said] = nbtune.spec.unusual(nbtune.spec.from_mapping({"data": "rows", "learning_rate": 1000}))
    >>> said.split(":")[0:2]
    ['`learning_rate', ' 1000` is far above what is usual (0.00001 to 0.01)']

    Args:
        spec: what was asked for.
        steps: how many there will be, where that is known.
        hidden_size: the model's width, where that is known.
    """
    numbers = _numbers(spec, steps)
    found = [said for usual, key, value, written in numbers if (said := usual.said(key, value, written))]
    if hidden_size is not None and spec.adapter.type not in ("full", "ia3") and spec.adapter.r > hidden_size:
        width = f"more than the model is wide ({hidden_size})"
        found.append(f"`adapter.r: {spec.adapter.r}` is {width}: no more can be learnt by it")
    return tuple(found)


def _numbers(spec: RunSpec, steps: int | None) -> Iterator[tuple[Usual, str, float, float]]:
    """Yield (what is usual, key, the value that is judged, the one that was written) of all that is set."""
    for key, usual in USUAL.items():
        value: Any = spec
        for name in key.split("."):
            value = getattr(value, name, None)
        if value is None or (key == "learning_rate" and spec.lr_scheduler_type == "range_test"):
            continue  # which looks for the rate that is too high
        if key == "adapter.alpha":
            yield usual, key, value / spec.adapter.r, value
        elif key == "schedule.warmup_steps" and steps:
            yield replace(usual, high=0.5), key, value / steps, value
        else:
            yield usual, key, value, value
    for name, alpha in spec.adapter.alpha_pattern.items():
        ratio = alpha / spec.adapter.rank_pattern.get(name, spec.adapter.r)
        short = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
        yield USUAL["adapter.alpha"], f"adapter.alpha_pattern.{short}", ratio, alpha
    micro, several = spec.micro_batch_size or 1, spec.gradient_accumulation_steps or 1
    if spec.batch_size is None and micro * several > 1:
        which = "gradient_accumulation_steps" if several > micro else "micro_batch_size"
        yield USUAL["batch_size"], which, micro * several, max(micro, several)


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:g}"

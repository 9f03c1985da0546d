"""What a method is: `Method`, and `Answers`, all that its loss is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Loss = Callable[..., Tensor] | Literal["cross_entropy", "policy_gradient"]
    Metrics = Callable[..., Mapping[str, Tensor | tuple[Tensor, Tensor]]]

RowKind = Literal["sft", "pairs", "feedback", "stepwise", "labelled", "tagged", "texts", "prompts"]
OfHead = Literal["", "text", "token"]
OfStep = Literal["", "tokens", "answers"]
ROW_KINDS: tuple[RowKind, ...] = get_args(RowKind)


@dataclass(frozen=True)
class Answers:
    """What a model says of answers, computed by `nbtune.train.logprobs`: fp32 `[N]` each.

    Args:
        logprobs: log π(y | x), summed over the answer's tokens.
        tokens: |y|, how many these are.
        reference: log π_ref(y | x) of the model that the run starts from: without its adapter, or with the one of
            `start_from`. None for methods without a reference.
        values: what was judged, 1 for a good answer, 0 for a bad one; None for pairs, whose order says it.
        weights: how often each counts; None: each once.
        mismatched: all prompts of the optimizer step, each with another row's answer, without gradients; None for
            methods that do not ask for them, and where there is no other row.
        scores: what a trained head says of each, `[N, labels]`; None for methods without one. N are texts, or all
            judged tokens (`Method.head`).
        step: all answers of the optimizer step, over micro-batches and processes, without gradients; what
            `Method.of_step` does not ask for is NaN. See `of_step`.
    """

    logprobs: Tensor
    tokens: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None
    weights: Tensor | None = None
    mismatched: Answers | None = None
    step: Answers | None = None
    scores: Tensor | None = None

    @property
    def reward(self) -> Tensor:
        """What a head with one output says of each, `[N]`."""
        assert self.scores is not None, "the method has no head"
        return self.scores[:, 0]

    @property
    def classes(self) -> Tensor:
        """The number of each one's label, int64 `[N]`."""
        assert self.values is not None, "nothing was judged"
        return self.values.long()

    @property
    def of_step(self) -> Answers:
        """All answers of the step, or these where they are all; nothing that is made of them has a gradient."""
        return self.detached() if self.step is None else self.step

    @property
    def count(self) -> Tensor:
        """How many answers these are, each as often as it counts; a scalar []."""
        # `new_tensor` would copy the number from the host, which a recorded step may not
        return self.tokens.new_full((), float(len(self.tokens))) if self.weights is None else self.weights.sum()

    @property
    def all_tokens(self) -> Tensor:
        """Σ |y|, each as often as it counts; a scalar []."""
        return (self.tokens if self.weights is None else self.tokens * self.weights).sum()

    @property
    def ratios(self) -> Tensor:
        """r(x, y) = log π(y | x) - log π_ref(y | x); fp32 [answers]."""
        assert self.reference is not None, "the method does not say `reference=True`"
        return self.logprobs - self.reference

    @property
    def good(self) -> Tensor:
        """Which answers were judged good, bool `[N]`."""
        assert self.values is not None, "answers of pairs are not judged one by one"
        return self.values > 0.5

    @property
    def means(self) -> Tensor:
        """log π(y | x) a token; fp32 [answers]."""
        return self.logprobs / self.tokens.clamp(min=1)

    def every_second(self, first: int) -> Answers:
        """Return the better answers of pairs that lie side by side (`first` 0), or the worse ones (1)."""
        return self._each(lambda numbers: numbers[first::2], lambda more: more.every_second(first))

    def detached(self) -> Answers:
        """Return the same without gradients."""
        return self._each(lambda numbers: numbers.detach(), lambda more: more.detached())

    def to(self, device: torch.device | str) -> Answers:
        """Return the same on a device."""
        return self._each(lambda numbers: numbers.to(device), lambda more: more.to(device))

    def _each(self, numbers: Callable[[Tensor], Tensor], answers: Callable[[Answers], Answers]) -> Answers:
        tensors = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{k: (answers if isinstance(v, Answers) else numbers)(v) for k, v in tensors.items()})


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a run learns. The module of each says its formula and where it comes from.

    Args:
        name: what a spec calls it, and its file.
        title: its full name.
        sentence: how it learns, to follow on its name: "prefer the better of two answers".
        columns: what a row must hold, in words.
        rows: of which kind the rows must be (`nbtune.data.formats` reads them).
        loss: a pure function of what `nbtune.train` computes, never of a model. Of pairs
            ``loss(better, worse, **options)``, a loss a pair `[P]`; of other judged rows ``loss(answers, **options)``,
            a loss an answer `[N]`. Or the name of a loss of single tokens, which the model's head computes.
        options: the loss's options with their defaults; `beta` is a key of the spec, the others are in its `loss`
            part (`nbtune.spec.loss_options`), ``loss_type`` as its `type`.
        loss_types: the losses that ``loss_type`` may name, each with those of the options that are something to it;
            empty: there is one, which takes all.
        learning_rate_share: of the rate for imitation, what the planner takes where the spec leaves it open.
        reference: the loss compares with the model that the run starts from (`Answers.reference`), which is there
            because only an adapter is trained.
        mismatched: the loss wants `Answers.mismatched`.
        of_step: what the loss wants to know of all answers of the optimizer step (`Answers.of_step`), so that it does
            not matter how a step is divided: their ``tokens``, which cost nothing, or the ``answers`` with all that is
            known of them, which costs a forward of each without gradients.
        least_batch: rows that a step must have to say anything.
        head: what is trained beside the adapter: a linear layer on the last hidden state, of each ``text``'s last token
            or of each judged ``token``, in place of the model's own head. Its scores are `Answers.scores`.
        labels: what its outputs are called; empty: as the rows' labels are (`nbtune.data.prepare.labels`).
        teacher: the loss also asks another model, `teacher` in the spec (`nbtune.train.distillation`).
        perplexity: of held-out rows the perplexity is told besides the loss.
        metrics: named figures to watch, of the loss's arguments and like the loss one a pair `[P]` or an answer `[N]`,
            NaN where it has none; a step's is the mean of the others. A figure that is a ratio of sums gives both, of
            each; of several that are called ``f1:…`` the mean is shown.
        trainer: the class of TRL's that does the same, by which a run that is watched is known.
        online: the model answers by itself while it learns, and `rewards` of the spec judge it: that trainer runs it
            (`nbtune.engine.online`).
    """

    name: str
    title: str
    sentence: str
    rows: RowKind
    loss: Loss
    columns: str = ""
    options: Mapping[str, float | str] = field(default_factory=dict)
    loss_types: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    learning_rate_share: float = 1.0
    reference: bool = False
    mismatched: bool = False
    of_step: OfStep = ""
    least_batch: int = 1
    head: OfHead = ""
    labels: tuple[str, ...] = ()
    teacher: bool = False
    perplexity: bool = False
    metrics: Metrics | None = None
    trainer: str = ""
    online: bool = False

    @property
    def by_tokens(self) -> bool:
        """Whether the loss is one of single tokens, without a word on the answer as a whole."""
        return isinstance(self.loss, str)

    @property
    def names_labels(self) -> bool:
        """Whether rows have labels, whose names `labels` of the spec may say."""
        return self.rows in ("labelled", "tagged")

    @property
    def looks_ahead(self) -> bool:
        """Whether a row's loss depends on the other rows of its step, so that these are asked first."""
        return self.mismatched or bool(self.of_step)

    @property
    def pairwise(self) -> bool:
        """Whether it compares two answers of a row."""
        return self.rows == "pairs"

    @property
    def group(self) -> int:
        """How many examples a row becomes, which share a micro-batch."""
        return 2 if self.pairwise else 1

    def sides(self, answers: Answers) -> tuple[Answers, ...]:
        """Return the arguments of `loss` and `metrics`: the better and the worse answers of pairs, else all."""
        return (answers.every_second(0), answers.every_second(1)) if self.pairwise else (answers,)

"""Methods whose model answers by itself while it learns: TRL's trainer, on our rows, model, events, wishes and folder.

TRL samples, scores and steps; the run's folder, its checkpoints (ours, with the trainer's state beside them), what is
said and what is wished are as of every run.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbtune import events
from nbtune.data.formats.messages import Chat
from nbtune.data.prepare.row_pipeline import format_of
from nbtune.data.sources.snapshot import open_snapshot
from nbtune.engine.failures import still_there
from nbtune.engine.judged_groups import Groups
from nbtune.engine.judges import PLACE, Judge
from nbtune.engine.reward_models import reward_models
from nbtune.engine.telemetry import Gauge
from nbtune.engine.trainer_events import TrainerEvents
from nbtune.engine.trainer_prompts import TrainerPrompts
from nbtune.engine.trainer_tokenizer import for_trainer
from nbtune.errors import TrainError
from nbtune.methods import METHODS
from nbtune.store import checkpoints
from nbtune.train.optimizer import adam
from nbtune.train.progress import Progress
from nbtune.train.schedule import warmup_of

if TYPE_CHECKING:
    from nbtune.data import Prepared, Source
    from nbtune.models import Built
    from nbtune.planner import Plan
    from nbtune.spec import RunSpec
    from nbtune.store.lock import Ownership

_TRAINER = "trainer"  # in the folder of checkpoints: what TRL's trainer wants to go on
_KEPT = frozenset(("prompt", "completion", "completion_ids", "prompts", "completions", PLACE))


class Online:
    """A run of such a method.

    Args:
        folder: the run's.
        spec, plan: its.
        built: the model with its adapter, and its tokenizer.
        emit: takes events.
        owner: holds the folder.
    """

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        plan: Plan,
        built: Built,
        emit: Callable[[events.Event], None],
        owner: Ownership | None,
    ) -> None:
        self.folder, self.spec, self.plan, self.built = folder, spec, plan, built
        self.emit, self.owner = emit, owner
        self.progress = Progress()

    def train(self, data: Prepared) -> Literal["finished", "stopped"]:
        """Train on these rows, by the rewards in the folder, to the end or to a stop."""
        trl, sources = _trl(self.plan.device), open_snapshot(self.folder / "data")
        asked, judges = _asked(data.train, sources, self.spec), _judges(sources, self.spec)
        rows, tokenizer = _rows(asked), for_trainer(self.built.tokenizer, (chat for chat, _ in asked))
        self.groups = Groups([*judges, *reward_models(self.folder, self.spec)], self.spec.rewards.answers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TRL's advice, about settings that are ours
            kind = _quiet(getattr(trl, METHODS[self.spec.method].trainer))
            trainer = kind(
                model=self.built.model,
                args=self._arguments(trl),
                reward_funcs=self.groups.judges,
                train_dataset=rows,
                processing_class=tokenizer,
            )
            for known in list(trainer.callback_handler.callbacks):
                if type(known).__name__ in ("PrinterCallback", "ProgressCallback", "NotebookProgressCallback"):
                    trainer.remove_callback(known)
            plain = self.emit
            try:
                with Gauge(plain, self.built.model, trainer.args.device) as self.emit:
                    return self._train(trainer)
            finally:
                self.emit = plain
                _tidy(self.built.model)

    def _train(self, trainer: Any) -> Literal["finished", "stopped"]:
        from nbtune.engine.trainer_callback import SessionCallback

        last = checkpoints.latest(self.folder)
        began = int(last.name.removeprefix("step-")) if last is not None else 0
        session = SessionCallback(lambda state: _Session(self, trainer, state))
        trainer.add_callback(session)
        trainer.train(resume_from_checkpoint=str(self.state_of(began)) if began else None)
        return session.how

    def state_of(self, step: int) -> Path:
        """Return where the trainer's state of a step lies."""
        return self.folder / "checkpoints" / _TRAINER / f"checkpoint-{step}"

    def _arguments(self, trl: Any) -> Any:
        spec, plan, rewards = self.spec, self.plan, self.spec.rewards
        method = METHODS[spec.method]
        kind = getattr(trl, method.trainer.replace("Trainer", "Config"))
        rows = plan.micro_batch_size * plan.gradient_accumulation_steps
        return kind(
            output_dir=str(self.folder / "checkpoints" / _TRAINER),
            max_steps=plan.total_steps,
            num_generations=rewards.answers,
            per_device_train_batch_size=plan.micro_batch_size * rewards.answers,
            gradient_accumulation_steps=plan.gradient_accumulation_steps,
            steps_per_generation=plan.gradient_accumulation_steps,
            max_completion_length=rewards.max_new_tokens,
            temperature=rewards.temperature,
            beta=float(method.options["beta"] if spec.beta is None else spec.beta),
            learning_rate=plan.learning_rate,
            lr_scheduler_type=spec.lr_scheduler_type,
            warmup_steps=warmup_of(plan.total_steps, spec.warmup_ratio, spec.schedule),
            **_betas(spec),
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            shuffle_dataset=spec.order == "shuffled" and rows > 0,
            seed=spec.seed,
            logging_steps=1,
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=plan.device == "cpu",
            bf16=plan.dtype == "bf16" and plan.device != "cpu",
            fp16=plan.dtype == "fp16" and plan.device != "cpu",
            dataloader_pin_memory=False,
            **{_recomputing(kind): False},  # as the plan says, the model has it already
        )


class _Session(TrainerEvents):
    """What the trainer says and is told."""

    def __init__(self, run: Online, trainer: Any, state: Any) -> None:
        prompts = TrainerPrompts(run.spec.samples, trainer.train_dataset)
        super().__init__(run.folder, trainer, run.emit, prompts, state, "")
        self._run, self._saved_at = run, time.monotonic()
        run.progress.step = self._step
        self.emit(events.State(state="running", step=self._step, total_steps=self._total))
        if run.spec.samples and not self._step:
            self._ask(0)

    def shown(self) -> None:
        still_there(self.folder)
        if self._run.owner is not None:
            self._run.owner.check()

    def between(self, state: Any, control: Any) -> None:
        """Hear wishes, and save when it is time."""
        self._run.progress.step = int(state.global_step)
        self._run.groups.tell(int(state.global_step), self.emit)
        super().between(state, control)
        policy, now = self._run.spec.checkpoint, time.monotonic()
        due = bool(policy.every) and state.global_step % policy.every == 0
        if due or now - self._saved_at >= policy.minutes * 60 or self._asked_to_stop == "stop":
            self._saved_at, control.should_save = now, True
        if state.global_step >= self._total:
            control.should_save = True

    def saved(self, state: Any) -> None:
        """Write our checkpoint beside the trainer's state."""
        run, step = self._run, int(state.global_step)
        run.progress.step = step
        nothing: Any = _NoState()
        told = checkpoints.save(run.folder, run.built, nothing, run.progress, keep=run.spec.checkpoint.keep)
        self.emit(told)
        kept = {run.state_of(one).name for one in checkpoints.steps(run.folder)}
        for old in (run.folder / "checkpoints" / _TRAINER).glob("checkpoint-*"):
            if old.name not in kept:
                shutil.rmtree(old, ignore_errors=True)

    def ended(self, state: Any) -> str:
        """Return how it ended."""
        if self._prompts.due(evaluated=True):
            self._ask(int(state.global_step))
        return "stopped" if self._asked_to_stop and int(state.global_step) < self._total else "finished"


class _NoState:
    """The optimizer of a checkpoint whose state the trainer keeps."""

    def state_dict(self) -> dict[str, Any]:
        return {}


def _betas(spec: RunSpec) -> dict[str, float]:
    told = adam(spec.optim_args)
    return {"adam_beta1": told["betas"][0], "adam_beta2": told["betas"][1], "adam_epsilon": told["eps"]}


def _recomputing(arguments: Any) -> str:
    """Return what a class of arguments calls activation checkpointing: transformers 5.24 has renamed it."""
    known = arguments.__dataclass_fields__
    return next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)


def _trl(device: str) -> Any:
    """Return TRL.

    Raises:
        TrainError: this release has no way without a GPU.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl

    if device == "cpu" and trl.__version__.startswith("1.15."):
        cause = f"TRL {trl.__version__} computes this loss by Triton alone, which wants a GPU"
        raise TrainError(cause, fix='`pip install "trl>=1.16"`')
    return trl


def _quiet(kind: Any) -> Any:
    """Return a trainer's class that sends nothing home."""

    class Quiet(kind):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            return None

    return Quiet


def _judges(sources: list[Source], spec: RunSpec) -> list[Judge]:
    return [Judge(name, judge, spec.rewards.seconds) for source in sources for name, judge in source.rewards]


def _asked(train: Any, sources: list[Source], spec: RunSpec) -> list[tuple[Chat, dict[str, Any]]]:
    """Return what each row to learn from asks, and its other columns, for the rewards."""
    by_name = {source.name: source for source in sources}
    forms = {source.name: format_of(source, source.rows, spec.on_error, "prompts") for source in sources}
    found = []
    for index in range(len(train)):
        example = train[index]
        source = by_name[example.source]
        row = source.rows[example.row]
        read: Any = forms[source.name].read(row)
        chat = read.rows[0]
        assert isinstance(chat, Chat)
        columns = {str(key): value for key, value in row.items() if str(key) not in _KEPT}
        found.append((chat, {PLACE: str(source.rows.place(example.row)), **columns}))
    return found


def _rows(asked: list[tuple[Chat, dict[str, Any]]]) -> Any:
    """Return rows as TRL takes them: messages, and the other columns."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": [dict(one) for one in chat.messages], **more} for chat, more in asked])


def _tidy(model: Any) -> None:
    """Take away the forward that TRL has put onto the model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for one in (model, base):
        vars(one).pop("forward", None)

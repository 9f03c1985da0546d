"""The engine: a function of a run folder. It reads the spec, the plan and the snapshot of the data, and writes events.

    python -m nbtune.engine RUN_DIR
    torchrun --nproc-per-node 2 -m nbtune.engine RUN_DIR      (each process trains on its share of every step)

Where the spec wants several GPUs the first line starts a process for each (`nbtune.engine.distributed_launcher`). A
thread of the kernel calls `execute`, or another process does; nothing here assumes that it shares memory with a
notebook. Wishes come through ``control.json``, answers go out as events.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbtune import device as machine
from nbtune import events
from nbtune.atomic_io import read_json, sweep, write_json, write_text
from nbtune.data.prepare.labels import with_labels
from nbtune.engine import abilities
from nbtune.engine.answer_scores import scored
from nbtune.engine.answering import answered
from nbtune.engine.best_weights import stopping_of
from nbtune.engine.evaluation import Measuring
from nbtune.engine.failures import for_people, reserve, room_for, still_there
from nbtune.engine.held_prompts import HeldPrompts
from nbtune.engine.library_logging import quiet_libraries
from nbtune.engine.live_requests import Asked, answer_requests
from nbtune.engine.objects import credited
from nbtune.engine.online import Online
from nbtune.engine.run_loss import head_of_run, loss_of_run, without_teacher
from nbtune.engine.short_of_memory import give_up
from nbtune.engine.telemetry import Gauge
from nbtune.engine.untaught import say_untaught
from nbtune.engine.warm_start import begin_with, check_labels
from nbtune.methods import METHODS
from nbtune.models.first_values import keep_first_values, kept_in
from nbtune.models.heads import with_outputs
from nbtune.models.loading import tokenizer_folder
from nbtune.models.tokenizer_files import save_tokenizer
from nbtune.planner import Plan, make_plan
from nbtune.planner.optimizers import check_warmup
from nbtune.planner.run_length import epochs_of
from nbtune.spec import RunSpec
from nbtune.store import checkpoints
from nbtune.store.control import FileControl
from nbtune.store.event_log import EventWriter
from nbtune.store.folder import plan_of, spec_to_run
from nbtune.store.lock import Ownership, TakenOver
from nbtune.train.attempt import Attempt
from nbtune.train.control import OtherIsGone, Wishes
from nbtune.train.precompile import Rehearsal

if TYPE_CHECKING:
    import torch

    from nbtune.data import BatchPlan, Prepared
    from nbtune.models import Built
    from nbtune.train.cuda_graph_stepper import FusedStepper
    from nbtune.train.distributed import Ranks
    from nbtune.train.loss import Loss
    from nbtune.train.progress import Progress
    from nbtune.train.stepper import Stepper


def execute(
    folder: Path, *, keep: Callable[[Built], None] | None = None, ranks: Ranks | None = None
) -> Literal["finished", "stopped"]:
    """Do the run of a folder, from its start or its last checkpoint, to its end or to a stop.

    Args:
        folder: made by `nbtune.store.folder.create`, with a snapshot of its data.
        keep: is given the model once it is loaded; without it nothing holds the model after the run.
        ranks: this is the first of several processes.
    Raises:
        NbtuneError: also said as the last event.
    """
    quiet_libraries()
    with Ownership(folder) as owner:
        for part in (folder, folder / "checkpoints"):
            sweep(part)
        with reserve(folder) as give_back, contextlib.closing(EventWriter(folder / "events.jsonl")) as emit:
            try:
                emit(events.State(state="preparing"))
                engine = _Engine(folder, emit, owner, ranks)
                with engine.rehearsal, engine.limits:
                    engine.prepare()
                    if keep is not None:
                        keep(engine.built)
                    ended = engine.train()
                emit(events.State(state=ended, step=engine.progress.step, total_steps=engine.plan.total_steps))
                return ended
            except (TakenOver, OtherIsGone):
                raise  # the folder is another's: not a word more; or another one knows the reason
            except BaseException as error:
                give_back()
                explained = for_people(error, folder)
                with contextlib.suppress(OSError):
                    detail = str(explained or f"a bug in nbtune or a library: {error!r}"[:500])
                    emit(events.State(state="failed", detail=detail))
                    if explained is not error:
                        write_text(folder / "traceback.txt", traceback.format_exc())
                if explained is None or explained is error:
                    raise
                raise explained from error


def follow(folder: Path, ranks: Ranks) -> None:
    """Do the run together with the first process, which alone writes into the folder."""
    quiet_libraries()
    engine = _Engine(folder, lambda _: None, None, ranks)
    with engine.limits:
        engine.prepare()
        engine.train()


class _Engine:
    """One run, prepared and trained."""

    built: Built
    plan: Plan
    batches: BatchPlan
    stepper: Stepper | FusedStepper
    progress: Progress
    measuring: Measuring
    online: Online
    began_at = 0  # the step from which on this process trains

    def __init__(
        self, folder: Path, emit: Callable[[events.Event], None], owner: Ownership | None, ranks: Ranks | None = None
    ) -> None:
        self.folder, self.emit, self.owner, self.ranks = folder, emit, owner, ranks
        self.writes, self.count = ranks is None or ranks.first, 1 if ranks is None else ranks.count
        self.spec: RunSpec = spec_to_run(folder)
        self.method = METHODS[self.spec.method]
        self.control, self.limits = FileControl(folder), contextlib.ExitStack()
        self.rehearsal = Rehearsal.begin(self.spec) if ranks is None else Rehearsal(self.spec)

    def prepare(self) -> None:
        """Make tokens, plan, model, optimizer; and load the last checkpoint, where there is one."""
        from nbtune import data, models

        spec, folder = self.spec, self.folder
        device = machine.pick(spec.device)
        where = machine.describe(device, rates=True, **spec.memory.model_dump())
        if self.ranks is not None:
            self.limits.enter_context(self.ranks.noticing())
            where = self.ranks.poorest(where)
            if not self.writes:
                self.ranks.wait()  # the first has its tokens and its plan
        self.limits.enter_context(machine.within_limits(device, where, self.count))
        where = without_teacher(spec, credited(where, spec))
        facts = models.model_facts(spec.model)
        tokenizer = models.load_tokenizer(spec.speaks, trust_remote_code=spec.trust_remote_code)
        max_len = facts.row_tokens(spec.sequence_len)
        sources = data.open_snapshot(folder / "data")
        spec = self.spec = with_labels(spec, sources)
        check_labels(folder, spec)
        self.data: Prepared = data.prepare_data(
            sources,
            tokenizer,
            spec=spec,
            max_len=max_len,
            seed=spec.seed,
            tell=lambda message: self.emit(events.Warning(message=message)),
        )
        for message in self.data.report.warnings:
            self.emit(events.Warning(message=message))
        say_untaught(self.data, spec, tokenizer, self.emit, one_weight=facts.tied)
        self.plan = self._plan(facts, tokenizer, where)
        if self.writes:
            room_for(self.plan.disk_bytes, folder)
        self.emit(events.State(state="preparing", detail=self.plan.disk_and_download()))
        if self.ranks is not None and self.writes:
            self.ranks.wait()  # the others read what is there now
        self.rehearsal.perform(self.plan)
        machine.reset_peak(device)
        with Attempt() as attempt:
            self.built = self._build(device)
        if attempt.short:
            self._plan_again(facts, tokenizer, device)
            self.built = self._build(device)
        keep_first_values(self.built.model, folder, writes=self.writes)
        if checkpoints.latest(folder) is None or self.method.online:  # a trainer's reference begins there again
            begin_with(folder, self.built.model)
        self.built.tokenizer = tokenizer = data.speaking(tokenizer, spec, self.data.chat_template)
        if self.writes:
            still_there(folder)
            base = tokenizer_folder(spec.speaks, trust_remote_code=spec.trust_remote_code)
            save_tokenizer(tokenizer, base, folder / "tokenizer")
        if self.method.online:
            self.online = Online(folder, spec, self.plan, self.built, self.emit, self.owner)
            self.progress = self.online.progress
        else:
            self._make_stepper(device)

    def _build(self, device: torch.device) -> Built:
        from nbtune import models

        spec = self.spec
        return models.build(
            spec.model,
            adapter=spec.adapter,
            dtype=machine.torch_dtype(self.plan.dtype),
            device=device,
            policy=self.plan.activations,
            seed=spec.seed,
            accelerate=spec.accelerate and not self.method.online,
            trust_remote_code=spec.trust_remote_code,
            weights=self.plan.weights,
            tokenizer=False,
            head=head_of_run(spec),
            first_values=kept_in(self.folder),
        )

    def _plan_again(self, facts: Any, tokenizer: Any, device: torch.device) -> None:
        """Make another plan, for what is free now: while the model was loaded memory was short.

        Raises:
            MemoryError: others have the plan, too, or steps were done by it.
            PlanError: nothing fits any more.
        """
        if self.ranks is not None or checkpoints.latest(self.folder) is not None:
            raise MemoryError
        machine.empty_cache(device)
        (self.folder / "plan.json").unlink()
        where = machine.describe(device, rates=True, **self.spec.memory.model_dump())
        self.plan = self._plan(facts, tokenizer, without_teacher(self.spec, credited(where, self.spec)))
        said = "memory was short while the model was loaded: planned anew, for what is free now"
        self.emit(events.Warning(message=said))

    def _plan(self, facts: Any, tokenizer: Any, device: machine.DeviceFacts) -> Plan:
        """Return the plan, and with it `self.batches`."""
        body = read_json(self.folder / "plan.json")
        if body is not None:  # a resumed run keeps its plan: other batches would be another run
            plan = plan_of(body, self.folder)
            if plan.gpus != self.count:
                plan = plan.shared_by(self.count)
                if self.writes:
                    write_json(self.folder / "plan.json", plan.model_dump(mode="json"))
            self.batches = self._batches(plan)
            return plan
        from nbtune.models import counted, missing_bytes

        spec = self.spec
        missing = missing_bytes(spec.model, facts.weights_bytes)
        facts = counted(facts, spec.model, spec.adapter, trust_remote_code=spec.trust_remote_code)
        facts = with_outputs(facts, head_of_run(spec))
        found = abilities.expected(spec, facts, tokenizer)
        about: dict[str, Any] = {"abilities": found, "download_bytes": missing, "devices": self.count}
        plan = make_plan(spec, facts, self.data.facts, device, **about)
        self.emit(plan.abilities.event())
        self.batches = self._batches(plan)
        if self.spec.steps is None:  # how many sequences the packs make is known only now
            per_epoch = self.batches.steps_per_epoch
            steps = math.ceil(epochs_of(self.spec, per_epoch, plan.hidden_size) * per_epoch)
            plan = plan.model_copy(update={"total_steps": steps})
            check_warmup(spec, steps)
        for said in plan.warnings:
            self.emit(events.Warning(message=said))
        write_json(self.folder / "plan.json", plan.model_dump(mode="json"))
        return plan

    def _batches(self, plan: Plan, rank: int | None = None) -> BatchPlan:
        """Return those of this process, or of the one of that rank."""
        from nbtune import data

        mine = 0 if self.ranks is None else self.ranks.rank
        together = self.method.group
        return data.BatchPlan(
            self.data.train,
            micro_batch_size=plan.micro_batch_size,
            gradient_accumulation_steps=plan.gradient_accumulation_steps,
            per_step=plan.micro_batch_size * plan.gradient_accumulation_steps,
            together=together,
            rank=mine if rank is None else rank,
            ranks=self.count,
            even=plan.weights.shards,
            mismatch=self.method.mismatched,
            seed=self.spec.seed,
            packing=plan.packing,
            sequence_len=plan.sequence_len * (together if plan.packing else 1),  # a pack holds both answers of a row
            order=self.spec.order,
            mix=self.spec.mix,
            # few shapes on a GPU, so that a recorded step is used again
            pad_to_multiple=64 if plan.device == "cuda" else 8,
            bucket=256 if plan.device == "cuda" else 64,
        )

    def _make_stepper(self, device: torch.device) -> None:
        from nbtune.train.choose_stepper import choose_stepper
        from nbtune.train.embedding_noise import add_noise
        from nbtune.train.logprobs import head_disagrees
        from nbtune.train.progress import Progress

        model, patch = self.built.model, self.built.patch
        model.train()
        if not (self.method.by_tokens or self.method.head) and (why := head_disagrees(model)):
            self.emit(
                events.Warning(message=f"log-probabilities take all of the model's logits, and their memory: {why}")
            )
        whole = self.method.by_tokens and not self.method.teacher
        fused = patch is not None and "head" in patch.report.taken and whole
        self.fused = fused or not self.method.by_tokens  # whole answers are asked for as the fused head asks
        self.loss: Loss = loss_of_run(self.folder, self.spec, self.plan, self.built, self.data, device, fused=fused)
        add_noise(model, self.spec.neftune_noise_alpha)
        self.stepper = choose_stepper(
            self.built, self.loss, spec=self.spec, plan=self.plan, device=device, ranks=self.ranks, fused=fused
        )
        last = checkpoints.latest(self.folder)
        self.progress = Progress() if last is None else checkpoints.load(last, self.built, self.stepper)
        self.began_at = self.progress.step

    def train(self) -> Literal["finished", "stopped"]:
        """Run the loop, with this folder behind it."""
        if self.method.online:
            return self.online.train(self.data)
        from nbtune.train.distributed import RankedControl
        from nbtune.train.loop import Jobs, LoopOptions, train
        from nbtune.train.schedule import learning_rate_of

        plan, spec = self.plan, self.spec
        together = None if self.ranks is None else RankedControl(self.ranks, self.control, self.stepper)
        given = self.data, self.built, self.loss, self.stepper.device, self.ranks, together
        speaks = together is None and not self.method.head  # several processes do not answer, a head gives scores
        wished, unasked = lambda: self.control.look().sample, not plan.weights.streams  # each token fetches all layers
        held = HeldPrompts(self.folder, self.data, wished, unasked=unasked) if speaks else None
        measuring = self.measuring = Measuring(spec, plan, *given, held_prompts=held)
        options = LoopOptions(
            total_steps=plan.total_steps,
            learning_rate=plan.learning_rate,
            factor=learning_rate_of(
                spec.lr_scheduler_type, total_steps=plan.total_steps, warmup_ratio=spec.warmup_ratio, args=spec.schedule
            ),
            eval_every=plan.eval_every,
            checkpoint_every=spec.checkpoint.every,
            checkpoint_seconds=spec.checkpoint.minutes * 60,
            count=self.loss.count,
            agree=list if together is None else together.agree,
            several=together is not None,
            stopping=stopping_of(spec, self.folder, self.built.model, self.stepper, writes=self.writes),
        )
        less = None if plan.weights.shards else partial(give_up, self)  # parts of weights are lent in step
        jobs = Jobs(self._save, measuring.evaluate, measuring.samples, self._between, less)
        if self.progress.step == 0 and (self.writes or plan.weights.shards):  # whose model needs all processes
            self._confirm()
        control = together or self.control
        asked = scored(self.folder, measuring, self.progress, control, self.emit)
        with asked, Gauge(self.emit, self.built.model, self.stepper.device, together) as emit:
            return train(self.stepper, self.batches, options, jobs, progress=self.progress, emit=emit, control=control)

    def _confirm(self) -> None:
        """Keep with the plan what it said of the model, said again by the loaded one."""
        found = self.measuring.confirmed(self._batches(self.plan, rank=0), self.emit, fused=self.fused)
        self.plan = self.plan.model_copy(update={"abilities": found})
        if self.writes:
            write_json(self.folder / "plan.json", self.plan.model_dump(mode="json"))

    def _save(self, progress: Progress) -> events.Checkpoint:
        self.measuring.must_be_sound(progress.step, self.batches)
        parted = self.plan.weights.shards and self.spec.adapter.type == "full"  # what is trained: all have a part
        if not (self.writes or parted):
            return events.Checkpoint(step=progress.step, folder="")
        how: dict[str, Any] = {"keep": self.spec.checkpoint.keep, "ranks": self.ranks if parted else None}
        return checkpoints.save(self.folder, self.built, self.stepper, progress, **how)

    def _between(self, within: Callable[[Wishes], bool]) -> None:
        if self.progress.step > self.began_at:
            self.rehearsal.end(done=True)
        if self.owner is not None:
            still_there(self.folder)
            self.owner.check()
            answer_requests(self.folder, partial(self._answer, within=within))

    def _answer(self, request: dict[str, Any], asked: Asked, *, within: Callable[[Wishes], bool]) -> dict[str, Any]:
        """Answer what `generate`, `token_losses` and `row_losses` of `nbtune.Run` ask of a run that is at work;
        `within` is given the wishes between two tokens, and may end the answer."""
        assert self.built.tokenizer is not None
        if self.plan.weights.shards:
            return {"error": f"the model is parted among {self.count} devices while it trains: ask when it has ended"}
        about: dict[str, Any] = {"folder": self.folder, "step": self.progress.step}
        ends = lambda: within(self.control.look())  # noqa: E731
        return answered(self.built.model, self.built.tokenizer, request, asked, ends=ends, **about)

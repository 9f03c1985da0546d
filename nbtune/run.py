"""Run: the handle that people hold. It reads the run's folder and writes wishes into it; it never calls into the loop.

So a handle works the same whether the run lives in this process, in another one, or no more. What is read stands in
`nbtune.store.run_reader`, what is asked of the model in `nbtune.engine.run_model`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.data.sources.snapshot import copy_snapshot
from nbtune.engine import objects, slurm, warm_start
from nbtune.engine.failures import still_there
from nbtune.engine.folder import put_in
from nbtune.engine.job_files import Job
from nbtune.engine.launcher import Launched, launch, needs_own_process
from nbtune.engine.run_model import AtStep, RunModel
from nbtune.errors import NbtuneError, SpecError, TrainError
from nbtune.events import Event, State, Step
from nbtune.export.exporter import Exporter
from nbtune.spec import RunSpec, from_mapping
from nbtune.store import checkpoints, control, run_consent
from nbtune.store import folder as run_folder
from nbtune.store.event_log import add_event
from nbtune.store.export_script import as_script, as_snippet, as_yaml, spec_to_repeat
from nbtune.store.run_reader import RunReader

if TYPE_CHECKING:
    from nbtune.generate.sampling import Token


class Run(RunReader):
    """A run with everything a person does with one. `%%finetune`, `finetune` and `attach` return it.

    Args:
        folder: its folder.
        launched: its thread, when it was started here.
    """

    def __init__(self, folder: Path, launched: Launched | None = None) -> None:
        super().__init__(folder)
        self._model = RunModel(folder, launched)

    @property
    def alive(self) -> bool:
        """Whether an engine works on it, or waits to."""
        return self._model.alive

    @property
    def error(self) -> NbtuneError | None:
        """What it failed of."""
        own = self._own_error
        return own if isinstance(own, NbtuneError) and self.state == "failed" else super().error

    @property
    def _own_error(self) -> BaseException | None:
        """The error of the thread that was started here, with its traceback's causes."""
        return None if self._model.launched is None else self._model.launched.error

    def say(self, event: Event) -> None:
        """Add an event that is not the engine's; see `nbtune.store.event_log.add_event`."""
        add_event(self.folder, event)

    # --- what it should do ------------------------------------------------------------------------------------------

    def _wish(self, **changes: Any) -> None:
        control.wish(self.folder, **changes)
        self._pump.expect()

    def pause(self) -> None:
        """Hold at the next micro-step; the model stays in memory."""
        self._wish(mode="pause")

    def unpause(self) -> None:
        """Go on after `pause`."""
        self._wish(mode="run")

    def stop(self, *, save: bool = True, wait: bool = False) -> None:
        """Save and end at the next micro-step; `resume` goes on from there.

        Args:
            save: False ends without a new checkpoint: what was learnt since the last one is lost.
            wait: return when it has ended.
        """
        self._wish(mode="stop" if save else "drop")
        slurm.withdraw(self.folder)
        if wait:
            self._join(None)

    def checkpoint(self) -> None:
        """Save at the next micro-step."""
        self._wish(checkpoint=True)

    def sample(self) -> None:
        """Ask the sample prompts at the next micro-step."""
        self._wish(sample=True)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set a new peak for the schedule, from the next step on; it is journalled.

        Raises:
            TrainError: it is not above 0.
        """
        if not learning_rate > 0:
            raise TrainError(f"a learning rate must be above 0, not {learning_rate}")
        self._wish(learning_rate=float(learning_rate))

    def resume(self, *, step: int | None = None, detach: bool = False, own_process: bool = False) -> Run:
        """Go on from the last checkpoint, or from the one of `step`, in the same folder; Slurm's run as a job.

        Args:
            step: of an earlier checkpoint; later ones are set aside in ``checkpoints/aside``.
            detach: in a process of its own, which survives this one.
            own_process: in a process of its own, which this one stops when it ends in order.

        Raises:
            TrainError: it is finished, it is at work, or there is no such checkpoint.
        """
        own_process = own_process or needs_own_process(self.spec)
        run_consent.check(self.folder)
        if self.alive:
            raise TrainError(f"the run `{self.name}` is at work", fix="`unpause` it if it is paused")
        objects.check_there(self.folder, detach=detach)
        if step is not None:
            checkpoints.go_back(self.folder, step)
        elif self.state == "finished":
            raise TrainError(f"the run `{self.name}` is finished", fix="start a new one with more steps")
        control.wish(self.folder, mode="run")
        self.say(State(state="queued", step=self.step, total_steps=self.total_steps))
        if self.submitted:
            slurm.send(self.folder)
        else:
            self._model.launched = launch(self.folder, detach=detach, own_process=own_process)
        return self

    def delete(self) -> None:
        """Delete its folder with all that is in it; a run at work is refused. What was pushed stays."""
        run_folder.delete(self.folder)
        self._model.free()

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until it has ended. An interrupt (Ctrl-C) stops the waiting, not the run.

        Raises:
            NbtuneError: what it failed of.
            TrainError: its process is gone.
            TimeoutError: it still works after `timeout` seconds.
        """
        if not self._join(timeout):
            raise TimeoutError(f"the run {self.name} is still {self.state} after {timeout:g} s")
        still_there(self.folder)
        state = self.state
        if state == "failed":
            error = self.error
            assert error is not None
            raise error from self._own_error
        if state == "interrupted":
            last = self.latest(State)
            why = last.detail if last is not None and last.state == "interrupted" else "its process is gone"
            raise TrainError(f"the run `{self.name}` was interrupted: {why}", fix=f"`%nbtune resume {self.name}`")
        return self

    def _join(self, timeout: float | None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        while self.alive:
            if end is not None and time.monotonic() > end:
                return False
            if self._model.launched is not None:
                self._model.launched.join(0.1)
            else:
                time.sleep(0.1)
        return True

    def go_on(self, *, name: str | None = None, detach: bool = False, **fields: Any) -> Run:
        """Start a new run that begins with what this one has learnt, on its rows; this one stays as it is.

        Args:
            name: of the new run; this one's by default.
            detach: in a process of its own, which survives this one.
            fields: what is different in its spec, such as ``row_weights={…}`` or ``steps=50``.
        Raises:
            SpecError: the fields ask for other rows, another model or another adapter.
            TrainError: this run is at work, or has nothing saved yet.
        """
        if self.alive:
            raise TrainError(f"the run `{self.name}` is at work", fix="stop it first: it is saved then")
        if {"data", "start_from"} & set(fields):
            raise SpecError("`go_on` trains on the rows of its run", fix=f"nbtune.finetune(…, start_from={self.id!r})")
        run_consent.check(self.folder, code=not fields.get("trust_remote_code"))
        own = self.spec if "method" in fields else spec_to_repeat(self.folder)  # another method, another rate
        spec, changes = own.model_dump(mode="python", exclude_unset=True), dict(fields)
        for key, other in (("steps", "epochs"), ("epochs", "steps")):
            if changes.get(key) is not None:
                spec.pop(other, None)
        spec_to_run = from_mapping({**spec, **changes, "start_from": self.folder.name})
        warm_start.check(self.folder, spec_to_run)

        def fill(made: Path) -> None:
            copy_snapshot(self.folder / "data", made / "data")
            objects.take_along(self.folder, made)
            warm_start.take_along(self.folder, made)

        return begin(self.folder.parent, name or self.name, spec_to_run, fill, detach=detach)

    # --- the model --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        base: bool = False,
        step: int | None = None,
        told: Callable[[Token], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        timeout: float = 120.0,
    ) -> str:
        """Answer: the live model at a step boundary while it trains, else base and adapter, loaded once.

        Args:
            prompt: a text, or chat messages.
            max_new_tokens: the answer's length at most, in tokens.
            temperature: 0 is greedy.
            seed: same seed, same draws; None: others each time.
            base: ask the base model, without what was learnt.
            step: ask the checkpoint of that step instead of the newest weights.
            told: is given each token (`nbtune.generate.sampling.Token`) soon after it is made.
            should_stop: asked many times a second; the answer is then what was said so far.
            timeout: seconds without a word, of a run that is at work.
        Raises:
            TrainError: there is no adapter yet, there is no such checkpoint, or no answer came.
        """
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        how |= {"base": base, "step": step, "told": told, "should_stop": should_stop, "timeout": timeout}
        return self._model.generate(prompt, **how)

    def token_losses(
        self, ids: Sequence[int], *, base: bool = False, step: int | None = None, timeout: float = 120.0
    ) -> list[float | None]:
        """Say how little each token of a text was expected by the model: −ln of its probability, None for the first.

        Args:
            ids: the text's tokens.
            base, step, timeout: as of `generate`.
        Raises:
            TrainError: as `generate`.
        """
        return self._model.token_losses(ids, base=base, step=step, timeout=timeout)

    def row_losses(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, base: bool = False, timeout: float = 120.0
    ) -> tuple[list[float], int]:
        """Say the loss of each row (its tokens, and which of them are trained), summed over trained tokens, and the
        step of the weights that were asked; `base`, `timeout` and errors are as of `generate`."""
        return self._model.row_losses(rows, base=base, timeout=timeout)

    def score(self, texts: Sequence[Any]) -> list[Any]:
        """Return what a reward model (a reward) or a classifier (a probability a label) says of texts, or messages; of
        lists of words, those of each word."""
        return self._model.scores(texts)

    def at(self, step: int) -> AtStep:
        """Return the run as it was at a checkpoint: to ask, and to compare in a chat."""
        return AtStep(self, step)

    def free(self) -> int:
        """Drop the model that is kept for `generate`; return the bytes that came back.

        Raises:
            TrainError: the run is at work.
        """
        if self.alive:
            raise TrainError(f"the run `{self.name}` is at work", fix="stop it first")
        return self._model.free()

    # --- taking it home ---------------------------------------------------------------------------------------------

    @property
    def export(self) -> Exporter:
        """Take it home: ``run.export.gguf("q8_0")``, ``.merged()``, ``.adapter()``, ``.ollama()``."""
        return Exporter(self, self._draw)

    def push_to_hub(
        self, repo_id: str, *, what: str = "adapter", private: bool = True, card: str | Path | None = None, **more: Any
    ) -> str:
        """Push with a model card; return the address. The token is huggingface_hub's own login or HF_TOKEN.

        Args:
            repo_id: ``owner/name``.
            what: ``adapter``, ``merged`` or ``gguf``.
            private: whether a new repository is.
            card: a model card of your own instead of `model_card`'s: its text, or a file ending in .md.
            more: `types`, `importance`, `verify` of GGUF files (see ``run.export.gguf``), and the options of
                `nbtune.export.hub_upload.push_folder`, such as `revision` or `create_pr`.
        Raises:
            HubError: with what to do about it; nothing half done is left.
        """
        return self.export.push(repo_id, what=what, private=private, card=card, facts=self.facts_for_card, **more)

    def model_card(self, repo_id: str, *, what: str = "adapter") -> str:
        """Return the model card that a push would write, to be read, or changed and given to `push_to_hub`."""
        return self.export.card(repo_id, what, self.facts_for_card(draw=False))

    def facts_for_card(self, *, draw: bool = True) -> dict[str, Any]:
        """Return what the model card tells of this run; without `draw`, of the curve only that there is one."""
        from nbtune.widgets.run_report import facts_for_card

        return facts_for_card(self, draw=draw)

    def snippet(self) -> str:
        """Write the few lines that use the model elsewhere."""
        return as_snippet(self.folder)

    def script(self) -> str:
        """Return Python that trains it again, with its spec to change: the same rows, the same losses."""
        return as_script(self.folder)

    def yaml(self) -> str:
        """Return its spec for a cell or a file, with rows of variables named as the files that the run
        wrote them to."""
        return as_yaml(self.folder)

    # --- looking at it ----------------------------------------------------------------------------------------------

    def figure(self) -> Any:
        """Return the loss as a Plotly figure."""
        from nbtune import widgets

        return widgets.figure(self)

    def html(self, path: str | Path | None = None, *, rows: int = 3, losses: bool = True) -> Path:
        """Write a page that shows this run to others, without a kernel and a network; return where it is.

        Args:
            path: of the file; by default ``exports/NAME.html`` in the run's folder.
            rows, losses: so many rows of the data are in it, and how little the model expects their tokens.
        """
        return self.export.html(path, rows=rows, losses=losses).path

    def _draw(self, path: Path, **how: Any) -> None:
        from nbtune.widgets.replay import write_replay

        write_replay(self, path, **how)

    def monitor(self) -> Any:
        """Return the live panel."""
        from nbtune import widgets

        return widgets.monitor(self)

    def chat(self, other: Run | None = None, *, system: str = "") -> Any:
        """Return base and tuned side by side, or this run beside another one."""
        from nbtune import widgets

        return widgets.chat(self, other, system=system)

    def losses(self, *, base: bool | None = None, limit: int | None = 10_000, again: bool = False) -> Any:
        """Return the rows with the highest and the lowest loss, measured in the background; what is measured stays.

        Args:
            base: measure the base, too, and so what was learnt; None: where there is an adapter.
            limit: of more rows so many are measured, evenly spread; None: all.
            again: measure also what is measured already.
        """
        from nbtune import widgets

        return widgets.losses(self, base=base, limit=limit, again=again)

    def _repr_html_(self) -> str:
        from nbtune.widgets.html import card

        return card(self, self.latest(Step))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from nbtune.widgets.html import words

        # in a list, or in another value: one line
        printer.text(repr(self) if printer.indentation or len(printer.stack) > 1 else words(self, self.latest(Step)))


def begin(
    root: Path,
    name: str,
    spec: RunSpec,
    fill: Callable[[Path], None],
    *,
    detach: bool = False,
    job: Job | None = None,
) -> Run:
    """Start a run in a new folder that `fill` fills; `job`: Slurm does."""
    folder = run_folder.create(root, name, spec)
    put_in(folder, spec, fill, detach=detach, job=job)
    return Run(folder, None if job else launch(folder, detach=detach, own_process=needs_own_process(spec)))

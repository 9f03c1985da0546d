"""The model of a run, to be asked: through the run's folder while it trains, wherever; else loaded here once.

RunModel  asks and loads; a handle has one, and panels have one for each run that they find beside theirs
AtStep    a run as it was at one of its checkpoints
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtune.engine.launcher import Launched
from nbtune.engine.live_requests import ask
from nbtune.errors import TrainError
from nbtune.generate.sampling import Token
from nbtune.methods import METHODS
from nbtune.store import checkpoints
from nbtune.store.folder import read_spec
from nbtune.store.lock import is_owned
from nbtune.store.run_handle import RunHandle

_ASKING = threading.Lock()  # an answer switches adapters off, or puts a checkpoint's weights in: one at a time


class RunModel:
    """Ask the model of a run; what the options mean stands at `nbtune.Run`.

    Args:
        folder: the run's.
        launched: its thread, when it was started in this process.
    """

    def __init__(self, folder: Path, launched: Launched | None = None) -> None:
        self.folder, self.launched = folder, launched

    @property
    def alive(self) -> bool:
        """Whether an engine works on the run, or waits to."""
        return (self.launched is not None and self.launched.alive) or is_owned(self.folder)

    def generate(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        base: bool = False,
        step: int | None = None,
        told: Callable[[Token], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        timeout: float = 120.0,
        **options: Any,
    ) -> str:
        """Answer a prompt; `options` are those of `nbtune.generate.sampling.answer`. See `nbtune.Run.generate`."""
        from nbtune.generate import sampling

        self._must_speak()
        options |= {"adapter": not base}
        said: list[str] = []

        def hear(token: Token) -> None:
            said.append("" if token.special else token.text)
            if told is not None:
                told(token)

        if self.alive:
            request = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "at": step, **options}
            try:
                answer = self._ask(
                    request | {"tell": told is not None or should_stop is not None},
                    told=lambda token: hear(Token(**{**token, "others": tuple(map(tuple, token["others"]))})),
                    should_stop=should_stop,
                    timeout=timeout,
                )
                return "".join(said).strip() if answer is None else str(answer["answer"])
            except TrainError:
                if self.alive or said:
                    raise  # else it has ended just now: its model is asked here
        with self._model_for_myself(should_stop) as built:
            if built is None:
                return ""
            with checkpoints.weights_of(self.folder, step, built.model):
                heard = hear if told is not None else None
                return sampling.answer(
                    built.model, built.tokenizer, prompt, told=heard, should_stop=should_stop, **options
                )

    def token_losses(
        self, ids: Sequence[int], *, base: bool = False, step: int | None = None, timeout: float = 120.0
    ) -> list[float | None]:
        """Say how little each token was expected. See `nbtune.Run.token_losses`."""
        from nbtune.generate import sampling

        self._must_speak()
        if self.alive:
            request = {"ids": [int(number) for number in ids], "adapter": not base, "at": step}
            answer = self._ask(request, timeout=timeout)
            assert answer is not None
            return list(answer["losses"])
        with self._model_for_myself(None) as built, checkpoints.weights_of(self.folder, step, built.model):
            return sampling.token_losses(built.model, ids, adapter=not base)

    def row_losses(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, base: bool = False, timeout: float = 120.0
    ) -> tuple[list[float], int]:
        """Say the loss of each row, and the step of the weights that were asked. See `nbtune.Run.row_losses`."""
        from nbtune.train.row_loss import row_losses

        self._must_speak()
        if self.alive:
            texts = [[[int(number) for number in ids], [int(flag) for flag in trained]] for ids, trained in rows]
            try:
                answer = self._ask({"rows": texts, "adapter": not base}, timeout=timeout)
                assert answer is not None
                return list(answer["losses"]), int(answer["step"])
            except TrainError:
                if self.alive:
                    raise  # else it has ended just now: its model is asked here
        with self._model_for_myself(None) as built:
            return row_losses(built.model, rows, adapter=not base), max(checkpoints.steps(self.folder), default=0)

    def scores(self, texts: Sequence[Any]) -> list[Any]:
        """Say the scores of texts. See `nbtune.Run.score`.

        Raises:
            TrainError: the run learnt no scores of texts, or is at work.
        """
        from nbtune.engine.scoring import Reading, score, tag

        spec = read_spec(self.folder)
        method, able = METHODS[spec.method], ("pairs", "labelled", "tagged")
        if not method.head or method.rows not in able:
            raise TrainError(
                f"the run `{self.folder.name}` learnt no scores of texts",
                fix=f"train one by {' or '.join(n for n, one in METHODS.items() if one.head and one.rows in able)}",
            )
        if self.alive:
            raise TrainError("the model is at work", fix="wait until the run has ended: `run.wait()`")
        with self._model_for_myself(None) as built:
            if method.rows == "tagged":
                return tag(built, texts)
            return score(built, texts, Reading(built.tokenizer, spec.thinking))

    def _must_speak(self) -> None:
        method = METHODS[read_spec(self.folder).method]
        if method.head:
            raise TrainError(
                f"a model of method `{method.name}` gives scores: it writes no answers, and texts have no loss for it",
                fix="ask `run.score([…])`" if method.rows != "stepwise" else "load its folder with transformers",
            )

    def loaded(self) -> Any:
        """Give the model and its tokenizer (`nbtune.models.Built`), loaded if they are not in memory.

        Raises:
            TrainError: nothing was trained yet.
        """
        if self.launched is None:
            self.launched = Launched.ended(self.folder)
        return self.launched.model()

    @contextmanager
    def lent(self) -> Iterator[Any]:
        """Lend the model of a run that has ended, which may be asked anything but to change.

        Raises:
            TrainError: the run is at work, nothing was trained yet, or the model writes nothing.
        """
        self._must_speak()
        if self.alive:
            raise TrainError("the model is at work", fix="wait until the run has ended: `run.wait()`")
        with self._model_for_myself(None) as built:
            yield built

    def free(self) -> int:
        """Drop the model; return the bytes that came back."""
        return 0 if self.launched is None else self.launched.free()

    def _ask(self, request: dict[str, Any], **how: Any) -> dict[str, Any] | None:
        answer = ask(self.folder, request, alive=lambda: self.alive, **how)
        if answer is not None and "error" in answer:
            raise TrainError(f"the model could not answer: {answer['error']}")
        return answer

    @contextmanager
    def _model_for_myself(self, should_stop: Callable[[], bool] | None) -> Iterator[Any]:
        """Lend the loaded model, for one question at a time; None: `should_stop` said so before its turn came."""
        while not _ASKING.acquire(timeout=0.05):
            if should_stop is not None and should_stop():
                yield None
                return
        try:
            yield self.loaded()
        finally:
            _ASKING.release()


@dataclass(frozen=True)
class AtStep:
    """A run as it was at one of its checkpoints."""

    run: RunHandle
    step: int

    @property
    def name(self) -> str:
        """The run's name with the step."""
        return f"{self.run.name} · step {self.step}"

    def generate(self, prompt: str | Sequence[dict[str, Any]], **options: Any) -> str:
        """See `nbtune.Run.generate`."""
        return self.run.generate(prompt, **options, step=self.step)

    def token_losses(self, ids: Sequence[int], **options: Any) -> list[float | None]:
        """See `nbtune.Run.token_losses`."""
        return self.run.token_losses(ids, **options, step=self.step)

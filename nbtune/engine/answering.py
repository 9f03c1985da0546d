"""Asking a run's model: through the run folder while it trains (in whatever process), else loaded here once."""

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
from nbtune.store import checkpoints

__all__ = ["Answering", "AtStep"]

_ASKING = threading.Lock()  # an answer switches adapters off, or puts a checkpoint's weights in: one at a time


class Answering:
    """What of a run has to do with its model; `nbtune.engine.run.Run` is one."""

    folder: Path
    name: str
    _launched: Launched | None

    @property
    def alive(self) -> bool:
        """Whether an engine works on it, or waits to."""
        raise NotImplementedError

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
        """What the model answers: the live one at a step boundary while it trains, else base and adapter, loaded once.

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
        from nbtune.generate import sampling

        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        options |= {"adapter": not base}
        said: list[str] = []

        def hear(token: Token) -> None:
            said.append("" if token.special else token.text)
            if told is not None:
                told(token)

        if self.alive:
            request = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "at": step, **options}
            try:
                asked = self._ask(
                    request | {"tell": told is not None or should_stop is not None},
                    told=lambda token: hear(Token(**{**token, "others": tuple(map(tuple, token["others"]))})),
                    should_stop=should_stop,
                    timeout=timeout,
                )
                return "".join(said).strip() if asked is None else str(asked["answer"])
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
        """How little each token of a text was expected by the model: −ln of its probability, None for the first.

        Args:
            ids: the text's tokens.
            base, step, timeout: as of `generate`.
        Raises:
            TrainError: as `generate`.
        """
        from nbtune.generate import sampling

        if self.alive:
            request = {"ids": [int(number) for number in ids], "adapter": not base, "at": step}
            asked = self._ask(request, timeout=timeout)
            assert asked is not None
            return list(asked["losses"])
        with self._model_for_myself(None) as built, checkpoints.weights_of(self.folder, step, built.model):
            return sampling.token_losses(built.model, ids, adapter=not base)

    def row_losses(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, base: bool = False, timeout: float = 120.0
    ) -> tuple[list[float], int]:
        """The loss of each row, summed over its trained tokens, and the step of the weights that were asked.

        Args:
            rows: each one's tokens, and which of them are trained.
            base, timeout: as of `generate`.
        Raises:
            TrainError: as `generate`.
        """
        from nbtune.train.row_loss import row_losses

        if self.alive:
            said = [[[int(number) for number in ids], [int(flag) for flag in trained]] for ids, trained in rows]
            try:
                asked = self._ask({"rows": said, "adapter": not base}, timeout=timeout)
                assert asked is not None
                return list(asked["losses"]), int(asked["step"])
            except TrainError:
                if self.alive:
                    raise  # else it has ended just now: its model is asked here
        with self._model_for_myself(None) as built:
            return row_losses(built.model, rows, adapter=not base), max(self.saved_steps, default=0)

    @property
    def saved_steps(self) -> list[int]:
        """The steps of its checkpoints, in order."""
        return checkpoints.steps(self.folder)

    def at(self, step: int) -> AtStep:
        """The run as it was at a checkpoint: to ask, and to compare in a chat."""
        return AtStep(self, step)

    def _ask(self, request: dict[str, Any], **how: Any) -> dict[str, Any] | None:
        answer = ask(self.folder, request, alive=lambda: self.alive, **how)
        if answer is not None and "error" in answer:
            raise TrainError(f"the model could not answer: {answer['error']}")
        return answer

    @contextmanager
    def _model_for_myself(self, should_stop: Callable[[], bool] | None) -> Iterator[Any]:
        """The loaded model, for one question at a time; None: `should_stop` said so before its turn came."""
        while not _ASKING.acquire(timeout=0.05):
            if should_stop is not None and should_stop():
                yield None
                return
        try:
            yield self._loaded()
        finally:
            _ASKING.release()

    def _loaded(self) -> Any:
        if self._launched is None:
            self._launched = Launched.ended(self.folder)
        return self._launched.model()


@dataclass(frozen=True)
class AtStep:
    """A run as it was at one of its checkpoints."""

    run: Answering
    step: int

    @property
    def name(self) -> str:
        """The run's name with the step."""
        return f"{self.run.name} · step {self.step}"

    def generate(self, prompt: str | Sequence[dict[str, Any]], **options: Any) -> str:
        """See `Answering.generate`."""
        return self.run.generate(prompt, **options, step=self.step)

    def token_losses(self, ids: Sequence[int], **options: Any) -> list[float | None]:
        """See `Answering.token_losses`."""
        return self.run.token_losses(ids, **options, step=self.step)

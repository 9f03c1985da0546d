"""Other people's tests of a run's model: tasks of lm-evaluation-harness, asked of the model that is in memory.

Base and tuned model are asked alike, one after the other; what comes back is written into the run's log, so that its
card and its report have it.
"""

from __future__ import annotations

import copy
import importlib.util
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtune import events
from nbtune.engine.library_logging import quiet_libraries
from nbtune.errors import NbtuneError, TrainError
from nbtune.generate.sampling import without_adapter
from nbtune.spec.text_metrics import shown
from nbtune.store.event_log import add_event
from nbtune.untrusted import shortened


@dataclass(frozen=True)
class TaskScores:
    """What tasks gave.

    Attributes:
        scores: of each figure (``task/metric``) that of the base and that of the tuned model; None: not asked.
        results: what lm_eval says of the tuned model, by task.
    """

    scores: Mapping[str, tuple[float | None, float | None]]
    results: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {name: {"base": base, "tuned": tuned} for name, (base, tuned) in self.scores.items()}

    def __str__(self) -> str:
        rows = [("", "base", "tuned")]
        rows += [(name, _shown(base), _shown(tuned)) for name, (base, tuned) in self.scores.items()]
        wide = [max(len(row[k]) for row in rows) for k in range(3)]
        return "\n".join(f"{a:{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows)

    def __repr__(self) -> str:
        return str(self)


def _shown(figure: float | None) -> str:
    return "–" if figure is None else shown(figure)


def lm_eval(
    run: Any,
    tasks: str | Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    chat: bool = False,
    base: bool = True,
    runs_dir: str | Path | None = None,
) -> TaskScores:
    """Ask a run's model the tasks of lm-evaluation-harness (`pip install nbtune[lm-eval]`), and its base as well.

        scores = nbtune.lm_eval("demo", ["tides"], include_path="my-tasks")

    Args:
        run: one that has ended, or its name.
        tasks: their names.
        include_path: a folder of task files of your own.
        num_fewshot: examples before each question; None: as the task says.
        limit: only the first so many questions of each task.
        batch_size: questions at a time.
        chat: put questions into the model's chat template.
        base: ask the base as well, where an adapter was trained.
        runs_dir: where runs are.
    Raises:
        TrainError: the library is missing, a task is not known, the run is at work, or its model writes nothing.
    """
    from nbtune.api import attach

    if importlib.util.find_spec("lm_eval") is None:
        raise TrainError("lm-evaluation-harness is not installed here", fix="`pip install nbtune[lm-eval]`")
    asked = [tasks] if isinstance(tasks, str) else list(tasks or ())
    if not asked:
        raise TrainError("no task is named", fix="name some: `lm-eval ls tasks` lists those there are")
    found = attach(run, runs_dir) if isinstance(run, str) else run
    how: dict[str, Any] = {"tasks": asked, "num_fewshot": num_fewshot, "limit": limit, "apply_chat_template": chat}
    with found._model.lent() as built, _random_left_alone():
        base = base and hasattr(built.model, "disable_adapter")
        results = {}
        for adapter in (False, True) if base else (True,):
            began = time.monotonic()
            with without_adapter(built.model, adapter):
                results[adapter] = _evaluated(built, include_path, batch_size, how)
            step = found.step if adapter else 0
            said = f"lm_eval: {', '.join(asked)}"
            values = figures_of(results[adapter])
            add_event(
                found.folder, events.Scores(step=step, values=values, tasks=said, seconds=time.monotonic() - began)
            )
    tuned, before = figures_of(results[True]), figures_of(results.get(False, {}))
    return TaskScores({name: (before.get(name), tuned.get(name)) for name in {**before, **tuned}}, results[True])


def figures_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return lm_eval's figures by ``task/metric``, without their errors.

    >>> figures_of({"tides": {"alias": "tides", "acc,none": 0.5, "acc_stderr,none": 0.1}})
    {'tides/acc': 0.5}
    """
    return {
        f"{task}/{name.removesuffix(',none')}": float(value)
        for task, said in results.items()
        for name, value in said.items()
        if isinstance(value, int | float) and "," in name and "_stderr" not in name
    }


def _evaluated(built: Any, include_path: str | Path | None, batch_size: int, how: dict[str, Any]) -> dict[str, Any]:
    quiet_libraries()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, training = built.model, built.model.training
    tokenizer = copy.deepcopy(built.tokenizer)  # lm_eval chooses what it pads with
    try:
        lm = HFLM(pretrained=_as_it_is(model), tokenizer=tokenizer, batch_size=batch_size)
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
        found = simple_evaluate(model=lm, task_manager=manager, bootstrap_iters=0, log_samples=False, **how)
        return dict(found["results"]) if found else {}
    except NbtuneError:
        raise
    except Exception as error:  # the library's, of a task's file or of its data
        raise TrainError(
            f"lm_eval could not ask {', '.join(how['tasks'])}: {type(error).__name__}: {shortened(error, 300)}",
            fix="see the task's file; tasks of the Hub want their data in its cache; `lm-eval ls tasks` names those "
            "there are, `include_path` adds a folder of your own",
        ) from error
    finally:
        model.train(training)


def _as_it_is(model: Any) -> Any:
    """Return the model as lm_eval asks it, which may not tie weights anew: a head that was trained stays."""
    import torch

    class AsItIs(torch.nn.Module):
        tie_weights = staticmethod(lambda: None)

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

    return AsItIs()


@contextmanager
def _random_left_alone() -> Iterator[None]:
    """Put back the states of all random numbers: lm_eval sets them."""
    import numpy as np
    import torch

    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)

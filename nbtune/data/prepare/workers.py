"""Who prepares shards: this process until others are up, then processes of their own."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nbtune.child_process import ChildDied, ChildProcess
from nbtune.data.prepare.recipe import Recipe
from nbtune.data.prepare.shards import Shard, Workman, read_shard, tokenizer_facts
from nbtune.data.sources.cache_folder import workplace
from nbtune.data.sources.rows import Source
from nbtune.errors import DataError

_AHEAD = 8  # shards that may wait for one before them


class Crew:
    """Shards in their order, whoever prepared them.

    Args:
        workman: prepares shards here, until a process is up, and where none can be had.
        processes: how many; None: one per core besides this one, at least one, at most 4.
        work_here: this process goes on when others are up (nothing else needs it).
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        tokenizer: Any,
        workman: Workman,
        *,
        processes: int | None = None,
        work_here: bool = False,
    ) -> None:
        from nbtune.device import cpu_count

        self._count = len(recipe.bounds)
        self._workman, self._sources, self._work_here = workman, sources, work_here
        self._at = self._next = 0  # the shard that is wanted; the first that nobody has begun
        self._returned: list[int] = []
        self._done: dict[int, Shard | BaseException] = {}
        self._up, self._over = 0, False
        self._changed = threading.Condition()
        self._children: list[ChildProcess] = []
        self._leaders: list[threading.Thread] = []
        self._folder: Path | None = None
        wanted = min(max(cpu_count() - 1, 1), 4) if processes is None else processes
        wanted = min(wanted, self._count // 3)
        if wanted > 0:
            self._hire(wanted, recipe, tokenizer)

    def shards(self, first: int) -> Iterator[Shard]:
        """Yield the shards from `first` on, in order.

        Raises:
            DataError: a row cannot be read.
        """
        self._next = first
        for number in range(first, self._count):
            yield self._get(number)

    def dismiss(self) -> None:
        """Let the helpers go: nothing more is wanted."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        for child in self._children:
            child.close()
        for leader in self._leaders:
            leader.join()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _get(self, number: int) -> Shard:
        while True:
            with self._changed:
                self._at = number
                self._changed.notify_all()
                outcome = self._done.pop(number, None)
                mine = None
                if outcome is None and (self._work_here or not self._up):
                    mine = self._take()
                if outcome is None and mine is None:
                    self._changed.wait()
                    continue
            if mine is not None:
                self._put(mine, self._prepare(mine))
            elif isinstance(outcome, Shard):
                return outcome
            elif outcome is not None:
                raise outcome

    def _prepare(self, number: int) -> Shard | BaseException:
        try:
            return self._workman.prepare(number)
        except DataError as error:
            return error

    def _take(self) -> int | None:
        """Return a shard to begin with; None if there is none, or too many wait already. With the lock held."""
        if self._returned:
            return self._returned.pop(0)
        if self._next < min(self._count, self._at + _AHEAD):
            self._next += 1
            return self._next - 1
        return None

    def _put(self, number: int, outcome: Shard | BaseException) -> None:
        with self._changed:
            self._done[number] = outcome
            self._changed.notify_all()

    def _hire(self, wanted: int, recipe: Recipe, tokenizer: Any) -> None:
        facts = tokenizer_facts(tokenizer)
        files = all(source.files and source.change is None for source in self._sources)
        if facts is None or not files:  # what is in this process alone is prepared here
            return
        self._folder = workplace()
        described = [
            {
                "name": source.name,
                "kind": source.kind,
                "role": source.role,
                "spec": source.spec.model_dump(mode="json"),
                "files": [str(file.resolve()) for file in source.files],
            }
            for source in self._sources
        ]
        (self._folder / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
        body = json.dumps({"job": recipe.to_json(), "sources": described})
        (self._folder / "job.json").write_text(body, encoding="utf-8")
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        for _ in range(wanted):
            try:
                child = ChildProcess(["-m", "nbtune.data.prepare.shards", self._folder], environment=environment)
            except OSError:  # no processes here: this one does it all
                return
            self._children.append(child)
            self._leaders.append(threading.Thread(target=self._lead, args=(child,), name="nbtune-shards", daemon=True))
            self._leaders[-1].start()

    def _lead(self, child: ChildProcess) -> None:
        """Hand shards to a process, one at a time, until there are none; a process that dies gives its shard back."""
        number = None
        up = False
        try:
            child.hear()  # it is ready
            with self._changed:
                self._up, up = self._up + 1, True
            while (number := self._wait_for_one()) is not None:
                child.say({"shard": number})
                error = child.hear().body.get("error")
                assert self._folder is not None
                outcome = DataError(**error) if error else read_shard(self._folder, number, self._sources)
                self._put(number, outcome)
                number = None
        except (ChildDied, OSError, ValueError):
            pass  # it died while it was spoken to, or what it wrote cannot be read
        with self._changed:
            self._up -= up
            if number is not None:
                self._returned.append(number)
            self._changed.notify_all()

    def _wait_for_one(self) -> int | None:
        with self._changed:
            while not self._over:
                number = self._take()
                if number is not None:
                    return number
                if self._next >= self._count and not self._returned:
                    return None
                self._changed.wait()
            return None

"""llama.cpp as a witness: the file that was written is loaded by the program that people will use it with.

A runner is found where there is one: llama-cpp-python (the extra ``nbtune[gguf-verify]``), or a folder with llama.cpp's
shared libraries named by ``NBTUNE_LLAMA_LIB``. It lives in a child process, because a bad file aborts it.

    with LlamaRunner(path) as llama:
        print(llama.info["description"], llama.tokenize(["hello"]))
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from nbtune.child_process import ChildDied, ChildProcess
from nbtune.errors import ExportError


def find_llama() -> Path | None:
    """Return the folder of llama.cpp's shared libraries, or None where there is no runner."""
    named = os.environ.get("NBTUNE_LLAMA_LIB")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    return folder if folder.is_dir() else None


def no_llama() -> ExportError:
    """Return the error that there is no runner, and how to get one."""
    return ExportError(
        "no llama.cpp was found", fix="pip install 'nbtune[gguf-verify]', or set NBTUNE_LLAMA_LIB to its folder."
    )


class LlamaRunner:
    """llama.cpp in a child process, with one GGUF loaded.

    Args:
        gguf: the file to load, or None to load none.
        library: folder of the shared libraries; by default `find_llama`'s.
        n_ctx: tokens of context.
        threads: CPU threads.

    Raises:
        ExportError: there is no runner; it does not load the file; it crashed.
    """

    child: ClassVar[Path] = Path(__file__).with_name("_llama_process.py")

    def __init__(
        self, gguf: Path | None = None, *, library: Path | None = None, n_ctx: int = 512, threads: int = 1
    ) -> None:
        folder = library or find_llama()
        if folder is None:
            raise no_llama()
        self.gguf = gguf
        self._process = ChildProcess(["-I", self.child, folder])
        self._closed = False
        self.info: dict[str, Any] = {}
        try:
            self._answer("start")
            if gguf is not None:
                self.info = self.ask("load", path=str(gguf), n_ctx=n_ctx, threads=threads)
        except ExportError:
            self.close()
            raise

    def ask(self, what: str, **arguments: Any) -> Any:
        """Send one request to the child; see ``_llama_process.py``.

        Raises:
            ExportError: it is closed, or llama.cpp fails or dies of it.
        """
        if self._closed:
            raise ExportError("this llama.cpp runner is closed", fix="open another.")
        try:
            self._process.say({"do": what, **arguments})
        except ChildDied as died:
            raise self._crashed(what, died) from None
        return self._answer(what)

    def _answer(self, what: str) -> Any:
        try:
            head, self._raw = self._process.hear()
        except ChildDied as died:
            raise self._crashed(what, died) from None
        if not head["ok"]:
            raise ExportError(head["error"], place=str(self.gguf or ""), fix="export it again, or another type.")
        return head["result"]

    def _crashed(self, what: str, died: ChildDied) -> ExportError:
        last = f": {died.last_words}" if died.last_words else ""
        return ExportError(
            f"llama.cpp crashed at {what!r} (exit status {died.code}){last}",
            place=str(self.gguf or ""),
            fix="the file cannot be used; export it again, or another type.",
        )

    def tokenize(self, texts: list[str], *, add_special: bool = False, parse_special: bool = True) -> list[list[int]]:
        """Return the token ids of each text."""
        return self.ask("tokenize", texts=texts, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return self.ask("detokenize", tokens=tokens)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Return the logits after each token, fp32 [tokens, vocabulary]."""
        self.ask("logits", tokens=[int(t) for t in tokens])
        return np.frombuffer(self._raw, dtype=np.float32).reshape(len(tokens), -1)

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """Return at most `count` tokens after `tokens`, the likeliest at each place, up to and with an end token."""
        return self.ask("greedy", tokens=[int(t) for t in tokens], count=count)

    def close(self) -> None:
        """End the child."""
        self._closed = True
        self._process.close()

    def __enter__(self) -> LlamaRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

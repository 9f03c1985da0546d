"""llama.cpp as a witness: the file that was written is loaded by the program that people will use it with.

A runner is found where there is one: llama-cpp-python (the extra ``nbtune[gguf-verify]``), or a folder with llama.cpp's
shared libraries named by ``NBTUNE_LLAMA_LIB``. It lives in a child process, because a bad file aborts it.

    with LlamaRunner(path) as llama:
        print(llama.info["description"], llama.tokenize(["hello"]))
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nbtune.errors import ExportError

__all__ = ["LlamaRunner", "find_llama", "no_llama"]


def find_llama() -> Path | None:
    """The folder of llama.cpp's shared libraries, or None where there is no runner."""
    named = os.environ.get("NBTUNE_LLAMA_LIB")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    return folder if folder.is_dir() else None


def no_llama() -> ExportError:
    """That there is no runner, and how to get one."""
    return ExportError(
        "no llama.cpp was found", fix="pip install 'nbtune[gguf-verify]', or set NBTUNE_LLAMA_LIB to its folder."
    )


class LlamaRunner:
    """llama.cpp in a child process, with one GGUF loaded.

    Args:
        gguf: the file to load, or None to load none (for quantising).
        library: folder of the shared libraries; by default `find_llama`'s.
        n_ctx: tokens of context.
        threads: CPU threads.

    Raises:
        ExportError: there is no runner; it does not load the file; it crashed.
    """

    def __init__(
        self, gguf: Path | None = None, *, library: Path | None = None, n_ctx: int = 512, threads: int = 1
    ) -> None:
        folder = library or find_llama()
        if folder is None:
            raise no_llama()
        self.gguf = gguf
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        child = Path(__file__).with_name("_llama_process.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(child), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self.info: dict[str, Any] = {}
        try:
            self._answer("start")
            if gguf is not None:
                self.info = self.ask("load", path=str(gguf), n_ctx=n_ctx, threads=threads)
        except ExportError:
            self.close()
            raise

    def ask(self, what: str, **arguments: Any) -> Any:
        """One request to the child; see ``_llama_process.py``."""
        stream = self._process.stdin
        if stream is None or stream.closed:
            raise ExportError("this llama.cpp runner is closed", fix="open another.")
        try:
            stream.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            stream.flush()
        except OSError:
            raise self._crashed(what) from None
        return self._answer(what)[0]

    def _answer(self, what: str) -> tuple[Any, bytes]:
        stream = self._process.stdout
        line = stream.readline() if stream else b""
        if not line:
            raise self._crashed(what)
        head = json.loads(line)
        self._raw = stream.read(head["bytes"]) if head["bytes"] and stream else b""
        if not head["ok"]:
            raise ExportError(head["error"], place=str(self.gguf or ""), fix="export it again, or another type.")
        return head["result"], self._raw

    def _crashed(self, what: str) -> ExportError:
        status = self._process.wait()
        self._stderr.seek(0)
        last = self._stderr.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return ExportError(
            f"llama.cpp crashed at {what!r} (exit status {status}){': ' + last[0] if last else ''}",
            place=str(self.gguf or ""),
            fix="the file cannot be used; export it again, or another type.",
        )

    def tokenize(self, texts: list[str], *, add_special: bool = False, parse_special: bool = True) -> list[list[int]]:
        """Token ids of each text."""
        return self.ask("tokenize", texts=texts, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: list[int]) -> str:
        """The text of token ids."""
        return self.ask("detokenize", tokens=tokens)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Logits after each token: (len(tokens), vocabulary), fp32."""
        self.ask("logits", tokens=[int(t) for t in tokens])
        return np.frombuffer(self._raw, dtype=np.float32).reshape(len(tokens), -1)

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """At most `count` tokens after `tokens`, the likeliest at each place, up to and with an end token."""
        return self.ask("greedy", tokens=[int(t) for t in tokens], count=count)

    def use_adapter(self, gguf: Path, scale: float = 1.0) -> None:
        """Put a LoRA GGUF onto the loaded model."""
        self.ask("use_adapter", path=str(gguf), scale=scale)

    def close(self) -> None:
        """End the child."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream and not stream.closed:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._stderr.close()

    def __enter__(self) -> LlamaRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

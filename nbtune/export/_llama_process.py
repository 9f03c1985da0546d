"""The child process that holds llama.cpp: one JSON line in, one JSON line (and raw bytes) out.

Run as ``python _llama_process.py LIBRARY_FOLDER``. It knows nothing of nbtune, needs only the standard library, and may
be aborted by llama.cpp on a bad file, which is why it is a process of its own.

The C structs of ``llama.h`` change from version to version, so none is declared here: a parameter struct is taken as
opaque bytes from its ``*_default_params`` function, the few fields that matter are found by their default values, and
the bytes are handed back (by value: a callee reads only as much of them as its own struct is long).
"""

from __future__ import annotations

import array
import ctypes
import glob
import json
import os
import queue
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any

MAX_LOG = 40


class Opaque(ctypes.Structure):
    _fields_ = [("raw", ctypes.c_uint8 * 1024)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def find(folder: str, stem: str) -> str:
    """Return the path of ``lib<stem>.so`` (or .dylib, .dll, with a version in its name) in `folder`."""
    for pattern in (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll", f"lib{stem}.dll", f"lib{stem}.*"):
        hits = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)), key=len)
        if hits:
            return hits[0]
    raise FileNotFoundError(f"no lib{stem} in {folder}")


def words(raw: Any) -> list[int]:
    return list(struct.unpack("<256i", bytes(raw)))


def put(raw: Any, word: int, value: int) -> None:
    raw[word * 4 : word * 4 + 4] = list(struct.pack("<i", value))


class Llama:
    """llama.cpp's library, and the one model that is loaded; `requests` are the methods that the parent may ask for."""

    requests: tuple[str, ...] = ("load", "detokenize", "greedy")

    def __init__(self, folder: str) -> None:
        self.log: list[str] = []
        self.base = ctypes.CDLL(find(folder, "ggml-base"), mode=ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(find(folder, "ggml"), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(find(folder, "llama"))
        self._declare()
        self._logger = LOG(self._on_log)
        self.lib.llama_log_set(self._logger, None)
        if hasattr(ggml, "ggml_backend_load_all_from_path"):
            ggml.ggml_backend_load_all_from_path(folder.encode())
        self.lib.llama_backend_init()
        self.model: Any = None
        self.context: Any = None

    def _declare(self) -> None:
        lib, p, i32 = self.lib, ctypes.c_void_p, ctypes.c_int32
        for kind in ("model", "context"):
            function = getattr(lib, f"llama_{kind}_default_params")
            function.restype, function.argtypes = Opaque, []
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "llama_log_set": (None, [LOG, p]),
            "llama_model_load_from_file": (p, [ctypes.c_char_p, Opaque]),
            "llama_init_from_model": (p, [p, Opaque]),
            "llama_model_get_vocab": (p, [p]),
            "llama_model_free": (None, [p]),
            "llama_free": (None, [p]),
            "llama_vocab_n_tokens": (i32, [p]),
            "llama_vocab_bos": (i32, [p]),
            "llama_vocab_eos": (i32, [p]),
            "llama_vocab_eot": (i32, [p]),
            "llama_vocab_get_add_bos": (ctypes.c_bool, [p]),
            "llama_vocab_is_eog": (ctypes.c_bool, [p, i32]),
            "llama_model_desc": (i32, [p, ctypes.c_char_p, ctypes.c_size_t]),
            "llama_model_n_params": (ctypes.c_uint64, [p]),
            "llama_model_size": (ctypes.c_uint64, [p]),
            "llama_model_chat_template": (ctypes.c_char_p, [p, ctypes.c_char_p]),
            "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [p, i32]),
            "llama_get_memory": (p, [p]),
            "llama_memory_clear": (None, [p, ctypes.c_bool]),
            "llama_batch_init": (Batch, [i32, i32, i32]),
            "llama_batch_free": (None, [Batch]),
            "llama_decode": (i32, [p, Batch]),
            "llama_set_n_threads": (None, [p, i32, i32]),
            "llama_tokenize": (i32, [p, ctypes.c_char_p, i32, p, i32, ctypes.c_bool, ctypes.c_bool]),
            "llama_detokenize": (i32, [p, p, i32, ctypes.c_char_p, i32, ctypes.c_bool, ctypes.c_bool]),
        }
        self.declare(signatures)

    def declare(self, signatures: dict[str, tuple[Any, list[Any]]]) -> None:
        """Say what functions of the library return and take, by their names."""
        for name, (result, arguments) in signatures.items():
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments

    def _on_log(self, level: int, text: bytes, _data: Any) -> None:
        if level >= 3:  # warnings, errors, and what continues them
            self.log.append(text.decode("utf-8", "replace").rstrip("\n"))
            del self.log[:-MAX_LOG]

    def load(self, path: str, n_ctx: int, threads: int) -> dict[str, Any]:
        self.close()
        params = self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp does not load this file: " + " | ".join(self.log[-4:]))
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.context = self.lib.llama_init_from_model(self.model, self._context_params(n_ctx))
        if not self.context:
            raise RuntimeError("llama.cpp makes no context: " + " | ".join(self.log[-4:]))
        self.n_ctx = n_ctx
        self.lib.llama_set_n_threads(self.context, threads, threads)
        return self.info()

    def _context_params(self, n_ctx: int) -> Opaque:
        """Return the parameters of a context of `n_ctx` tokens in one batch, keys and values in fp32,
        plain attention."""
        params = self.lib.llama_context_default_params()
        have = words(params.raw)
        if have[:3] != [512, 2048, 512]:
            raise RuntimeError(f"this llama.cpp's context parameters are not the ones known here ({have[:3]})")
        for word in (0, 1, 2):
            put(params.raw, word, n_ctx)
        minus_one = struct.unpack("<i", struct.pack("<f", -1.0))[0]
        floats = have.index(minus_one)  # yarn_ext_factor, the first of the floats; rope base and scale before it
        if have[floats - 3] == -1 and have[floats - 4 : floats - 7 : -1] == [-1, -1, -1]:
            put(params.raw, floats - 3, 0)  # flash attention: off
        for word in range(floats, len(have) - 1):
            if have[word] == 1 and have[word + 1] == 1:  # type_k, type_v: f16 by default
                put(params.raw, word, 0)
                put(params.raw, word + 1, 0)
                break
        else:
            raise RuntimeError("this llama.cpp's context parameters are not the ones known here (no cache types)")
        return params

    def info(self) -> dict[str, Any]:
        text = ctypes.create_string_buffer(256)
        self.lib.llama_model_desc(self.model, text, 256)
        template = self.lib.llama_model_chat_template(self.model, None)
        n_vocab = self.lib.llama_vocab_n_tokens(self.vocab)
        return {
            "description": text.value.decode(),
            "parameters": self.lib.llama_model_n_params(self.model),
            "bytes": self.lib.llama_model_size(self.model),
            "vocab": n_vocab,
            "bos": self.lib.llama_vocab_bos(self.vocab),
            "eos": self.lib.llama_vocab_eos(self.vocab),
            "eot": self.lib.llama_vocab_eot(self.vocab),
            "add_bos": self.lib.llama_vocab_get_add_bos(self.vocab),
            "ends": [i for i in range(n_vocab) if self.lib.llama_vocab_is_eog(self.vocab, i)],
            "chat_template": template.decode() if template else None,
            "log": list(self.log),
        }

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 16
        out = (ctypes.c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), out, room, add_special, parse_special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize asked for {-count} places")
        return list(out[:count])

    def detokenize(self, tokens: list[int]) -> str:
        have = (ctypes.c_int32 * max(len(tokens), 1))(*tokens)
        room = 64 * len(tokens) + 64
        out = ctypes.create_string_buffer(room)
        count = self.lib.llama_detokenize(self.vocab, have, len(tokens), out, room, False, True)
        return out.raw[: max(count, 0)].decode("utf-8", "replace")

    def decode(self, tokens: list[int], start: int, all_rows: bool) -> list[bytes]:
        """Return logits (fp32, as bytes) after each token, or after the last one."""
        if start + len(tokens) > self.n_ctx:
            raise RuntimeError(f"{start + len(tokens)} tokens are more than the context of {self.n_ctx}")
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1 if all_rows or i == len(tokens) - 1 else 0
        status = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode answered {status}: " + " | ".join(self.log[-4:]))
        size = self.lib.llama_vocab_n_tokens(self.vocab) * 4
        rows = range(len(tokens)) if all_rows else (len(tokens) - 1,)
        return [ctypes.string_at(self.lib.llama_get_logits_ith(self.context, i), size) for i in rows]

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def logits(self, tokens: list[int]) -> bytes:
        self.clear()
        return b"".join(self.decode(tokens, 0, True))

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        self.clear()
        answer: list[int] = []
        row, at = self.decode(tokens, 0, False)[0], len(tokens)
        while len(answer) < count and at < self.n_ctx:
            values = array.array("f", row)
            token = max(range(len(values)), key=values.__getitem__)
            answer.append(token)
            if self.lib.llama_vocab_is_eog(self.vocab, token):
                break
            row, at = self.decode([token], at, False)[0], at + 1
        return answer

    def close(self) -> None:
        if self.context:
            self.lib.llama_free(self.context)
        if self.model:
            self.lib.llama_model_free(self.model)
        self.context = self.model = None
        self.log.clear()


def answer(llama: Llama, request: dict[str, Any]) -> tuple[Any, bytes]:
    """Return the result of one request, and the raw bytes that follow it."""
    function = request.pop("do")
    if function == "logits":
        return None, llama.logits(**request)
    if function == "tokenize":
        texts = request.pop("texts")
        return [llama.tokenize(text, **request) for text in texts], b""
    if function not in llama.requests:
        raise RuntimeError(f"unknown request {function!r}")
    return getattr(llama, function)(**request), b""


def requests() -> Iterator[dict[str, Any]]:
    """Yield what is asked, one request after another; when standard input ends, so does this process, whatever it is
    at."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in os.fdopen(os.dup(0), "rb"):
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield json.loads(waiting.get())


def main(library: type[Llama] = Llama) -> None:
    """Answer requests for as long as the parent wants it (`nbtune.child_process` is the other end)."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints must not get between the answers
    asked = requests()
    try:
        llama = library(sys.argv[1])
        ready: dict[str, Any] = {"ok": True, "result": "ready", "bytes": 0}
    except (OSError, AttributeError, RuntimeError) as error:
        ready = {"ok": False, "error": f"llama.cpp's library cannot be used: {error}", "bytes": 0}
    out.write(json.dumps(ready).encode() + b"\n")
    out.flush()
    for request in asked:
        raw = b""
        try:
            result, raw = answer(llama, request)
            head = {"ok": True, "result": result, "bytes": len(raw)}
        except (RuntimeError, OSError, TypeError, ValueError, AttributeError) as error:
            head = {"ok": False, "error": f"{type(error).__name__}: {error}", "bytes": 0}
        out.write(json.dumps(head).encode() + b"\n" + raw)
        out.flush()


if __name__ == "__main__":
    main()

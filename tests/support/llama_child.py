"""llama.cpp in a child of the tests, with what only they ask of it: its own quantiser, and adapters put onto a model.

Run as `nbtune/export/_llama_process.py` is, by its path, with nothing else on Python's path.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

_FILE = Path(__file__).resolve().parents[2] / "nbtune" / "export" / "_llama_process.py"
_SPEC = importlib.util.spec_from_file_location("_llama_process", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
process = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(process)


class Llama(process.Llama):  # type: ignore[misc]
    """The product's, and more."""

    requests = (*process.Llama.requests, "use_adapter", "quantize", "quantize_rows")

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        p, text = ctypes.c_void_p, ctypes.c_char_p
        self.declare(
            {
                "llama_adapter_lora_init": (p, [p, text]),
                "llama_model_quantize": (ctypes.c_uint32, [text, text, p]),
                "llama_model_quantize_default_params": (process.Opaque, []),
            }
        )

    def use_adapter(self, path: str, scale: float) -> None:
        """Put a LoRA GGUF onto the loaded model."""
        adapter = self.lib.llama_adapter_lora_init(self.model, path.encode())
        if not adapter:
            raise RuntimeError("llama.cpp does not load this adapter: " + " | ".join(self.log[-4:]))
        have, scales = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(scale)
        function = self.lib.llama_set_adapters_lora
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        if function(self.context, have, 1, scales):
            raise RuntimeError("llama.cpp does not use this adapter")

    def quantize(self, source: str, target: str, ftype: int, pure: bool, threads: int) -> None:
        """Quantise a GGUF file into another, as llama.cpp does."""
        params = self.lib.llama_model_quantize_default_params()
        flags = list(params.raw[16:20])  # allow_requantize, quantize_output_tensor, only_copy, pure
        if process.words(params.raw)[0] != 0 or flags != [0, 1, 0, 0]:
            raise RuntimeError(f"this llama.cpp's quantize parameters are not the ones known here ({flags})")
        process.put(params.raw, 0, threads)
        process.put(params.raw, 1, ftype)
        params.raw[19] = int(pure)
        status = self.lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
        if status:
            raise RuntimeError(f"llama_model_quantize answered {status}: " + " | ".join(self.log[-4:]))

    def quantize_rows(
        self, kind: int, source: str, rows: int, columns: int, target: str, weights: list[float] | None = None
    ) -> int:
        """Send `rows` x `columns` fp32 of a raw file through ggml's quantiser into a raw file; return the bytes."""
        with open(source, "rb") as file:
            data = file.read()
        out = ctypes.create_string_buffer(len(data) + 1024)
        function = self.base.ggml_quantize_chunk
        p, i64 = ctypes.c_void_p, ctypes.c_int64
        function.restype, function.argtypes = ctypes.c_size_t, [ctypes.c_int, p, p, i64, i64, i64, p]
        weigh = (ctypes.c_float * columns)(*weights) if weights else None
        count = function(kind, data, out, 0, rows, columns, weigh)
        with open(target, "wb") as file:
            file.write(out.raw[:count])
        return int(count)


if __name__ == "__main__":
    process.main(Llama)

"""llama.cpp's prebuilt library for the tests, from the npm package ``@node-llama-cpp/linux-x64`` (10 MB, once).

``python -m tests.support.llama`` prints the folder of its shared libraries, fetching it where it is not there yet.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from nbtune.export.llama_runner import LlamaRunner, find_llama

VERSION = "3.22.1"
PACKAGE = f"@node-llama-cpp/linux-x64@{VERSION}"


class LlamaOracle(LlamaRunner):
    """llama.cpp with what only tests ask of it (`llama_child.py`): `ask("quantize", …)`, `ask("quantize_rows", …)`."""

    child = Path(__file__).with_name("llama_child.py")

    def use_adapter(self, gguf: Path, scale: float = 1.0) -> None:
        """Put a LoRA GGUF onto the loaded model."""
        self.ask("use_adapter", path=str(gguf), scale=scale)


def cache_folder() -> Path:
    """Where the tests keep what they fetch."""
    root = os.environ.get("NBTUNE_TEST_CACHE")
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # conftest moves HOME, and this must not be fetched for every test
    return Path(root) if root else home / ".cache" / "nbtune-tests"


def llama_library() -> Path:
    """The folder with llama.cpp's shared libraries: an installed runner's, or the npm package's, fetched once."""
    found = find_llama()
    if found is not None:
        return found
    folder = cache_folder() / f"llama-{VERSION}"
    library = folder / "package" / "bins" / "linux-x64"
    if not library.is_dir():
        _fetch(folder)
    return library


def _fetch(folder: Path) -> None:
    if shutil.which("npm") is None:
        raise RuntimeError("the tests need llama.cpp: install npm (to fetch it), or llama-cpp-python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", temporary]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=temporary)
        archive = next(Path(temporary).glob("*.tgz"))
        shutil.unpack_archive(archive, Path(temporary) / "out", filter="data")
        try:
            os.replace(Path(temporary) / "out", folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise


if __name__ == "__main__":
    print(llama_library())

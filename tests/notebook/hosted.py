"""What Colab and Kaggle bring along, and an environment here with those of its versions that notebooks are made of.

The versions are those that both publish: github.com/googlecolab/backend-info, pip-freeze.gpu.txt of 2026-08-19, and
github.com/Kaggle/docker-python of 2026-08-12, which takes Colab's image and puts another ipywidgets into it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
FOLDER = REPO / ".venv-colab"

NOTEBOOK = {
    "anywidget": "0.9.21",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "plotly": "5.24.1",
    "traitlets": "5.7.1",
}
_KAGGLES = {"ipywidgets": "8.1.5"}
_PAGE = {"jupyterlab": "3.6.8", "jupyterlab-widgets": "1.1.11"}

_COLABS = NOTEBOOK | {
    "accelerate": "1.14.0",
    "cloudpickle": "3.1.2",
    "datasets": "4.0.0",
    "filelock": "3.32.3",
    "fsspec": "2025.3.0",
    "huggingface-hub": "1.27.0",
    "jinja2": "3.1.6",
    "matplotlib": "3.10.0",
    "numpy": "2.1.3",
    "packaging": "26.3",
    "pandas": "2.2.3",
    "peft": "0.20.0",
    "psutil": "5.9.5",
    "psygnal": "0.15.1",
    "pyarrow": "18.1.0",
    "pydantic": "2.13.4",
    "pyyaml": "6.0.3",
    "requests": "2.32.4",
    "rich": "13.9.4",
    "safetensors": "0.8.0",
    "tokenizers": "0.22.2",
    "torch": "2.11.0",
    "tqdm": "4.67.3",
    "transformers": "5.15.0",
    "triton": "3.6.0",
    "typer": "0.27.1",
}
BROUGHT = {"colab": _COLABS, "kaggle": _COLABS | _KAGGLES}
"""By where: the packages that are there, with their versions."""


def environment(environ: dict[str, str]) -> Path:
    """The python of `.venv-colab`, made the first time: `NOTEBOOK` and what it needs; all else is borrowed from here.

    Beside it is a folder `kaggle` with what Kaggle has instead.
    """
    return _made(FOLDER, NOTEBOOK, environ, beside=_KAGGLES)


def with_a_page(environ: dict[str, str]) -> Path:
    """The python of `.venv-colab-page`: the same, and a Jupyter whose page speaks with widgets of that age.

    Colab's page is nobody's but Google's; JupyterLab 3 is the last other one that takes ipywidgets 7.
    """
    return _made(FOLDER.with_name(".venv-colab-page"), NOTEBOOK | _PAGE, environ)


def _made(
    folder: Path, versions: dict[str, str], environ: dict[str, str], beside: dict[str, str] | None = None
) -> Path:
    python, wanted = folder / "bin" / "python", f"{sys.version}\n{versions}\n{beside}\n{_borrowed()}\n"
    made = folder / "made.txt"
    if made.is_file() and made.read_text() == wanted:
        return python
    environ = {**environ, "PYTHONPATH": ""}
    _run([sys.executable, "-m", "venv", "--clear", folder], environ)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{_borrowed()}\n")  # only a path, and the last: the editable nbtune isn't seen
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *(f"{name}=={version}" for name, version in versions.items())], environ)
    if beside:
        others = [f"{name}=={version}" for name, version in beside.items()]
        _run([*pip, "--no-deps", "--target", folder / "kaggle", *others], environ)
    made.write_text(wanted)
    return python


def _borrowed() -> Path:
    """The folder that this python's torch is in, where all else lies, too."""
    return next(path for path in map(Path, sys.path) if (path / "torch").is_dir())


def _run(command: list[str | Path], environ: dict[str, str]) -> None:
    done = subprocess.run([os.fspath(word) for word in command], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

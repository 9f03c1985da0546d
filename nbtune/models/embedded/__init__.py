"""The embedded model `nbtune/tiny`: a Llama of less than 3 million parameters that travels with the package.

`python -m tests.tools.tiny_model.build` trains it anew from the text of `grammar.py`.
"""

from pathlib import Path

__all__ = ["NAME", "path"]

NAME = "nbtune/tiny"


def path() -> Path:
    """Return the folder with weights, config, tokenizer and chat template, as `from_pretrained` takes it.

    >>> (path() / "config.json").is_file()
    True
    """
    return Path(__file__).parent / "weights"

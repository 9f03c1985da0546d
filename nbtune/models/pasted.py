"""The Python that loads a base in transformers, as a snippet and a model card show it."""

from __future__ import annotations

import json
import os

from nbtune.models.embedded import NAME as EMBEDDED
from nbtune.models.heads import Head


def loads(base: str, head: Head | None = None, *more: str) -> str:
    """Return a line's right side: what loads a base, with a head's labels by their names.

    >>> from nbtune.models.pasted import loads
    >>> loads("owner/base", None, 'dtype="auto"')
    'AutoModelForCausalLM.from_pretrained("owner/base", dtype="auto")'
    >>> loads("models/base.gguf")
    'AutoModelForCausalLM.from_pretrained("models", gguf_file="base.gguf")'

    Args:
        base: a Hub id, a folder, a GGUF file, or nbtune's own model (then `imports` are needed above).
        head: what is in place of the model's own head.
        more: what else it is given.
    """
    folder, name = os.path.split(base)
    if base == EMBEDDED:
        given = [f'nbtune.models.resolve("{base}")']
    elif name.lower().endswith(".gguf"):
        given = [_quoted(folder or "."), f"gguf_file={_quoted(name)}"]
    else:
        given = [_quoted(base)]
    if head is not None:
        given.append(f"id2label=dict(enumerate({json.dumps(list(head.labels), ensure_ascii=False)}))")
    return f"{auto_class(head)}.from_pretrained({', '.join([*given, *more])})"


def auto_class(head: Head | None) -> str:
    """Return what transformers calls the class of such a model."""
    return "AutoModelForCausalLM" if head is None else f"AutoModel{head.suffix}"


def imports(base: str) -> str:
    """Return the lines that `loads` needs above it."""
    return "import nbtune\n" if base == EMBEDDED else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

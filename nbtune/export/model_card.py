"""The model card: what this is, what it was made from, how well it does, how to use it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbtune.export.source import ExportSource, safe_name

__all__ = ["FILES_TO_COME", "data_lines", "license_in", "render_card"]

FILES_TO_COME = "(the files, their sizes and what each lost are written here when they are made)"
"""Stands in a card of GGUF files until there are some."""

_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|md|ya?ml|xlsx?|zip|gz|zst)$", re.IGNORECASE)
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")

_TEMPLATE = """\
---
{% if base_model %}base_model: {{ base_model }}
{% endif %}{% if license %}license: {{ license }}
{% endif %}library_name: {{ library }}
pipeline_tag: text-generation
tags:
- nbtune
{% for tag in tags %}- {{ tag }}
{% endfor %}{% if datasets %}datasets:
{% for one in datasets %}- {{ one }}
{% endfor %}{% endif %}---

# {{ name }}

{% if base %}A fine-tune of `{{ base }}`{% else %}A fine-tuned model{% endif %}
{%- if base_license %} (licence of the base: {{ base_license }}){% endif %}, made with nbtune
{%- if steps %} in {{ steps }} steps{% endif %}.
{% if curve %}
![loss](loss.png)
{% endif %}{% if data %}
## Data
{% for line in data %}
- {{ line }}
{%- endfor %}
{% endif %}{% if figures %}
## Results

| | |
|---|---|
{% for key, value in figures %}| {{ key }} | {{ value }} |
{% endfor %}{% endif %}{% if evals %}
| step | loss on held-out rows | perplexity |
|---|---|---|
{% for step, loss, perplexity in evals %}| {{ step }} | {{ loss }} | {{ perplexity }} |
{% endfor %}{% endif %}{% if files %}
## Files
{% for line in files %}
- {{ line }}
{%- endfor %}
{% endif %}{% if samples %}
## Sample answers
{% for prompt, answer in samples %}
{{ prompt | fenced }}

{{ answer | fenced }}
{% endfor %}{% endif %}{% if spec %}
## How it was made

{{ spec | fenced("yaml") }}
{% endif %}
## How to use it
{% if kind == "adapter" %}
transformers and peft:

```python
{% if load.startswith("nbtune.") %}import nbtune
{% endif %}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{{ ", GenerationConfig" if ends }}

base = AutoModelForCausalLM.from_pretrained({{ load }})
model = PeftModel.from_pretrained(base, "{{ repo }}")
{% if ends %}model.generation_config = GenerationConfig.from_pretrained("{{ repo }}")  # where its answers end
{% endif %}tokenizer = AutoTokenizer.from_pretrained("{{ repo }}")
```
{% elif kind == "merged" %}
transformers:

```python
from transformers import pipeline

chat = pipeline("text-generation", "{{ repo }}")
print(chat([{"role": "user", "content": "Hello"}]))
```
{% endif %}{% if kind == "gguf" %}
llama.cpp:

```sh
llama-cli -hf {{ repo }}
```

Ollama:

```sh
ollama run hf.co/{{ repo }}
```
{% else %}
llama.cpp and Ollama want a GGUF file, which nbtune makes of it:

```sh
nbtune export RUN --gguf q8_0 --ollama
llama-cli -m {{ file }}-q8_0.gguf -cnv
ollama create {{ file.lower() }} -f ollama/Modelfile && ollama run {{ file.lower() }}
```
{% endif %}"""


def _fenced(text: object, language: str = "") -> str:
    """`text` in a fence that nothing in it can close."""
    body = str(text).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def license_in(card: Path | None) -> str:
    """The licence that a card (README.md of a model or data set) names, or nothing."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace") if card is not None else ""
    except OSError:
        return ""
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    found = re.search(r"^license(?:_name)?:\s*[\"']?([\w.+-]+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else ""


def data_lines(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines for people about the sources of a run's data, with the licence where it is known; and their Hub ids.

    A set's licence is read from its own card where that lies in the Hub's cache; nothing is fetched.
    """
    lines, ids = [], []
    for source in sources:
        name = source.removeprefix("hub:")
        if name.startswith("nbtune/"):
            lines.append(f"{name} (licence: apache-2.0)")
        elif _HUB_ID.match(name) and not source.startswith(("var:", "file:")) and not _FILE.search(name):
            known = license_in(_cached_card(name))
            lines.append(f"{name} (licence: {known})" if known else f"{name} (licence: see its page)")
            ids.append(name)
        else:
            own = source.removeprefix("var:")
            lines.append(f"{Path(own).name if '/' in own else own} (the author's own rows)")
    return lines, ids


def _cached_card(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "README.md", repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def _some(pairs: Sequence[tuple[int, float]], most: int = 10) -> list[tuple[int, float]]:
    """At most `most` of them, evenly taken, the first and the last among them."""
    if len(pairs) <= most:
        return list(pairs)
    return [pairs[round(i * (len(pairs) - 1) / (most - 1))] for i in range(most)]


def render_card(source: ExportSource, repo: str, kind: str = "adapter", facts: Mapping[str, Any] | None = None) -> str:
    """The README.md of a repository.

    Args:
        source: what was exported.
        repo: ``owner/name``, for the lines of code.
        kind: ``"adapter"``, ``"merged"`` or ``"gguf"``.
        facts: plain facts of the run, each optional: ``name``, ``spec`` (YAML), ``steps``, ``loss``, ``eval_loss``,
            ``samples`` (pairs of prompt and answer), ``data`` (lines), ``datasets`` (Hub ids), ``license`` (of the
            result), ``base_license`` (by default what the base's own card says), ``figures`` (pairs), ``evals`` (pairs
            of step and loss), ``files`` (lines), ``curve`` (a picture lies beside as loss.png).
    """
    import jinja2

    from nbtune.export.merge import generation_of

    facts = dict(facts or {})
    base = source.base_id if not Path(source.base_id).is_absolute() else Path(source.base_id).name
    figures = [(name, _number(facts[key])) for key, name in _FIGURES if facts.get(key) is not None]
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters["fenced"] = _fenced
    return environment.from_string(_TEMPLATE).render(
        name=_line(facts.get("name") or source.name),
        base=_line(base),
        base_model=base if _HUB_ID.match(base) and not base.startswith("nbtune/") else "",
        license=_line(facts.get("license") or ""),
        base_license=_line(facts.get("base_license") or license_in(source.base / "README.md")),
        evals=[
            (step, _number(loss), _number(math.exp(min(loss, 50.0)))) for step, loss in _some(facts.get("evals", []))
        ],
        files=[_line(line) for line in facts.get("files", [])],
        library="peft" if kind == "adapter" else "transformers" if kind == "merged" else "gguf",
        tags={"adapter": ["lora"], "gguf": ["gguf"]}.get(kind, []),
        datasets=[one for one in facts.get("datasets", []) if _HUB_ID.match(one)],
        steps=facts.get("steps"),
        curve=bool(facts.get("curve")),
        data=[_line(line) for line in facts.get("data", [])],
        figures=[*figures, *((_line(key), _line(value)) for key, value in facts.get("figures", []))],
        samples=list(facts.get("samples", []))[:8],
        spec=facts.get("spec"),
        repo=repo,
        load='nbtune.models.resolve("nbtune/tiny")' if base == "nbtune/tiny" else f'"{base or "THE-BASE-MODEL"}"',
        kind=kind,
        ends=kind == "adapter" and generation_of(source) is not None,
        file=safe_name(source.name),
    )


_FIGURES = (("loss", "training loss at the end"), ("eval_loss", "loss on held-out rows"))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(text: object) -> str:
    """`text` in one line, with nothing that a Markdown table or HTML would take for its own."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")

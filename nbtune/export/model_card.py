"""The model card: what this is, what it was made from, how well it does, how to use it.

Head and file are huggingface_hub's (`ModelCardData`, `ModelCard`); the words are the template's below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbtune.disk import gigabytes
from nbtune.errors import HubError
from nbtune.events import Sample
from nbtune.export.others_cards import Stated, stated_of_base, stated_of_data
from nbtune.export.source import HUB_ID, ExportedFile, ExportSource, base_name, is_on_hub, last_part, safe_name
from nbtune.export.usage import usage
from nbtune.models.heads import read_head
from nbtune.spec.yaml_loader import BadYaml, load
from nbtune.spec.yaml_text import dump
from nbtune.untrusted import is_machine_path, read_text

FILES_TO_COME = "(the files, their sizes and what each lost are written here when they are made)"
"""Stands in a card of GGUF files until there are some."""

_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|md|ya?ml|xlsx?|zip|gz|zst)$", re.IGNORECASE)
_PLACES = ("model", "models", "tokenizer", "teacher", "data", "source", "start_from")  # keys of a spec: paths, or names
_WITH_PATHS = (*_PLACES, "function", "functions", "chat_template", "template")  # a text, unless it is a path
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_RELATIONS = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}
_KIND_TAGS = {"adapter": ["lora"], "gguf": ["gguf"]}
_FIGURES = (("loss", "training loss at the end"), ("eval_loss", "loss on held-out rows"))

_TEMPLATE = """\
# {{ name }}

{% if base %}A fine-tune of `{{ base }}`{% else %}A fine-tuned model{% endif %}
{%- if base_license %} (licence of the base: {{ base_license }}){% endif %}, {{ maker }}
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
{% endfor %}{% endif %}{% if scores %}
| | {{ "before" if starts else "base" }} | tuned |
|---|---|---|
{% for what, was, now in scores %}| {{ what }} | {{ was }} | {{ now }} |
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
{% endif %}{% if abilities %}
## What was checked

Of the base with its adapter, before the first step:

| | |
|---|---|
{% for what, words in abilities %}| {{ what }} | {{ words }} |
{% endfor %}{% endif %}
## How to use it
{% if kind == "adapter" %}
transformers and peft{% if local_base %} (the base is no model of the Hub: give its folder){% endif %}:

{{ use.adapter | fenced("python") }}
{% if use.commands %}
llama.cpp and Ollama want a GGUF file, which nbtune makes of the merged model:

{{ use.merge | fenced("python") }}

```sh
nbtune export ./{{ use.file }} --gguf q8_0 --ollama --out .
{{ use.commands }}
```
{% endif %}{% elif kind == "merged" %}
transformers:

{{ use.merged | fenced("python") }}
{% if use.commands %}
llama.cpp and Ollama want a GGUF file, which nbtune makes of it:

```sh
nbtune export {{ repo }} --gguf q8_0 --ollama --out .
{{ use.commands }}
```
{% endif %}{% else %}
llama.cpp:

```sh
llama-cli -hf {{ repo }}
```

Ollama:

```sh
ollama run hf.co/{{ repo }}
```
{% endif %}"""


def render_card(source: ExportSource, repo: str, kind: str = "adapter", facts: Mapping[str, Any] | None = None) -> str:
    """Return the README.md of a repository. No path of this machine stands in it.

    >>> nbtune.export.render_card(nbtune.attach("demo").export.source(), "ada/demo").splitlines()[1]
    'language:'

    Args:
        source: what was exported.
        repo: ``owner/name``, for the lines of code.
        kind: ``"adapter"``, ``"merged"`` or ``"gguf"``.
        facts: plain facts of the run, each optional: ``name``, ``spec`` (YAML), ``steps``, ``loss``, ``eval_loss``,
            ``method``, ``samples`` (pairs of prompt and answer), ``data`` (lines), ``datasets`` (Hub ids), ``language``
            (by default what the cards of all data sets say, or the base's), ``license`` (of the result; by default the
            base's), ``base_license`` (by default what the base's own card says), ``figures`` (pairs), ``evals`` (pairs
            of step and loss), ``scores`` (name, before, after; ``starts``: before is not the base), ``files`` (lines),
            ``abilities`` (pairs), ``curve`` (a picture lies beside as loss.png).
    """
    from huggingface_hub import ModelCard

    facts = dict(facts or {})
    base = base_name(source)
    stated = stated_of_base(source)
    data = _card_data(source, kind, facts, base, stated)
    body = _body(source, repo, kind, facts, base, stated)
    return str(ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=body))


def _card_data(source: ExportSource, kind: str, facts: Mapping[str, Any], base: str, stated: Stated) -> Any:
    """Return the card's head; a fact that is not known is left out."""
    from huggingface_hub import ModelCardData

    on_hub = is_on_hub(source)
    licence = {"license": _line(facts["license"])} if facts.get("license") else stated.licence
    method, held_out = facts.get("method") or source.method, _held_out(facts, _task(source))
    return ModelCardData(
        language=facts.get("language") or _languages(facts, stated) or None,
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        model_name=_line(facts.get("name") or source.name) if held_out else None,
        eval_results=held_out,
        library_name=_LIBRARIES[kind],
        pipeline_tag=_task(source),
        tags=["nbtune", *_KIND_TAGS.get(kind, []), *([method] if method else [])],
        base_model=base if on_hub else None,
        base_model_relation=_RELATIONS[kind] if on_hub else None,
        datasets=[one for one in facts.get("datasets", []) if HUB_ID.match(one)] or None,
    )


def _body(source: ExportSource, repo: str, kind: str, facts: Mapping[str, Any], base: str, stated: Stated) -> str:
    """Return the card's words."""
    import jinja2

    figures = [(name, _number(facts[key])) for key, name in _FIGURES if facts.get(key) is not None]
    evals = _some(facts.get("evals", []))
    licence = stated.licence
    own = licence.get("license_name", "other") if licence.get("license") == "other" else licence.get("license")
    prompts = [str(prompt) for prompt, _ in facts.get("samples", [])]
    use = usage(
        source, repo, base, file=safe_name(source.name if kind == "adapter" else repo), prompt=(prompts or [""])[0]
    )
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters["fenced"] = _fenced
    return environment.from_string(_TEMPLATE).render(
        name=_line(facts.get("name") or source.name),
        maker=f"trained by {_line(facts['trainer'])}" if facts.get("trainer") else "made with nbtune",
        base=_line(base),
        base_license=_line(facts.get("base_license") or own or ""),
        steps=facts.get("steps"),
        curve=bool(facts.get("curve")),
        data=[_line(line) for line in facts.get("data", [])],
        figures=[*figures, *((_line(key), _line(value)) for key, value in facts.get("figures", []))],
        scores=[tuple(map(_line, row)) for row in facts.get("scores", [])],
        starts=bool(facts.get("starts")),
        evals=[(step, _number(loss), _number(math.exp(min(loss, 50.0)))) for step, loss in evals],
        files=[_line(line) for line in facts.get("files", [])],
        samples=list(facts.get("samples", []))[:8],
        spec=without_paths(facts.get("spec") or ""),
        abilities=[(_line(what), _line(words)) for what, words in facts.get("abilities", [])],
        repo=repo,
        kind=kind,
        local_base=not is_on_hub(source) and base != "nbtune/tiny",
        use=use,
    )


# --- a card of one's own ----------------------------------------------------------------------------------------------


def own_card(text: str | Path | None) -> str | None:
    """Return the text of somebody's own card, given as text or as a file ending in .md.

    Raises:
        HubError: the file cannot be read.
    """
    if text is None or (isinstance(text, str) and ("\n" in text or not text.endswith(".md"))):
        return text
    try:
        return read_text(Path(text).expanduser())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: of an unknown user (~who)
        raise HubError("the model card cannot be read", place=str(text), fix="give its text, or a .md file.") from None


def name_files(card: str, files: Sequence[ExportedFile]) -> str:
    """Return the card with the files in the place that `FILES_TO_COME` keeps."""
    return card.replace(FILES_TO_COME, "\n- ".join(file_line(file) for file in files))


def file_line(file: ExportedFile) -> str:
    """Return a file's name, its size, and what was measured of it."""
    judged = f", {file.quality.words()}" if file.quality else ""
    return f"`{file.path.name}`: {gigabytes(file.bytes)}{judged}"


def refuse_token(card: str) -> None:
    """Refuse a card in which the token stands that is logged in: what is on the Hub is read by others.

    Raises:
        HubError: it does.
    """
    from huggingface_hub import get_token

    token = get_token()
    if token and token in card:
        raise HubError("the model card holds your token", place="README.md", fix="take it out, and push again.")


# --- what is known of base and data -----------------------------------------------------------------------------------


def _languages(facts: Mapping[str, Any], stated: Stated) -> list[str]:
    """Return the languages of the data, where every set of it is of the Hub and its card says them; else the base's."""
    sets = list(facts.get("datasets", []))
    known = [stated_of_data(name).languages for name in sets]
    if not sets or len(sets) != len(facts.get("data", [])) or not all(known):
        return stated.languages
    return list(dict.fromkeys(code for codes in known for code in codes))


def _task(source: ExportSource) -> str:
    """Return the Hub's word for what the model does."""
    head = read_head(source.adapter or source.base)
    return "text-generation" if head is None else f"{head.of}-classification"


def _held_out(facts: Mapping[str, Any], task: str) -> Any:
    """Return the loss on held-out rows as the Hub's catalogue of results takes it; None: it was not measured."""
    from huggingface_hub import EvalResult

    loss, sets = facts.get("eval_loss"), [one for one in facts.get("datasets", []) if HUB_ID.match(one)]
    if not isinstance(loss, float) or not math.isfinite(loss):
        return None
    result = EvalResult(
        task_type=task,
        dataset_type=sets[0] if len(sets) == 1 else "own-rows",
        dataset_name="held-out rows",
        metric_type="loss",
        metric_name="loss on held-out rows",
        metric_value=float(_number(loss)),
    )
    return [result]


def samples_of(said: Iterable[Any], step: int, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the answers to a run's own prompts at a step: what held-out rows were asked is nobody else's business."""
    samples = [event for event in said if isinstance(event, Sample) and event.step == step]
    return [(sample.prompt, sample.answer) for sample in samples if sample.prompt in prompts]


def data_lines(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return lines for people about the sources of a run's data, with the licence where it is known; and their Hub ids.

    A set's licence is read from its own card where that lies in the Hub's cache; nothing is fetched.
    """
    lines, ids = [], []
    for source in sources:
        name = source.removeprefix("hub:")
        if name.startswith("nbtune/"):
            lines.append(f"{name} (licence: apache-2.0)")
        elif HUB_ID.match(name) and not source.startswith(("var:", "file:")) and not _FILE.search(name):
            licence = stated_of_data(name).licence.get("license")
            lines.append(f"{name} (licence: {licence})" if licence else f"{name} (licence: see its page)")
            ids.append(name)
        else:
            lines.append(f"{last_part(source.removeprefix('var:').removeprefix('file:'))} (the author's own rows)")
    return lines, ids


# --- text -------------------------------------------------------------------------------------------------------------


def without_paths(spec: str) -> str:
    """Return a spec's YAML with the names of files and folders in place of paths of the author's machine."""
    try:
        body = load(spec)
    except BadYaml:
        return ""
    shown = _shortened(body)
    return spec if shown == body else dump(shown)


def _shortened(value: Any, key: str = "") -> Any:
    """Return a spec's body with the last part of each path."""
    if isinstance(value, dict):
        shown = {name: item for name, item in value.items() if name != "address"}  # of machines that are nobody else's
        return {
            last_part(name) if _is_place(name) else name: _shortened(item, str(name)) for name, item in shown.items()
        }
    if isinstance(value, list):
        return [_shortened(item, key) for item in value]
    if key in _WITH_PATHS and (_is_place(value) or (key in _PLACES and _is_inside(value))):
        return last_part(value)
    return value


def _is_place(value: object) -> bool:
    return isinstance(value, str) and is_machine_path(value.removeprefix("file:"))


def _is_inside(value: object) -> bool:
    """Return whether it is a path from the working folder on, which names folders too: no id of the Hub's is one."""
    if not isinstance(value, str) or "://" in value or "\n" in value:
        return False
    parts = re.split(r"[\\/]", value)
    return len(parts) > 2 or "\\" in value or (len(parts) == 2 and bool(_FILE.search(value)))


def _fenced(text: object, language: str = "") -> str:
    """Return `text` in a fence that nothing in it can close."""
    body = str(text).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def _some(pairs: Sequence[tuple[int, float]], most: int = 10) -> list[tuple[int, float]]:
    """Return at most `most` of them, evenly taken, the first and the last among them."""
    if len(pairs) <= most:
        return list(pairs)
    return [pairs[round(i * (len(pairs) - 1) / (most - 1))] for i in range(most)]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(text: object) -> str:
    """Return `text` in one line, with nothing that a Markdown table or HTML would take for its own."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")

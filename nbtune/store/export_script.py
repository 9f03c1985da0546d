"""A run as a Python script and as a YAML file of its own: what was asked, in a form to read, keep and change.

The rows of variables are named as the files that the run wrote them to. `train.py` in the run's folder is another
thing: it repeats the run exactly as it was, from its folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nbtune.atomic_io import read_json, write_text
from nbtune.errors import SpecError, TrainError
from nbtune.models.heads import no_class, read_head
from nbtune.models.pasted import auto_class, imports, loads
from nbtune.models.token_rows import rows_of
from nbtune.planner.learning_rate import with_its_rate
from nbtune.spec import RunSpec, SourceSpec, to_yaml
from nbtune.spec.text_metrics import functions_of
from nbtune.store import foreign
from nbtune.store.folder import VARIABLE, loadable, name_of, plan_of, read_spec
from nbtune.untrusted import from_here

_SCRIPT = '''\
"""{head}"""

import nbtune

SPEC = {spec}

if __name__ == "__main__":
    run = nbtune.finetune(SPEC, name={name!r}).wait()
    print(run.folder)
'''
_REPEAT = '''\
"""{head}

Its {what} of a notebook, which only the run has. It was asked for with:

{spec}"""

import nbtune

if __name__ == "__main__":
    run = nbtune.repeat({folder!r}).wait()
    print(run.folder)
'''


def spec_to_repeat(folder: Path) -> RunSpec:
    """Return the spec of a run, with the learning rate that it had where the plan would choose another one today."""
    spec, body = read_spec(folder), read_json(folder / "plan.json")
    try:
        return spec if body is None else with_its_rate(spec, plan_of(body, folder))
    except TrainError:
        return spec  # no plan that can be read


def as_script(folder: Path) -> str:
    """Return Python that trains a run again: same spec, same rows, same losses. Paths are from the
    working folder on."""
    foreign.refuse(folder, "write a script that trains it again")
    called = re.sub(r"[^\w.-]", "_", folder.name)  # anybody may have named it, and this becomes a part of a program
    head, text = f"Trains {called} again: same rows, same losses.", as_yaml(folder)
    if what := _needs_run(read_spec(folder)):
        shown = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        return _REPEAT.format(head=head, what=what, spec=shown, folder=from_here(folder))
    return _SCRIPT.format(head=head, spec=_literal(text), name=name_of(folder)[0])


def as_snippet(folder: Path) -> str:
    """Write the few lines that use a run's model elsewhere, with transformers and peft alone."""
    spec, adapter = read_spec(folder), _where(folder / "adapter")
    system = "import os\n" if adapter.startswith("os.") else ""
    head = read_head(folder / "adapter")
    if head is not None and not head.layer:
        return f"# {no_class('model of this family', head.of)}: `nbtune.attach({folder.name!r})` has it"
    name, ends = "", ""
    if (folder / "adapter" / "generation_config.json").is_file() and spec.adapter.type != "full":
        name = ", GenerationConfig"  # answers end where the base's do not; a whole model reads it itself
        ends = f"\nmodel.generation_config = GenerationConfig.from_pretrained({adapter})"
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({adapter}){ends}"
    kind = auto_class(head)
    head_line = f"from transformers import {kind}, AutoTokenizer{name}\n\n"
    if spec.adapter.type == "full":  # the folder is the model
        return f"{system}{head_line}model = {kind}.from_pretrained({adapter})\n{tokenizer}"
    loaded = loads(spec.model, head)
    if spec.model.startswith(VARIABLE):
        handed = spec.model.removeprefix(VARIABLE)  # anybody may have written it, and this is pasted
        loaded = f"{handed if handed.isidentifier() else '...'}  # as it was handed over"
    rows = rows_of(loadable(spec, folder).model) if spec.adapter.grows else None
    more = f"base.resize_token_embeddings({rows}, mean_resizing=False)  # it knows more tokens now\n"
    grown = "" if rows is None else more
    return (
        f"{system}{imports(spec.model)}from peft import PeftModel\n{head_line}base = {loaded}\n{grown}"
        f"model = PeftModel.from_pretrained(base, {adapter})\n{tokenizer}"
    )


def _where(folder: Path) -> str:
    """Return Python for a folder's path that holds from the working folder on: nobody's home is named in it."""
    path = from_here(folder)
    return f"os.path.expanduser({path!r})" if path.startswith("~/") else repr(path)


def as_yaml(folder: Path) -> str:
    """Return the spec for `nbtune train` or a cell, its rows named as files. Paths are from the working folder on."""
    spec = spec_to_repeat(folder)
    sources = (read_json(folder / "data" / "sources.json") or {}).get("sources")
    entries = [entry for entry in sources if isinstance(entry, dict)] if isinstance(sources, list) else []
    kept = {role: [e for e in entries if e.get("role", "train") == role] for role in ("train", "eval")}
    data = tuple(_as_file(*pair, folder) for pair in zip(spec.data, kept["train"], strict=False))
    changed: dict[str, Any] = {"data": data if len(data) == len(spec.data) else spec.data}
    if spec.eval.data is not None and kept["eval"]:
        eval_source = _as_file(spec.eval.data, kept["eval"][0], folder)
        changed["eval"] = spec.eval.model_copy(update={"data": eval_source})
    return to_yaml(spec.model_copy(update=changed))


def written(folder: Path, out: Path) -> list[Path]:
    """Write a run's script and YAML as NAME.py and NAME.yaml into `out`; return their paths.

    Raises:
        SpecError: one of them is there already, or nothing can be written there.
    """
    name = name_of(folder)[0]
    texts = {out / f"{name}.py": as_script(folder), out / f"{name}.yaml": as_yaml(folder)}
    for path in texts:
        if path.exists():
            raise SpecError(f"{str(path)!r} is there already", fix="give another `--out`, or move it away")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_text(path, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(f"nothing can be written to {str(out)!r}: {reason}", fix="give another `--out`") from error
    return list(texts)


def _as_file(source: SourceSpec, entry: dict[str, Any], folder: Path) -> SourceSpec:
    try:
        (record,) = entry["files"]
        if entry["kind"] not in ("variable", "file") or record["path"].endswith(".arrow"):
            return source
        path = from_here(Path((folder / "data" / record["path"]).resolve()))
    except (AttributeError, KeyError, TypeError, ValueError):  # not one file, or not as nbtune writes it
        return source
    return source.model_copy(update={"source": f"file:{path}"})


def _needs_run(spec: RunSpec) -> str:
    """Return what of a run's notebook no spec can say, in words; nothing where there is no such thing."""
    for key in ("model", "tokenizer"):
        if str(getattr(spec, key)).startswith(VARIABLE):
            return f"{key} was an object"
    eval_data = [spec.eval.data] if spec.eval.data is not None else []
    own = any(source.function is not None and ":" not in source.function for source in [*spec.data, *eval_data])
    if own:
        return "rows went through a Python function"
    judges = [*spec.rewards.functions, *functions_of(spec.eval.metrics)]
    return "answers were judged by a Python function" if any(":" not in name for name in judges) else ""


def _literal(text: str) -> str:
    """Return a text of several lines as Python writes it: between three quotes where it can."""
    if '"""' in text or "\\" in text or not text.replace("\n", "").isprintable():
        return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True)) + ")"
    return f'"""\\\n{text}"""'

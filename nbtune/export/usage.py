"""The lines that use a pushed model elsewhere: stock transformers and peft, llama.cpp, Ollama. Pasted, they answer."""

from __future__ import annotations

import json
from dataclasses import dataclass

from nbtune.errors import ExportError
from nbtune.export.source import ExportSource, read_json
from nbtune.models.heads import Head, read_head
from nbtune.models.token_rows import rows_of

_GGUF_COMMANDS = """\
llama-cli -m {file}-q8_0.gguf -cnv
ollama create {model} -f ollama/Modelfile && ollama run {model}"""

_ADAPTER = """\
{imports}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{more}

base = AutoModelForCausalLM.from_pretrained({base}, dtype="auto")
{grown}model = PeftModel.from_pretrained(base, "{repo}")
{ends}tokenizer = AutoTokenizer.from_pretrained("{repo}")

{inputs}
answer = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_GROWN = """\
base.resize_token_embeddings({rows})  # it knows more tokens now
"""

_ENDS = """\
model.generation_config = GenerationConfig.from_pretrained("{repo}")  # where its answers end
"""

_CHAT = """\
chat = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""

_MERGED_CHAT = """\
from transformers import pipeline

chat = pipeline("text-generation", "{repo}")
answer = chat([{{"role": "user", "content": {prompt}}}], max_new_tokens=200)
print(answer[0]["generated_text"][-1]["content"])"""

_MERGED_TEXT = """\
from transformers import pipeline

write = pipeline("text-generation", "{repo}")
print(write({prompt}, max_new_tokens=200)[0]["generated_text"])"""

_HEAD_INPUTS = """\
tokenizer = AutoTokenizer.from_pretrained("{repo}")
{inputs}
print(model(**inputs).logits, model.config.id2label)"""

_HEAD_ADAPTER = """\
{imports}from peft import PeftModel
from transformers import {model}, AutoTokenizer

base = {model}.from_pretrained({base}, num_labels={labels}, dtype="auto")
{grown}model = PeftModel.from_pretrained(base, "{repo}").eval()
"""

_HEAD_MERGED = """\
from transformers import {model}, AutoTokenizer

model = {model}.from_pretrained("{repo}", dtype="auto").eval()
"""

_MERGE = """\
model.merge_and_unload().save_pretrained("{file}")
tokenizer.save_pretrained("{file}")"""


@dataclass(frozen=True)
class Usage:
    """What a person pastes.

    Args:
        adapter: Python that loads base and adapter, and answers.
        merge: Python after `adapter` that saves the merged model as the folder `file`.
        merged: Python that loads the merged model of the repository, and answers.
        commands: of llama.cpp and Ollama, for GGUF files called `file`; empty where there can be none.
        file: what folder and files are called.
    """

    adapter: str
    merge: str
    merged: str
    commands: str
    file: str


def usage(source: ExportSource, repo: str, base: str, *, file: str, prompt: str = "") -> Usage:
    """Return the lines that let a model answer.

    Args:
        source: what was exported.
        repo: where it is: ``owner/name``, or a folder.
        base: what the base is loaded by.
        file: what folders and files are called that the lines make.
        prompt: what is asked.
    """
    from nbtune.export.merge import generation_of

    chat, ends = _is_chat(source), generation_of(source) is not None
    asked = json.dumps(prompt or ("Hello" if chat else "Once upon a time"), ensure_ascii=False)
    embedded = base == "nbtune/tiny"
    imports = "import nbtune\n" if embedded else ""
    loaded = (
        f'nbtune.models.resolve("{base}")' if embedded else json.dumps(base or "THE-BASE-MODEL", ensure_ascii=False)
    )
    rows = rows_of(str(source.base))
    grown = "" if rows is None else _GROWN.format(rows=rows)
    head = read_head(source.adapter or source.base)
    if head is not None:
        return _of_scores(head, imports, (loaded, grown), repo, asked, file)
    adapter = _ADAPTER.format(
        imports=imports,
        more=", GenerationConfig" if ends else "",
        base=loaded,
        grown=grown,
        repo=repo,
        ends=_ENDS.format(repo=repo) if ends else "",
        inputs=_CHAT.format(prompt=asked) if chat else f'inputs = tokenizer({asked}, return_tensors="pt")',
    )
    return Usage(
        adapter,
        merge=_MERGE.format(file=file),
        merged=(_MERGED_CHAT if chat else _MERGED_TEXT).format(repo=repo, prompt=asked),
        commands=_GGUF_COMMANDS.format(file=file, model=file.lower()),
        file=file,
    )


def _of_scores(head: Head, imports: str, base: tuple[str, str], repo: str, asked: str, file: str) -> Usage:
    """Return the lines that let a reward model or a classifier score a text: it writes none.

    Args:
        base: what loads it, and the line that gives it new tokens.
    """
    told = {
        "repo": repo,
        "model": f"AutoModel{head.suffix}",
        "inputs": f'inputs = tokenizer({asked}, return_tensors="pt")',
    }
    told |= {"imports": imports, "base": base[0], "grown": base[1], "labels": str(len(head.labels))}
    asks = _HEAD_INPUTS.format(**told)
    merged = _HEAD_MERGED.format(**told) + asks
    return Usage(_HEAD_ADAPTER.format(**told) + asks, _MERGE.format(file=file), merged, commands="", file=file)


def _is_chat(source: ExportSource) -> bool:
    """Return whether the model's tokenizer has a chat template."""
    folder = source.tokenizer_folder
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
    except ExportError:
        return False

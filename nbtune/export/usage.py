"""The lines that use a pushed model elsewhere: stock transformers and peft, llama.cpp, Ollama. Pasted, they answer."""

from __future__ import annotations

import json
from dataclasses import dataclass

from nbtune.errors import ExportError
from nbtune.export.source import ExportSource, read_json
from nbtune.methods import METHODS
from nbtune.models.heads import Head, no_class, read_head
from nbtune.models.pasted import auto_class, imports, loads
from nbtune.models.token_rows import rows_of

_GGUF_COMMANDS = """\
llama-cli -m {file}-q8_0.gguf -cnv
ollama create {model} -f ollama/Modelfile && ollama run {model}"""

_ADAPTER = """\
{imports}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{more}

base = {base}
{grown}model = PeftModel.from_pretrained(base, "{repo}"){experts}
{ends}tokenizer = AutoTokenizer.from_pretrained("{repo}")

{inputs}
answer = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_GROWN = """\
base.resize_token_embeddings({rows}, mean_resizing=False)  # it knows more tokens now
"""

_EXPERTS = "  # experts, too: of transformers 5 with its peft; an older one leaves them out"

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
{shows}"""

_HEAD_ADAPTER = """\
{imports}from peft import PeftModel
from transformers import {model}, AutoTokenizer

base = {base}
{grown}model = PeftModel.from_pretrained(base, "{repo}").eval()
"""

_HEAD_MERGED = """\
from transformers import {model}, AutoTokenizer

model = {model}.from_pretrained("{repo}", dtype="auto").eval()
"""

_TEXT = 'inputs = tokenizer({prompt}, return_tensors="pt")'

_SCORED = 'inputs = tokenizer({prompt}, split_special_tokens=True, return_tensors="pt")'  # as its rows were read

_JUDGED_CHAT = """\
chat = [{{"role": "user", "content": {prompt}}}, {{"role": "assistant", "content": "Hello! How can I help you?"}}]
inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)"""

_REWARD = "print(model(**inputs).logits.item())"

_OF_TEXT = """\
scores = model(**inputs).logits[0].softmax(-1).tolist()
print(dict(zip(model.config.id2label.values(), scores)))"""

_LINES = """\
lines = {lines}
text = "".join(f"{{line}}\\n" for line in lines)  # what it says of a line stands at the line break
inputs = tokenizer(text, split_special_tokens=True, return_tensors="pt")"""

_OF_LINES = """\
scores = model(**inputs).logits[0].softmax(-1).tolist()
end = -1
for line in lines:
    end += len(line) + 1
    print(line, dict(zip(model.config.id2label.values(), scores[inputs.char_to_token(end)])))"""

_WORDS, _STEPS = '["Ada", "sails", "to", "Oslo", "."]', '["What is 2 + 3?2 + 3 is 5", "So it is 5"]'

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
    rows = rows_of(str(source.base))
    grown = "" if rows is None else _GROWN.format(rows=rows)
    head = read_head(source.adapter or source.base)
    loaded = loads(base or "THE-BASE-MODEL", head, 'dtype="auto"')
    if head is not None:
        return _of_scores(source, head, (imports(base), loaded, grown), repo, asked, file)
    adapter = _ADAPTER.format(
        imports=imports(base),
        more=", GenerationConfig" if ends else "",
        base=loaded,
        grown=grown,
        repo=repo,
        ends=_ENDS.format(repo=repo) if ends else "",
        experts=_EXPERTS if _adapts_experts(source) else "",
        inputs=(_CHAT if chat else _TEXT).format(prompt=asked),
    )
    return Usage(
        adapter,
        merge=_MERGE.format(file=file),
        merged=(_MERGED_CHAT if chat else _MERGED_TEXT).format(repo=repo, prompt=asked),
        commands=_GGUF_COMMANDS.format(file=file, model=file.lower()),
        file=file,
    )


def _by_steps(source: ExportSource) -> bool:
    method = METHODS.get(source.method or "")
    return method is not None and method.rows == "stepwise"


def _of_scores(source: ExportSource, head: Head, base: tuple[str, str, str], repo: str, asked: str, file: str) -> Usage:
    """Return the lines that let a reward model or a classifier score a text: it writes none.

    Args:
        base: what is imported for it, what loads it, and the line that gives it new tokens.
    """
    if not head.layer:
        return Usage(f"# {_kind_without_class(source, head)}\n", "", "", commands="", file=file)
    if head.of == "token":
        inputs, shows = _LINES.format(lines=_STEPS if _by_steps(source) else _WORDS), _OF_LINES
    elif len(head.labels) == 1 and _is_chat(source):  # a reward, which is of an answer
        inputs, shows = _JUDGED_CHAT.format(prompt=asked), _REWARD
    else:
        inputs, shows = _SCORED.format(prompt=asked), _REWARD if len(head.labels) == 1 else _OF_TEXT
    told = {"repo": repo, "model": auto_class(head), "inputs": inputs, "shows": shows}
    told |= {"imports": base[0], "base": base[1], "grown": base[2]}
    asks = _HEAD_INPUTS.format(**told)
    merged = _HEAD_MERGED.format(**told) + asks
    return Usage(_HEAD_ADAPTER.format(**told) + asks, _MERGE.format(file=file), merged, commands="", file=file)


def _kind_without_class(source: ExportSource, head: Head) -> str:
    return no_class(str(read_json(source.base / "config.json").get("model_type")), head.of)


def _adapts_experts(source: ExportSource) -> bool:
    """Return whether the adapter is also of stacks of weights, which transformers 4 has not."""
    file = None if source.adapter is None else source.adapter / "adapter_config.json"
    return file is not None and file.is_file() and bool(read_json(file).get("target_parameters"))


def _is_chat(source: ExportSource) -> bool:
    """Return whether the model's tokenizer has a chat template."""
    folder = source.tokenizer_folder
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
    except ExportError:
        return False

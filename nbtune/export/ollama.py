"""A folder for Ollama (and LM Studio, and llama.cpp): the GGUF, a Modelfile, and the commands.

A TEMPLATE in a Modelfile wins over the GGUF's own chat template, and a wrong one makes a good model talk garbage. So
one is written only if it can be derived from the tokenizer's template *and* renders sample conversations to the same
text; otherwise it is left out, and Ollama uses the Jinja template in the GGUF.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtune.atomic_io import replace_folder
from nbtune.data.tokenize.terminators import ends_of
from nbtune.disk import folder_bytes
from nbtune.errors import ExportError
from nbtune.export.gguf.vocabulary import load_tokenizer
from nbtune.export.gguf.writer import write_gguf
from nbtune.export.source import ExportedFile, ExportSource, Progress, safe_name

Chat = list[dict[str, str]]
_A, _B = "nbtuneFirst", "nbtuneSecond"

_SAMPLES: tuple[Chat, ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And\n\ntwice that? {{ x }}"},
    ],
    [
        {"role": "system", "content": "You are a pirate."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "Arr.\nA pirate."},
        {"role": "user", "content": "Where from?"},
        {"role": "assistant", "content": "The sea"},
        {"role": "user", "content": "Which?"},
    ],
)


@dataclass(frozen=True)
class TurnTemplate:
    """A chat template that puts fixed text around each message.

    Args:
        start: before everything.
        around: role → (text before the message, text after it).
        prompt: what asks for an answer.
    """

    start: str
    around: dict[str, tuple[str, str]]
    prompt: str

    def render(self, chat: Chat) -> str:
        """Return the text of a conversation, up to where the answer begins."""
        turns = "".join(self.around[m["role"]][0] + m["content"] + self.around[m["role"]][1] for m in chat)
        return self.start + turns + self.prompt

    def go(self) -> str:
        """Return the same as a Go template over ``.Messages``."""
        branches: list[str] = []
        for role, (before, after) in self.around.items():
            word = "if" if not branches else "else if"
            branches.append(f'{{{{ {word} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}')
        return (
            f"{_go(self.start)}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_go(self.prompt)}"
        )


def _go(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def derive_template(tokenizer: Any, *, drop_start: str = "") -> TurnTemplate | None:
    """Return the tokenizer's chat template as fixed text around messages, or None where it is not of that kind.

    Args:
        tokenizer: of transformers, with a chat template.
        drop_start: text (the BOS token) that the runner puts in front by itself.
    """

    def text(chat: Chat, prompt: bool = True) -> str | None:
        import jinja2

        try:
            return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError):
            return None

    user, assistant = {"role": "user", "content": _A}, {"role": "assistant", "content": _B}
    one, bare = text([user]), text([user], prompt=False)
    two = text([user, assistant], prompt=False)
    three = text([user, assistant, {"role": "user", "content": "nbtuneThird"}], prompt=False)
    if one is None or bare is None or two is None or three is None or not one.startswith(bare):
        return None
    prompt = one[len(bare) :]
    before, _, after = bare.partition(_A)
    if not two.startswith(bare) or not three.startswith(two):
        return None
    assistant_before, _, assistant_after = two[len(bare) :].partition(_B)
    second_before = three[len(two) :].partition("nbtuneThird")[0]
    if not before.endswith(second_before):
        return None
    start = before[: len(before) - len(second_before)]
    around = {"user": (second_before, after), "assistant": (assistant_before, assistant_after)}
    system = text([{"role": "system", "content": _B}, user], prompt=False)
    if system is not None and system.endswith(second_before + _A + after) and _B in system:
        head = system[: len(system) - len(second_before + _A + after)]
        system_before, _, system_after = head.partition(_B)
        if system_before.startswith(start):
            around = {"system": (system_before[len(start) :], system_after), **around}
    template = TurnTemplate(start, around, prompt)
    for chat in _SAMPLES:
        if chat[0]["role"] == "system" and "system" not in around:
            return None
        if text(chat) != template.render(chat):
            return None
    if drop_start and start.startswith(drop_start):
        template = TurnTemplate(start[len(drop_start) :], around, prompt)
    return None if '"""' in template.go() else template


def stops_of(tokenizer: Any) -> list[str]:
    """Return the texts at which an answer ends: the end of text, and what ends a trained answer."""
    return [str(tokenizer.convert_ids_to_tokens(end)) for end in ends_of(tokenizer).stops]


def modelfile(gguf: str, tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """Return the Modelfile's text for a GGUF beside it, and what the user should know about it."""
    lines = [f"FROM ./{gguf}", ""]
    notes: tuple[str, ...] = ()
    if tokenizer.chat_template:
        bos = tokenizer.bos_token or ""
        adds = bool(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        template = derive_template(tokenizer, drop_start=bos if adds else "")
        if template is not None:
            lines += [f'TEMPLATE """{template.go()}"""', ""]
        else:
            notes = (
                "no TEMPLATE was written: the chat template is no fixed text around messages; the GGUF's own is used",
            )
            lines += ["# The chat template is the one in the GGUF.", ""]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops_of(tokenizer) if '"' not in stop]
    return "\n".join(lines) + "\n", notes


def export_ollama(
    source: ExportSource, out: Path, type: str = "q8_0", *, progress: Progress | None = None
) -> ExportedFile:
    """Make a folder that ``ollama create`` takes: GGUF, Modelfile, README.md with the commands.

    >>> made = nbtune.export.export_ollama(nbtune.attach("demo").export.source(), Path("ollama"))
    >>> sorted(file.name for file in made.path.iterdir())
    ['Modelfile', 'README.md', 'demo-q8_0.gguf']

    Args:
        source: base, and perhaps an adapter on it.
        out: the folder to make.
        type: of the GGUF.
        progress: see `write_gguf`.

    Raises:
        ExportError: see `write_gguf`; `out` holds other things.
    """
    began = time.monotonic()
    with replace_folder(out, shared=True, marker="Modelfile", raises=ExportError) as part:
        file = write_gguf(source, [type], part, progress=progress, part_bytes=None)[0]  # Ollama takes one
        text, notes = modelfile(file.path.name, load_tokenizer(source.tokenizer_folder))
        (part / "Modelfile").write_text(text, encoding="utf-8")
        name = safe_name(source.name).lower()
        readme = (
            f"# {source.name}\n\n"
            f"Ollama:\n\n    ollama create {name} -f Modelfile\n    ollama run {name}\n\n"
            f"llama.cpp:\n\n    llama-cli -m {file.path.name} -cnv\n\n"
            f"LM Studio:\n\n    lms import {file.path.name}\n"
        )
        (part / "README.md").write_text(readme, encoding="utf-8")
    return ExportedFile(
        out, f"ollama-{type.lower()}", folder_bytes(out), time.monotonic() - began, (*file.notes, *notes)
    )

"""Does a tuned model stop at its answers' end wherever it is taken? Asked of a real model, 20 prompts each.

    python tests/tools/stops.py MODEL [--also FOLDER] [--steps 30] [--threads 1]

MODEL is a folder with a chat template (such as SmolLM2-135M-Instruct). It is trained three times: with another
template, whose end of turn is not the tokenizer's; with that template on a copy that has none; and on a copy that has
none and gets none. Asked are nbtune's own chat, the merged model in stock transformers (that of this environment, and
with ``--also`` the one in FOLDER: ``pip install --target FOLDER --no-deps transformers==4.57.6 …``), and the GGUF in
llama.cpp. A stop is an answer whose last token is the trained end, within 48 tokens. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OTHER = (
    "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content }}"
    "{{ '<|endoftext|>\n' if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)
WORDS = re.findall(
    r"\w+",
    "river stone cloud apple horse lamp bread night garden window silver market forest letter engine candle bridge "
    "winter copper meadow island pocket hammer basket",
)
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Say something about {word}, number {i}."},
            {"role": "assistant", "content": f"A {word} is a word of {len(word)} letters."},
        ]
    }
    for i in range(5)
    for word in WORDS
]
PROMPTS = [f"Tell me of {word}." for word in WORDS[:20]]
MOST = 48  # tokens of an answer


def main() -> None:
    """Train, ask, and print a line for each place."""
    if sys.argv[1] == "ask":
        return print(json.dumps(ask_stock(Path(sys.argv[2]))))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--also", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        bare = without_template(asked.model, Path(folder) / "bare")
        for name, model, template in (
            ("another template", asked.model, OTHER),
            ("no template, and another", bare, OTHER),
            ("no template at all", bare, None),
        ):
            for place, (stopped, example) in taken(model, template, asked, Path(folder) / name.replace(" ", "-")):
                print(f"{name}: {place}: {stopped} of {len(PROMPTS)} stop; {example!r}", flush=True)


def without_template(model: Path, copy: Path) -> Path:
    """Make a copy of a model's folder without its chat template."""
    copy.mkdir()
    for file in model.iterdir():
        if file.suffix not in (".gguf", ".jinja"):
            shutil.copy(file, copy / file.name)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return copy


def taken(model: Path, template: str | None, asked: Any, folder: Path) -> Any:
    """Train, and yield (place, (answers that stopped, the first one)) for each place it is taken to."""
    import nbtune

    spec: dict[str, Any] = {"model": str(model), "data": "rows", "steps": asked.steps, "batch_size": 4}
    spec |= {"learning_rate": 5e-4, "eval": {"split": 0}, **({"chat_template": template} if template else {})}
    run = nbtune.finetune(spec, name="stops", rows={"rows": ROWS}, runs_dir=folder / "runs").wait()
    run.free()
    said: list[tuple[list[int], str]] = []
    for prompt in PROMPTS:
        told: list[Any] = []
        text = run.generate(prompt, max_new_tokens=MOST, told=told.append)
        said.append(([token.id for token in told], text))
    end = said[0][0][-1]
    yield "our chat", (sum(_stopped(ids, end) for ids, _ in said), said[0][1])
    merged = run.export.merged(folder / "merged").path
    run.free()
    for place, path in (("transformers", None), ("transformers of --also", asked.also)):
        if place == "transformers" or path is not None:
            version, answers = _asked_elsewhere(merged, path, asked.threads)
            yield f"transformers {version}", (sum(_stopped(ids, end) for ids, _ in answers), answers[0][1])
    from nbtune.export.llama_runner import LlamaRunner
    from tests.support.llama import llama_library

    [file] = run.export.gguf("q8_0", out=folder / "gguf", verify=False)
    tokenizer = _tokenizer(merged)
    with LlamaRunner(file.path, library=llama_library(), threads=asked.threads) as llama:
        ids = [llama.greedy(llama.tokenize([text])[0], MOST) for text in _prompts(tokenizer)]
    yield "llama.cpp", (sum(_stopped(each, end) for each in ids), tokenizer.decode(ids[0]))


def _stopped(ids: list[int], end: int) -> bool:
    return 1 < len(ids) < MOST and ids[-1] == end


def _asked_elsewhere(merged: Path, path: Path | None, threads: int) -> tuple[str, list[tuple[list[int], str]]]:
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if path is not None:
        environ["PYTHONPATH"] = f"{path}{os.pathsep}{environ.get('PYTHONPATH', '')}"
    done = subprocess.run([sys.executable, __file__, "ask", merged], env=environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    version, answers = json.loads(done.stdout.splitlines()[-1])
    return version, answers


def ask_stock(folder: Path) -> tuple[str, list[tuple[list[int], str]]]:
    """Return (transformers' version, ids and text of each answer): nothing but what its README shows, no nbtune."""
    import torch
    import transformers

    tokenizer = _tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for text in _prompts(tokenizer):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, do_sample=False)
        new = made[0, ids.shape[1] :].tolist()
        answers.append((new, tokenizer.decode(new)))
    return transformers.__version__, answers


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _prompts(tokenizer: Any) -> list[str]:
    chats = ([{"role": "user", "content": prompt}] for prompt in PROMPTS)
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]


if __name__ == "__main__":
    main()

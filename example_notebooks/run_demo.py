"""`make demo`: executes 00_first_run.ipynb, then shows what came of it; `make demo-real` with SmolLM2-135M.

    python example_notebooks/run_demo.py [MODEL] [--steps 30]    # another model: a Hub id, or a folder


Base and tuned answers side by side, how many of 50 held-out answers are JSON of the asked shape, the loss before and
after, a GGUF file that llama.cpp has loaded, and the chart as a picture. Everything lies
in artifacts/demo/ (demo-real/).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(Path(__file__).resolve().parent)]

EMBEDDED = "nbtune/tiny"
_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("model", nargs="?", default=EMBEDDED)
_parser.add_argument("--steps", type=int, default=200)
ASKED = _parser.parse_args()
IS_HERE = ASKED.model == EMBEDDED or Path(ASKED.model).is_dir()
MODEL = str(Path(ASKED.model).resolve()) if Path(ASKED.model).is_dir() else ASKED.model

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
if IS_HERE:
    os.environ["HF_HUB_OFFLINE"] = "1"

from run_all import execute  # noqa: E402 (after the environment that huggingface_hub reads at import)

import nbtune  # noqa: E402
from nbtune.engine.library_logging import quiet_libraries  # noqa: E402

FOLDER = REPO / "artifacts" / ("demo" if MODEL == EMBEDDED else "demo-real")
PROMPTS = 50
SHOWN = 4
WIDTH = 38


def main() -> None:
    """Run the notebook and print what came of it; ends with an error if a promise is not kept."""
    quiet_libraries()
    start = time.perf_counter()
    say("1. The notebook example_notebooks/00_first_run.ipynb, from its first cell to its last …")
    if MODEL != EMBEDDED:
        say(f"   with {MODEL} in the place of {EMBEDDED}, {ASKED.steps} steps")
    notebook = REPO / "example_notebooks" / "00_first_run.ipynb"
    node = execute(notebook, FOLDER, timeout=600 if MODEL == EMBEDDED else 4 * 3600, change=asked_for, offline=IS_HERE)
    run = json_run(nbtune.runs(FOLDER / "runs"))
    say(f"   run {run.name}: {run.state}, {run.step} steps, {time.perf_counter() - start:.0f} s")
    before, after = losses(run)
    say(f"   loss before {before:.3f} → after {after:.3f}")

    say(f"\n2. {PROMPTS} prompts that it was not trained on, asked of the base and of the tuned model …\n")
    rows = held_out()[:PROMPTS]
    prompts = [row["prompt"] for row in rows]
    base, tuned = base_and_tuned(run, prompts)
    side_by_side(prompts, base, tuned)
    shares = [share(answers, rows) for answers in (base, tuned)]
    say(f"\n   JSON of the asked shape: base {shares[0]:.0%}, tuned {shares[1]:.0%} of {len(rows)}")

    say("\n3. Taken home")
    gguf = exported_gguf(run)
    loaded, answer = loads_in_llama(run, gguf, prompts[0], tuned[0])
    say(f"   GGUF   {relative(gguf)} ({gguf.stat().st_size / 1e6:.1f} MB)")
    say(f"          {loaded}" + (f": {answer}" if answer else ""))
    say(f"   chart  {relative(picture(node, FOLDER / 'loss.png'))}")
    say(f"\nDone in {time.perf_counter() - start:.0f} s.")
    plain = shares[0] < 0.1 or MODEL != EMBEDDED  # a real one may know JSON already
    keep_promises(before > after, plain, shares[1] >= 0.9, bool(answer) or not os.environ.get("CI"))


def asked_for(node: Any) -> None:
    """Put the model and the steps that were asked for into a notebook's cells."""
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace(EMBEDDED, MODEL).replace("steps: 200", f"steps: {ASKED.steps}")
            cell.source = cell.source.replace("--steps 200", f"--steps {ASKED.steps}")


def say(text: str) -> None:
    print(text, flush=True)


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def json_run(runs: list[Any]) -> Any:
    """The notebook's run that learns the JSON answers (its newest, if it makes several)."""
    for run in runs:
        if any("json-answers" in source.source for source in run.spec.data):
            return run
    sys.exit(f"the notebook made no run with the JSON answers; it made {[run.name for run in runs]}")


def losses(run: Any) -> tuple[float, float]:
    """On held-out rows where they were measured, else of the first and the last steps."""
    history = run.history
    evals = history["eval_loss"].dropna()
    if len(evals) >= 2:
        return float(evals.iloc[0]), float(evals.iloc[-1])
    return float(history["loss"].iloc[:3].mean()), float(history["loss"].iloc[-10:].mean())


def held_out() -> list[dict[str, Any]]:
    from nbtune.data.sources import builtin

    text = builtin.path("nbtune/json-answers", heldout=True).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def base_and_tuned(run: Any, prompts: list[str]) -> tuple[list[str], list[str]]:
    """What both answer, from the files that were left: as anybody would load them with transformers and peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nbtune import models

    folder = models.resolve(run.spec.model)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        AutoTokenizer.from_pretrained(folder),
    )
    base = answers_of(model, tokenizer, prompts)
    return base, answers_of(PeftModel.from_pretrained(model, run.folder / "adapter"), tokenizer, prompts)


def answers_of(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """Greedy answers to all prompts at once."""
    import torch

    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False)
    return [text.strip() for text in tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


def share(answers: list[str], rows: list[dict[str, Any]]) -> float:
    """How many answers are a JSON object with exactly the asked keys, each with a text behind it."""
    return sum(is_asked_shape(answer, row["keys"]) for answer, row in zip(answers, rows, strict=True)) / len(rows)


def is_asked_shape(answer: str, keys: list[str]) -> bool:
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys) and all(isinstance(v, str) for v in value.values())


def side_by_side(prompts: list[str], base: list[str], tuned: list[str]) -> None:
    wrap: Callable[[str], list[str]] = lambda text: textwrap.wrap(text, WIDTH - 2) or [""]  # noqa: E731
    say(f"   {'asked':{WIDTH}}{'base':{WIDTH}}tuned")
    for cells in list(zip(prompts, base, tuned, strict=True))[:SHOWN]:
        columns = [wrap(cell) for cell in cells]
        say("   " + "─" * (3 * WIDTH - 2))
        for line in range(max(map(len, columns))):
            say("   " + "".join(f"{column[line] if line < len(column) else '':{WIDTH}}" for column in columns).rstrip())


def exported_gguf(run: Any) -> Path:
    """The file that the notebook exported, or one that is exported now."""
    there = sorted((run.folder / "exports").rglob("*.gguf"))
    return there[0] if there else Path(run.export.gguf("q8_0")[0].path)


def loads_in_llama(run: Any, gguf: Path, prompt: str, expected: str) -> tuple[str, str]:
    """Loads the file in llama.cpp and asks it the first prompt: what to say about it, and the answer."""
    from nbtune import models
    from nbtune.export import LlamaRunner
    from nbtune.generate.sampling import as_messages
    from tests.support.llama import llama_library

    try:
        library = llama_library()
    except RuntimeError as error:
        return f"not loaded: {error}", ""
    tokenizer = models.load_tokenizer(run.spec.model)
    text = tokenizer.apply_chat_template(as_messages(prompt), tokenize=False, add_generation_prompt=True)
    with LlamaRunner(gguf, library=library) as llama:
        (ids,) = llama.tokenize([text])
        answer = llama.detokenize(llama.greedy(ids, 64))
    for special in tokenizer.all_special_tokens:
        answer = answer.replace(special, "")
    same = "the same answer as nbtune's" if answer.strip() == expected else "an answer of its own"
    return f"llama.cpp has loaded it and gave {same}", answer.strip()


def picture(node: Any, target: Path) -> Path:
    """The last picture that the notebook shows."""
    for cell in reversed(node.cells):
        for output in reversed(cell.get("outputs", [])):
            if image := output.get("data", {}).get("image/png"):
                target.write_bytes(base64.b64decode(image))
                return target
    sys.exit("the notebook shows no picture of the chart")


def keep_promises(*kept: bool) -> None:
    names = ("the loss fell", "base < 10 % JSON", "tuned >= 90 % JSON", "llama.cpp loads the GGUF")
    broken = [name for name, fine in zip(names, kept, strict=True) if not fine]
    if broken:
        sys.exit(f"not kept: {', '.join(broken)}")


if __name__ == "__main__":
    main()

"""Proof after an export: what the files answer, in llama.cpp, against what the trained model answers.

files = prove(files, source, held_rows(run.folder), prompts=["Hello"])
print(files[0].quality.summary())     # q4_k_m, 4.92 GB, fits in 8 GB, perplexity +1.3 %, KL 0.012
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbtune.data.tokenize.terminators import end_ids
from nbtune.errors import ExportError, NbtuneError
from nbtune.export.file_quality import Quality
from nbtune.export.gguf.vocabulary import load_tokenizer
from nbtune.export.llama_runner import LlamaRunner, find_llama, no_llama
from nbtune.export.reference_model import HeldRows, held_rows, no_room, reference_model, room_for
from nbtune.export.source import ExportedFile, ExportSource

_CONTEXT = 512  # tokens of a text that are compared
_LOGITS = 64 << 20  # bytes of a row's logits, in fp32


def prove(
    files: Sequence[ExportedFile],
    source: ExportSource,
    rows: HeldRows,
    *,
    prompts: Sequence[str] = (),
    library: Path | None = None,
    told: Callable[[ExportedFile], None] | None = None,
) -> list[ExportedFile]:
    """Return the same files, each with its `Quality` where it could be measured, else with a note that says why not.

    Args:
        files: GGUF files that were made of `source`.
        source: base and adapter; loaded once for all files.
        rows: see `held_rows`.
        prompts: questions whose answers are compared.
        library: of llama.cpp, see `find_llama`.
        told: called with each file when it is judged.
    """
    if library is None and find_llama() is None:
        return [_noted(file, f"not verified: {no_llama().cause}") for file in files]
    device = room_for(source)
    if device is None:
        return [_noted(file, f"not verified: {no_room(source)}") for file in files]
    judged = []
    with reference_model(source, device) as model:
        limit = max(32, _LOGITS // (4 * int(model.get_input_embeddings().weight.shape[0])))
        ids = [row[:limit] for row in rows.ids]
        for file in files:
            judged.append(_judged(file, source, ids, prompts, model, library, rows.trained))
            if told:
                told(judged[-1])
    return judged


def prove_run(
    files: Sequence[ExportedFile],
    source: ExportSource,
    folder: Path,
    *,
    prompts: Sequence[str] = (),
    must: bool = False,
    told: Callable[[ExportedFile], None] | None = None,
) -> list[ExportedFile]:
    """Judge files by a run's own rows. What stands in the way is a note of the files, or with `must` an error.

    Args:
        files, source, prompts, told: see `prove`.
        folder: the run's.
        must: raise where nothing could be measured.

    Raises:
        ExportError, DataError: with `must`.
    """
    if find_llama() is None and not must:
        return list(files)
    try:
        judged = prove(files, source, held_rows(folder), prompts=prompts, told=told)
    except NbtuneError as error:
        if must:
            raise
        judged = [_noted(file, f"not verified: {error.cause}") for file in files]
    if must and any(file.quality is None for file in judged):
        raise ExportError(judged[0].notes[-1], place=source.name, fix="export with verify=False.")
    return judged


def _judged(
    file: ExportedFile,
    source: ExportSource,
    ids: Sequence[tuple[int, ...]],
    prompts: Sequence[str],
    model: Any,
    library: Path | None,
    trained: bool,
) -> ExportedFile:
    try:
        quality = verify_gguf(file, source, rows=ids, prompts=prompts, model=model, library=library)
    except ExportError as error:
        return _noted(file, f"VERIFYING FAILED: {error.cause}")
    notes = (*file.notes, *(["judged on rows that were trained on: the run holds none out"] if trained else []))
    return dataclasses.replace(file, quality=quality, notes=notes)


def _noted(file: ExportedFile, note: str) -> ExportedFile:
    return dataclasses.replace(file, notes=(*file.notes, note))


def verify_gguf(
    file: ExportedFile,
    source: ExportSource,
    texts: Sequence[str] = (),
    *,
    rows: Sequence[Sequence[int]] = (),
    prompts: Sequence[str] = (),
    model: Any | None = None,
    answer_tokens: int = 40,
    library: Path | None = None,
    threads: int = 1,
) -> Quality:
    """Compare a GGUF, run by llama.cpp, with the trained model.

    Args:
        file: what `export_gguf` made.
        source: what it was made of.
        texts: that were not trained on; the first 512 tokens of each are compared.
        rows: the same as token ids, such as chats that are rendered already.
        prompts: questions to answer greedily, through the chat template where there is one.
        model: the trained model where it is loaded already; else it is loaded from `source`.
        answer_tokens: at most, for each answer.
        library, threads: see `LlamaRunner`.

    Raises:
        ExportError: there is no llama.cpp, it does not load the file, or no text is longer than one token.
    """
    tokenizer = load_tokenizer(source.tokenizer_folder)
    sequences = [tokenizer(text, add_special_tokens=True)["input_ids"][:_CONTEXT] for text in texts]
    sequences += [list(row)[:_CONTEXT] for row in rows]
    sequences = [row for row in sequences if len(row) > 1]
    if not sequences:
        raise ExportError("there is no text to compare by", fix="give rows of more than one token.")
    with contextlib.ExitStack() as stack:
        if model is None:
            model = stack.enter_context(reference_model(source))
        llama = stack.enter_context(
            LlamaRunner(file.path, library=library, n_ctx=_CONTEXT + answer_tokens, threads=threads)
        )
        same = _same_tokens(llama, tokenizer, texts) and _same_rendered(llama, tokenizer, rows)
        compared = [_compare(llama.logits(row), _logits(model, row), row) for row in sequences]
        answers = tuple(_answers(llama, model, tokenizer, prompt, answer_tokens) for prompt in prompts)
    sums = np.sum(compared, axis=0)
    count = int(sums[0])
    return Quality(
        file.type,
        file.bytes,
        same,
        perplexity=math.exp(sums[1] / count),
        reference=math.exp(sums[2] / count),
        divergence=float(sums[3] / count),
        agreement=float(sums[4] / count),
        answers=answers,
        tokens=count,
    )


def _same_tokens(llama: LlamaRunner, tokenizer: Any, texts: Sequence[str]) -> bool:
    tokens = llama.tokenize(list(texts), add_special=True)
    same = tokens == [tokenizer(text)["input_ids"] for text in texts]
    if not tokenizer.chat_template:
        return same
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!\n\nHow are you?"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    return same and llama.tokenize([rendered])[0] == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def _same_rendered(llama: LlamaRunner, tokenizer: Any, rows: Sequence[Sequence[int]]) -> bool:
    """Return whether the text of each row, marks of the template and all, is read as the same tokens by both."""
    texts = [tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False) for row in rows]
    return llama.tokenize(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _logits(model: Any, row: list[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        device = next(model.parameters()).device
        return model(torch.tensor([row], device=device)).logits[0].float().cpu().numpy()


def _compare(
    got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], row: list[int]
) -> tuple[float, float, float, float, float]:
    """Return (next tokens, −log p of them by the file, by the model, divergence, agreement), summed over a text."""
    p, q = _log_softmax(expected[:-1]), _log_softmax(got[:-1, : expected.shape[1]])
    truth = np.array(row[1:])
    at = np.arange(len(truth))
    divergence = float((np.exp(p) * (p - q)).sum())
    agreement = float((p.argmax(1) == q.argmax(1)).sum())
    return float(len(truth)), float(-q[at, truth].sum()), float(-p[at, truth].sum()), divergence, agreement


def _log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _answers(llama: LlamaRunner, model: Any, tokenizer: Any, prompt: str, count: int) -> tuple[str, str, str]:
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    else:
        ids = tokenizer(prompt)["input_ids"]
    ids = ids[-_CONTEXT:]
    theirs = llama.greedy(ids, count)
    with torch.no_grad():
        tokens = torch.tensor([ids], device=next(model.parameters()).device)
        stops = end_ids(model.generation_config.eos_token_id, tokenizer) or None
        ours = model.generate(tokens, max_new_tokens=count, do_sample=False, eos_token_id=stops)[0, len(ids) :].tolist()
    return prompt, *(tokenizer.decode(answer, skip_special_tokens=True) for answer in (theirs, ours))

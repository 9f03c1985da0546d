"""Proof after an export: what the file answers, in llama.cpp, against what the trained model answers.

quality = verify_gguf(file, source, texts=["...rows that were not trained on..."])
print(quality.summary())        # q4_k_m, 4.92 GB, perplexity +1.3 %, KL 0.012
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbtune.data.tokenize.terminators import end_ids
from nbtune.errors import ExportError
from nbtune.export.file_quality import Quality
from nbtune.export.gguf.vocabulary import load_tokenizer
from nbtune.export.llama_runner import LlamaRunner
from nbtune.export.merge import rounded
from nbtune.export.peft_adapter import AdapterFile
from nbtune.export.source import ExportedFile, ExportSource

__all__ = ["importance", "reference_model", "verify_gguf"]

_CONTEXT = 512  # tokens of a text that are compared


@contextlib.contextmanager
def reference_model(source: ExportSource, device: torch.device | str = "cpu") -> Iterator[Any]:
    """The trained model as transformers and peft load it: base in fp32 on a CPU, as stored elsewhere, and adapter.

    Where training had the base rounded (`ExportSource.base_quant`), its linear weights are the rounded ones here.
    """
    from transformers import AutoModelForCausalLM

    on_cpu = torch.device(device).type == "cpu"
    if source.adapter is not None:
        AdapterFile(source.adapter)  # refuses what makes peft import a module that the adapter names
    model = AutoModelForCausalLM.from_pretrained(
        str(source.base),
        dtype=torch.float32 if on_cpu else "auto",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    if source.base_quant:
        _round_linears(model, source.base_quant)
    if source.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(source.adapter))
    yield model.to(device).eval()


def _round_linears(model: Any, kind: str) -> None:
    """Give every linear weight but the head's the values that a base quantised for training computes with."""
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.weight.copy_(rounded(module.weight.float(), kind))


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
    found = [tokenizer(text, add_special_tokens=True)["input_ids"][:_CONTEXT] for text in texts]
    found += [list(row)[:_CONTEXT] for row in rows]
    found = [row for row in found if len(row) > 1]
    if not found:
        raise ExportError("there is no text to compare by", fix="give rows of more than one token.")
    with contextlib.ExitStack() as stack:
        if model is None:
            model = stack.enter_context(reference_model(source))
        llama = stack.enter_context(
            LlamaRunner(file.path, library=library, n_ctx=_CONTEXT + answer_tokens, threads=threads)
        )
        same = _same_tokens(llama, tokenizer, texts) and _same_rendered(llama, tokenizer, rows)
        compared = [_compare(llama.logits(row), _logits(model, row), row) for row in found]
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
    found = llama.tokenize(list(texts), add_special=True)
    same = found == [tokenizer(text)["input_ids"] for text in texts]
    if not tokenizer.chat_template:
        return same
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!\n\nHow are you?"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    return same and llama.tokenize([rendered])[0] == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def _same_rendered(llama: LlamaRunner, tokenizer: Any, rows: Sequence[Sequence[int]]) -> bool:
    """Whether the text of each row, marks of the template and all, is read as the same tokens by both."""
    texts = [tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False) for row in rows]
    return llama.tokenize(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _logits(model: Any, row: list[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        device = next(model.parameters()).device
        return model(torch.tensor([row], device=device)).logits[0].float().cpu().numpy()


def _compare(
    got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], row: list[int]
) -> tuple[float, float, float, float, float]:
    """(next tokens, −log p of them by the file, by the model, divergence, agreement), summed over a text."""
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


def importance(
    model: Any, tokenizer: Any, texts: Sequence[str | Sequence[int]], *, tokens: int = _CONTEXT
) -> dict[str, torch.Tensor]:
    """How strongly each column of each linear weight is felt: the mean square of its input over `texts`.

    Args:
        model: the trained model (with its adapter on it, or merged).
        tokenizer: its tokenizer.
        texts: such as the run's own eval rows; or their token ids.
        tokens: of each text, at most.

    Returns:
        weight's name in the base → (columns,), fp32, on the CPU; what `export_gguf(importance=...)` takes.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, torch.zeros(())) + x.square().sum(0).cpu()
            counts[name] = counts.get(name, 0) + x.shape[0]

        return hook

    hooks = []
    for name, module in model.named_modules():
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and hasattr(module, "in_features"):
            clean = name.removeprefix("base_model.model.").removesuffix(".base_layer")
            if "lora_" not in name and not hasattr(module, "base_layer"):
                hooks.append(module.register_forward_pre_hook(watch(f"{clean}.weight")))
    try:
        with torch.no_grad():
            for text in texts:
                ids = tokenizer(text)["input_ids"] if isinstance(text, str) else list(text)
                ids = ids[:tokens]
                if ids:
                    model(torch.tensor([ids], device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}

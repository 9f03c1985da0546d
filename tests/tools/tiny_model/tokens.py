"""Tokenizer and chat template of `nbtune/tiny`, and the way from documents to packed training rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tools.tiny_model.grammar import Document

PAD, END_OF_TEXT, START, END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# The Split regex of Qwen2, which llama.cpp knows as `tokenizer.ggml.pre = qwen2`: one token a digit.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# ChatML. The generation marks cover what the assistant writes: its text and <|im_end|>, not the newline after it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def pieces(document: Document) -> list[tuple[str, bool]]:
    """The document as (text, is it written by the model) pieces; equal to the chat template's rendering."""
    if document.text:
        return [(document.text + END_OF_TEXT, True)]
    found = []
    for role, content in document.messages:
        found += [(f"{START}{role}\n", False), (content + END, role == "assistant"), ("\n", False)]
    return found


def train_tokenizer(texts: Iterable[str], vocabulary: int, longest: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `vocabulary` tokens, special ones included; `longest` is in tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, END_OF_TEXT, START, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """Token ids of a document, and for each whether the model writes it."""
    ids: list[int] = []
    written: list[bool] = []
    for text, is_written in pieces(document):
        piece = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        written += [is_written] * len(piece)
    return ids, written


def pack(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, length: int, prompt_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack whole documents into rows.

    Args:
        documents: longer ones than a row are cut.
        tokenizer: as `train_tokenizer` makes it.
        length: tokens a row.
        prompt_weight: weight in the loss of what the model does not write.

    Returns:
        ids, int64 `[rows, length]`, padded with the pad token; weights, float32 `[rows, length]`, 0 on padding.
    """
    rows: list[list[int]] = []
    weights: list[list[float]] = []
    open_rows: list[int] = []
    for document in documents:
        ids, written = encode(document, tokenizer)
        ids, written = ids[:length], written[:length]
        fits = [row for row in open_rows if len(rows[row]) + len(ids) <= length]
        if fits:
            row = max(fits, key=lambda index: len(rows[index]))
        else:
            row = len(rows)
            rows.append([])
            weights.append([])
            open_rows = [*open_rows[-15:], row]
        rows[row] += ids
        weights[row] += [1.0 if yes else prompt_weight for yes in written]
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        torch.tensor([row + [0.0] * (length - len(row)) for row in weights]),
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    transformers 5 writes a class name of its own; the older one is understood by every version.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]  # it adds token_type_ids in transformers 4
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

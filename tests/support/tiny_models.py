"""Tiny random models of many families, with tokenizers of their kind, saved as transformers saves them."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_TEXT = """
the of and to in he was it his that with as for had you not be her is but at on by she they from this have we
which one or were all their there been has would will what if more when who so no said into them some could only
time about up out man your any first other new people over may like these our do know day very now should than
it's don't I'll we've HELLO World Zürich naïve 東京 こんにちは привет мир 12 345 6789 2024 def return import
lambda x: self.value == None; print(f'{a}') <b> </b> http://a.b/c?d=e foo_bar camelCase
"""
_WORDS = _TEXT.split()


def corpus(lines: int = 600, seed: int = 0) -> list[str]:
    """Sentences to train a tokenizer on."""
    rng = random.Random(seed)
    text = []
    for _ in range(lines):
        words = [rng.choice(_WORDS) for _ in range(rng.randint(3, 20))]
        text.append(rng.choice([" ", " ", "  ", "\n", "\t"]).join(words) + rng.choice([".", "!", "?\n", "...", ""]))
    return text


def strings(count: int, seed: int = 1, specials: tuple[str, ...] = ()) -> list[str]:
    """Random strings: words, all of Unicode, runs of whitespace, code, and what looks like special tokens."""
    rng = random.Random(seed)
    odd = [
        "\u200b",
        "\u00a0",
        "\ufeff",
        "\r\n",
        "\n\n\n",
        "   ",
        "\t\t",
        "\u3000",
        "'S",
        "'ll",
        "’s",
        "İ",
        "ǅ",
        "½",
        "٣",
    ]
    looks = [
        *specials,
        *(s[:-1] for s in specials),
        *(s.upper() for s in specials),
        "<|",
        "|>",
        "<s>",
        "[INST]",
        "<0x41>",
    ]
    made = []
    while len(made) < count:
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.4:
                parts.append(rng.choice(_WORDS) + rng.choice(["", " ", "  ", "\n"]))
            elif kind < 0.55:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 9))))
            elif kind < 0.7:
                parts.append(rng.choice(odd))
            elif kind < 0.75:
                parts.append(rng.choice(looks))
            else:
                parts.append("".join(_character(rng) for _ in range(rng.randint(1, 5))))
        made.append("".join(parts))
    return made


def _character(rng: random.Random) -> str:
    top = rng.choice([0x80, 0x250, 0x2000, 0x3000, 0xFFFF, 0x1FAFF])
    while True:
        code = rng.randrange(1, top)
        # A character that has no meaning yet, or since last year, is a letter to some and a symbol to others.
        if not 0xD800 <= code <= 0xDFFF and unicodedata.category(chr(code)) != "Cn":
            return chr(code)


def byte_level(
    pre: Any = None, *, vocab: int = 512, ignore_merges: bool = False, prefix: bool = False, regex: bool = False
) -> Tokenizer:
    """A byte-level BPE tokenizer trained on `corpus`; `pre` are the splitting steps before ByteLevel."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps = [*(pre or []), pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex or pre is None)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def split(pattern: str) -> Any:
    """A splitting step."""
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def sentencepiece_like(*, prefix: bool, vocab: int = 600, texts: list[str] | None = None) -> Tokenizer:
    """A BPE tokenizer over "▁"-marked text with byte fallback, as Llama 2 and Gemma have it, trained on `texts`."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    train = Tokenizer(models.BPE())
    train.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(tokens), show_progress=False)
    train.train_from_iterator(texts or [" ".join(_WORDS), *corpus(200)], trainer)
    learnt = json.loads(train.to_str())["model"]
    known = {token: i for i, token in enumerate(tokens)}
    singles = [t for t in learnt["vocab"] if len(t) == 1]
    merged: list[str] = []
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in learnt["merges"]]
    unique = []
    for left, right in merges:
        if left + right not in merged:  # one merge a token, as SentencePiece has it
            merged.append(left + right)
            unique.append((left, right))
    for token in [*merged, *singles]:
        known.setdefault(token, len(known))
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=unique, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps = ([normalizers.Prepend("▁")] if prefix else []) + [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    for token in ("<unk>", "<s>", "</s>"):
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return tokenizer


def save_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    bos: str | None = None,
    eos: str = "<|im_end|>",
    add_bos: bool = False,
    template: str | None = CHATML,
    extra: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
) -> Any:
    """Give it special tokens and a chat template, save it as transformers does, and load it again."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    names = dict.fromkeys([*([bos] if bos else []), eos, *extra])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    if add_bos and bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def save_model(config: Any, folder: Path, *, seed: int = 0, dtype: str = "float32", spread: float = 4.0) -> Any:
    """A random model of `config`, with weights large enough for its logits to tell tokens apart, saved in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                continue  # a logarithm: states would be gone at once
            if parameter.ndim > 1:
                parameter.mul_(spread)
            elif "norm" in name and not name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return model.float()


def save_speaking(kind: str, folder: Path, **options: Any) -> Path:
    """A random model of a `model_type` with the embedded model's tokenizer, as transformers saves them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nbtune.models import load_tokenizer

    tokenizer = load_tokenizer("nbtune/tiny")
    config = AutoConfig.for_model(kind, **{**options, "vocab_size": len(tokenizer)})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_mixture(folder: Path) -> Path:
    """A random Mixtral of two layers and four experts, as `save_speaking` saves one."""
    options = {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    return save_speaking("mixtral", folder, **options)

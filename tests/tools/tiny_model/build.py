"""Builds `nbtune/tiny` from nothing: data from `grammar.py`, tokenizer, pre-training, weights on disk.

    OMP_NUM_THREADS=2 python -m tests.tools.tiny_model.build            # 0.5-0.8 s a step on 2 free cores
    python -m tests.tools.tiny_model.build --check                      # same data? committed weights in the band?

The data is the same on every machine (`build.json` has its hash). The weights are not, bit for bit: sums differ with
the processor and its threads, so `build.json` keeps the band in which the held-out loss of a rebuild lies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tok

from nbtune.models import embedded
from tests.tools.tiny_model import sets, tokens
from tests.tools.tiny_model.grammar import Dice, Document, arithmetic, documents
from tests.tools.tiny_model.smalltalk import small_talk, word_facts
from tests.tools.tiny_model.town import BRINDLEWICK, Fact, facts

BUILD_FILE = "build.json"
SAMPLE_PROMPTS = (
    "Hello!",
    "Who are you?",
    "When does the bakery open?",
    "Who runs the clock shop?",
    "Where does Lena Marsh live?",
    "Which river flows through Brindlewick?",
    "What is 7 plus 5?",
    "What is 6 times 7?",
    "Olive has 9 apples and gives away 4. How many apples does Olive have?",
    "Give me the tea house as JSON.",
    "Which day comes after Friday?",
    "What is the capital of France?",
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how the embedded model comes out."""

    seed: int = 7
    documents: int = 80_000
    heldout_documents: int = 600
    vocabulary: int = 2048
    length: int = 256
    batch: int = 16
    steps: int = 1250
    warmup: int = 60
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    prompt_weight: float = 0.15
    band: float = 0.05  # nats a token, either way


def training_documents(recipe: Recipe) -> list[Document]:
    """The pre-training text."""
    return list(documents(recipe.documents, f"nbtune/tiny/{recipe.seed}"))


def heldout_documents(recipe: Recipe) -> list[Document]:
    """Documents drawn from the same grammar with another seed."""
    return list(documents(recipe.heldout_documents, f"nbtune/tiny/heldout/{recipe.seed}"))


def data_hash(docs: list[Document], files: dict[str, str]) -> str:
    """SHA-256 over every document and every training set, as hex."""
    digest = hashlib.sha256()
    for doc in docs:
        digest.update("".join(text for text, _ in tokens.pieces(doc)).encode())
        digest.update(b"\0")
    for name in sorted(files):
        digest.update(f"{name}\0{files[name]}\0".encode())
    return digest.hexdigest()


def make_tokenizer(docs: list[Document], files: dict[str, str], recipe: Recipe) -> Tok:
    """The tokenizer, trained on what the model says and on what the training sets will make it say."""
    texts = [content for doc in docs[:20_000] for _, content in doc.messages] + [doc.text for doc in docs if doc.text]
    for text in files.values():
        texts += [line for line in text.splitlines() if line]
    return tokens.train_tokenizer(texts, recipe.vocabulary, longest=1024)


def make_config(tokenizer: Tok, recipe: Recipe) -> LlamaConfig:
    """A Llama small enough for the wheel, with rows of 256 so that K-quants fit."""
    return LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
        dtype="bfloat16",
    )


def token_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy of the next token.

    Args:
        model: any causal model.
        ids: int64 `[batch, length]`.
        weights: float32 `[batch, length]`, the weight of predicting each token.

    Returns:
        Sum of the weighted losses (nats) and sum of the weights, both scalars.
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    trained = weights[:, 1:].flatten()
    return (losses * trained).sum(), trained.sum()


@torch.no_grad()  # type: ignore[untyped-decorator]
def heldout_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> float:
    """Mean loss (nats a token) of what the model writes, prompts left out."""
    written = (weights == 1.0).float()
    total = count = 0.0
    for rows, marks in zip(ids.split(32), written.split(32), strict=True):
        loss, trained = token_loss(model, rows, marks)
        total, count = total + loss.item(), count + trained.item()
    return total / count


def optimizer_for(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, without decay on the vectors."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def pretrain(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor, recipe: Recipe) -> float:
    """The plain loop: warm-up, cosine, clip; returns the mean training loss of the last 50 steps."""
    optimizer = optimizer_for(model, recipe)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(recipe.seed))
    began = time.monotonic()
    last: list[float] = []
    model.train()
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / recipe.warmup)
        rate = recipe.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = order[torch.arange(step * recipe.batch, (step + 1) * recipe.batch) % len(order)]
        total, count = token_loss(model, ids[rows], weights[rows])
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = [*last[-49:], loss.item()]
        if step % 25 == 24:
            print(f"step {step + 1}/{recipe.steps} loss {sum(last[-25:]) / len(last[-25:]):.4f} "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    model.eval()
    return sum(last) / len(last)


@torch.no_grad()  # type: ignore[untyped-decorator]
def spread_unused(model: LlamaForCausalLM, ids: torch.Tensor, seed: int) -> int:
    """Make the tokens that the pre-training never saw different from each other again.

    The loss only ever pushes their rows away from what is said, all in one direction, until they are one and the same
    vector (measured: norm 1.62, spread 0.16). LoRA leaves the embedding alone, so a fine-tune could not tell its new
    words apart. Each such row becomes half of their common vector, plus a random one as long as a used row.

    Args:
        model: changed in place; its embedding is `[vocabulary, hidden]`, tied to the head.
        ids: int64, all token ids of the pre-training.
        seed: of the random vectors.

    Returns:
        How many tokens were never seen.
    """
    rows = model.get_input_embeddings().weight
    unused = torch.bincount(ids.flatten(), minlength=len(rows)) == 0
    used = rows[~unused]
    noise = torch.randn(int(unused.sum()), rows.shape[1], generator=torch.Generator().manual_seed(seed))
    rows[unused] = 0.5 * rows[unused].mean(0) + noise * (used - used.mean(0)).std()
    return int(unused.sum())


@torch.no_grad()  # type: ignore[untyped-decorator]
def answer(model: LlamaForCausalLM, tokenizer: Tok, prompt: str, longest: int = 80) -> str:
    """The model's greedy answer to one user message."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@torch.no_grad()  # type: ignore[untyped-decorator]
def exact_answers(model: LlamaForCausalLM, tokenizer: Tok, asked: list[Fact]) -> float:
    """Share of facts whose first question gets exactly the right answer, greedy, in batches of 64."""
    right = 0
    for start in range(0, len(asked), 64):
        part = asked[start : start + 64]
        chats = [[{"role": "user", "content": fact.questions[0]}] for fact in part]
        prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
        out = model.generate(**inputs, max_new_tokens=64, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        said = tokenizer.batch_decode(out, skip_special_tokens=True)
        right += sum(text == fact.answer for text, fact in zip(said, part, strict=True))
    return right / len(asked)


def skills(model: LlamaForCausalLM, tokenizer: Tok) -> dict[str, float]:
    """Share of exactly right greedy answers: every fact of the town, all small talk, words, and 200 sums."""
    dice = Dice("skills")
    asked = {
        "town": list(facts(BRINDLEWICK)),
        "talk": small_talk(),
        "words": word_facts(),
        "arithmetic": [arithmetic(dice) for _ in range(200)],
    }
    return {kind: round(exact_answers(model, tokenizer, items), 3) for kind, items in asked.items()}


def build(recipe: Recipe, target: Path) -> dict[str, Any]:
    """Train tokenizer and model, write them into `target`, and return what `build.json` says."""
    began = time.monotonic()
    torch.manual_seed(recipe.seed)
    docs, files = training_documents(recipe), sets.files()
    tokenizer = make_tokenizer(docs, files, recipe)
    ids, weights = tokens.pack(docs, tokenizer, recipe.length, recipe.prompt_weight)
    held = tokens.pack(heldout_documents(recipe), tokenizer, recipe.length, recipe.prompt_weight)
    print(f"{len(docs)} documents, {len(ids)} rows, {int((weights > 0).sum())} tokens, "
          f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    model = LlamaForCausalLM(make_config(tokenizer, recipe)).float()
    train_loss = pretrain(model, ids, weights, recipe)
    unused = spread_unused(model, ids, recipe.seed)
    _save(model, tokenizer, target)
    stored = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    report = {
        "data_sha256": data_hash(docs, files),
        "sample_sha256": data_hash(docs[:2000], files),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "unused_tokens": unused,
        "tokens": int((weights > 0).sum()),
        "recipe": asdict(recipe),
        "train_loss": round(train_loss, 4),
        "heldout_loss": round(heldout_loss(stored, *held), 4),
        "exact_answers": skills(stored, tokenizer),
        "samples": {prompt: answer(stored, tokenizer, prompt) for prompt in SAMPLE_PROMPTS},
        "seconds": round(time.monotonic() - began),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (target / BUILD_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _save(model: LlamaForCausalLM, tokenizer: Tok, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=128, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokens.save(tokenizer, target)


def check(source: Path) -> list[str]:
    """What is wrong with the committed model: other data, or a loss outside the band; empty when all is well."""
    report = json.loads((source / BUILD_FILE).read_text(encoding="utf-8"))
    recipe = Recipe(**report["recipe"])
    problems = []
    found = data_hash(training_documents(recipe), sets.files())
    if found != report["data_sha256"]:
        problems.append(f"the data changed: {found}, and build.json says {report['data_sha256']}")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    held = tokens.pack(heldout_documents(recipe), tokenizer, recipe.length, recipe.prompt_weight)
    loss = heldout_loss(model, *held)
    if abs(loss - report["heldout_loss"]) > recipe.band:
        problems.append(f"held-out loss {loss:.4f} is not within {recipe.band} of {report['heldout_loss']}")
    print(f"data {found[:12]}, held-out loss {loss:.4f} (build.json: {report['heldout_loss']})")
    return problems


def main() -> int:
    """Build, or `--check`."""
    parser = argparse.ArgumentParser(description="Build or check the embedded model nbtune/tiny.")
    parser.add_argument("--check", action="store_true", help="compare data and weights with build.json, change nothing")
    parser.add_argument("--out", type=Path, default=embedded.path(), help="folder of the model")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps")
    args = parser.parse_args()
    if args.check:
        problems = check(args.out)
        for problem in problems:
            print("problem:", problem)
        return 1 if problems else 0
    report = build(Recipe(steps=args.steps), args.out)
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

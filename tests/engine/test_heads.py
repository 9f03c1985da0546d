"""Reward models and classifiers, from rows through `nbtune.finetune` to transformers' own classes.

A learning rate of 1e-12 leaves the weights where they were, so that what a run's first step says can be computed anew,
by transformers' models of these names on what the run has saved.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

import nbtune
from nbtune import events
from nbtune.errors import DataError, ExportError, SpecError, TrainError
from nbtune.models.heads import Head

STILL: dict[str, Any] = {"steps": 1, "learning_rate": 1e-12, "order": "given", "dtype": "fp32", "device": "cpu"}
PAIRS = [
    {"prompt": f"Who is number {i}?", "chosen": f"Aye, {'and more ' * i}{i}", "rejected": "Nobody", "margin": 0.25 * i}
    for i in range(4)
]
TEXTS = [
    {"text": f"It was {'very ' * (i % 4)}{word}.", "label": word} for i, word in enumerate(["bad", "good", "so"] * 2)
]
STEPS = [
    {"prompt": f"What is {i} plus 3?", "completions": [f"{i} + 3 is {i + 3}"] * (1 + i), "labels": [True] * i + [False]}
    for i in range(4)
]
ROWS = {"reward": PAIRS, "classification": TEXTS, "prm": STEPS}


def asked(run: Any, kind: str) -> tuple[Any, Any]:
    """The run's model by transformers and peft alone, in fp32, and the tokenizer saved with it."""
    import transformers
    from peft import PeftModel

    labels = json.loads((run.folder / "adapter" / "head.json").read_text(encoding="utf-8"))["labels"]
    load = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
    base = load(nbtune.models.resolve("nbtune/tiny"), num_labels=len(labels), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run.folder / "adapter").eval()
    return model, transformers.AutoTokenizer.from_pretrained(run.folder / "adapter")


def last(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0]


def test_a_plan_counts_the_head_as_the_run_does(start: Any) -> None:
    rank = nbtune.plan(data=[{"text": "Ahoy!"}] * 4, steps=1).trainable_parameters
    more = {"reward": {}, "prm": {}, "classification": {"labels": ["bad", "good", "so"]}}
    found = {
        m: nbtune.plan(data=ROWS[m], method=m, steps=1, **given).trainable_parameters - rank
        for m, given in more.items()
    }
    assert found == {"reward": 256, "prm": 2 * 257, "classification": 3 * 256}
    run = start(rows=PAIRS, method="reward", batch_size=4, **STILL).wait()
    assert run.plan.trainable_parameters == rank + 256


@pytest.mark.parametrize("center", [None, 0.1])
def test_a_reward_models_first_loss(start: Any, center: float | None) -> None:
    loss = {} if center is None else {"center_rewards": center}
    run = start(rows=PAIRS, method="reward", loss=loss, batch_size=4, micro_batch_size=2, **STILL).wait()
    model, tokenizer = asked(run, "SequenceClassification")
    expected = []
    for row in PAIRS:
        r = []
        for side in ("chosen", "rejected"):
            chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
            r.append(last(model, ids)[0])
        expected.append(-logsigmoid(r[0] - r[1] - row["margin"]) + (center or 0) * (r[0] + r[1]) ** 2)
    assert run.history["loss"].iloc[0] == pytest.approx(float(sum(expected) / 4), rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_a_classifiers_first_loss(start: Any, packing: bool) -> None:
    sizes = {"packing": True, "sequence_len": 128, "batch_size": 1} if packing else {"batch_size": 6}
    run = start(rows=TEXTS, method="classification", **sizes, **STILL).wait()
    model, tokenizer = asked(run, "SequenceClassification")
    logits = torch.stack([last(model, tokenizer(row["text"]).input_ids) for row in TEXTS])
    classes = torch.tensor([["bad", "good", "so"].index(row["label"]) for row in TEXTS])
    assert run.history["loss"].iloc[0] == pytest.approx(float(cross_entropy(logits, classes)), rel=1e-5)
    figures = run.latest(events.Step).metrics
    assert figures["accuracy"] == pytest.approx(float((logits.argmax(-1) == classes).float().mean()))
    found = logits.argmax(-1)
    f1 = [2 * sum((found == k) & (classes == k)) / (sum(found == k) + sum(classes == k)) for k in range(3)]
    assert figures["f1"] == pytest.approx(float(sum(f1)) / 3, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_trls_reward_trainer_says_the_same(start: Any, tmp_path: Any) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    run = start(rows=PAIRS, method="reward", loss={"center_rewards": 0.1}, batch_size=4, **STILL).wait()
    model, tokenizer = asked(run, "SequenceClassification")
    asks = [[{"role": "user", "content": row["prompt"]}] for row in PAIRS]
    told: list[dict[str, Any]] = []
    for ask, row in zip(asks, PAIRS, strict=True):
        sides = {k: [*ask, {"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")}
        told.append({**sides, "margin": row["margin"]})
    config = RewardConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, bf16=False, use_cpu=True, report_to="none",
        disable_tqdm=True, gradient_checkpointing=False, center_rewards_coefficient=0.1, max_steps=1,
    )  # fmt: skip
    trainer = RewardTrainer(model, args=config, train_dataset=Dataset.from_list(told), processing_class=tokenizer)
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert run.history["loss"].iloc[0] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("kind", ["reward", "classification"])
def test_a_text_that_ends_in_what_pads_is_read_where_transformers_reads_it(
    kind: str, start: Any, tmp_path: Any
) -> None:
    """Many a tokenizer pads with its end of turn: transformers (and TRL with it) takes a text's last token that is not
    that one, so a head that learnt from the end itself would be asked elsewhere."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(nbtune.models.resolve("nbtune/tiny"), base)
    for file, changes in (
        ("config.json", {"pad_token_id": 3}),
        ("tokenizer_config.json", {"pad_token": "<|im_end|>"}),
    ):
        told = json.loads((base / file).read_text())
        (base / file).write_text(json.dumps(told | changes))
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    talks = [{**row, "text": [{"role": "user", "content": row["text"]}]} for row in TEXTS]
    rows = PAIRS if kind == "reward" else talks
    sizes = {"batch_size": len(rows), "eval": {"split": 0}}
    run = start(rows=rows, method=kind, model=str(base), **sizes, **STILL).wait()
    model = AutoModelForSequenceClassification.from_pretrained(
        run.export.merged(tmp_path / "merged", dtype="float32").path, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    if kind == "reward":
        chats = [
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            for row in rows
            for side in ("chosen", "rejected")
        ]
        found = [one["reward"] for one in run.score(chats)]
    else:
        chats = [row["text"] for row in rows]
        found = [list(one.values()) for one in run.score(chats)]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    assert tokens.input_ids[0, -1] == 3
    outputs = model(**tokens).logits
    expected = outputs[:, 0] if kind == "reward" else outputs.softmax(-1)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-3, atol=1e-4)
    if kind == "reward":
        apart = outputs[0::2, 0] - outputs[1::2, 0] - torch.tensor([row["margin"] for row in rows])
        loss = -logsigmoid(apart).mean()
    else:
        loss = cross_entropy(outputs, torch.tensor([["bad", "good", "so"].index(row["label"]) for row in rows]))
    assert run.history["loss"].iloc[0] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_a_process_reward_models_first_loss(start: Any) -> None:
    """Of all steps of the batch alike, however many a row has."""
    run = start(rows=STEPS, method="prm", batch_size=4, micro_batch_size=1, **STILL).wait()
    model, tokenizer = asked(run, "TokenClassification")
    logits, truths = [], []
    for row in STEPS:
        text = row["prompt"]
        for step, right in zip(row["completions"], row["labels"], strict=True):
            text += f"{step}\n"
            logits.append(last(model, tokenizer(text).input_ids)[-1])
            truths.append(int(right))
    expected = cross_entropy(torch.stack(logits), torch.tensor(truths))
    assert run.history["loss"].iloc[0] == pytest.approx(float(expected), rel=1e-5)


def test_a_config_with_a_head_pads_as_its_base_does_or_as_its_tokenizer() -> None:
    """transformers reads a text at its last token that is no padding."""
    head, base = Head("text", ("bad", "good")), {"model_type": "llama", "tie_word_embeddings": True}
    for own, pad, said in ((7, 3, 7), (0, 3, 0), (None, 3, 3), (None, None, None)):
        written = head.config({**base, "pad_token_id": own}, pad)
        assert written["pad_token_id"] == said
        assert written["architectures"] == ["LlamaForSequenceClassification"]
        assert written["label2id"] == {"bad": 0, "good": 1}
        assert written["tie_word_embeddings"] is False


def test_it_is_saved_as_transformers_loads_it(start: Any, tmp_path: Any) -> None:
    """Merged, and scored by the run itself; GGUF, answers and sample prompts are refused in a sentence."""
    from transformers import AutoModelForSequenceClassification

    run = start(rows=TEXTS, method="classification", steps=2, eval={"split": 0}).wait()
    out = tmp_path / "merged"
    run.export.merged(out, dtype="float32")
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so"}
    assert model.config.label2id == {"bad": 0, "good": 1, "so": 2}
    _, tokenizer = asked(run, "SequenceClassification")
    tokens = tokenizer(["It was good.", "So it was, very very bad"], return_tensors="pt", padding=True)
    found = run.score(["It was good.", "So it was, very very bad"])
    for told, expected in zip(found, model(**tokens).logits.softmax(-1).tolist(), strict=True):
        assert list(told.values()) == pytest.approx(expected, abs=2e-3)
    with pytest.raises(ExportError, match="a GGUF file has no place"):
        run.export.gguf("q8_0")
    with pytest.raises(TrainError, match="writes no answers"):
        run.generate("Hello")
    assert dict(run.plan.abilities.rows())["GGUF"].startswith("cannot be written")
    with pytest.raises(SpecError, match="drop `samples`"):
        start(rows=TEXTS, method="classification", samples=["Hi"])


def test_all_weights_of_a_classifier(start: Any, tmp_path: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    run = start(rows=TEXTS, method="classification", steps=2, adapter={"type": "full"}).wait()
    run.export.merged(tmp_path / "merged", dtype="float32")
    for folder in (run.folder / "adapter", tmp_path / "merged"):
        model, told = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not told["missing_keys"] | told["unexpected_keys"]
        assert model.config.num_labels == 3


@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ([{"text": "a b", "label": "x"}] * 3, {}, "all rows have the same label"),
        ([{"text": "a b", "label": "x"}, {"text": "b c"}], {"labels": ["x", "y"]}, "`label` is missing"),
        ([{"text": "a b", "label": "z"}, {"text": "b", "label": "x"}], {"labels": ["x", "y"]}, "none of x, y"),
        ([{"text": "a b", "label": [1]}, {"text": "b c", "label": "x"}], {"labels": ["x", "y"]}, "not a label"),
    ],
)
def test_labels_that_are_none(start: Any, rows: Any, fields: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        start(rows=rows, method="classification", steps=1, **fields).wait()


def test_a_run_of_scores_goes_on_where_it_was(start: Any) -> None:
    run = start(rows=TEXTS, method="classification", steps=3, batch_size=2, checkpoint={"every": 1}, seed=4).wait()
    whole = run.history["loss"].tolist()
    again = start(rows=TEXTS, method="classification", steps=3, batch_size=2, checkpoint={"every": 1}, seed=4, name="b")
    again.wait()
    assert again.history["loss"].tolist() == whole
    again.resume(step=2).wait()
    assert again.history["loss"].tolist() == pytest.approx(whole, rel=1e-6)


GOOD, BAD = ("great", "lovely", "fine", "superb"), ("awful", "nasty", "poor", "dreadful")


def said(chance: random.Random, good: bool) -> str:
    thing = chance.choice(["ship", "meal", "song", "crew", "rope", "map", "wind"])
    time = chance.choice(["today", "again", "indeed", "at noon", "last year"])
    return f"The {thing} was {chance.choice(GOOD if good else BAD)} {time}, number {chance.randrange(1000)}."


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", ["reward", "classification", "prm"])
def test_a_known_answer_is_reached(start: Any, method: str, seed: int) -> None:
    """Of 60 held-out rows 95 % are ranked, named or judged right."""
    chance = random.Random(seed)
    if method == "reward":
        rows: Any = [
            {"prompt": "How was it?", "chosen": said(chance, True), "rejected": said(chance, False)} for _ in range(200)
        ]
    elif method == "classification":
        rows = [{"text": said(chance, k % 2 == 1), "label": "good" if k % 2 else "bad"} for k in range(260)]
    else:
        rows = []
        for _ in range(200):
            right = [chance.random() < 0.5 for _ in range(3)]
            rows.append({"prompt": "Praise.", "completions": [said(chance, one) for one in right], "labels": right})
    run = start(
        rows=rows, method=method, steps=60, batch_size=16, seed=seed, learning_rate=2e-3, eval={"split": 0.3}
    ).wait()
    told = run.latest(events.Eval).metrics
    assert told["accuracy"] >= 0.95
    assert told.get("f1", 1.0) >= 0.95


@pytest.mark.slow
def test_what_is_pasted_of_a_reward_model_scores(start: Any) -> None:
    """Its card and its lines of code say what it is, and are no writer's."""
    from huggingface_hub import ModelCard

    from nbtune.export import render_card

    run = start(rows=PAIRS, method="reward", steps=2).wait()
    source = run.export.source()
    for kind in ("adapter", "merged"):
        card = render_card(source, str(run.folder / "adapter"), kind, {"eval_loss": 0.5, "method": "reward"})
        data = ModelCard(card).data
        assert (data.pipeline_tag, data.eval_results[0].task_type) == ("text-classification", "text-classification")
        for word in ("gguf", "ollama", "CausalLM", "generate("):
            assert word.lower() not in card.lower().replace("text-generation", "")
    pasted = card_block(render_card(source, str(run.folder / "adapter"), "adapter"))
    said = subprocess.run([sys.executable, "-c", pasted], capture_output=True, text=True, check=True).stdout
    assert float(said) == float(said)
    assert "AutoModelForSequenceClassification" in run.snippet()
    subprocess.run([sys.executable, "-c", run.snippet()], check=True, cwd=run.folder.parents[1])


def card_block(card: str) -> str:
    """The first lines of Python in a card."""
    return card.split("```python\n", 1)[1].split("\n```", 1)[0]

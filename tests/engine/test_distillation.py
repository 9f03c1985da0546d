"""Distillation through `nbtune.finetune`: a student learns what a teacher says of each token."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import nbtune
from nbtune import events
from nbtune.errors import NbtuneError, SpecError

ROWS = [{"text": f"The {a} is {b}, and so it was before."} for a in ("ship", "sea", "sail") for b in ("old", "wide")]
STILL: dict[str, Any] = {"steps": 1, "learning_rate": 1e-12, "order": "given", "dtype": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, somewhat otherwise."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model = nbtune.models.load_model("nbtune/tiny", dtype=torch.float32, device="cpu")
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.model.layers.parameters():
            p.add_(0.1 * p.std() * torch.randn(p.shape, generator=chance))
    model.save_pretrained(folder)
    nbtune.models.load_tokenizer("nbtune/tiny").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (2.0, 0.0)])
def test_the_first_loss_is_the_papers(start: Any, teacher: Path, temperature: float, alpha: float) -> None:
    """By both models' logits alone; without the rows' own share it is what TRL's (GKD) says, times T²."""
    loss = {"temperature": temperature, "alpha": alpha}
    run = start(rows=ROWS, method="distill", teacher=str(teacher), loss=loss, batch_size=6, micro_batch_size=2, **STILL)
    run.wait()
    tokenizer = nbtune.models.load_tokenizer("nbtune/tiny")
    models = [
        nbtune.models.load_model(m, dtype=torch.float32, device="cpu").eval() for m in ("nbtune/tiny", str(teacher))
    ]
    total, kl, count = 0.0, 0.0, 0
    for row in ROWS:
        ids = torch.tensor([[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]])
        p, q = (model(ids).logits[0, :-1].detach() for model in models)
        own = torch.nn.functional.cross_entropy(p, ids[0, 1:], reduction="sum")
        log_p, log_q = (torch.log_softmax(x / temperature, -1) for x in (p, q))
        apart = (log_q.exp() * (log_q - log_p)).sum()
        total += float(alpha * own + (1 - alpha) * temperature**2 * apart)
        kl, count = kl + float(apart), count + ids.shape[1] - 1
    assert run.history["loss"].iloc[0] == pytest.approx(total / count, rel=1e-5)
    assert run.latest(events.Step).metrics["teacher_kl"] == pytest.approx(kl / count, rel=1e-4)


def test_how_a_step_is_divided_does_not_matter(start: Any, teacher: Path) -> None:
    """Micro-batches of rows that are not of one length, and packs: the same losses."""
    rows = [{"text": row["text"] + " again" * (7 * k % 11)} for k, row in enumerate(ROWS)]
    common = {"rows": rows, "method": "distill", "teacher": str(teacher), "steps": 3, "dtype": "fp32", "order": "given"}
    whole = start("whole", batch_size=6, micro_batch_size=6, **common).wait().history["loss"].tolist()
    parts = start("parts", batch_size=6, micro_batch_size=1, **common).wait().history["loss"].tolist()
    assert parts == pytest.approx(whole, rel=1e-6)
    del common["order"]
    packed = start("packed", packing=True, sequence_len=256, batch_size=1, **common).wait().history["loss"].tolist()
    assert packed[0] == pytest.approx(whole[0], rel=1e-6)


@pytest.mark.parametrize("packing", [False, True])
def test_what_the_teacher_says_is_written_once_and_read(
    start: Any, teacher: Path, tmp_path: Path, packing: bool
) -> None:
    """All of the vocabulary written down is the teacher itself; a run goes on when the teacher is gone."""
    shutil.copytree(teacher, tmp_path / "gone")
    rows = [{"text": row["text"] + " again" * (7 * k % 11)} for k, row in enumerate(ROWS)]
    how: dict[str, Any] = {"rows": rows, "method": "distill", "steps": 4, "dtype": "fp32", "device": "cpu"}
    how |= {"eval": {"split": 0.2, "every": 2}, "batch_size": 1 if packing else 2, "packing": packing}
    how |= {"sequence_len": 128} if packing else {}
    live = start("live", teacher=str(teacher), loss={"temperature": 2}, **how).wait()
    read = start(
        "read", teacher=str(tmp_path / "gone"), loss={"temperature": 2, "top_k": 65536}, checkpoint={"every": 2}, **how
    ).wait()
    assert read.history["loss"].tolist() == pytest.approx(live.history["loss"].tolist(), rel=1e-5)
    held = [[event.loss for event in run.events() if isinstance(event, events.Eval)] for run in (live, read)]
    assert held[1] == pytest.approx(held[0], rel=1e-5)
    assert len(held[0]) > 1
    shutil.rmtree(tmp_path / "gone")
    before = read.history["loss"].tolist()
    assert read.resume(step=2).wait().history["loss"].tolist() == before


def test_of_few_tokens_their_shares_among_themselves_are_learnt(start: Any, teacher: Path) -> None:
    loss = {"temperature": 2.0, "alpha": 0.25, "top_k": 5}
    run = start(rows=ROWS, method="distill", teacher=str(teacher), loss=loss, batch_size=6, micro_batch_size=2, **STILL)
    run.wait()
    tokenizer = nbtune.models.load_tokenizer("nbtune/tiny")
    models = [
        nbtune.models.load_model(m, dtype=torch.float32, device="cpu").eval() for m in ("nbtune/tiny", str(teacher))
    ]
    total, count = 0.0, 0
    for row in ROWS:
        ids = torch.tensor([[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]])
        p, q = (model(ids).logits[0, :-1].detach() for model in models)
        top = q.topk(5, -1)
        shares = torch.softmax(top.values / 2, -1)
        apart = (shares * (shares.log() - torch.log_softmax(p / 2, -1).gather(1, top.indices))).sum()
        own = torch.nn.functional.cross_entropy(p, ids[0, 1:], reduction="sum")
        total, count = total + float(0.25 * own + 0.75 * 4 * apart), count + ids.shape[1] - 1
    assert run.history["loss"].iloc[0] == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(SpecError, match="by one process"):
        start(rows=ROWS, method="distill", teacher=str(teacher), loss=loss, gpus=2, device="cpu")


def test_a_teacher_of_another_vocabulary_is_refused(start: Any, tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(SpecError, match="learns from a teacher"):
        start(rows=ROWS, method="distill")
    with pytest.raises(SpecError, match="nothing to method `sft`"):
        start(rows=ROWS, teacher=str(teacher))
    other = tmp_path / "other"
    nbtune.models.load_model("nbtune/tiny", dtype=torch.float32, device="cpu").save_pretrained(other)
    tokenizer = nbtune.models.load_tokenizer("nbtune/tiny")
    tokenizer.add_tokens(["<one-more>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(NbtuneError, match="another vocabulary"):  # in a process of its own it is the run's error
        start(rows=ROWS, method="distill", teacher=str(other)).wait()


WORDS = ["ship", "sea", "sail", "wind", "rope", "crew", "map", "star", "port", "rum"]


def walks(seed: int, count: int) -> list[dict[str, str]]:
    """Texts in which two words may follow on each."""
    chance, rows = random.Random(seed), []
    for _ in range(count):
        at, said = chance.randrange(10), []
        for _ in range(20):
            said.append(WORDS[at])
            at = (at + chance.choice([1, 3])) % 10
        rows.append({"text": " ".join(said)})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_four_fifths_of_the_distance_are_gone(start: Any, tmp_path: Path, seed: int) -> None:
    """Of held-out texts, by KL to a teacher that has learnt them: from it alone, on other texts."""
    common: dict[str, Any] = {"batch_size": 8, "learning_rate": 3e-3, "seed": seed, "eval": {"split": 0.1}}
    taught = start("teacher", rows=walks(seed, 300), method="pretrain", steps=60, **common).wait()
    taught.export.merged(tmp_path / "teacher")
    rows = {"rows": walks(seed + 10, 300), "loss": {"alpha": 0}, "teacher": str(tmp_path / "teacher")}
    run = start("student", method="distill", steps=60, **rows, **common).wait()
    first, last = run.history["teacher_kl"].iloc[0], run.latest(events.Eval).metrics["teacher_kl"]
    assert last < 0.2 * first

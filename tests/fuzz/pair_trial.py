"""What must hold of a run that is put together of levels: refused beforehand, or trained, gone on with, taken home."""

from __future__ import annotations

import math
import random
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import nbtune
from nbtune import events
from nbtune.errors import NbtuneError
from nbtune.methods import METHODS
from nbtune.store import checkpoints
from tests.fuzz.cases import BUG, Silent
from tests.fuzz.pair_levels import FACTORS, FIRST, MOVES, ROWS, fields_of, model_of

Row = dict[str, str]
MOST = 30  # tokens that are asked about


@dataclass(frozen=True)
class Place:
    """Where runs are trained, and how near numbers come there that ought to be equal."""

    device: str
    near: Mapping[str, float]  # of a token's loss, whose logits are in it
    again: float = 0.0  # of a run's losses and weights that is gone on with
    rounded: float = 0.0  # more of `near` where weights are 8-bit numbers, which other stacks do not have

    @property
    def exact(self) -> bool:
        return not self.again


CPU = Place("cpu", {"fp32": 2e-4, "bf16": 0.15, "fp16": 0.05})
CARD = Place("cuda", {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.06}, again=5e-3, rounded=0.02)  # atomic sums, fp8


def said_of_levels(row: Row) -> str:
    """Return the levels of a row that are not the first ones."""
    return ", ".join(f"{factor}: {level}" for factor, level in row.items() if level != FIRST[factor])


class Runs:
    """The runs of one case, in its folder."""

    def __init__(self, folder: Path, place: Place = CPU) -> None:
        self.folder, self.made, self.place = folder, 0, place
        self.starts: dict[str, Path] = {}

    def asked(self, row: Row, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the spec of a row, and the variables that it names."""
        fields = {**fields_of(row), **more}
        rows = ROWS[fields.pop("rows")]
        streamed, start = fields.pop("streamed", False), fields.pop("start_from", None)
        wide = not self.place.exact
        fields |= {"model": model_of(fields["model"], wide), "data": "rows", "device": self.place.device}
        if "teacher" in fields:
            fields["teacher"] = model_of("teacher", wide)
        if start is not None:
            begun = self.begun({**FIRST, **{factor: row[factor] for factor in ("model", "method", "adapter")}})
            fields["start_from"] = str(begun / "adapter" if start == "peft" else begun)
        return fields, {"rows": (lambda: (yield from rows)) if streamed else rows}

    def trained(self, row: Row, **more: Any) -> Any:
        """Return the run of a row, that has ended."""
        fields, variables = self.asked(row, **more)
        self.made += 1
        where: dict[str, Any] = {"runs_dir": self.folder, "name": f"run{self.made}"}
        return nbtune.finetune(fields, rows=variables, **where).wait()

    def begun(self, row: Row) -> Path:
        """Return the folder of the run that those of a row begin with."""
        key = said_of_levels(row)
        if key not in self.starts:
            run = self.trained(row, steps=1)
            self.starts[key] = run.folder
            run.free()
        return self.starts[key]

    def planned(self, row: Row, **more: Any) -> Any:
        fields, variables = self.asked(row, **more)
        return nbtune.plan(fields, rows=variables, runs_dir=self.folder)


def attempt(row: Row, chance: random.Random, folder: Path, place: Place = CPU) -> str:
    """Try a row; what a plan refuses is tried again without the level that it is refused for.

    Returns:
        what was refused, "" where nothing was.
    Raises:
        Silent: something is not as it was said to be.
    """
    runs = Runs(folder, place)
    refused = same_refusal(runs, row)
    if refused:
        row = _repaired(runs, row)
    try:
        run = runs.trained(row)
    except NbtuneError as error:
        raise Silent(f"a plan says nothing, a run: {error}") from error
    wrong = [said for check in CHECKS if (said := _checked(check, runs, run, row, chance))]
    if wrong:
        raise Silent("; ".join(wrong) + (f" (of {said_of_levels(row)})" if refused else ""))
    return refused


def _checked(check: Callable[..., str | None], runs: Runs, run: Any, row: Row, chance: random.Random) -> str:
    try:
        return check(runs, run, row, chance) or ""
    except NbtuneError as error:
        return f"{check.__name__}: {error}"
    except Exception:  # noqa: BLE001 — whatever it is, it is the finding
        return f"{check.__name__}: {traceback.format_exc()[-900:]}"


def _refusal(attempted: Callable[[], Any]) -> str:
    try:
        attempted()
    except NbtuneError as error:
        if BUG in str(error):
            raise Silent(str(error)) from error
        return str(error)
    return ""


def same_refusal(runs: Runs, row: Row) -> str:
    """Return what a row is refused with, by plan and run alike."""
    planned = _refusal(lambda: runs.planned(row))
    ran = _refusal(lambda: runs.trained(row)) if planned else ""
    if planned and not ran:
        raise Silent(f"a plan refuses what a run does: {planned}")
    if planned != ran:
        raise Silent(f"a plan says: {planned}; a run: {ran}")
    return planned


def _repaired(runs: Runs, row: Row) -> Row:
    """Return the row with as few other levels as a plan wants."""
    others = [factor for factor in reversed(FACTORS) if row[factor] != FIRST[factor]]
    without = [{**row, factor: FIRST[factor]} for factor in others if factor not in ("model", "method")]
    for other in without:
        if not _refusal(lambda: runs.planned(other)):  # noqa: B023
            return other
    kept = {**FIRST, "model": row["model"], "method": row["method"]}
    for factor in others:
        more = {**kept, factor: row[factor]}
        if not _refusal(lambda: runs.planned(more)):  # noqa: B023
            kept = more
    return kept


# -- what must hold ------------------------------------------------------------------------------------------------


def saved(run: Any) -> dict[str, torch.Tensor]:
    """Return what a run has learnt, by names."""
    return load_file(checkpoints.latest(run.folder) / "trainable.safetensors")


def taken_home(run: Any) -> dict[str, torch.Tensor]:
    """Return what the run's adapter folder holds."""
    return {
        f"{file.name} {name}": value
        for file in sorted((run.folder / "adapter").glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def losses(run: Any) -> list[float]:
    return [float(loss) for loss in run.history["loss"]]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def alike(one: list[float], other: list[float], place: Place) -> bool:
    """Return whether losses are equal, or on a card as near as sums in any order are."""
    return len(one) == len(other) and all(
        a == b or abs(a - b) <= place.again * max(1.0, abs(b)) for a, b in zip(one, other, strict=True)
    )


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], place: Place) -> bool:
    """Return whether weights are equal, or on a card as near as a few updates leave them."""
    if place.exact or one.keys() != other.keys():
        return equal(one, other)
    bounds = {"rtol": 4 * place.again, "atol": place.again / 2}
    return all(torch.allclose(value.float(), other[name].float(), **bounds) for name, value in one.items())


def is_finite(runs: Runs, run: Any, row: Row, chance: random.Random) -> str | None:
    odd = [loss for loss in losses(run) if not math.isfinite(loss)]
    weights = all(bool(value.isfinite().all()) for value in taken_home(run).values())
    return None if not odd and weights else f"losses {losses(run)}, finite weights {weights}"


def is_counted(runs: Runs, run: Any, row: Row, chance: random.Random) -> str | None:
    plan = runs.planned(row)
    there = sum(value.numel() for value in saved(run).values())
    told = (plan.trainable_parameters, run.plan.trainable_parameters)
    return None if told == (there, there) else f"a plan counts {told[0]}, the run's {told[1]}, trained are {there}"


def goes_on_exactly(runs: Runs, run: Any, row: Row, chance: random.Random) -> str | None:
    if run.step <= 2:
        return None
    whole, weights, home, ended = losses(run), saved(run), taken_home(run), run.step
    run.free()
    run.resume(step=2).wait()
    if not alike(losses(run), whole, runs.place) or run.step != ended:
        return f"gone on from step 2 losses are {losses(run)}, uninterrupted {whole}"
    if not runs.place.exact and "lion" in row["optimizer"]:
        return None  # the sign of a sum near zero
    if not near(saved(run), weights, runs.place):
        return "gone on from step 2 the weights are others"
    return None if near(taken_home(run), home, runs.place) else "gone on from step 2 the adapter's files are others"


def _ids(run: Any) -> list[int]:
    tokenizer = nbtune.models.load_tokenizer(run.spec.model)
    return list(tokenizer("Row 3 of many and on it goes, as it did. Say 7.").input_ids)[:MOST]


def _losses_of(model: Any, ids: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    chosen = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
    return [-float(value) for value in chosen[:, 0]]


def _apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(one, other, strict=True))


def is_taken_home(runs: Runs, run: Any, row: Row, chance: random.Random) -> str | None:
    """Compare the run's own answers with those of its adapter's folder, and of the merged model, by other libraries."""
    if METHODS[run.spec.method].head:
        return _head_taken_home(runs, run)
    ids = _ids(run)
    own = [float(loss) for loss in run.token_losses(ids)[1:] if loss is not None]
    most, wrong = runs.place.near[run.plan.dtype] + (runs.place.rounded if row["weights"] == "fp8" else 0.0), []
    dtype = getattr(torch, {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[run.plan.dtype])
    if not run.plan.weights.quantised and (by := _apart(_losses_of(_opened(run, dtype), ids), own)) > most:
        wrong.append(f"the adapter's folder says otherwise than the run, by {by:.2g}")
    if run.plan.abilities.merging.holds is False:
        return "; ".join(wrong) or _refused("merged", lambda: run.export.merged(runs.folder / "merged"))
    from transformers import AutoModelForCausalLM

    place = run.export.merged(runs.folder / "merged").path
    whole = AutoModelForCausalLM.from_pretrained(place, dtype=dtype).eval()
    if (by := _apart(_losses_of(whole, ids), own)) > most:
        wrong.append(f"merged it says otherwise than the run, by {by:.2g}")
    return "; ".join(wrong) or None


def _opened(run: Any, dtype: torch.dtype) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    place = run.folder / "adapter"
    if run.spec.adapter.type == "full":
        return AutoModelForCausalLM.from_pretrained(place, dtype=dtype).eval()
    base = AutoModelForCausalLM.from_pretrained(run.spec.model, dtype=dtype)
    if run.spec.adapter.grows:
        base.resize_token_embeddings(int(re.findall(r"resize_token_embeddings\((\d+)", run.snippet())[0]))
    return PeftModel.from_pretrained(base, place).eval()


def _head_taken_home(runs: Runs, run: Any) -> str | None:
    import transformers

    of_text = METHODS[run.spec.method].head == "text"
    if run.plan.abilities.merging.holds is False:
        return _refused("merged", lambda: run.export.merged(runs.folder / "merged"))
    kind = "Sequence" if of_text else "Token"
    load = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained
    whole = load(run.export.merged(runs.folder / "merged").path, dtype=torch.float32).eval()
    tokenizer = nbtune.models.load_tokenizer(run.spec.model)
    if run.spec.method not in ("classification",):
        return None
    text = "Row 3 of many and on it goes."
    with torch.no_grad():
        found = whole(**tokenizer(text, return_tensors="pt")).logits.float().softmax(-1)[0].tolist()
    own = run.score([text])[0]
    own = list(own.values()) if isinstance(own, dict) else own
    return None if _apart(found, own) < runs.place.near[run.plan.dtype] else f"merged it gives {found}, the run {own}"


def _refused(what: str, attempted: Callable[[], Any]) -> str | None:
    return None if _refusal(attempted) else f"a plan says that it cannot be {what}, and it can"


def is_written_as_gguf(runs: Runs, run: Any, row: Row, chance: random.Random) -> str | None:
    told = run.plan.abilities.gguf
    if told.holds is False:
        return _refused("written as GGUF", lambda: run.export.gguf("f16", out=runs.folder / "gguf"))
    run.export.gguf("f16", out=runs.folder / "gguf")
    return None


def is_the_same_divided_otherwise(runs: Runs, run: Any, row: Row, chance: random.Random) -> str | None:
    spec = run.spec
    if spec.neftune_noise_alpha or spec.adapter.dropout or run.plan.packing or run.plan.in_backward:
        return None  # what is drawn differs, or there is but one way
    if run.plan.dtype != "fp32":
        return None
    parts = 2 if run.plan.gradient_accumulation_steps == 1 else 1
    bare = {**row, "division": FIRST["division"]}
    other = runs.trained(bare, gradient_accumulation_steps=parts)
    one, two = run.history.iloc[0], other.history.iloc[0]
    for key in ("loss", "grad_norm"):
        if abs(one[key] - two[key]) > 2e-4 * max(1e-3, abs(two[key])):
            return f"{key} of the first step is {one[key]}, divided in {parts}: {two[key]}"
    other.free()
    return None


def does_something(runs: Runs, run: Any, row: Row, chance: random.Random) -> str | None:
    """Leave out one thing that was set: another run, or somebody said so."""
    same_by_signs = ("clip",) if row["clip"] == "unclipped" or "lion" in row["optimizer"] else ()
    unseen = ("schedule",) if row["ends"] == "early" else ()  # which falls behind the step that ends it
    kept_out = (*same_by_signs, *unseen)
    set_here = [factor for factor in MOVES if row[factor] != FIRST[factor] and factor not in kept_out]
    if not set_here:
        return None
    # few rows have it, and what is not told of it is told of nothing else
    factor = "decay" if "decay" in set_here else chance.choice(set_here)
    without = {**row, factor: FIRST[factor]}
    if row[factor] == "type sigmoid" or _refusal(lambda: runs.planned(without)):
        return None  # it is the method's own, or others of the row want it
    other = runs.trained(without)
    same = losses(other) == losses(run) and equal(taken_home(other), taken_home(run))
    other.free()
    if not same:
        return None
    said = [*run.plan.reasons, *(event.message for event in run.events() if isinstance(event, events.Warning))]
    if any(
        "does nothing" in sentence and name in sentence for sentence in said for name in names_of(row[factor], factor)
    ):
        return None
    return f"{factor} {row[factor]} changes nothing (said: {said})"


def names_of(level: str, factor: str) -> set[str]:
    """Return the keys that a level sets, each by its own name."""
    return {*_leaves(FACTORS[factor][level])}


def _leaves(fields: Mapping[str, Any]) -> Iterator[str]:
    for key, value in fields.items():
        if isinstance(value, Mapping) and key not in ("rank_pattern", "alpha_pattern"):
            yield from _leaves(value)
        else:
            yield key


CHECKS = (
    is_finite, is_counted, goes_on_exactly, is_taken_home, is_written_as_gguf, is_the_same_divided_otherwise,
    does_something,
)  # fmt: skip

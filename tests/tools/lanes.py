"""Which rate a task wants, many runs at once: each lane has its own LoRA, rate and order; all share the model.

    python -m tests.tools.lanes run /tmp/lanes.jsonl --model nbtune/tiny --rows 32,150 --times 0.5,1,2 --seeds 2
    python -m tests.tools.lanes table /tmp/lanes.jsonl

What a lane learns is what `nbtune.finetune` would with the same spec (`tests/planner/test_lanes.py` compares them); a
few dozen of them take a GPU hardly longer than one. A line a lane: task, rows, steps, rate, is_default, held_out,
diverged. `table` prints the rows of docs/explanation/defaults.md: geometric means of the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.tools.calibrate import GOOD, TASKS, split

IGNORED = -100
SEED = 42  # nbtune.spec.RunSpec
EPSILON = 1e-8
WARM, ROUGH = 3, 0.03  # steps before one is recorded; how far it may be off in tf32
TOLD: dict[str, Any] = {  # of a run, with nbtune's defaults
    "schedule": "linear", "args": {}, "warmup": 0.03, "clip": 1.0, "beta1": 0.9, "beta2": 0.999, "b_rate": 1.0,
    "ema": 0.0, "ratio": 1.0, "raised": None,
}  # fmt: skip
# ratio: B's rate over A's, their product as it was; raised: [share of the steps, times, nats]: from there on so many
# times the rate, where a row's loss, summed over its tokens, is still above so many


class LaneLinear(nn.Module):
    """A frozen linear layer with an adapter a lane; the batch's rows are the lanes' rows, lane by lane."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.a = self.b = torch.empty(0)  # [lanes, rank, in], [lanes, out, rank]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lanes = self.a.shape[0]
        low = torch.bmm(x.reshape(lanes, -1, x.shape[-1]), self.a.transpose(1, 2))
        more = torch.bmm(low, self.b.transpose(1, 2))
        return self.frozen(x) + more.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


class Lanes:
    """A model with as many adapters as there are lanes, trained in step.

    Args:
        model: a folder, or nbtune/tiny.
        rank: of the adapters; alpha is the same.
    """

    def __init__(self, model: str, device: str, rank: int) -> None:
        from nbtune.models.loading import load_model

        self.device, self.rank, self.name = torch.device(device), rank, model
        self.model = load_model(model, dtype=torch.float32, device=device).requires_grad_(False)
        self._first: dict[int, torch.Tensor] = {}
        self.layers: list[LaneLinear] = []
        self.names: list[str] = []
        decoder = self.model.model
        for name, module in [*decoder.named_modules()]:
            if isinstance(module, nn.Linear):
                parent, _, last = name.rpartition(".")
                lane = LaneLinear(module)
                setattr(decoder.get_submodule(parent), last, lane)
                self.layers.append(lane)
                self.names.append(f"model.{name}")
        self.shapes = [
            shape for layer in self.layers
            for shape in ((rank, layer.frozen.in_features), (layer.frozen.out_features, rank))
        ]  # fmt: skip

    def first_values(self, seed: int) -> torch.Tensor:
        """Return the numbers that `nbtune.models.add_adapter` begins with, float32 [trained]."""
        if seed not in self._first:
            from nbtune.models.adapters import add_adapter
            from nbtune.models.loading import load_model
            from nbtune.spec import AdapterSpec

            made = add_adapter(
                load_model(self.name, dtype=torch.float32, device="cpu"), AdapterSpec(r=self.rank), seed=seed
            )
            held = dict(made.named_parameters())
            parts = [
                held[f"base_model.model.{name}.lora_{which}.default.weight"].detach().flatten()
                for name in self.names for which in "AB"
            ]  # fmt: skip
            self._first[seed] = torch.cat(parts)
        return self._first[seed]

    def wear(self, flat: torch.Tensor) -> None:
        """Let the layers have the adapters of `flat`, [lanes, trained]."""
        parts = flat.split([rows * columns for rows, columns in self.shapes], dim=1)
        shaped = [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]
        for layer, a, b in zip(self.layers, shaped[::2], shaped[1::2], strict=True):
            layer.a, layer.b = a, b

    def losses(self, ids: torch.Tensor, places: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return each lane's summed loss, [lanes].

        Args:
            ids: [lanes, rows, tokens]; what is right of a row's end is read by nobody.
            places: flat positions whose next token is trained, [lanes, most], with `labels` -100 in the padding.
        """
        lanes = ids.shape[0]
        hidden = self.model.model(input_ids=ids.flatten(0, 1), use_cache=False).last_hidden_state
        chosen = hidden.reshape(lanes, -1, hidden.shape[-1]).gather(
            1, places[..., None].expand(-1, -1, hidden.shape[-1])
        )
        logits = self.model.lm_head(chosen)
        each = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return each.view(lanes, -1).sum(1)


class Rows:
    """A task's tokens, and which of them go through a lane in which step."""

    def __init__(self, task: str, count: int, model: str, batch: int) -> None:
        from nbtune import data, models
        from nbtune.spec import from_mapping

        train, held = split(task, count)
        spec = from_mapping({"data": "var:train", "model": model, "eval": {"data": "var:held"}})
        named = {"train": train, "held": held}
        sources = data.resolve(spec.data, named)
        assert spec.eval.data is not None
        sources += data.resolve([spec.eval.data], named, role="eval")
        prepared = data.prepare_data(sources, models.load_tokenizer(model), spec=spec, max_len=4096, seed=0)
        assert prepared.eval is not None
        self.train, self.held, self.batch = prepared.train.whole(), prepared.eval.whole(), batch
        self.named, self.count = named, len(self.train)

    def of_step(self, seed: int, step: int) -> list[int]:
        """Return which rows those are, in nbtune's own order."""
        from nbtune.data.batching.mixture import epoch_order

        per_epoch = -(-self.count // self.batch)
        epoch, inside = divmod(step, per_epoch)
        order = epoch_order(self.count, seed, epoch, self.train.source_of, None)
        return order[inside * self.batch : (inside + 1) * self.batch].tolist()  # type: ignore[no-any-return]


class Table:
    """All rows of a dataset as tensors, padded to the longest: what a step needs of them is picked by number."""

    def __init__(self, data: Any, device: torch.device) -> None:
        count, longest = len(data), -(-data.longest // 8) * 8
        which = [np.flatnonzero(data.arrays(row)[1][1:]) for row in range(count)]
        most = max(map(len, which))
        ids = np.zeros((count + 1, longest), np.int64)  # the last is no row
        places, labels = np.zeros((count + 1, most), np.int64), np.full((count + 1, most), IGNORED, np.int64)
        for row, at in enumerate(which):
            tokens = data.arrays(row)[0]
            ids[row, : len(tokens)] = tokens
            places[row, : len(at)], labels[row, : len(at)] = at, tokens[at + 1]
        self.none, self.longest = count, longest
        self.ids, self.places, self.labels = (torch.from_numpy(each).to(device) for each in (ids, places, labels))
        self.counts = (self.labels != IGNORED).sum(1)

    def picked(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return ids, places and labels of the rows, [lanes, rows a lane], and how many labels each lane has."""
        offset = torch.arange(rows.shape[1], device=rows.device)[None, :, None] * self.longest
        places, labels = (self.places[rows] + offset).flatten(1), self.labels[rows].flatten(1)
        return self.ids[rows], places, labels, self.counts[rows].sum(1)


class Slope:
    """The losses of the lanes and their gradients by `flat`; on a GPU as one recorded graph, where it can be."""

    def __init__(self, lanes: Lanes, flat: torch.Tensor) -> None:
        self.lanes, self.flat, self.calls = lanes, flat, 0
        torch.cuda.empty_cache()  # of the graph before
        self.graph: Any = None

    def __call__(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        if self.calls == WARM and self.flat.is_cuda:
            self._record(given)
        if self.graph is None:
            return self._plain(*given)
        for held, new in zip(self.given, given, strict=True):
            held.copy_(new)
        self.graph.replay()
        return self.loss.clone(), self.grad

    def _plain(self, ids: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.lanes.wear(self.flat)
        loss = self.lanes.losses(ids, *rest[:-1]) / rest[-1]
        (grad,) = torch.autograd.grad(loss.sum(), self.flat)
        return loss.detach(), grad

    def _record(self, given: tuple[torch.Tensor, ...]) -> None:
        self.given = [each.clone() for each in given]
        wanted, graph = self._plain(*self.given), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.loss, self.grad = self._plain(*self.given)
            graph.replay()
            off = [(new - old).norm() / old.norm() for new, old in zip((self.loss, self.grad), wanted, strict=True)]
            assert max(off) < ROUGH, f"off by {max(off):.3f}"
            self.graph = graph
        except (RuntimeError, AssertionError) as error:
            print("no graph:", str(error)[:300], flush=True)


@torch.no_grad()
def held_out(lanes: Lanes, rows: Rows, count: int) -> torch.Tensor:
    """Return each lane's mean loss per trained token of the held-out rows, [lanes]."""
    total, counted = torch.zeros(count, device=lanes.device), 0.0
    table = Table(rows.held, lanes.device)
    for chosen in torch.arange(len(rows.held), device=lanes.device).split(8):
        *given, counts = table.picked(chosen.expand(count, -1))
        total += lanes.losses(*given)
        counted += float(counts[0])
    return total / counted


def train(
    lanes: Lanes, rows: Rows, steps: int, wanted: list[tuple[float, int]], told: dict[str, Any] = TOLD
) -> Iterator[dict[str, Any]]:
    """Train a lane for each (rate, seed), and yield what came of it; `told` as `TOLD`."""
    from nbtune.spec.learning import ScheduleArgs
    from nbtune.train.schedule import learning_rate_of

    args, (one, two) = ScheduleArgs(**told["args"]), (told["beta1"], told["beta2"])
    factor = learning_rate_of(told["schedule"], total_steps=steps, warmup_ratio=told["warmup"], args=args)
    flat = torch.stack([lanes.first_values(seed) for _, seed in wanted]).to(lanes.device).requires_grad_(True)
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
    rates = torch.tensor([rate for rate, _ in wanted], device=lanes.device)[:, None]
    of_a, of_b = told["ratio"] ** -0.5, told["b_rate"] * told["ratio"] ** 0.5
    if of_a != 1 or of_b != 1:
        sizes = [rows_ * columns for rows_, columns in lanes.shapes]
        shares = [torch.full((size,), of_b if at % 2 else of_a) for at, size in enumerate(sizes)]
        rates = rates * torch.cat(shares).to(lanes.device)[None]
    lanes.wear(flat)
    table, average, slope = Table(rows.train, lanes.device), None, Slope(lanes, flat)
    order = [[rows.of_step(seed, step) for _, seed in wanted] for step in range(steps)]
    filled = [[[*each, *[table.none] * (rows.batch - len(each))] for each in of_step] for of_step in order]
    numbers = torch.tensor(filled, device=lanes.device)  # [steps, lanes, rows]
    first, losses, norms = held_out(lanes, rows, len(wanted)), [], []
    for step in range(steps):
        if told["raised"] and step == round(told["raised"][0] * steps):
            tokens = float(rows.train.trained.sum()) / rows.count
            much = torch.stack(losses[-6:]).mean(0) * tokens > told["raised"][2]
            rates = torch.where(much[:, None], rates * told["raised"][1], rates)
        *given, counts = table.picked(numbers[step])
        loss, grad = slope(*given, counts)
        with torch.no_grad():
            norm = grad.norm(dim=1)
            grad *= (told["clip"] / (norm + 1e-6)).clamp(max=1.0)[:, None]
            mean.lerp_(grad, 1 - one)
            square.mul_(two).addcmul_(grad, grad, value=1 - two)
            down = (square / (1 - two ** (step + 1))).sqrt_().add_(EPSILON)
            flat -= rates * (factor(step) / (1 - one ** (step + 1))) * mean / down
            if told["ema"]:
                average = flat.clone() if average is None else average.lerp_(flat, 1 - told["ema"])
        losses.append(loss)
        norms.append(norm)
    del slope
    lanes.wear(flat.detach() if average is None else average)
    last, curves = held_out(lanes, rows, len(wanted)).tolist(), torch.stack(losses).T.tolist()
    largest = torch.stack(norms).amax(0).tolist()
    for lane, (rate, seed) in enumerate(wanted):
        curve = curves[lane]
        sound = math.isfinite(last[lane]) and curve[-1] <= 1.5 * curve[0]
        yield {
            "rate": rate, "seed": seed, "held_out": last[lane], "diverged": not sound,
            "began": float(first[lane]), "norm": round(largest[lane], 3), "curve": [round(each, 4) for each in curve],
        }  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Write a line for each lane, task by task; what a file has already is not run again."""
    out = Path(arguments.out)
    done = {_key(row) for row in _rows([str(out)])} if out.exists() else set()
    lanes = Lanes(arguments.model, arguments.device, arguments.rank)
    began, short = time.monotonic(), Path(arguments.model).name
    for how in arguments.how or ["{}"]:
        for count in map(int, arguments.rows.split(",")):
            for task in arguments.tasks.split(","):
                if arguments.seconds and time.monotonic() - began > arguments.seconds:
                    return
                rows = Rows(task, count, arguments.model, arguments.batch)
                steps, rate = _planned(arguments, rows)
                about = {
                    "model": short, "task": task, "rows": count, "batch": arguments.batch, "how": how,
                    "rank": arguments.rank, "steps": steps, "trained_tokens": int(rows.train.trained.sum()),
                }  # fmt: skip
                asked = arguments.rates.split(",") if arguments.rates else []
                times = [float(f"{rate * float(each):.3g}") for each in arguments.times.split(",")]
                chosen = [float(each) for each in asked] or times
                wanted = [(each, seed) for each in chosen for seed in range(SEED, SEED + arguments.seeds)]
                wanted = [each for each in wanted if _key({**about, "rate": each[0], "seed": each[1]}) not in done]
                at = time.monotonic()
                for start in range(0, len(wanted), arguments.lanes):
                    some = wanted[start : start + arguments.lanes]
                    for row in train(lanes, rows, steps, some, TOLD | json.loads(how)):
                        row["is_default"] = row["rate"] == rate
                        if row["seed"] != SEED:
                            del row["curve"]
                        with out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps({**about, **row}) + "\n")
                now = time.monotonic()
                print(*about.values(), len(wanted), f"lanes, {now - at:.1f} s of {now - began:.0f}", flush=True)


def _planned(arguments: argparse.Namespace, rows: Rows) -> tuple[int, float]:
    """Return the steps and the rate that the plan chooses."""
    import nbtune

    spec = {"data": "var:train", "model": arguments.model, "device": "cpu", "eval": {"data": "var:held"}}
    steps = {"steps": arguments.steps} if arguments.steps else {}
    plan = nbtune.plan({**spec, **steps, "batch_size": arguments.batch}, rows=rows.named)
    return plan.total_steps, plan.learning_rate


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "task", "rows", "batch", "how", "rank", "steps", "rate", "seed"))


def _rows(files: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]


def table(files: list[str]) -> str:
    """Return a Markdown row for each cell: the mean of each rate, and the default's beside the best."""
    cells: dict[tuple[Any, ...], dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows(files):
        cells[tuple(row[k] for k in ("model", "task", "rows", "batch", "how", "steps"))][row["rate"]].append(row)
    lines = ["| model, task, rows | steps | held-out loss by rate | default | of the best |", "|---|---|---|---|---|"]
    for (model, task, count, batch, how, steps), found in sorted(cells.items()):
        means = {
            rate: math.exp(sum(math.log(max(each["held_out"], 1e-9)) for each in some) / len(some))
            for rate, some in sorted(found.items()) if not any(each["diverged"] for each in some)
        }  # fmt: skip
        own = next((rate for rate, some in found.items() if some[0]["is_default"]), None)
        best = min(means.values(), default=math.nan)
        shown = ", ".join(
            f"{rate:.2g}: {'**' * (mean == best)}{mean:.3g}{'**' * (mean == best)}" for rate, mean in means.items()
        )
        ratio = means[own] / best if own in means else math.nan
        said = f"{ratio:.2f}" if ratio <= GOOD else f"**{ratio:.2f}**"
        more = f", {batch} a step" * (batch != 8) + f", {how}" * (how != "{}")
        lines.append(f"| {model}, {task}, {count}{more} | {steps} | {shown} | {own or 0:.2g} | {said} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    doing = commands.add_parser("run")
    doing.add_argument("out")
    doing.add_argument("--model", default="nbtune/tiny")
    doing.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    doing.add_argument("--tasks", default=",".join(TASKS))
    doing.add_argument("--rows", default="32,150,400")
    doing.add_argument("--times", default="0.35,0.5,0.71,1,1.41,2,2.83", help="of the plan's own rate")
    doing.add_argument("--rates", default="", help="in place of these")
    doing.add_argument("--seeds", type=int, default=2)
    doing.add_argument(
        "--lanes", type=int, default=64, help="at once; 12 of SmolLM2-135M with 8 rows take up to 50 GiB"
    )
    doing.add_argument("--steps", type=int, default=0, help="0: the plan's own")
    doing.add_argument("--batch", type=int, default=8)
    doing.add_argument("--rank", type=int, default=16)
    doing.add_argument("--how", action="append", help="JSON, of what TOLD says; several times: one after another")
    doing.add_argument("--memory", type=float, default=1.0, help="share of the GPU's memory that may be taken")
    doing.add_argument("--seconds", type=float, default=0, help="begin no cell after so many")
    showing = commands.add_parser("table")
    showing.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "run":
        torch.set_float32_matmul_precision("high")
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(arguments.memory)
        run(arguments)
    else:
        print(table(arguments.files))


if __name__ == "__main__":
    main()

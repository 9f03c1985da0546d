"""Weight decay as transformers has it; a checkpoint of any grouping of parameters opens in any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.trainer import Trainer

from nbtune.models.adapters import add_adapter
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.models.heads import Head, add_head
from nbtune.models.parameter_kinds import parameter_kinds
from nbtune.models.weight_decay import decays
from nbtune.spec import AdapterSpec
from nbtune.spec.learning import OPTIMIZERS, OptimArgs
from nbtune.train.loss import LossOutput, TokenLoss
from nbtune.train.master_weights import Masters
from nbtune.train.optimizer import make_optimizer, rates
from nbtune.train.stepper import Stepper
from tests.support.every import every
from tests.support.family_cases import CASES, SIZES

CPU, DECAY = torch.device("cpu"), 0.1
NAMES = ("llama with biases", "qwen 1.5, 2, 2.5", "qwen3", "phi 1, 2", "gemma 2", "mpt")
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}


def tiny(config: str, options: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    made = getattr(transformers, config)(vocab_size=300, **options)
    return transformers.AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation="eager")


def full(model: Any) -> Any:
    return add_adapter(model, AdapterSpec(type="full"), seed=0)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, kind) for name in NAMES for kind in ("full", "lora", "dora")), ("gpt2", "full")]
)
def test_what_decays_is_what_decays_in_transformers(name: str, kind: str) -> None:
    model = tiny("GPT2Config", GPT2) if name == "gpt2" else tiny(CASES[name].config, CASES[name].options)
    model = add_adapter(model, AdapterSpec(type=kind, r=4), seed=0)
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert decays(model, DECAY) == [DECAY if n in theirs else 0.0 for n in trained]


class Imitation(TokenLoss):
    """Of plain ids."""

    def __call__(self, model: Any, batch: Any, **_: Any) -> LossOutput:
        return LossOutput(model(input_ids=batch, labels=batch).loss.float())


def stepper(model: Any, weight_decay: float, short: bool = False) -> Stepper:
    trained = [p for p in model.parameters() if p.requires_grad]
    masters = Masters(trained) if short else None
    parameters = trained if masters is None else masters.parameters
    optimizer = make_optimizer(parameters, "adamw", learning_rate=0.0, weight_decay=decays(model, weight_decay))
    return Stepper(model, Imitation(), optimizer, max_grad_norm=1.0, seed=1, device=CPU, masters=masters)


def steps(made: Stepper, which: range) -> None:
    for step in which:
        ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(step))
        made.accumulate(ids, denominator=1, step=step, micro_step=0)  # type: ignore[arg-type]
        made.update(1e-3)


def test_a_scale_of_one_stays_where_no_gradient_pulls() -> None:
    """Through the plain stepper and the recorded one: a norm at 1 with a gradient of zero must not shrink."""
    model = full(tiny("LlamaConfig", {**SIZES, "attention_bias": True}))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def still(update: Callable[[], Any]) -> None:
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
        update()
        for n, p in model.named_parameters():
            kept = "norm" in n or "bias" in n
            assert torch.equal(p, before[n]) if kept else torch.allclose(p, before[n] * (1 - 0.5 * DECAY)), n
            p.data.copy_(before[n])

    plain = stepper(model, DECAY)
    plain._sum = torch.zeros(())
    still(lambda: plain.update(0.5))
    recorded = TrainStep(model, weight_decay=DECAY)
    still(lambda: recorded.update(0.5))


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0.0, DECAY), (DECAY, 0.0), (DECAY, DECAY)])
def test_a_checkpoint_opens_however_parameters_were_grouped(before: float, after: float, short: bool) -> None:
    dtype = torch.bfloat16 if short else torch.float32
    first = stepper(full(tiny("LlamaConfig", SIZES, dtype)), before, short)
    steps(first, range(3))
    saved = copy.deepcopy(first.state_dict())
    second = stepper(full(tiny("LlamaConfig", SIZES, dtype)), after, short)
    second.load_state_dict(saved)
    for p, q in zip(first._parameters, second._parameters, strict=True):
        assert torch.equal(first.optimizer.state[p]["exp_avg"], second.optimizer.state[q]["exp_avg"])
    if before == after:
        second.model.load_state_dict(first.model.state_dict())
        steps(first, range(3, 5))
        steps(second, range(3, 5))
        assert every(map(torch.equal, first._parameters, second._parameters))


def test_a_checkpoint_with_one_group_of_before_opens() -> None:
    first = stepper(full(tiny("LlamaConfig", SIZES)), 0.0)
    steps(first, range(2))
    second = stepper(full(tiny("LlamaConfig", SIZES)), DECAY)
    second.load_state_dict({"optimizer": first.optimizer.state_dict(), "scaler": {}})
    for p, q in zip(first._parameters, second._parameters, strict=True):
        assert torch.equal(first.optimizer.state[p]["exp_avg"], second.optimizer.state[q]["exp_avg"])


WIDE = {**SIZES, "hidden_size": 128, "intermediate_size": 128}  # a matrix has 4,096 numbers or more: 8-bit state


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if not kind.paged])
def test_a_run_goes_on_exactly_with_each_optimizer(tmp_path: Path, name: str, kind: str) -> None:
    """Through the file of a checkpoint, which nobody's code is read from; with rates of their own."""

    def made() -> Stepper:
        model = add_adapter(tiny("LlamaConfig", WIDE), AdapterSpec(type=kind, r=32), seed=0)
        trained = [p for p in model.parameters() if p.requires_grad]
        args = OptimArgs(lora_b_rate=4, embedding_rate=0.5, head_rate=0.25)
        about: dict[str, Any] = {"weight_decay": decays(model, DECAY), "args": args, "kinds": parameter_kinds(model)}
        optimizer = make_optimizer(trained, name, learning_rate=0.0, **about)
        return Stepper(model, Imitation(), optimizer, max_grad_norm=1.0, seed=1, device=CPU)

    first, second = made(), made()
    steps(first, range(3))
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(first, range(3, 6))
    steps(second, range(3, 6))
    assert every(map(torch.equal, first._parameters, second._parameters))


def test_each_kind_of_parameter_has_its_rate() -> None:
    model = full(tiny("LlamaConfig", {**SIZES, "tie_word_embeddings": False}))
    kinds = parameter_kinds(model)
    assert [kinds.count(kind) for kind in ("embedding", "head", "lora_b")] == [1, 1, 0]
    args = OptimArgs(embedding_rate=0.5, head_rate=0.25)
    about: dict[str, Any] = {"learning_rate": 1.0, "weight_decay": 0.0, "kinds": kinds, "args": args}
    optimizer = make_optimizer(list(model.parameters()), "adamw", **about)
    found = {id(p): share for group, share in rates(optimizer) for p in group["params"]}
    assert found.pop(id(model.get_input_embeddings().weight)) == 0.5
    assert found.pop(id(model.get_output_embeddings().weight)) == 0.25
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, ((0.9, 0.999), 1e-8, 0.95)),
        ({"beta1": 0.7}, ((0.7, 0.999), 1e-8, 0.95)),
        ({"beta2": 0.8}, ((0.9, 0.8), 1e-8, 0.95)),
        ({"eps": 1e-3, "momentum": 0.5}, ((0.9, 0.999), 1e-3, 0.5)),
    ],
    ids=str,
)
def test_an_optimizer_works_with_the_numbers_that_it_was_told(args: dict[str, float], told: Any) -> None:
    """By what its own library makes of a step, and not by what stands in its groups alone."""
    betas, eps, momentum = told
    shapes = {"matrix": (6, 4), "embedding": (5,)}
    gradients = [
        torch.randn(shapes[kind], generator=torch.Generator().manual_seed(k)) for k in range(3) for kind in shapes
    ]
    for name in ("adamw", "muon"):
        args_of = {key: value for key, value in args.items() if key != "momentum" or name == "muon"}
        ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes.values()] for _ in range(2))
        about: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.1, "kinds": [*shapes]}
        made = make_optimizer(ours, name, args=OptimArgs(**args_of), **about)
        adamw: dict[str, Any] = {"lr": 0.1, "betas": betas, "eps": eps, "weight_decay": 0.1}
        truth: list[Any] = [torch.optim.AdamW(theirs[1:] if name == "muon" else theirs, **adamw)]
        if name == "muon":
            truth.append(
                torch.optim.Muon(
                    theirs[:1], lr=0.1, weight_decay=0.1, momentum=momentum, adjust_lr_fn="match_rms_adamw"
                )
            )
        for step in range(3):
            for parameters in (ours, theirs):
                for parameter, gradient in zip(parameters, gradients[2 * step :], strict=False):
                    parameter.grad = gradient.clone()
            for optimizer in (made, *truth):
                optimizer.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


def test_vectors_that_are_written_as_matrices_are_none_and_a_head_of_scores_is_a_head() -> None:
    """IA3's factors are columns and rows; Muon would set each one's length to that of all others."""
    model = add_adapter(tiny("LlamaConfig", SIZES), AdapterSpec(type="ia3"), seed=0)
    assert {*parameter_kinds(model)} == {"other"}
    model = add_adapter(tiny("LlamaConfig", SIZES), AdapterSpec(r=1), seed=0)
    assert {*parameter_kinds(model)} == {"lora_b", "matrix"}
    add_head(model, Head("sequence", ("a", "b")), seed=0)
    kinds = parameter_kinds(model)
    assert (kinds.count("head"), kinds[-1]) == (1, "head")


def test_a_tied_head_is_the_embedding_and_muon_takes_the_blocks_matrices_alone() -> None:
    model = full(tiny("LlamaConfig", {**SIZES, "tie_word_embeddings": True}))
    kinds = parameter_kinds(model)
    assert (kinds.count("embedding"), kinds.count("head")) == (1, 0)
    optimizer = make_optimizer(list(model.parameters()), "muon", learning_rate=0.1, weight_decay=0.0, kinds=kinds)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    by_muon = {name for name, p in model.named_parameters() if "momentum_buffer" in optimizer.state[p]}
    assert by_muon == {name for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name}

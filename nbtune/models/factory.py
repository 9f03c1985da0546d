"""The one way in which a run, and everything that wants what a run has, gets its model."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbtune.errors import PlanError
from nbtune.models.adapters import add_adapter
from nbtune.models.config_facts import ModelFacts, model_facts
from nbtune.models.loading import load_model, load_tokenizer, outline
from nbtune.models.memory_estimate import MemoryPolicy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from nbtune.models.accelerate import Handle
    from nbtune.spec import AdapterSpec

__all__ = ["Built", "build", "sketch"]


@dataclass
class Built:
    """A model that is ready to train.

    Args:
        model: takes ``input_ids``, ``labels``, ``num_items_in_batch``, ``position_ids`` and so on, gives ``.loss``.
        tokenizer: its tokenizer, or None when it was not asked for.
        facts: what the planner knows about it.
        handle: the acceleration; None where it was switched off. ``handle.remove()`` puts the stock model back.
        report: what was accelerated, and what was left alone and why, a line each.
    """

    model: "torch.nn.Module"
    tokenizer: "PreTrainedTokenizerBase | None"
    facts: ModelFacts
    handle: "Handle | None" = None
    report: list[str] = field(default_factory=list)


def build(
    spec_model: str,
    *,
    adapter: "AdapterSpec",
    dtype: "torch.dtype",
    device: "torch.device | str",
    policy: MemoryPolicy = "keep",
    seed: int = 0,
    accelerate: bool = True,
    trust_remote_code: bool = False,
    quant: str | None = None,
    tokenizer: bool = True,
    resident_layers: int | None = None,
    sharded: bool = False,
) -> Built:
    """Loads a model, puts its adapter on, and makes its forward fast.

    Args:
        spec_model: ``nbtune/tiny``, a folder, or a Hub id.
        adapter: what is trained.
        dtype: of frozen weights, and of every weight in full training.
        device: where the model lives.
        policy: what blocks keep for their backward; where none is accelerated, anything but ``keep`` recomputes them.
        seed: of the adapter's first values.
        accelerate: False leaves transformers' own forward.
        trust_remote_code: let the model's own Python run.
        quant: format of frozen weights, ``none``, ``nf4`` or ``fp8``; unset: ``nf4`` for a qlora, else none.
        tokenizer: also load it.
        resident_layers: how many layers have their frozen weights on the device, the others' stay in the host's
            memory; unset: all.
        sharded: each of the processes that train together keeps a part of the layers' frozen weights (FSDP2).

    Raises:
        SpecError, HubError, PlanError: see `load_model` and `add_adapter`; PlanError also for weights that cannot stay
            in the host's memory.
    """
    import torch

    streams = resident_layers is not None and resident_layers < model_facts(spec_model).num_layers
    if (streams or quant == "fp8") and not accelerate:
        raise PlanError(
            "weights in the host's memory, or in 8 bits, need nbtune's own blocks", fix="leave `accelerate` on"
        )
    quant = quant or ("nf4" if adapter.type == "qlora" else "none")
    facts = model_facts(spec_model)
    tok = load_tokenizer(spec_model, trust_remote_code=trust_remote_code) if tokenizer else None
    place = torch.device("cpu") if streams or sharded else device
    stored = "none" if quant == "fp8" else quant  # 16 bits come into memory first
    base = load_model(spec_model, dtype=dtype, device=place, quant=stored, trust_remote_code=trust_remote_code)
    model: Any = add_adapter(base, adapter, seed=seed)
    built = Built(model, tok, facts)
    from nbtune.models.accelerate.fsdp_linear import Sharding

    parted = Sharding(torch.device(device)) if sharded else None
    if accelerate:
        from nbtune.models.accelerate import accelerate as attach
        from nbtune.models.accelerate.cpu_offload import Streaming

        stream: Streaming | Sharding | None
        stream = Streaming(torch.device(device), facts.num_layers, resident_layers or 0) if streams else parted
        built.handle = attach(model, policy, home="eight_bit" if quant == "fp8" else "stacked", stream=stream)
        built.report = built.handle.report.lines()
        if quant == "fp8":
            _refuse_other_layers(built.handle.report.left)
    else:
        built.report = ["acceleration: switched off"]
    if parted is not None and not parted.done:
        parted.all_of(model)
    if policy != "keep" and (built.handle is None or not built.handle.layers):
        # blocks that are all transformers' own know one policy besides keeping: each is computed again as a whole
        newer = getattr(model, "activation_checkpointing_enable", None)  # its newer name
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
        built.report.append("activations: blocks are computed again by transformers' own means")
    return built


def sketch(
    spec_model: str,
    *,
    adapter: "AdapterSpec",
    dtype: "torch.dtype",
    device: "torch.device | str",
    policy: MemoryPolicy = "keep",
    trust_remote_code: bool = False,
    quant: str = "none",
) -> Built:
    """One layer of a model, with random weights, built and accelerated as `build` does it, every block believed.

    For the kernels that it needs, not for what it computes. Arguments as of `build`; `quant` is ``none`` or ``fp8``.

    Raises:
        SpecError, HubError: see `load_model` and `add_adapter`.
    """
    from nbtune.models.accelerate import accelerate as attach

    base = outline(spec_model, layers=1, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    model: Any = add_adapter(base, adapter, seed=0)
    built = Built(model, None, model_facts(spec_model))
    built.handle = attach(model, policy, home="eight_bit" if quant == "fp8" else "stacked", believe=True)
    return built


def _refuse_other_layers(left: dict[str, str]) -> None:
    """All decoder layers have 8-bit weights, or none: what is exported is rounded in the same way."""
    for name, why in left.items():
        if name.startswith(("layers", "model")):
            raise PlanError(
                f"8-bit weights need nbtune's own blocks, and {name} is none: {why}", fix="write `weights: auto`"
            )

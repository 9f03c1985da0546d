"""The one way in which a run, and everything that wants what a run has, gets its model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.device import empty_cache
from nbtune.errors import PlanError
from nbtune.models.abilities import needs_own_blocks
from nbtune.models.adapter_targets import left_out_lines
from nbtune.models.adapters import add_adapter
from nbtune.models.causal_check import refuse_unless_causal
from nbtune.models.config_facts import ModelFacts, model_facts
from nbtune.models.first_values import loftq
from nbtune.models.heads import Head, add_head
from nbtune.models.loading import load_model, load_tokenizer, outline
from nbtune.models.memory_estimate import MemoryPolicy
from nbtune.models.trial import blocks_of
from nbtune.spec.placement import PLAIN, Placement, PlacementWish

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from nbtune.models.accelerate import Patch
    from nbtune.spec import AdapterSpec


@dataclass
class Built:
    """A model that is ready to train.

    Args:
        model: takes ``input_ids``, ``labels``, ``num_items_in_batch``, ``position_ids`` and so on, gives ``.loss``.
        tokenizer: its tokenizer, or None when it was not asked for.
        facts: what the planner knows about it.
        patch: the acceleration; None where it was switched off. ``patch.remove()`` puts the stock model back.
        report: what was accelerated, and what was left alone and why, a line each.
    """

    model: "torch.nn.Module"
    tokenizer: "PreTrainedTokenizerBase | None"
    facts: ModelFacts
    patch: "Patch | None" = None
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
    weights: Placement | None = None,
    tokenizer: bool = True,
    head: Head | None = None,
    first_values: Path | None = None,
) -> Built:
    """Load a model, put its adapter on, and make its forward fast.

    >>> fp32, adapter = nbtune.device.torch_dtype("fp32"), nbtune.spec.AdapterSpec(r=4)
    >>> built = nbtune.models.build("nbtune/tiny", adapter=adapter, dtype=fp32, device="cpu")
    >>> sorted(built.patch.report.taken)[:2]
    ['head', 'layers.0']

    Args:
        spec_model: ``nbtune/tiny``, a folder, or a Hub id.
        adapter: what is trained.
        dtype: of frozen weights, and of every weight in full training.
        device: where the model lives.
        policy: what blocks keep for their backward; where none is accelerated, anything but ``keep`` recomputes them.
        seed: of the adapter's first values.
        accelerate: False leaves transformers' own forward.
        trust_remote_code: let the model's own Python run.
        weights: format and home of what is frozen; unset: on the device, as the adapter and `dtype` say.
        tokenizer: also load it.
        head: of scores, in place of its own.
        first_values: see `add_adapter`.

    Raises:
        SpecError, HubError, PlanError: see `load_model` and `add_adapter`; PlanError also for weights that cannot stay
            in the host's memory.
    """
    import torch

    if weights is None:
        weights = PlacementWish.of_spec("auto", adapter.type).on_device(fp32=dtype == torch.float32)
    if (weights.streams or weights.eight_bit) and not accelerate:
        raise PlanError(
            "weights in the host's memory, or in 8 bits, need nbtune's own blocks", fix="leave `accelerate` on"
        )
    facts = model_facts(spec_model)
    tok = load_tokenizer(spec_model, trust_remote_code=trust_remote_code) if tokenizer else None
    first = torch.device("cpu") if weights.streams or weights.shards else device
    full = adapter.type == "full"
    how: dict[str, Any] = {"weights": weights, "trust_remote_code": trust_remote_code, "own_weights": full}
    how["work"] = device
    base = load_model(spec_model, dtype=dtype, device=first, **how)
    if torch.device(first) == torch.device(
        device
    ):  # where weights come piece by piece, blocks that are taken are causal
        refuse_unless_causal(base, spec_model)
    apart = [] if full or adapter.target_modules != "all-linear" else left_out_lines(base, adapter)
    model: Any = add_adapter(base, adapter, seed=seed, first_values=first_values)
    if adapter.init_lora_weights == "loftq":
        loftq(model, spec_model)
    built = Built(model, tok, facts)
    if accelerate:
        from nbtune.models.accelerate import apply

        built.patch = apply(model, policy, weights=weights, device=torch.device(device))
        built.report = built.patch.report.lines()
        report = built.patch.report
        if weights.eight_bit and (refusal := needs_own_blocks(blocks_of(report))):
            raise refusal
    else:
        built.report = ["acceleration: switched off"]
        if weights.shards:
            from nbtune.models.accelerate.layer_placement import shard

            shard(model, torch.device(device))
    built.report += apart
    if head is not None:
        add_head(model, head, seed=seed, pad=getattr(built.tokenizer, "pad_token_id", None))
    if policy != "keep" and (built.patch is None or not built.patch.layers):
        recompute_stock(model)
        built.report.append("activations: blocks are computed again by transformers' own means")
    empty_cache(torch.device("cpu"))  # of what was read, rounded and tried
    return built


def recompute_stock(model: Any) -> None:
    """Let blocks that are all transformers' own be computed again as a whole: their one policy besides keeping."""
    newer = getattr(model, "activation_checkpointing_enable", None)  # its newer name
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


def sketch(
    spec_model: str,
    *,
    adapter: "AdapterSpec",
    dtype: "torch.dtype",
    device: "torch.device | str",
    policy: MemoryPolicy = "keep",
    trust_remote_code: bool = False,
    weights: Placement = PLAIN,
) -> Built:
    """Build one layer of a model, with random weights, accelerated as `build` does it, every block believed.

    For the kernels that it needs, not for what it computes. Arguments as of `build`; of `weights` the format
    counts, and nf4 is left out.

    Raises:
        SpecError, HubError: see `load_model` and `add_adapter`.
    """
    from nbtune.models.accelerate import apply

    base = outline(spec_model, layers=1, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    model: Any = add_adapter(base, adapter.anywhere, seed=0)
    built = Built(model, None, model_facts(spec_model))
    built.patch = apply(model, policy, weights=weights.on_device(), believe=True)
    return built
